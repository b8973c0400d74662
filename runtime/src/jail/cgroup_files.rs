//! Directories and control files of cgroups: making a group, handing controllers down, emptying one
//! and removing one with all that is in it. What the cgroups crate does not do, on v1 and v2.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// Controllers that are handed down, where the parent has them.
const V2_CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "io"];
/// How often the processes of a delegated group are listed and moved away.
const EMPTYING_ROUNDS: u32 = 16;

pub(super) fn make_group(directory: &Path) -> Result<(), (String, io::Error)> {
    if let Some(parent) = directory.parent()
        && !parent.exists()
    {
        fs::create_dir_all(parent).map_err(|e| (format!("cannot make {}", parent.display()), e))?;
    }
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err((format!("cannot make {}", directory.display()), error))
        }
        _ => Ok(()),
    }
}

/// Lets children of `directory` have the controllers we use, as far as it has them itself.
pub(super) fn enable_controllers(directory: &Path) -> Result<(), (String, io::Error)> {
    make_group(directory)?;
    let have = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let on = fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
    let missing: Vec<_> = V2_CONTROLLERS
        .iter()
        .filter(|name| have.split_whitespace().any(|found| found == **name))
        .filter(|name| !on.split_whitespace().any(|found| found == **name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    write(&directory.join("cgroup.subtree_control"), &missing.join(" "))
}

/// Moves the processes of a delegated group into a leaf of it: a v2 group with children that have
/// controllers holds no process itself (cgroup-v2.rst, "No Internal Process Constraint").
///
/// Repeated, because a process that forks while it is moved leaves its child behind.
pub(super) fn empty_into_leaf(parent: &Path) -> Result<(), (String, io::Error)> {
    let leaf = parent.join("stockade-worker");
    for _ in 0..EMPTYING_ROUNDS {
        let procs = fs::read_to_string(parent.join("cgroup.procs")).unwrap_or_default();
        if procs.trim().is_empty() {
            break;
        }
        make_group(&leaf)?;
        for pid in procs.lines() {
            match write(&leaf.join("cgroup.procs"), pid) {
                Err((_, error)) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Kills every process in `directory` and removes it. An absent one is fine.
pub(super) fn remove_group(directory: &Path, grace: Duration) -> Result<(), String> {
    let deadline = Instant::now() + grace;
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) if Instant::now() >= deadline => return Err(directory.display().to_string()),
            // Busy: processes are in it, or their exit is still being accounted.
            Err(_) => kill_members(directory),
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn kill_members(directory: &Path) {
    if write(&directory.join("cgroup.kill"), "1").is_ok() {
        return; // Linux 5.14, v2
    }
    // By descriptor, and only what is still listed once that is open: a number may be somebody else's
    // by the time it is signalled. What ended since is what is wanted.
    let found = members(directory).into_iter().filter_map(|pid| {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some((pid, pidfd))
    });
    let found: Vec<(Pid, OwnedFd)> = found.collect();
    let still = members(directory);
    for (_, pidfd) in found.iter().filter(|(pid, _)| still.contains(pid)) {
        let _gone = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
}

/// What is in a cgroup; nothing if that is gone.
fn members(directory: &Path) -> Vec<Pid> {
    let mut text = String::new();
    let read = File::open(directory.join("cgroup.procs"))
        .and_then(|file| file.take(1 << 20).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let pids = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1);
    pids.filter_map(Pid::from_raw).collect()
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), (String, io::Error)> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|e| (format!("cannot write `{value}` to {}", path.display()), e))
}
