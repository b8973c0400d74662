//! A control plane that a cloud platform hosts: the Claude Platform on AWS (protocol §10).
//!
//! There is no environment key there. Requests carry a signature made with AWS credentials, or an
//! API key that the platform's console made. `arguments.rs` and `select.rs` are what was asked for
//! (AWS-4), `settings.rs` is what follows from it, `files.rs` reads what only whoever started the
//! worker may read, `chain.rs` finds credentials, `process.rs` runs what an AWS profile names, `identity.rs` keeps them fresh, `sign.rs` signs.
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
mod process;
mod select;
mod settings;
mod sign;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use arguments::PlatformArgs;
pub use error::PlatformError;
pub use select::{ApiKeyOrigin, Mode};
pub use settings::{Around, Aws, apply};

use crate::credential::file::{self, Trust};
use crate::credential::hidden::HiddenVariables;
use crate::credential::{Again, Kept, KeyError, KeySource, Secret};
use crate::queue::PlatformCredential;
use files::{Files, Places};
use identity::Identity;
use secrecy::SecretString;

/// What was read with the rights of whoever started the worker.
#[derive(Debug)]
pub struct Prepared {
    aws: Aws,
    with: With,
    again: Option<Again>,
}

#[derive(Debug)]
enum With {
    ApiKey(SecretString),
    Signatures { places: Places, files: Files, hidden: HiddenVariables },
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
            let places = Places::find(&|name: &str| std::env::var_os(name));
            With::Signatures { files: places.read()?, places, hidden: hidden.clone() }
        }
    };
    Ok(Prepared { aws: aws.clone(), with, again: None })
}

impl Prepared {
    /// Where the credential comes from, in words.
    pub fn source(&self) -> KeySource {
        KeySource::platform(self.aws.mode.to_string())
    }

    /// The files that SIGHUP is about; none where everything came by variables.
    pub fn kept(&self) -> Vec<Kept> {
        match (&self.aws.mode, &self.with) {
            (Mode::ApiKey(ApiKeyOrigin::File(path)), _) => {
                let (what, trust) = (Secret::PlatformKey, Trust::Owner);
                vec![Kept { what, trust, path: path.clone() }]
            }
            (mode, With::Signatures { places, hidden, .. }) if !chain::is_fixed(mode, hidden) => {
                places.kept()
            }
            _ => Vec::new(),
        }
    }

    /// From now on `again` reads them.
    pub fn use_reader(&mut self, again: Option<Again>) {
        self.again = again;
    }

    /// The credential of every request, and what puts another in its place. Finds AWS credentials the
    /// first time and keeps them fresh from then on, in a task of the runtime that this is called in.
    ///
    /// # Errors
    /// There are none to be had.
    pub async fn start(
        self,
        ca_file: Option<&Path>,
    ) -> Result<(PlatformCredential, Option<Renewal>), PlatformError> {
        let again = self.again.clone().filter(|_| !self.kept().is_empty());
        match self.with {
            With::ApiKey(key) => {
                let key = Arc::new(api_key::ApiKey::new(key, self.aws.api_key_header));
                let credential = PlatformCredential::new(Arc::clone(&key) as Arc<_>);
                let path = match self.aws.mode {
                    Mode::ApiKey(ApiKeyOrigin::File(path)) => Some(path),
                    _ => None,
                };
                let renewal = again
                    .zip(path)
                    .map(|(again, path)| Renewal { again, of: Renewed::ApiKey { path, key } });
                Ok((credential, renewal))
            }
            With::Signatures { places, files, hidden } => {
                let provider = chain::provider(&self.aws, files, &hidden, ca_file).await?;
                let identity = Identity::start(provider).await?;
                let signer = sign::Signer::new(identity.clone(), self.aws.region.clone());
                let (aws, ca_file) = (self.aws, ca_file.map(Path::to_owned));
                let renewal = again.map(|again| Renewal {
                    again,
                    of: Renewed::Files { places, aws, hidden, ca_file, identity },
                });
                Ok((PlatformCredential::new(Arc::new(signer)), renewal))
            }
        }
    }
}

/// Reads the files of a platform's credential again while a worker runs.
pub struct Renewal {
    again: Again,
    of: Renewed,
}

enum Renewed {
    ApiKey {
        path: PathBuf,
        key: Arc<api_key::ApiKey>,
    },
    Files {
        places: Places,
        aws: Aws,
        hidden: HiddenVariables,
        ca_file: Option<PathBuf>,
        identity: Identity,
    },
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renewal")
    }
}

impl Renewal {
    /// Reads them, and puts what they say in the place of what is used. AWS credentials are asked for
    /// at once: those that nobody gives do not take the place of good ones.
    ///
    /// # Errors
    /// What is wrong; what is used stays.
    pub async fn reread(&self) -> Result<(), PlatformError> {
        match &self.of {
            Renewed::ApiKey { path, key } => {
                let from = path.clone();
                let bytes = self.blocking(move |again| Ok(again.read(&from)?)).await?;
                let from = path.display().to_string();
                key.replace(file::parse(Secret::PlatformKey, &bytes, &from)?);
                Ok(())
            }
            Renewed::Files { places, aws, hidden, ca_file, identity } => {
                let places = places.clone();
                let files = self.blocking(move |again| places.read_again(&again)).await?;
                let provider = chain::provider(aws, files, hidden, ca_file.as_deref()).await?;
                identity.replace(provider).await
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(Again) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, PlatformError> {
        let again = self.again.clone();
        let read = tokio::task::spawn_blocking(move || read(again)).await;
        read.unwrap_or(Err(PlatformError::Key(KeyError::ReaderGone)))
    }
}
