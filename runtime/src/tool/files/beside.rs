//! A file in the making, in the directory of the one whose place it takes in one step: a reader sees all
//! of the old or all of the new, and a full disk leaves the old.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, fchmod, openat, renameat_with, unlinkat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// How many names are tried.
const NAMES_MAX: u32 = 8;

/// How temporary entries are called: a prefix, 16 random hexadecimal digits, a suffix.
#[derive(Debug)]
pub(crate) struct Temporary {
    pub prefix: &'static str,
    pub suffix: &'static str,
}

impl Temporary {
    /// A name that nobody can have chosen before.
    pub fn name(&self) -> Result<String, Errno> {
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty())?;
        Ok(format!("{}{:016x}{}", self.prefix, u64::from_ne_bytes(random), self.suffix))
    }

    /// Whether an entry is called like that.
    pub fn is(&self, name: &str) -> bool {
        name.strip_prefix(self.prefix).is_some_and(|rest| rest.ends_with(self.suffix))
    }
}

/// The file; removed unless it is kept.
#[derive(Debug)]
pub(crate) struct Beside<'d> {
    directory: BorrowedFd<'d>,
    name: String,
    pub file: File,
    kept: bool,
}

impl<'d> Beside<'d> {
    /// Makes an empty one in `directory`, 0600.
    pub fn create(directory: BorrowedFd<'d>, temporary: &Temporary) -> Result<Self, Errno> {
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC
            | OFlags::NOCTTY;
        let mut tries = 1;
        loop {
            let name = temporary.name()?;
            match openat(directory, &name, flags, Mode::from_raw_mode(0o600)) {
                Ok(file) => {
                    return Ok(Beside { directory, name, file: File::from(file), kept: false });
                }
                Err(Errno::EXIST | Errno::INTR) if tries < NAMES_MAX => tries += 1,
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Makes it the entry `name` of its directory, with these permissions.
    ///
    /// # Errors
    /// `EXIST` with `NOREPLACE` if there is an entry, `ISDIR` if that is a directory.
    pub fn keep(mut self, name: &Path, mode: u32, flags: RenameFlags) -> Result<(), Errno> {
        fchmod(&self.file, Mode::from_raw_mode(mode))?;
        renameat_with(self.directory, &self.name, self.directory, name, flags)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // The failure that is being reported says more than this one could.
            let _ = unlinkat(self.directory, &self.name, AtFlags::empty());
        }
    }
}
