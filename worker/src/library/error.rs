//! The one error type of the library.

use std::fmt;

/// What kind of thing went wrong; new kinds may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting cannot work: it is empty, malformed, or contradicts another one.
    Settings,
    /// The control plane refuses for good: the environment or its key (POLL-5).
    Refused,
    /// This host cannot make what was asked for: a jail, a helper process, a directory.
    Host,
    /// The audit log cannot be written.
    Audit,
}

/// Something that cannot be done. The text says what and why; the cause is its source.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(super) fn new(kind: ErrorKind, text: impl Into<String>) -> Error {
        Error { kind, text: text.into(), source: None }
    }

    pub(super) fn because(
        kind: ErrorKind,
        text: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        Error { kind, text: text.into(), source: Some(Box::new(source)) }
    }

    /// Of what kind it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}
