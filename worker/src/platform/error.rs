//! Why there is no credential of the platform. No text holds a byte of one.

use crate::credential::KeyError;
use crate::exit::Exit;

/// A platform's credential that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("no API key given")]
    NoApiKey,
    #[error("cannot use the API key from {from}: it is not one line of printable ASCII")]
    ApiKey { from: &'static str },
    #[error("cannot find AWS credentials: {reason}")]
    NotFound { reason: String },
    #[error("cannot reach anything over TLS: {reason}")]
    Tls { reason: String },
}

impl PlatformError {
    /// What to do.
    pub fn hint(&self) -> String {
        match self {
            Self::Key(error) => error.hint(),
            Self::NoApiKey | Self::ApiKey { .. } => {
                "make an API key in the AWS console and name its file: --aws-api-key-file FILE"
                    .to_owned()
            }
            Self::NotFound { .. } => {
                "docs/aws.md tells where they are looked for; after its start as root a worker \
                 reads files as an unprivileged user"
                    .to_owned()
            }
            Self::Tls { .. } => "see --ca-file".to_owned(),
        }
    }

    /// The exit code, if the worker cannot start because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Key(error) => error.exit(),
            Self::NoApiKey => Exit::Usage,
            _ => Exit::Policy,
        }
    }
}
