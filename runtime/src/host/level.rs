//! Assurance levels: how strong a jail this host can give, as an ordered name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How strong a jail is. Ordered: a policy states its minimum and nothing lowers it by itself.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Made without root, inside a user namespace of the caller. One user id for everything; no
    /// idmapped host mounts; cgroup limits only where a cgroup v2 subtree is delegated.
    Rootless,
    /// Made by root: a range of unused host ids per jail, namespaces owned by the initial user
    /// namespace, cgroup limits always.
    Root,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Rootless => "rootless",
            Level::Root => "root",
        })
    }
}
