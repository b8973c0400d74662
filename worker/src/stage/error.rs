//! Why input could not be had. No text holds a path, a query, a value of the metadata or a credential
//! (INV-12): whoever reads it knows the rule.

use std::error::Error;
use std::io;
use std::time::Duration;

use stockade_runtime::egress::OutboundError;
use stockade_runtime::policy::ByteSize;
use stockade_runtime::policy::stage::ValueError;

use super::destination::LayError;

/// A session that cannot run, because a rule that it needs failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot stage `{rule}`")]
pub struct StageError {
    /// Name of the rule.
    pub rule: String,
    /// Why.
    pub source: Fault,
}

/// Why one input is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The metadata does not say it.
    #[error("{source}")]
    Value { source: ValueError },
    /// The host has no address that may be dialled.
    #[error("cannot reach {host}")]
    Address { host: String, source: OutboundError },
    /// Nobody answers there, or the connection broke.
    #[error("cannot reach {host}: {doing}")]
    Unreachable { host: String, doing: &'static str, source: Option<Box<dyn Error + Send + Sync>> },
    /// It answers with something else.
    #[error("{host} answered with status {status}")]
    Status { host: String, status: u16 },
    /// It sends elsewhere.
    #[error("{host} redirects {to}")]
    Redirect { host: String, to: &'static str },
    /// It is something else than it should be.
    #[error("what was fetched does not have the SHA-256 that it must have")]
    Digest,
    /// It is larger than the rule or the workspace allows.
    #[error("it is larger than {}", ByteSize(*max))]
    TooLarge { max: u64 },
    /// It took longer than the rule allows.
    #[error("it took longer than {}", stockade_runtime::policy::format_duration(*max))]
    TimedOut { max: Duration },
    /// Git failed.
    #[error("git could not {doing}")]
    Git { doing: &'static str },
    /// Git would need more memory than it may have.
    #[error("git needs more memory than {} for it", ByteSize(*max))]
    GitMemory { max: u64 },
    /// Git was not found at the start.
    #[error("this host has no git that can be used")]
    NoGit,
    /// A file of this host cannot be used.
    #[error("cannot open the file: {reason}")]
    Local { reason: &'static str },
    /// The store has no such object, or does not give it.
    #[error("the store {what}")]
    Store { what: &'static str },
    /// There is no credential for the store.
    #[error("the configuration has no credential for {host}")]
    Credential { host: String },
    /// What was fetched could not be kept.
    #[error("cannot keep what is fetched")]
    Room { source: io::Error },
    /// It could not be laid into the workspace.
    #[error("cannot lay it into the workspace")]
    Laying { source: LayError },
    /// The audit log could not be written.
    #[error("the audit log cannot be written")]
    Audit,
}

impl Fault {
    /// One word for the audit log.
    pub fn class(&self) -> &'static str {
        match self {
            Fault::Value { source: ValueError::Missing { .. } } => "metadata-missing",
            Fault::Value { source: ValueError::Outside { .. } } => "not-allowed",
            Fault::Value { .. } => "metadata-malformed",
            Fault::Address { source: OutboundError::Class { .. }, .. } => "address-refused",
            Fault::Address { .. } => "no-address",
            Fault::Unreachable { .. } => "unreachable",
            Fault::Status { .. } => "status",
            Fault::Redirect { .. } => "redirect",
            Fault::Digest => "digest",
            Fault::TooLarge { .. } | Fault::GitMemory { .. } => "too-large",
            Fault::TimedOut { .. } => "time",
            Fault::Git { .. } | Fault::NoGit => "git",
            Fault::Local { .. } => "file",
            Fault::Store { .. } => "store",
            Fault::Credential { .. } => "credential",
            Fault::Room { .. } => "room",
            Fault::Laying { .. } => "workspace",
            Fault::Audit => "audit",
        }
    }

    /// What a session may know: of its own metadata all, of this host and its network nothing.
    pub fn for_model(&self) -> String {
        match self {
            Fault::Value { .. }
            | Fault::Digest
            | Fault::TooLarge { .. }
            | Fault::GitMemory { .. }
            | Fault::TimedOut { .. } => self.to_string(),
            Fault::Status { status, .. } => format!("its source answered with status {status}"),
            Fault::Redirect { .. } => {
                "its source redirects to a place that is not allowed".to_owned()
            }
            Fault::Address { .. } | Fault::Unreachable { .. } => {
                "its source is not reachable".to_owned()
            }
            Fault::Laying { .. } => "it could not be laid into the workspace".to_owned(),
            _ => "its source could not be read".to_owned(),
        }
    }
}

impl From<ValueError> for Fault {
    fn from(source: ValueError) -> Fault {
        Fault::Value { source }
    }
}

/// A fault and everything that led to it, in one line for the operator.
pub fn told(fault: &dyn Error) -> String {
    let mut text = fault.to_string();
    let mut source = fault.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
