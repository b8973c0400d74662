//! The run directory: one subdirectory per live jail, locked by its launcher. Its number gives
//! the jail a range of host ids and a cgroup that nobody else uses, and what a killed launcher
//! leaves behind is found here (see `sweep`).
//!
//! Creating and sweeping exclude each other through a lock on the directory itself, so that no
//! claim is seen before it is locked.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::host::Level;

/// First host id of the first jail. Above what distributions, directory services and
/// `useradd`'s subordinate ranges hand out (login.defs(5), SUB_UID_MAX is 600100000), below the
/// sign bit.
const FIRST_ID: u32 = 0x7000_0000;
/// Host ids of one jail.
const IDS_PER_JAIL: u32 = 16;
/// Most jails at once, and so the number of ranges.
const SLOTS: u32 = 0x1_0000;
/// How often a taken number is passed over before giving up.
const TRIES: u32 = 4096;
/// Abandoned claims that one process looks after at a time.
const ABANDONED_AT_ONCE: usize = 128;
/// File of a claim that names the jail's cgroup, where that depends on the worker's own.
const CGROUP_NOTE: &str = "cgroup";

/// Host id of the control side when started by root: the last range, which no jail gets.
pub const CONTROL_ID: u32 = FIRST_ID + SLOTS * IDS_PER_JAIL;

/// Host ids of one jail at level root. What they are called inside is the spec's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdRange {
    /// The jail's init.
    pub init: u32,
    /// The payload.
    pub payload: u32,
    /// The executor of a session.
    pub executor: u32,
}

impl IdRange {
    /// The ids of jail number `slot`; in rootless jails everything is user 0 of the launcher's
    /// own user namespace, which is the caller outside.
    pub fn of(slot: u32, level: Level) -> Self {
        match level {
            Level::Root => {
                let first = FIRST_ID + slot * IDS_PER_JAIL;
                IdRange { init: first, payload: first + 1, executor: first + 2 }
            }
            Level::Rootless => IdRange { init: 0, payload: 0, executor: 0 },
        }
    }
}

/// The directory that names all live jails of this host (root) or user (rootless).
#[derive(Debug, Clone)]
pub(crate) struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Opens or makes it. `rootless` is where the caller keeps run-time files.
    ///
    /// # Errors
    /// `EACCES` if it exists and others could have put something into it.
    pub fn open(level: Level, rootless: &Path) -> io::Result<Self> {
        let path = match level {
            Level::Root => PathBuf::from("/run/stockade"),
            Level::Rootless => rootless.to_owned(),
        };
        let jails = path.join("jails");
        if let Err(error) = DirBuilder::new().mode(0o700).create(&path)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let found = fs::symlink_metadata(&path)?;
        let own = found.uid() == rustix::process::geteuid().as_raw();
        if !found.is_dir() || !own || found.mode() & 0o077 != 0 {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        DirBuilder::new().mode(0o700).recursive(true).create(jails)?;
        Ok(RunDirectory { path })
    }

    fn jails(&self) -> PathBuf {
        self.path.join("jails")
    }

    fn lock(&self, operation: FlockOperation) -> io::Result<File> {
        let directory = File::open(self.jails())?;
        rustix::fs::flock(&directory, operation)?;
        Ok(directory)
    }

    /// Claims an unused number. It is given back by [`Claim::release`], or by a sweep after this
    /// process is gone.
    pub fn claim(&self) -> io::Result<Claim> {
        let mut number = [0u8; 4];
        for _ in 0..TRIES {
            rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
            if let Some(claim) = self.take(u32::from_le_bytes(number) % SLOTS)? {
                return Ok(claim);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Claims this number; `None` if it is taken, by the living or the dead.
    pub fn take(&self, slot: u32) -> io::Result<Option<Claim>> {
        let _shared = self.lock(FlockOperation::LockShared)?;
        let path = self.jails().join(slot.to_string());
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            made => made?,
        }
        let directory = File::open(&path)?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Some(Claim { slot, path, _lock: directory }))
    }

    /// Claims whose launcher is gone, held so that nobody else takes them; the first of them if there
    /// are many, because each takes a descriptor.
    pub fn abandoned(&self) -> io::Result<Vec<Claim>> {
        let _exclusive = self.lock(FlockOperation::LockExclusive)?;
        let mut claims = Vec::new();
        for entry in fs::read_dir(self.jails())? {
            let path = entry?.path();
            let Some(slot) = slot_of(&path) else { continue };
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // Whoever gives a number back takes no lock for it: it may go at any moment, also between
            // these calls. Nobody else can have taken it meanwhile.
            let directory = match rustix::fs::open(&path, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                opened => opened?,
            };
            let free = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive);
            if free.is_ok() && rustix::fs::fstat(&directory)?.st_nlink > 0 {
                claims.push(Claim { slot, path, _lock: File::from(directory) });
            }
            if claims.len() == ABANDONED_AT_ONCE {
                break;
            }
        }
        Ok(claims)
    }
}

fn slot_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok().filter(|slot| *slot < SLOTS)
}

/// A number that this process holds.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The number.
    pub slot: u32,
    path: PathBuf,
    _lock: File,
}

impl Claim {
    /// The name of the jail on this host: of its cgroup, in reports and logs.
    pub fn name(&self) -> String {
        jail_name(self.slot)
    }

    /// The jail's own directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes where the jail's cgroup is about to be made, for a sweep that runs in another group and
    /// would look elsewhere.
    pub fn note_cgroup(&self, directory: &Path) -> io::Result<()> {
        fs::write(self.path.join(CGROUP_NOTE), directory.as_os_str().as_bytes())
    }

