//! Tests of whole policies: texts in, resolved values or errors out.

mod bad_input;
mod conforms;
mod monotonic;
mod monotonic_stage;
mod narrowing;
mod shipped;
mod stage;

use std::io;
use std::path::{Path, PathBuf};

use super::{Policy, PolicyError, Resolver};

/// The groups that the shipped policies name.
#[rustfmt::skip]
pub(super) const GROUPS: [&str; 24] = [
    "base", "files", "directories", "metadata", "xattr", "processes", "threads", "signals", "time",
    "memory", "polling", "sockets", "terminals", "ipc-sysv", "ipc-posix-mq", "inotify", "aio",
    "scheduling", "limits", "identity", "process-controls", "debugging", "seccomp-self",
    "landlock-self",
];

/// Resolves `reference` among `files`; `/policies` is the policy directory.
pub(super) fn resolve(files: &[(&str, &str)], reference: &str) -> Result<Policy, PolicyError> {
    let load = |path: &Path| {
        let file = files.iter().find(|(name, _)| Path::new(name) == path);
        file.map(|(_, text)| text.to_string()).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let directories = [PathBuf::from("/policies")];
    Resolver { groups: &GROUPS, directories: &directories, load: &load }.resolve(reference)
}

/// Resolves one text, shown as `p.toml`.
pub(super) fn resolve_text(text: &str) -> Result<Policy, PolicyError> {
    resolve(&[("p.toml", text)], "p.toml")
}
