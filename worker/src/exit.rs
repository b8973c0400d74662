//! Exit codes: the contract with service managers and scripts.

use std::process::ExitCode;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or the check passed.
    Success,
    /// Something nobody planned for.
    Unexpected,
    /// The command line asks for something impossible.
    Usage,
    /// A policy is not valid.
    Policy,
    /// This host cannot provide the isolation that is required.
    Isolation,
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
            Exit::Unexpected => 1,
            Exit::Usage => 2,
            Exit::Policy => 3,
            Exit::Isolation => 5,
            Exit::Conformance => 10,
            Exit::Payload(code) => code,
        })
    }
}
