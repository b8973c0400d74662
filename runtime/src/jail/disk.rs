//! A workspace on disk: a file without a name, of exactly the policy's size, with a file system of
//! its own on a loop device. When the jail's mount goes, the device and the file go with it, also
//! after a kill: nothing of it has a name that could be left behind.
//!
//! Runs in the launcher at level root.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::spec::ScratchPlan;
use crate::sys::{LoopStatus, loop_configure, loop_free_index};

/// Where images are made. On disk by the file system hierarchy standard, unlike `/run` and `/tmp`.
const STATE_DIRECTORY: &str = "/var/lib/stockade";
/// Fewest bytes for which ext4 keeps an inode.
const BYTES_PER_INODE_MIN: u64 = 8192;
/// How often another process may take the loop device we were about to use.
const TRIES: u32 = 16;

/// A loop device with an empty file system; it is detached when the last of descriptor and mounts
/// is gone.
#[derive(Debug)]
pub(super) struct Disk {
    /// `/dev/loopN`
    pub device: PathBuf,
    _held: File,
}

/// Makes a file system of `plan`'s size and number of inodes.
///
/// All blocks are reserved now: a full host disk must show here and not as an I/O error later.
pub(super) fn make(plan: &ScratchPlan) -> Result<Disk, (String, io::Error)> {
    let directory = Path::new(STATE_DIRECTORY);
    let image = fs::create_dir_all(directory)
        .and_then(|()| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .mode(0o600)
                .custom_flags(libc::O_TMPFILE)
                .open(directory)
        })
        .map_err(|e| (format!("make an image in {STATE_DIRECTORY}"), e))?;
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&image, flags, 0, plan.bytes_max).map_err(|e| {
        (format!("reserve {} bytes in {STATE_DIRECTORY}", plan.bytes_max), e.into())
    })?;
    let held = attach(&image).map_err(|e| ("attach a loop device".to_owned(), e))?;
    // ext4 has no room for more inodes than this in so many bytes.
    format(&held.0, plan.inodes_max.min(plan.bytes_max / BYTES_PER_INODE_MIN))?;
    Ok(Disk { device: held.0, _held: held.1 })
}

fn attach(image: &File) -> io::Result<(PathBuf, File)> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        let index = loop_free_index(control.as_fd())?;
        let path = PathBuf::from(format!("/dev/loop{index}"));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        let status = LoopStatus { backing: image.as_fd(), direct_io: false };
        match loop_configure(device.as_fd(), status) {
            Ok(()) => return Ok((path, device)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// No journal: the file system never outlives its jail.
fn format(device: &Path, inodes: u64) -> Result<(), (String, io::Error)> {
    let output = Command::new("mkfs.ext4")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-q", "-F", "-m", "0", "-b", "4096", "-O", "^has_journal,^resize_inode"])
        .args(["-E", "nodiscard,lazy_itable_init=1,root_owner=0:0"])
        .args(["-N", &inodes.to_string()])
        .arg(device)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| ("run mkfs.ext4 (from e2fsprogs)".to_owned(), e))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.lines().rfind(|line| !line.is_empty()).unwrap_or("no message").to_owned();
    Err((format!("make a file system on {}", device.display()), io::Error::other(text)))
}
