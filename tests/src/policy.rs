//! Policies for control runs: the shipped default with named layers switched off.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::locate;

/// Layers that a policy may switch off.
pub const RELAXABLE: [&str; 12] = [
    "net-namespace",
    "ipc-namespace",
    "uts-namespace",
    "cgroup-namespace",
    "capabilities",
    "no-new-privs",
    "landlock",
    "seccomp",
    "cgroup",
    "rlimits",
    "keyring",
    "canary",
];

/// A policy file that vanishes with this value.
#[derive(Debug)]
pub struct PolicyFile {
    dir: TempDir,
}

impl PolicyFile {
    /// The text of the default policy, with `layers` off.
    pub fn without(layers: &[&str]) -> PolicyFile {
        PolicyFile::relaxed(default_text(), layers)
    }

    /// This text, with `layers` off.
    ///
    /// The canary goes off with any other layer: it exists to notice exactly this.
    pub fn relaxed(text: &str, layers: &[&str]) -> PolicyFile {
        let mut text = text.to_owned();
        let canary = ["canary"];
        let also = if layers.contains(&"canary") { &[][..] } else { &canary[..] };
        for layer in layers.iter().chain(also) {
            text.push_str(&format!(
                "\n[[require.relax]]\nlayer = \"{layer}\"\nwhy = \"control run\"\noff = true\n"
            ));
        }
        PolicyFile::from_text(&text)
    }

    /// A policy file with exactly this text, readable by everybody.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn from_text(text: &str) -> PolicyFile {
        let dir = tempfile::Builder::new().prefix("e2e-policy-").tempdir().expect("no directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("cannot chmod");
        let file = PolicyFile { dir };
        fs::write(file.path(), text).expect("cannot write the policy");
        file
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("control.toml")
    }
}

/// What `worker policy show default` prints.
///
/// # Panics
/// If the worker does not print it.
pub fn default_text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let shown = Command::new(locate::worker())
            .args(["policy", "show", "default"])
            .output()
            .expect("cannot run the worker");
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        String::from_utf8(shown.stdout).expect("policies are text")
    })
}
