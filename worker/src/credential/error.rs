//! What can be wrong with the environment key, or with another secret. No text holds a byte of it.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// What a secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Secret {
    /// The worker's standing credential (AUTH-1).
    EnvironmentKey,
    /// That of one work item (AUTH-2).
    WorkItem,
    /// What deliveries of webhooks are signed with (HOOK-2).
    WebhookKey,
    /// An organization's key, on hosts that run no worker (AUTH-12).
    OrganizationKey,
    /// What shows that the webhook's listener is who it says.
    TlsKey,
    /// Made by the console of a platform; its form is the platform's affair (AWS-4).
    PlatformKey,
    /// One of the two files of the AWS tools (AWS-4).
    AwsFile,
    /// For a source of staged input.
    Staging,
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::EnvironmentKey => "environment key",
            Secret::WorkItem => "work secret",
            Secret::WebhookKey => "webhook signing key",
            Secret::OrganizationKey => "organization key",
            Secret::TlsKey => "TLS key",
            Secret::PlatformKey => "API key of the AWS console",
            Secret::AwsFile => "AWS configuration",
            Secret::Staging => "credential for staged input",
        })
    }
}

impl Secret {
    /// The variable that may hold it.
    pub fn variable(self) -> &'static str {
        match self {
            Secret::EnvironmentKey => "ANTHROPIC_ENVIRONMENT_KEY",
            Secret::WorkItem => "ANTHROPIC_WORK_SECRET",
            Secret::WebhookKey => "ANTHROPIC_WEBHOOK_SIGNING_KEY",
            Secret::OrganizationKey => "ANTHROPIC_API_KEY",
            Secret::TlsKey | Secret::AwsFile | Secret::Staging => "no variable",
            Secret::PlatformKey => "ANTHROPIC_AWS_API_KEY",
        }
    }

    /// The option that names a file with it.
    pub fn option(self) -> &'static str {
        match self {
            Secret::EnvironmentKey => "--environment-key-file",
            Secret::WorkItem => "--work-secret-file",
            Secret::WebhookKey => "--webhook-key-file",
            Secret::OrganizationKey => "--api-key-file",
            Secret::TlsKey => "--tls-key",
            Secret::PlatformKey => "--aws-api-key-file",
            Secret::AwsFile => "AWS_SHARED_CREDENTIALS_FILE",
            Secret::Staging => "[stage] of --config",
        }
    }
}

/// Why there is no key. Travels from the key reader to the worker, so causes are error numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum KeyError {
    #[error("no environment key given")]
    Missing,
    #[error("no {what} given")]
    NotGiven { what: Secret },
    #[error("cannot read the {what} from {from}: {}", io::Error::from_raw_os_error(*errno))]
    Read { what: Secret, from: String, errno: i32 },
    #[error("cannot read the {what} from {from}: it is not a regular file")]
    NotAFile { what: Secret, from: String },
    #[error("cannot use the {what} from {from}: it is empty")]
    Empty { what: Secret, from: String },
    #[error("cannot use the {what} from {from}: longer than {max} bytes")]
    TooLong { what: Secret, from: String, max: u64 },
    #[error("cannot use the {what} from {from}: byte {at} is not a printable ASCII character")]
    Characters { what: Secret, from: String, at: usize },
    #[error("cannot use the {what} from {from}: {reason}")]
    Unusable { what: Secret, from: String, reason: String },
    #[error("refused: the {what} file {from} has mode {mode:04o}, so others have access")]
    Mode { what: Secret, from: String, mode: u32 },
    #[error("refused: the {what} file {from} belongs to user {owner}, not to root or you")]
    Owner { what: Secret, from: String, owner: u32 },
    #[error("refused: {from} holds an API key of an organization, not an environment key")]
    OrganizationKey { from: String },
    #[error("refused: {name} is set; it must not exist on a host that runs sessions")]
    OrganizationVariable { name: String },
    #[error(
        "cannot take the credentials out of the environment: {}",
        io::Error::from_raw_os_error(*errno)
    )]
    Hide { errno: i32 },
    #[error("cannot use the variable {name}: it is not UTF-8")]
    HiddenText { name: String },
    #[error("cannot read the environment key again: it came by ANTHROPIC_ENVIRONMENT_KEY")]
    Fixed,
    #[error("cannot start the key reader: {reason}")]
    ReaderStart { reason: String },
    #[error("cannot read the file again: the key reader does not answer")]
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
            Self::NotGiven { what } | Self::Unusable { what, .. } => {
                return format!(
                    "give the {what} in a file that only you can read ({}) or in {}",
                    what.option(),
                    what.variable()
                );
            }
            Self::Read { what: Secret::EnvironmentKey, .. }
            | Self::NotAFile { what: Secret::EnvironmentKey, .. } => {
                "name a file that holds the key and nothing else"
            }
            Self::Read { what: Secret::AwsFile, .. }
            | Self::NotAFile { what: Secret::AwsFile, .. } => {
                "AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE name these files"
            }
            Self::Read { what, .. } | Self::NotAFile { what, .. } => {
                return format!("name a file that holds the {what} and nothing else");
            }
            Self::Empty { what: Secret::WorkItem, .. }
            | Self::TooLong { what: Secret::WorkItem, .. }
            | Self::Characters { what: Secret::WorkItem, .. } => {
                "give the `secret` of the work item as the poll had it, on one line"
            }
            Self::Empty { .. } | Self::TooLong { .. } | Self::Characters { .. } => {
                "copy the key from the console again; the file holds it on one line and nothing else"
            }
            Self::Mode { what: Secret::WorkItem, from, .. } => {
                return format!("chmod 600 {from}; it is worth the session");
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
            Self::Hide { .. } => {
                "put them into files instead: --environment-key-file, --work-secret-file, --webhook-key-file"
            }
            Self::HiddenText { .. } => {
                "leave it out; docs/aws.md and docs/staging.md name files that can take its place"
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
            Self::Missing | Self::NotGiven { .. } => Exit::Usage,
            Self::Mode { .. }
            | Self::Owner { .. }
            | Self::OrganizationKey { .. }
            | Self::OrganizationVariable { .. } => Exit::Refused,
            Self::Hide { .. } | Self::ReaderStart { .. } | Self::ReaderGone => Exit::Unexpected,
            _ => Exit::Policy,
        }
    }
}
