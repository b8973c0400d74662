//! Exit codes: the contract with service managers and scripts.

use std::process::ExitCode;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or the check passed.
    Success,
    /// Something nobody planned for.
    Unexpected,
    /// The policy denies a destination that was asked about.
    Denied,
    /// The command line asks for something impossible.
    Usage,
    /// A policy or other configuration is not valid.
    Policy,
    /// The control plane refuses the environment key.
    KeyRejected,
    /// This host cannot provide the isolation that is required.
    Isolation,
    /// The drain timeout passed and sessions were ended.
    DrainTimeout,
    /// An audit log is broken, does not verify, or cannot be written.
    Evidence,
    /// A credential that must not be on this host, or one that others could have read.
    Refused,
    /// A forbidden act succeeded.
    Conformance,
    /// What a jail's command returned.
    Payload(u8),
}

impl Exit {
    /// The number.
    pub fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Exit::Success => 0,
            Exit::Unexpected | Exit::Denied => 1,
            Exit::Usage => 2,
            Exit::Policy => 3,
            Exit::KeyRejected => 4,
            Exit::Isolation => 5,
            Exit::DrainTimeout => 7,
            Exit::Evidence => 8,
            Exit::Refused => 9,
            Exit::Conformance => 10,
            Exit::Payload(code) => code,
        })
    }
}