    /// What was noted, if it can be the cgroup of this jail.
    pub fn noted_cgroup(&self) -> Option<PathBuf> {
        let note = fs::read(self.path.join(CGROUP_NOTE)).ok()?;
        let directory = PathBuf::from(OsString::from_vec(note));
        directory.ends_with(self.name()).then_some(directory)
    }

    /// Removes the directory and gives the number back.
    pub fn release(self) -> io::Result<()> {
        fs::remove_dir(&self.path).or_else(|_| fs::remove_dir_all(&self.path))
    }
}

/// The name that belongs to a number.
fn jail_name(slot: u32) -> String {
    format!("jail-{slot:05}")
}

/// The number that has this name, if one has.
pub(crate) fn slot_named(name: &str) -> Option<u32> {
    let slot = name.strip_prefix("jail-")?.parse().ok().filter(|slot| *slot < SLOTS)?;
    (jail_name(slot) == name).then_some(slot)
}

/// Whether `directory` is locked by nobody, for tests.
#[cfg(test)]
fn is_free(directory: &Path) -> bool {
    let file = File::open(directory).expect("directory");
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("claim-{name}-{}", std::process::id()));
        let _absent = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn a_live_claim_is_never_swept_and_an_abandoned_one_is() {
        let path = scratch("live");
        let directory = RunDirectory::open(Level::Rootless, &path).expect("run directory");
        let claim = directory.claim().expect("claim");
        assert!(directory.abandoned().expect("list").is_empty(), "a live claim was offered");
        let kept = claim.path().to_owned();
        drop(claim);
        assert!(is_free(&kept));
        let abandoned = directory.abandoned().expect("list");
        assert_eq!(abandoned.len(), 1);
        for claim in abandoned {
            claim.release().expect("released");
        }
        assert_eq!(fs::read_dir(directory.jails()).expect("list").count(), 0);
        fs::remove_dir_all(path).expect("cleaned");
    }

    #[test]
    fn a_number_is_taken_once_and_has_one_name() {
        let path = scratch("take");
        let directory = RunDirectory::open(Level::Rootless, &path).expect("run directory");
        let claim = directory.take(7).expect("looked at").expect("free");
        assert!(directory.take(7).expect("looked at").is_none(), "by the living");
        assert_eq!(claim.name(), "jail-00007");
        assert_eq!(slot_named("jail-00007"), Some(7));
        for name in ["jail-7", "jail-000007", "jail-", "jail-65536", "jail-+0007", "outside-00007"]
        {
            assert_eq!(slot_named(name), None, "{name}");
        }
        drop(claim);
        assert!(directory.take(7).expect("looked at").is_none(), "by the dead");
        fs::remove_dir_all(path).expect("cleaned");
    }

    #[test]
    fn numbers_that_are_given_back_while_one_looks_are_neither_an_error_nor_abandoned() {
        let path = scratch("race");
        let directory = RunDirectory::open(Level::Rootless, &path).expect("run directory");
        let rounds = || {
            for _ in 0..30 {
                let claims: Vec<_> =
                    (0..100).map(|_| directory.claim().expect("claimed")).collect();
                for claim in claims {
                    claim.release().expect("given back");
                }
            }
        };
        std::thread::scope(|scope| {
            let claiming = [scope.spawn(rounds), scope.spawn(rounds)];
            while claiming.iter().any(|thread| !thread.is_finished()) {
                let found = directory.abandoned().expect("every look succeeds");
                assert!(found.is_empty(), "{found:?}");
            }
        });
        fs::remove_dir_all(path).expect("cleaned");
    }

    #[test]
    fn however_many_are_abandoned_they_are_found_a_few_at_a_time() {
        // INV-10: a descriptor each, of which a process may have few.
        let path = scratch("many");
        let directory = RunDirectory::open(Level::Rootless, &path).expect("run directory");
        let claims: Vec<_> = (0..300).map(|_| directory.claim().expect("claimed")).collect();
        drop(claims);
        let mut rounds = Vec::new();
        loop {
            let found = directory.abandoned().expect("list");
            if found.is_empty() {
                break;
            }
            rounds.push(found.len());
            found.into_iter().for_each(|claim| claim.release().expect("released"));
        }
        assert_eq!(rounds, [128, 128, 44]);
        fs::remove_dir_all(path).expect("cleaned");
    }

    #[test]
    fn a_noted_cgroup_is_found_by_the_sweep_if_it_bears_the_name_of_the_jail() {
        let path = scratch("note");
        let directory = RunDirectory::open(Level::Rootless, &path).expect("run directory");
        let claim = directory.claim().expect("claim");
        assert_eq!(claim.noted_cgroup(), None);
        let group = Path::new("/sys/fs/cgroup/unit/stockade").join(claim.name());
        claim.note_cgroup(&group).expect("noted");
        drop(claim);
        let claim = directory.abandoned().expect("list").pop().expect("abandoned");
        assert_eq!(claim.noted_cgroup(), Some(group));
        claim.note_cgroup(Path::new("/sys/fs/cgroup/unit")).expect("noted");
        assert_eq!(claim.noted_cgroup(), None);
        claim.release().expect("released");
        fs::remove_dir_all(path).expect("cleaned");
    }

    #[test]
    fn a_run_directory_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let path = scratch("open");
        fs::create_dir(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("opened");
        let error = RunDirectory::open(Level::Rootless, &path).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        fs::remove_dir_all(path).expect("cleaned");
    }

    #[test]
    fn ranges_do_not_overlap_and_end_below_the_control_id() {
        let last = IdRange::of(SLOTS - 1, Level::Root);
        assert!(last.executor < CONTROL_ID);
        assert!(IdRange::of(0, Level::Root).executor < IdRange::of(1, Level::Root).init);
    }
}
