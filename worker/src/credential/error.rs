//! What can be wrong with the environment key. No text holds a byte of it.

use std::io;

use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// Why there is no key. Travels from the key reader to the worker, so causes are error numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum KeyError {
    #[error("no environment key given")]
    Missing,
    #[error("cannot read the environment key from {from}: {}", io::Error::from_raw_os_error(*errno))]
    Read { from: String, errno: i32 },
    #[error("cannot read the environment key from {from}: it is not a regular file")]
    NotAFile { from: String },
    #[error("cannot use the environment key from {from}: it is empty")]
    Empty { from: String },
    #[error("cannot use the environment key from {from}: longer than {max} bytes")]
    TooLong { from: String, max: u64 },
    #[error(
        "cannot use the environment key from {from}: byte {at} is not a printable ASCII character"
    )]
    Characters { from: String, at: usize },
    #[error("refused: the environment key file {from} has mode {mode:04o}, so others have access")]
    Mode { from: String, mode: u32 },
    #[error("refused: the environment key file {from} belongs to user {owner}, not to root or you")]
    Owner { from: String, owner: u32 },
    #[error("refused: {from} holds an API key of an organization, not an environment key")]
    OrganizationKey { from: String },
    #[error("refused: {name} is set; it must not exist on a host that runs sessions")]
    OrganizationVariable { name: String },
    #[error(
        "cannot take ANTHROPIC_ENVIRONMENT_KEY out of the environment: {}",
        io::Error::from_raw_os_error(*errno)
    )]
    Hide { errno: i32 },
    #[error(
        "cannot take secrets of AWS or of traces out of the environment: {}",
        io::Error::from_raw_os_error(*errno)
    )]
    HideOthers { errno: i32 },
    #[error("cannot read the environment key again: it came by ANTHROPIC_ENVIRONMENT_KEY")]
    Fixed,
    #[error("cannot start the key reader: {reason}")]
    ReaderStart { reason: String },
    #[error("cannot read the environment key again: the key reader does not answer")]
    ReaderGone,
}

impl KeyError {
    /// What to do.
    pub fn hint(&self) -> String {
        let text = match self {
            Self::Missing => {
                "name a file that only you can read: --environment-key-file FILE; or use the systemd \
                 credential `environment-key`, or ANTHROPIC_ENVIRONMENT_KEY"
            }
            Self::Read { .. } | Self::NotAFile { .. } => {
                "name a file that holds the key and nothing else"
            }
            Self::Empty { .. } | Self::TooLong { .. } | Self::Characters { .. } => {
                "copy the key from the console again; the file holds it on one line and nothing else"
            }
            Self::Mode { from, .. } => {
                return format!("chmod 600 {from}; if others had access, make a new key");
            }
            Self::Owner { from, .. } => return format!("chown root {from}; make a new key"),
            Self::OrganizationKey { .. } => {
                "revoke it, for it was on this host; make an environment key in the console"
            }
            Self::OrganizationVariable { name } => {
                return format!(
                    "unset {name} and start the worker with an environment key; commands that an \
                     agent runs could read it"
                );
            }
            Self::Hide { .. } => "use --environment-key-file instead",
            Self::HideOthers { .. } => {
                "leave the variables out; docs/aws.md names the files that can take their place"
            }
            Self::Fixed => "use --environment-key-file to change the key without a restart",
            Self::ReaderStart { .. } | Self::ReaderGone => {
                "the key in use stays; restart the worker to use another one"
            }
        };
        text.to_owned()
    }

    /// The exit code, if the worker cannot start because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Missing => Exit::Usage,
            Self::Mode { .. }
            | Self::Owner { .. }
            | Self::OrganizationKey { .. }
            | Self::OrganizationVariable { .. } => Exit::Refused,
            Self::Hide { .. }
            | Self::HideOthers { .. }
            | Self::ReaderStart { .. }
            | Self::ReaderGone => Exit::Unexpected,
            _ => Exit::Policy,
        }
    }
}
