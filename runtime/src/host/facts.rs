//! Reads, once per start, what a spec must know of this host. Reads names and versions only, no
//! file contents, and changes nothing. What needs a kernel crate to find out (landlock, cgroups)
//! is handed in by `jail`, which owns those crates.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Level;

/// `major.minor` of the running kernel and its full release text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// As `uname -r` prints it.
    pub release: String,
}

impl KernelVersion {
    /// Reads the first two numbers of a release text; missing ones are 0.
    pub fn parse(release: &str) -> Self {
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        KernelVersion { major, minor, release: release.to_owned() }
    }

    /// Whether this kernel is at least `major.minor`.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

/// Which cgroup controllers this worker can give to a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupOffer {
    /// Version 1 hierarchies (also on hybrid hosts) with these controllers.
    V1 {
        /// Controller names.
        controllers: Vec<String>,
    },
    /// One version 2 tree with these controllers.
    V2 {
        /// Controller names.
        controllers: Vec<String>,
    },
    /// None, and why.
    Absent {
        /// One sentence for a person.
        reason: String,
    },
}

impl CgroupOffer {
    /// The controllers offered; empty where there are none.
    pub fn controllers(&self) -> &[String] {
        match self {
            CgroupOffer::V1 { controllers } | CgroupOffer::V2 { controllers } => controllers,
            CgroupOffer::Absent { .. } => &[],
        }
    }
}

/// Facts that the owners of the kernel crates found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelOffers {
    /// Landlock ABI, 0 where absent.
    pub landlock_abi: u8,
    /// cgroup controllers.
    pub cgroup: CgroupOffer,
}

/// What kind of directory entry a host name is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link and its target as written.
    Link(PathBuf),
}

/// One entry of a host directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    /// File name.
    pub name: String,
    /// Its kind.
    pub kind: EntryKind,
}

/// What this host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Kernel version.
    pub kernel: KernelVersion,
    /// The strongest level this process can give.
    pub level: Level,
    /// What the kernel crates' owners found.
    pub offers: KernelOffers,
    /// Entries of `/`.
    pub root: Vec<HostEntry>,
    /// Entries of `/etc`.
    pub etc: Vec<HostEntry>,
    /// CPUs that are on.
    pub online_cpus: usize,
}

impl HostFacts {
    /// The strongest level this process can give: root means user 0 of the initial user namespace
    /// with the capability to administer it.
    ///
    /// # Errors
    /// If `/proc/self` cannot be read.
    pub fn level_here() -> io::Result<Level> {
        level_of_this_process()
    }

    /// Looks at the running host for jails of `level`.
    ///
    /// # Errors
    /// If `/`, `/etc` or `/proc/self` cannot be read.
    pub fn probe(level: Level, offers: KernelOffers) -> io::Result<Self> {
        let uname = rustix::system::uname();
        Ok(HostFacts {
            kernel: KernelVersion::parse(&uname.release().to_string_lossy()),
            level,
            offers,
            root: entries(Path::new("/"))?,
            etc: entries(Path::new("/etc"))?,
            online_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }
}

fn level_of_this_process() -> io::Result<Level> {
    const CAP_SYS_ADMIN: u32 = 21;
    if !rustix::process::geteuid().is_root() {
        return Ok(Level::Rootless);
    }
    let map = fs::read_to_string("/proc/self/uid_map")?;
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .unwrap_or(0);
    let admin = effective & (1 << CAP_SYS_ADMIN) != 0;
    Ok(if whole && admin { Level::Root } else { Level::Rootless })
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
}

/// The entries of `directory` that are directories, files or links, by name.
fn entries(directory: &Path) -> io::Result<Vec<HostEntry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type()?;
        let kind = if kind.is_symlink() {
            match fs::read_link(entry.path()) {
                // Removed or replaced since it was listed; it is a link no more.
                Err(error) if is_gone(&error) => continue,
                target => EntryKind::Link(target?),
            }
        } else if kind.is_dir() {
            EntryKind::Directory
        } else if kind.is_file() {
            EntryKind::File
        } else {
            continue;
        };
        found.push(HostEntry { name, kind });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_version_is_read_from_any_release_text() {
        #[rustfmt::skip]
        let cases = [
            ("6.18.44-fc-v657",  6, 18),
            ("5.10.0-30-amd64",  5, 10),
            ("6.1",              6, 1),
            ("7",                7, 0),
            ("",                 0, 0),
        ];
        for (release, major, minor) in cases {
            let version = KernelVersion::parse(release);
            assert_eq!((version.major, version.minor), (major, minor), "release `{release}`");
        }
        assert!(KernelVersion::parse("6.1.0").at_least(5, 19));
        assert!(!KernelVersion::parse("5.10.0").at_least(5, 19));
    }
}
