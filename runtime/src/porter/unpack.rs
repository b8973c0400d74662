//! Unpacks an archive into a staging directory next to its destination, and puts that in place when
//! it is complete (SKILL-4): a damaged archive leaves what was there as it was.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, RenameFlags, fchmod, mkdirat, openat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::archive::{self, Bounds, Kind, Member};
use super::clear::{c_name, remove_entry, unlock_open};
use super::path::{DIRECTORY_MODE, Way, enter_or_make};
use super::put::{copy, file_mode};
use super::{Executables, Refusal, Replace, Unpack, Unpacked, Watch, shortened};

/// Unpacks `archive` below `place` in this very process, for a caller who stands outside any jail.
///
/// # Errors
/// [`Refusal`]; nothing but empty directories is left then.
pub fn unpack(
    place: BorrowedFd<'_>,
    archive: &File,
    what: &Unpack,
    watch: &mut dyn Watch,
) -> Result<Unpacked, Refusal> {
    let staging = Staging::make(place, what)?;
    let outcome = fill(staging.directory(), archive, what, watch);
    let outcome = outcome.and_then(|unpacked| settle(&staging, what, unpacked, watch));
    let removed = staging.remove(&mut super::Patient);
    let unpacked = outcome?;
    removed?;
    Ok(unpacked)
}

/// The directory that an archive is unpacked into first.
#[derive(Debug)]
pub(super) struct Staging {
    /// The directory of the destination, and of this one.
    parent: OwnedFd,
    name: CString,
    directory: OwnedFd,
    /// Name of the destination; none if that is the place itself.
    target: Option<CString>,
}

impl Staging {
    pub fn make(place: BorrowedFd<'_>, what: &Unpack) -> Result<Staging, Refusal> {
        let refused = |errno| {
            let act = format!("make the directory of `{}`", shortened(&what.directory));
            Refusal::system(act, errno)
        };
        unlock_open(place).map_err(refused)?;
        let (parent, target) = match Way::new(&what.directory)?.split() {
            None => (Way::new("")?, None),
            Some((parent, name)) => (parent, Some(c_name(name)?)),
        };
        let parent = parent.make(place).map_err(refused)?;
        if let (Some(target), Replace::Refuse) = (&target, what.replace)
            && statat(&parent, target, AtFlags::SYMLINK_NOFOLLOW).is_ok()
        {
            return Err(Refusal::Exists { path: shortened(&what.directory) });
        }
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(refused)?;
        let name = c_name(&format!(".skill-{:016x}", u64::from_ne_bytes(random)))?;
        mkdirat(&parent, &name, Mode::from_raw_mode(DIRECTORY_MODE)).map_err(refused)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&parent, &name, flags, Mode::empty()).map_err(refused)?;
        Ok(Staging { parent, name, directory, target })
    }

    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Removes it, or what it was exchanged for.
    pub fn remove(&self, watch: &mut dyn Watch) -> Result<(), Refusal> {
        remove_entry(self.parent.as_fd(), &self.name, watch)
    }
}

/// Unpacks into an empty directory. All names are screened first (SKILL-6).
pub(super) fn fill(
    directory: BorrowedFd<'_>,
    archive: &File,
    what: &Unpack,
    watch: &mut dyn Watch,
) -> Result<Unpacked, Refusal> {
    let bounds = Bounds { entries_max: what.entries_max, bytes_max: what.bytes_max };
    let mut members: Vec<Member> = Vec::new();
    archive::members(archive, bounds, watch, &mut |_, member, _| {
        members.push(member);
        Ok(())
    })?;
    let targets = archive::plan(&members, what.wrapper)?;
    let special = members.iter().filter(|member| member.kind == Kind::Other).count() as u64;
    let mut writer =
        Writer { directory, what, done: Unpacked { skipped: special, ..Unpacked::default() } };
    // Each member goes where its first reading said, whatever the second says.
    archive::members(archive, bounds, &mut super::Patient, &mut |number, member, content| {
        watch.go_on()?;
        match targets.get(number) {
            Some(Some(target)) => {
                let written = writer.write(target, member.kind, content, watch);
                written.map_err(|refusal| about(refusal, &member))
            }
            _ => Ok(()),
        }
    })?;
    Ok(writer.done)
}

/// A refusal of the kernel names the member it is about.
fn about(refusal: Refusal, member: &Member) -> Refusal {
    match refusal {
        Refusal::System { errno, .. } => {
            let act = format!("unpack the member `{}`", shortened(&member.name));
            Refusal::System { act, errno }
        }
        other => other,
    }
}

struct Writer<'a> {
    directory: BorrowedFd<'a>,
    what: &'a Unpack,
    done: Unpacked,
}

