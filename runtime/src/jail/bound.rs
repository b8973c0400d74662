//! Checks a host directory before it is bound into a jail, and remembers which one it was.
//!
//! Runs in the control side before it gives up the caller's rights: what the caller may not open,
//! no jail gets.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::spec::BoundRequest;
use crate::sys;

/// Directories that hold the system or many people's files: binding one whole is a mistake.
const REFUSED: &[&str] = &[
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/mnt",
    "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var",
];
/// Trees in which nothing may be bound.
const REFUSED_BELOW: &[&str] =
    &["/boot", "/dev", "/etc", "/proc", "/sys", "/usr/bin", "/usr/lib", "/usr/sbin"];

/// Why a directory is not bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BoundError {
    /// It cannot be looked at.
    #[error("cannot use {path} as {what}")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What it was meant for.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not a directory.
    #[error("cannot use {path} as {what}: it is {found}, not a directory")]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it was meant for.
        what: String,
        /// What it is.
        found: &'static str,
    },
    /// It holds more than one session may see.
    #[error("cannot use {path} as {what}: it is a system directory")]
    System {
        /// The directory.
        path: PathBuf,
        /// What it was meant for.
        what: String,
    },
}

impl BoundError {
    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            BoundError::Unusable { .. } => "make the directory first, and give its absolute path",
            BoundError::Kind { .. } => "give the directory itself; a link could be changed later",
            BoundError::System { .. } => "make a directory for the session, for example below /srv",
        }
    }
}

/// Looks at `path`, which is to be bound as `what`.
///
/// # Errors
/// [`BoundError`]; nothing has been changed.
pub fn inspect(path: &Path, what: &str) -> Result<BoundRequest, BoundError> {
    let unusable =
        |source| BoundError::Unusable { path: path.to_owned(), what: what.to_owned(), source };
    let found = fs::symlink_metadata(path).map_err(unusable)?;
    let kind = |found| BoundError::Kind { path: path.to_owned(), what: what.to_owned(), found };
    if found.is_symlink() {
        return Err(kind("a symbolic link"));
    }
    if !found.is_dir() {
        return Err(kind("a file"));
    }
    let source = fs::canonicalize(path).map_err(unusable)?;
    let refused = REFUSED.iter().any(|refused| source == Path::new(refused))
        || REFUSED_BELOW.iter().any(|refused| source.starts_with(refused));
    if refused {
        return Err(BoundError::System { path: source, what: what.to_owned() });
    }
    let directory = fs::File::open(&source).map_err(unusable)?;
    let metadata = directory.metadata().map_err(unusable)?;
    Ok(BoundRequest {
        device: metadata.dev(),
        inode: metadata.ino(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        quota: project_quota(&directory),
        source,
    })
}

/// The project quota in force on `directory`: project, bytes, inodes. `None` if it has no project
/// that new files inherit, or no hard limit of both.
fn project_quota(directory: &fs::File) -> Option<(u32, u64, u64)> {
    let (project, inherited) = sys::project_id(directory.as_fd()).ok()?;
    if project == 0 || !inherited {
        return None;
    }
    let (bytes, inodes) = sys::project_limits(directory.as_fd(), project).ok()?;
    (bytes > 0 && inodes > 0).then_some((project, bytes, inodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_be_bound_is_refused_with_its_reason() {
        let base = std::env::temp_dir().join(format!("bound-{}", std::process::id()));
        fs::create_dir_all(&base).expect("made");
        fs::write(base.join("file"), "").expect("written");
        let link = base.join("link");
        let _absent = fs::remove_file(&link);
        std::os::unix::fs::symlink(&base, &link).expect("linked");
        let cases = [
            (PathBuf::from("/"), "system directory"),
            (PathBuf::from("/etc"), "system directory"),
            (PathBuf::from("/etc/ssl"), "system directory"),
            (base.join("file"), "it is a file"),
            (link, "a symbolic link"),
            (base.join("absent"), "cannot use"),
        ];
        for (path, want) in cases {
            let error = inspect(&path, "the workspace").expect_err(want);
            assert!(error.to_string().contains(want), "{}: {error}", path.display());
        }
        let found = inspect(&base, "the workspace").expect("a plain directory");
        assert_eq!(found.inode, fs::metadata(&base).expect("there").ino());
        fs::remove_dir_all(base).expect("cleaned");
    }
}
