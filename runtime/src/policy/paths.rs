//! Which host paths a policy may name, and what a set of paths gives access to.
//!
//! Pure: paths are compared as text. Symbolic links are the business of the jail, which resolves
//! every path by descriptor.

use std::path::{Path, PathBuf};

/// Longest path the kernel takes, PATH_MAX with its final zero.
const BYTES_MAX: usize = 4095;

/// Host paths that a jail replaces or hides. Neither they nor anything beneath or above them may
/// be shown: the host's own would come back through the opening.
#[rustfmt::skip]
const HIDDEN: [(&str, &str); 13] = [
    ("/proc",        "it shows the processes of the host"),
    ("/sys",         "it shows and controls the kernel of the host"),
    ("/dev",         "it holds the devices of the host"),
    ("/run",         "it holds the sockets of host services"),
    ("/var/run",     "it holds the sockets of host services"),
    ("/etc",         "it holds the accounts and secrets of the host; a jail has its own"),
    ("/root",        "it is the home of the host's root"),
    ("/boot",        "it holds the kernel of the host"),
    ("/lost+found",  "it holds recovered files of any owner"),
    ("/workspace",   "a jail has its own"),
    ("/mnt/session", "a jail has its own"),
    ("/mnt/memory",  "a jail has its own"),
    ("/var/spool",   "it holds what the host's cron and mail will run"),
];

/// Too much in one piece; single directories beneath them may be shown.
#[rustfmt::skip]
const TOO_WIDE: [(&str, &str); 4] = [
    ("/home",    "it holds the homes of all users; name one directory beneath it"),
    ("/tmp",     "a jail has its own; name one directory beneath it"),
    ("/var/tmp", "a jail has its own; name one directory beneath it"),
    ("/var/lib", "it holds the state of all host services; name one directory beneath it"),
];

/// What the host itself runs. May be read, never written.
const PROGRAMS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What a policy wants to do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Not shown.
    Hidden,
    /// Shown read-only.
    Read,
    /// Shown writable.
    Write,
}

/// Checks one path of a policy; the reason if no jail may be given it.
pub(super) fn check(text: &str, access: Access) -> Result<PathBuf, String> {
    check_form(text)?;
    let path = Path::new(text);
    if text == "/" {
        return Err("it uncovers everything that a jail hides".to_owned());
    }
    for (hidden, reason) in HIDDEN {
        if path.starts_with(hidden) {
            return Err(format!("{hidden} stays hidden: {reason}"));
        }
        if Path::new(hidden).starts_with(path) {
            return Err(format!("it uncovers {hidden}: {reason}"));
        }
    }
    if let Some((_, reason)) = TOO_WIDE.iter().find(|(wide, _)| text == *wide) {
        return Err((*reason).to_owned());
    }
    let program = PROGRAMS.iter().find(|program| path.starts_with(program));
    if let (Access::Write, Some(program)) = (access, program) {
        return Err(format!("{program} holds programs that the host runs"));
    }
    Ok(path.to_owned())
}

fn check_form(text: &str) -> Result<(), String> {
    let reason = if text.is_empty() {
        "the path is empty"
    } else if text.contains('\0') {
        "a path cannot hold a zero byte"
    } else if text.chars().any(char::is_control) {
        "a path with control characters cannot be reported safely"
    } else if text.len() > BYTES_MAX {
        "the path is longer than 4095 bytes"
    } else if !text.starts_with('/') {
        "the path must be absolute: it is the same on the host and in the jail"
    } else if text.split('/').any(|part| part == "..") {
        "the path must not contain `..`"
    } else if text != "/" && text[1..].split('/').any(|part| part.is_empty() || part == ".") {
        "the path must be written in its shortest form, without `.`, `//` or a final `/`"
    } else {
        return Ok(());
    };
    Err(reason.to_owned())
}

/// What a policy with these paths gives at `path`: the entry that reaches deepest decides.
pub(super) fn access_at<'a>(
    path: &Path,
    read_only: impl Iterator<Item = &'a Path>,
    writable: impl Iterator<Item = &'a Path>,
) -> Access {
    let depth = |entry: &Path| entry.components().count();
    let read = read_only.filter(|entry| path.starts_with(entry)).map(depth).max();
    let write = writable.filter(|entry| path.starts_with(entry)).map(depth).max();
    match (read, write) {
        (None, None) => Access::Hidden,
        (read, write) if write > read => Access::Write,
        _ => Access::Read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_uncover_what_a_jail_hides_are_refused() {
        #[rustfmt::skip]
        let cases = [
            ("/",                    Access::Read,  "uncovers everything"),
            ("/proc",                Access::Read,  "/proc stays hidden"),
            ("/proc/1/root",         Access::Read,  "/proc stays hidden"),
            ("/sys/fs/cgroup",       Access::Write, "/sys stays hidden"),
            ("/dev/sda",             Access::Read,  "/dev stays hidden"),
            ("/run/docker.sock",     Access::Write, "/run stays hidden"),
            ("/var/run/docker.sock", Access::Read,  "/var/run stays hidden"),
            ("/var",                 Access::Read,  "uncovers /var/run"),
            ("/mnt",                 Access::Read,  "uncovers /mnt/session"),
            ("/etc/shadow",          Access::Read,  "/etc stays hidden"),
            ("/root/.ssh",           Access::Read,  "/root stays hidden"),
            ("/workspace",           Access::Write, "a jail has its own"),
            ("/var/spool/cron",      Access::Write, "/var/spool stays hidden"),
            ("/home",                Access::Read,  "homes of all users"),
            ("/tmp",                 Access::Write, "a jail has its own"),
            ("/usr/local",           Access::Write, "programs that the host runs"),
            ("/lib64",               Access::Write, "programs that the host runs"),
            ("",                     Access::Read,  "empty"),
            ("data",                 Access::Read,  "absolute"),
            ("./data",               Access::Read,  "absolute"),
            ("/data/../etc",         Access::Read,  "`..`"),
            ("/data/./x",            Access::Read,  "shortest form"),
            ("//data",               Access::Read,  "shortest form"),
            ("/data/",               Access::Read,  "shortest form"),
            ("/da\0ta",              Access::Read,  "zero byte"),
            ("/da\nta",              Access::Read,  "control characters"),
        ];
        for (path, access, reason) in cases {
            let refused = check(path, access).expect_err(path);
            assert!(refused.contains(reason), "`{path}`: {refused}");
        }
        for (path, access) in [
            ("/usr/share/data", Access::Read),
            ("/srv/data", Access::Write),
            ("/home/ada/project", Access::Write),
            ("/process", Access::Write),
            ("/devices", Access::Read),
            ("/srv/..hidden", Access::Read),
        ] {
            assert_eq!(check(path, access), Ok(PathBuf::from(path)));
        }
        assert!(check(&format!("/{}", "x".repeat(4095)), Access::Read).is_err());
    }

    #[test]
    fn the_deepest_entry_decides_what_a_path_gives() {
        let at = |path: &str, read: &[&'static str], write: &[&'static str]| {
            access_at(Path::new(path), read.iter().map(Path::new), write.iter().map(Path::new))
        };
        assert_eq!(at("/a/b", &["/a"], &[]), Access::Read);
        assert_eq!(at("/a/b/c", &["/a"], &["/a/b"]), Access::Write);
        assert_eq!(at("/a/b/c", &["/a/b"], &["/a"]), Access::Read);
        assert_eq!(at("/ab", &["/a"], &["/a"]), Access::Hidden);
    }
}