impl Writer<'_> {
    fn write(
        &mut self,
        target: &str,
        kind: Kind,
        content: &mut dyn Read,
        watch: &mut dyn Watch,
    ) -> Result<(), Refusal> {
        let refused = |errno| Refusal::system("unpack", errno);
        let executable = match kind {
            Kind::Directory => {
                self.directories(target).map_err(refused)?;
                return Ok(());
            }
            Kind::File { executable } => executable,
            Kind::Other => return Ok(()),
        };
        let (parent, name) = target.rsplit_once('/').unwrap_or(("", target));
        let parent = self.directories(parent).map_err(refused)?;
        let (file, again) = create(parent.as_fd(), name).map_err(refused)?;
        let left = self.what.bytes_max - self.done.bytes;
        let limit = self.what.bytes_max;
        let copied = copy(content, &file, left, "unpack the archive", watch);
        let bytes = copied.map_err(|refusal| match refusal {
            Refusal::TooMuch { what, unit, .. } => Refusal::TooMuch { what, limit, unit },
            other => other,
        })?;
        let executable = executable || self.what.executables == Executables::All;
        fchmod(&file, Mode::from_raw_mode(file_mode(executable))).map_err(refused)?;
        self.done.bytes += bytes;
        self.done.files += u64::from(!again);
        Ok(())
    }

    /// Opens a directory below the staging directory; makes and counts what is missing.
    fn directories(&mut self, path: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut here = openat(self.directory, ".", flags, Mode::empty())?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let known = statat(&here, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            here = enter_or_make(here.as_fd(), name)?;
            self.done.directories += u64::from(!known);
        }
        Ok(here)
    }
}

/// Makes a file; whether it takes the place of an earlier member of the same name, which tar allows.
fn create(parent: BorrowedFd<'_>, name: &str) -> Result<(File, bool), Errno> {
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::EXCL
        | OFlags::NOFOLLOW
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let create = || openat(parent, name, flags, Mode::from_raw_mode(0o600)).map(File::from);
    match create() {
        Err(Errno::EXIST) => {
            unlinkat(parent, name, AtFlags::empty())?;
            create().map(|file| (file, true))
        }
        other => other.map(|file| (file, false)),
    }
}

/// Puts what was unpacked in its place.
pub(super) fn settle(
    staging: &Staging,
    what: &Unpack,
    unpacked: Unpacked,
    watch: &mut dyn Watch,
) -> Result<Unpacked, Refusal> {
    watch.go_on()?;
    let exists = |name: &CString| Refusal::Exists { path: shortened(&name.to_string_lossy()) };
    if let Some(target) = &staging.target {
        let replaced =
            place_one(staging.parent.as_fd(), &staging.name, staging, target, what, watch);
        let replaced = replaced?;
        return Ok(Unpacked { replaced, ..unpacked });
    }
    let names = names(staging).map_err(|errno| Refusal::system("list what was unpacked", errno))?;
    if what.replace == Replace::Refuse
        && let Some(there) = names
            .iter()
            .find(|name| statat(&staging.parent, *name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
    {
        return Err(exists(there));
    }
    let mut replaced = false;
    for name in &names {
        replaced |= place_one(staging.directory(), name, staging, name, what, watch)?;
    }
    Ok(Unpacked { replaced, ..unpacked })
}

/// Moves `name` of `from` to `target` next to the staging directory; whether something was there.
fn place_one(
    from: BorrowedFd<'_>,
    name: &CString,
    staging: &Staging,
    target: &CString,
    what: &Unpack,
    watch: &mut dyn Watch,
) -> Result<bool, Refusal> {
    let shown = shortened(&target.to_string_lossy());
    let refused = |errno| Refusal::system(format!("put `{shown}` in its place"), errno);
    let rename = |flags| renameat_with(from, name, &staging.parent, target, flags);
    match rename(RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(false),
        Err(Errno::EXIST) if what.replace == Replace::Refuse => {
            return Err(Refusal::Exists { path: shown });
        }
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(refused(errno)),
    }
    match rename(RenameFlags::EXCHANGE) {
        // What was there is removed with the staging directory.
        Ok(()) => return Ok(true),
        // It was removed meanwhile.
        Err(Errno::NOENT) => {}
        // A directory of the layer below an overlay cannot be moved, only removed; neither can a link,
        // which this process may not make.
        Err(Errno::XDEV | Errno::INVAL | Errno::ACCESS) => {
            remove_entry(staging.parent.as_fd(), target, watch)?;
        }
        Err(errno) => return Err(refused(errno)),
    }
    rename(RenameFlags::NOREPLACE).map(|()| true).map_err(refused)
}

fn names(staging: &Staging) -> Result<Vec<CString>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = openat(staging.directory(), ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(listing)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
