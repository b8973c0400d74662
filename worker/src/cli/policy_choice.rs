//! Options by which commands find a policy.

use std::path::{Path, PathBuf};

use clap::Args;
use stockade_runtime::policy::{Policy, PolicyError, Resolver};

use super::{policy, syscall_groups};

/// Where policies are looked for.
#[derive(Debug, Clone, Args)]
pub struct PolicyDirectories {
    /// Look for NAME.toml in DIR [default: /etc/stockade/policies]
    ///
    /// May be given more than once; the first directory that has the file wins. A shipped name always
    /// means the shipped policy.
    #[arg(
        long = "policy-dir",
        value_name = "DIR",
        global = true,
        env = "WORKER_POLICY_DIR",
        value_delimiter = ':',
        default_value = "/etc/stockade/policies",
        hide_default_value = true,
        hide_env = true
    )]
    pub directories: Vec<PathBuf>,
}

/// The policy of what a command runs.
#[derive(Debug, Clone, Args)]
pub struct PolicyChoice {
    /// Use this policy [default: default]
    ///
    /// A shipped name (`worker policy list`), a name in the policy directory, or a file.
    #[arg(long, value_name = "NAME|FILE", default_value = "default", hide_default_value = true)]
    pub policy: String,

    #[command(flatten)]
    pub places: PolicyDirectories,
}

impl PolicyChoice {
    /// Reads the policy, each of its files by `load`.
    ///
    /// # Errors
    /// The first thing that is wrong with it, or that its report mode ends too late.
    pub fn resolve(
        &self,
        load: &dyn Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Policy, PolicyError> {
        let groups = syscall_groups();
        let resolver = Resolver { groups: &groups, directories: &self.places.directories, load };
        resolver.resolve(&self.policy).and_then(policy::timely)
    }
}
