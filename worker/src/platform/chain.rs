//! Where AWS credentials come from: a pair in the environment, or what AWS's own library finds in the
//! files, in a process that they name, with a token, or at an endpoint.

use std::path::Path;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use secrecy::ExposeSecret as _;

use super::connector::Connections;
use super::error::PlatformError;
use super::files::Files;
use super::process;
use super::select::{ACCESS_KEY, Mode, SECRET_KEY};
use super::settings::Aws;
use crate::credential::hidden::HiddenVariables;

/// The other part of temporary credentials.
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

/// Whether credentials are those of the environment, which cannot change.
pub fn is_fixed(mode: &Mode, hidden: &HiddenVariables) -> bool {
    *mode == Mode::Chain && hidden.get(ACCESS_KEY).is_some() && hidden.get(SECRET_KEY).is_some()
}

/// The provider that these settings mean. Asks nobody yet for credentials.
///
/// # Errors
/// [`PlatformError::Tls`], or nothing that could have any.
pub async fn provider(
    aws: &Aws,
    files: Files,
    hidden: &HiddenVariables,
    ca_file: Option<&Path>,
) -> Result<SharedCredentialsProvider, PlatformError> {
    // The first link of the chain: these variables have been taken out of the environment.
    if aws.mode == Mode::Chain
        && let (Some(access), Some(secret)) = (hidden.get(ACCESS_KEY), hidden.get(SECRET_KEY))
    {
        let token = hidden.get(SESSION_TOKEN).map(|token| token.expose_secret().to_owned());
        let (access, secret) = (access.expose_secret(), secret.expose_secret());
        let fixed = Credentials::new(access, secret, token, None, "environment");
        return Ok(SharedCredentialsProvider::new(fixed));
    }
    let given = || {
        EnvConfigFiles::builder()
            .with_contents(EnvConfigFileKind::Config, files.config.expose_secret())
            .with_contents(EnvConfigFileKind::Credentials, files.credentials.expose_secret())
    };
    let named = match &aws.mode {
        Mode::Profile(name) => Some(name.clone()),
        _ => None,
    };
    let process = process::find(&given().build(), named.clone()).await;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(Connections::new(ca_file)?)
        .region(Region::new(aws.region.clone()))
        .profile_files(given().build());
    // In the default chain a profile that names a process goes before everything that is left of it.
    if named.is_some() || process.is_some() {
        let mut profile = ProfileFileCredentialsProvider::builder().configure(
            &ProviderConfig::default()
                .with_http_client(Connections::new(ca_file)?)
                .with_region(Some(Region::new(aws.region.clone()))),
        );
        let mut files = given();
        if let Some(found) = process {
            files = files.with_contents(EnvConfigFileKind::Credentials, found.overlay);
            profile = profile.with_custom_provider(process::SOURCE, found.process);
        }
        if let Some(name) = &named {
            profile = profile.profile_name(name);
            loader = loader.profile_name(name);
        }
        loader = loader.credentials_provider(profile.profile_files(files.build()).build());
    }
    let found = loader.load().await.credentials_provider();
    found.ok_or_else(|| PlatformError::NotFound { reason: "no source is set up".to_owned() })
}
