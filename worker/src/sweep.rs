//! `worker sweep`: removes what a killed worker left.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use stockade_runtime::host::HostFacts;
use stockade_runtime::jail;

use crate::daemon::rooms;
use crate::exit::Exit;

/// Remove what killed workers left behind
///
/// Jails and staged input of live workers are not touched. As root it covers the whole host, otherwise the caller's
/// own jails. Every start of a jail does the same for abandoned jails of the same user; this is for
/// hosts on which nothing will start soon.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Where this user keeps run-time files.
pub fn run_directory() -> PathBuf {
    jail::rootless_run_directory(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
}

/// Sweeps and says what was found.
pub fn run(args: &SweepArgs) -> anyhow::Result<Exit> {
    let level = HostFacts::level_here().context("cannot look at this process")?;
    let mut done = jail::sweep(level, &run_directory()).context("cannot sweep")?;
    rooms::sweep(level, &mut done).context("cannot sweep staged input")?;
    let mut out = io::stdout().lock();
    if args.json {
        let mut document = serde_json::to_value(&done)?;
        document["schema"] = "stockade.sweep".into();
        document["schema_version"] = 1.into();
        writeln!(out, "{document}")?;
    } else {
        for name in &done.removed {
            writeln!(out, "removed {name}")?;
        }
        for path in &done.left {
            writeln!(out, "left    {path}")?;
        }
        if done.removed.is_empty() && done.left.is_empty() {
            writeln!(out, "nothing to remove")?;
        }
    }
    Ok(if done.left.is_empty() { Exit::Success } else { Exit::Unexpected })
}
