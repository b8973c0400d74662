//! The process that an AWS profile names (`credential_process`), run here and not by AWS's library: that
//! gives one up that hangs, and leaves it and everything it started behind.
//!
//! Which profile's process it is follows the library's own rules. The library then finds, laid over that
//! profile, a source of credentials that is ours; roles that are assumed with them stay its business.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_config::profile::{Profile, ProfileSet};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_runtime::env_config::file::EnvConfigFiles;
use aws_types::os_shim_internal::{Env, Fs};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use zeroize::Zeroizing;

use crate::child::Group;

/// The name of the source, in lower case as the library wants it.
pub const SOURCE: &str = "stockade-process";
/// How long a process may take: less than a question to the provider, so that it ends before that.
const TIME_MAX: Duration = Duration::from_secs(25);
/// Longest output.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// Longest chain of profiles.
const CHAIN_MAX: usize = 32;

/// A process of a profile, and what is to be laid over the profiles.
#[derive(Debug)]
pub struct Found {
    /// In the form of the credentials file.
    pub overlay: String,
    /// What [`SOURCE`] stands for.
    pub process: CredentialProcess,
}

/// The process at the end of the chain of the profile `named`, else of that which the environment
/// selects. Profiles that cannot be read have none: the library says what is wrong with them.
pub async fn find(files: &EnvConfigFiles, named: Option<String>) -> Option<Found> {
    let named = named.map(Into::into);
    let profiles = aws_config::profile::load(&Fs::real(), &Env::real(), files, named).await.ok()?;
    found(&profiles)
}

fn found(profiles: &ProfileSet) -> Option<Found> {
    let mut name = profiles.selected_profile();
    for step in 0..CHAIN_MAX {
        let profile = profiles.get_profile(name)?;
        let has = |key: &str| profile.get(key).is_some();
        if step > 0 && has("aws_access_key_id") && has("aws_secret_access_key") {
            return None;
        }
        let assumes = has("role_arn") && !has("web_identity_token_file");
        match profile.get("source_profile").filter(|_| assumes) {
            Some(next) if next != name => name = next,
            _ if has("credential_source") => return None,
            // A role that is assumed with credentials of the same profile.
            Some(_) => {
                let through = format!(
                    "[{name}]\nsource_profile = {SOURCE}\n[{SOURCE}]\ncredential_source = {SOURCE}\n"
                );
                return of(profile, through);
            }
            None if assumes => return None,
            None => return of(profile, format!("[{name}]\ncredential_source = {SOURCE}\n")),
        }
    }
    None
}

/// The process of a profile, unless the library would use something else of it first.
fn of(profile: &Profile, overlay: String) -> Option<Found> {
    const BEFORE: [&str; 7] = [
        "web_identity_token_file",
        "login_session",
        "sso_session",
        "sso_account_id",
        "sso_region",
        "sso_role_name",
        "sso_start_url",
    ];
    if BEFORE.iter().any(|key| profile.get(key).is_some()) {
        return None;
    }
    let command = SecretString::from(profile.get("credential_process")?);
    Some(Found { overlay, process: CredentialProcess { command, time_max: TIME_MAX } })
}

/// Runs a command of the shell that prints credentials.
#[derive(Debug)]
pub struct CredentialProcess {
    /// Its arguments may be secret.
    command: SecretString,
    time_max: Duration,
}

impl ProvideCredentials for CredentialProcess {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.ask())
    }
}

impl CredentialProcess {
    /// One run. When it takes too long, or nobody waits any more, its process group is killed, whatever
    /// signals it ignores, and the process is reaped. Background processes of one that ended by itself
    /// are left alone.
    async fn ask(&self) -> provider::Result {
        match tokio::time::timeout(self.time_max, self.run()).await {
            Ok(answer) => answer,
            Err(_) => Err(CredentialsError::provider_timed_out(self.time_max)),
        }
    }

    async fn run(&self) -> provider::Result {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", self.command.expose_secret()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut group = Group::start(&mut command).map_err(CredentialsError::provider_error)?;
        let output = group.stdout().ok_or_else(|| failed("it has no output"))?;
        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(output));
        let output = output.map_err(CredentialsError::provider_error)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(OUTPUT_BYTES_MAX as usize + 1));
        let read = output.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut bytes).await;
        if read.map_err(CredentialsError::provider_error)? as u64 > OUTPUT_BYTES_MAX {
            return Err(failed("its output is too long"));
        }
        let status = group.wait().await.map_err(CredentialsError::provider_error)?;
        if !status.success() {
            return Err(failed("it did not succeed"));
        }
        parse(&bytes)
    }
}

fn failed(what: &'static str) -> CredentialsError {
    CredentialsError::provider_error(what)
}

/// The form that AWS documents; names of members in any case.
fn parse(bytes: &[u8]) -> provider::Result {
    let members: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|_| failed("its output is no JSON object"))?;
    let member = |name: &str| {
        let found = members.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value).filter(|value| !value.is_null())
    };
    let text = |name: &str| member(name).and_then(Value::as_str);
    if member("Version").and_then(Value::as_u64) != Some(1) {
        return Err(failed("its output is not of version 1"));
    }
    let (Some(id), Some(secret)) = (text("AccessKeyId"), text("SecretAccessKey")) else {
        return Err(failed("its output has no key pair"));
    };
    let expiry = match text("Expiration") {
        None if member("Expiration").is_some() => return Err(failed("its expiration is no time")),
        None => None,
        Some(written) => {
            let form = aws_smithy_types::date_time::Format::DateTimeWithOffset;
            let time = aws_smithy_types::DateTime::from_str(written, form);
            let time = time.ok().and_then(|time| time.try_into().ok());
            Some(time.ok_or_else(|| failed("its expiration is no time"))?)
        }
    };
    let token = text("SessionToken").map(str::to_owned);
    Ok(Credentials::new(id, secret, token, expiry, "process"))
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
