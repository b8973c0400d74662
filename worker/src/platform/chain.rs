//! Where AWS credentials come from: a pair in the environment, or what AWS's own library finds in the
//! files, in a process that they name, with a token, or at an endpoint.

use std::path::Path;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use secrecy::ExposeSecret as _;

use super::connector::Connections;
use super::error::PlatformError;
use super::files::Files;
use super::select::{ACCESS_KEY, Mode, SECRET_KEY};
use super::settings::Aws;
use crate::credential::hidden::HiddenVariables;

/// The other part of temporary credentials.
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

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
    let given = EnvConfigFiles::builder()
        .with_contents(EnvConfigFileKind::Config, files.config.expose_secret())
        .with_contents(EnvConfigFileKind::Credentials, files.credentials.expose_secret())
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(Connections::new(ca_file)?)
        .region(Region::new(aws.region.clone()))
        .profile_files(given.clone());
    if let Mode::Profile(name) = &aws.mode {
        let profile = aws_config::profile::ProfileFileCredentialsProvider::builder()
            .configure(
                &aws_config::provider_config::ProviderConfig::default()
                    .with_http_client(Connections::new(ca_file)?)
                    .with_region(Some(Region::new(aws.region.clone()))),
            )
            .profile_files(given)
            .profile_name(name)
            .build();
        loader = loader.profile_name(name).credentials_provider(profile);
    }
    let found = loader.load().await.credentials_provider();
    found.ok_or_else(|| PlatformError::NotFound { reason: "no source is set up".to_owned() })
}
