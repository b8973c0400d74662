//! A control plane that a cloud platform hosts: the Claude Platform on AWS (protocol §10).
//!
//! There is no environment key there. Requests carry a signature made with AWS credentials, or an
//! API key that the platform's console made. `arguments.rs` and `select.rs` are what was asked for
//! (AWS-4), `settings.rs` is what follows from it, `files.rs` reads what only whoever started the
//! worker may read, `chain.rs` finds credentials, `identity.rs` keeps them fresh, `sign.rs` signs.
//!
//! All of it runs in the control side: neither the launcher nor a jail ever has any of it (INV-1,
//! AWS-8). The queue sees an [`crate::queue::Authenticator`] and nothing of AWS.

mod api_key;
mod arguments;
mod chain;
mod connector;
mod error;
mod files;
mod identity;
mod select;
mod settings;
mod sign;

use std::path::Path;
use std::sync::Arc;

pub use arguments::PlatformArgs;
pub use error::PlatformError;
pub use select::{ApiKeyOrigin, Mode};
pub use settings::{Around, Aws, apply};

use crate::credential::file::{self, Trust};
use crate::credential::hidden::HiddenVariables;
use crate::credential::{KeySource, Secret};
use crate::queue::PlatformCredential;
use files::Files;
use identity::Identity;
use secrecy::SecretString;

/// What was read with the rights of whoever started the worker.
#[derive(Debug)]
pub struct Prepared {
    aws: Aws,
    with: With,
}

#[derive(Debug)]
enum With {
    ApiKey(SecretString),
    Signatures { files: Files, hidden: HiddenVariables },
}

/// Reads the files that the settings name, before these rights are given up.
///
/// # Errors
/// What is wrong with one of them, or with the variables.
pub fn prepare(aws: &Aws, hidden: &HiddenVariables) -> Result<Prepared, PlatformError> {
    let with = match &aws.mode {
        Mode::ApiKey(ApiKeyOrigin::File(path)) => {
            With::ApiKey(file::read(Secret::PlatformKey, path, Trust::Owner)?)
        }
        Mode::ApiKey(ApiKeyOrigin::Variable) => {
            let value = hidden.get(select::API_KEY).ok_or(PlatformError::NoApiKey)?;
            With::ApiKey(api_key::checked(value)?)
        }
        Mode::Profile(_) | Mode::Chain => {
            let variable = |name: &str| std::env::var_os(name);
            With::Signatures { files: Files::read(&variable)?, hidden: hidden.clone() }
        }
    };
    Ok(Prepared { aws: aws.clone(), with })
}

impl Prepared {
    /// Where the credential comes from, in words.
    pub fn source(&self) -> KeySource {
        KeySource::platform(self.aws.mode.to_string())
    }

    /// The credential of every request. Finds AWS credentials the first time and keeps them fresh
    /// from then on, in a task of the runtime that this is called in.
    ///
    /// # Errors
    /// There are none to be had.
    pub async fn start(self, ca_file: Option<&Path>) -> Result<PlatformCredential, PlatformError> {
        let (files, hidden) = match self.with {
            With::ApiKey(key) => {
                let authenticator = api_key::ApiKey::new(key, self.aws.api_key_header);
                return Ok(PlatformCredential::new(Arc::new(authenticator)));
            }
            With::Signatures { files, hidden } => (files, hidden),
        };
        let provider = chain::provider(&self.aws, files, &hidden, ca_file).await?;
        let identity = Identity::start(provider).await?;
        let signer = sign::Signer::new(identity, self.aws.region);
        Ok(PlatformCredential::new(Arc::new(signer)))
    }
}
