//! What the options and variables of a platform mean for the settings of a worker, checked before
//! anything is opened or started.

use std::ffi::OsString;

use super::api_key::ApiKeyHeader;
use super::arguments::{PlatformArgs, PlatformName};
use super::select::{self, ACCESS_KEY, API_KEY, HalfPair, Mode, Offered, SECRET_KEY};
use crate::settings::{Refusal, Settings, base_url, id};

/// A variable that the worker takes out of its environment and cannot hand on.
const CONTAINER_TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
/// Longest name of a region.
const REGION_BYTES_MAX: usize = 64;

/// The platform on AWS, as it is to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aws {
    /// AWS-2
    pub region: String,
    /// AWS-4
    pub mode: Mode,
    /// For API keys.
    pub api_key_header: ApiKeyHeader,
}

/// What is around the worker, beside its options.
pub struct Around<'a> {
    /// A variable of the environment.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Whether a secret variable was set, and is hidden now.
    pub hidden: &'a dyn Fn(&str) -> bool,
    /// `--base-url`, not the variable that may stand for it.
    pub base_url: Option<&'a str>,
    /// `--workspace-id`, in the same way.
    pub workspace_id: Option<&'a str>,
    /// `--insecure-http`
    pub insecure_http: bool,
}

/// Changes `settings` to those of the platform that was asked for, if one was.
///
/// # Errors
/// The first thing that is wrong or missing.
pub fn apply(
    mut settings: Settings,
    asked: &PlatformArgs,
    around: &Around<'_>,
) -> Result<Settings, Refusal> {
    let Some(PlatformName::Aws) = asked.platform else { return Ok(settings) };
    if settings.environment_key_file.is_some() {
        let hint = "leave it out; AWS credentials or an API key of the AWS console take its place";
        return refuse("cannot use an environment key on AWS: it is not accepted there", hint);
    }
    let text = |name: &str| {
        let value = (around.variable)(name).filter(|value| !value.is_empty());
        value.map(OsString::into_string).transpose().map_err(|_| Refusal {
            text: format!("cannot use {name}: it is not text"),
            hint: "set it to a name".to_owned(),
        })
    };
    let mode = mode(asked, around)?;
    // AWS-2: no default.
    let region = match &asked.aws_region {
        Some(region) => Some(region.clone()),
        None => text("AWS_REGION")?.or(text("AWS_DEFAULT_REGION")?),
    };
    let Some(region) = region else {
        return refuse(
            "no AWS region given",
            "use --aws-region or AWS_REGION; there is no default",
        );
    };
    let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if region.is_empty() || region.len() > REGION_BYTES_MAX || !region.bytes().all(label) {
        return refuse("cannot use the AWS region: it is not one", "write it like eu-central-1");
    }
    // AWS-2, AWS-3: variables of the other control plane do not count where AWS has its own.
    let url = match around.base_url {
        Some(url) => url.to_owned(),
        None => match text("ANTHROPIC_AWS_BASE_URL")? {
            Some(url) => url,
            None => format!("https://aws-external-anthropic.{region}.api.aws"),
        },
    };
    settings.base_url = base_url(Some(&url), around.insecure_http)?;
    let workspace = match around.workspace_id {
        Some(given) => Some(given.to_owned()),
        None => text("ANTHROPIC_AWS_WORKSPACE_ID")?.or(settings.workspace_id.take()),
    };
    let Some(workspace) = workspace else {
        let hint = "use --workspace-id or ANTHROPIC_AWS_WORKSPACE_ID; the AWS console shows it";
        return refuse("no workspace id given, and on AWS every request needs one", hint);
    };
    settings.workspace_id = Some(id("--workspace-id", &workspace)?);
    settings.platform = Some(Aws { region, mode, api_key_header: asked.aws_api_key_header });
    Ok(settings)
}

fn mode(asked: &PlatformArgs, around: &Around<'_>) -> Result<Mode, Refusal> {
    let hidden = around.hidden;
    let offered = Offered {
        api_key_file: asked.aws_api_key_file.clone(),
        profile: asked.aws_profile.clone(),
        api_key: hidden(API_KEY),
        access_key: hidden(ACCESS_KEY),
        secret_key: hidden(SECRET_KEY),
    };
    let mode = match select::select(&offered) {
        Ok(mode) => mode,
        Err(HalfPair(missing)) => {
            let hint = format!("set both {ACCESS_KEY} and {SECRET_KEY}, or neither");
            return refuse(format!("half of an AWS key pair is missing: {missing}"), hint);
        }
    };
    if mode == Mode::Chain && !offered.access_key && hidden(CONTAINER_TOKEN) {
        let hint = "put it into a file and name that in AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
        return refuse(
            format!("cannot use {CONTAINER_TOKEN}: a variable is no place for it"),
            hint,
        );
    }
    Ok(mode)
}

fn refuse<T>(text: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { text: text.into(), hint: hint.into() })
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
