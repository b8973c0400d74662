//! Landlock: paths, TCP ports and scopes. The only file that names the landlock crate.
//!
//! The ruleset is made by init after the new root is in place (paths are final then) and before
//! the payload exists; the payload enters the domain last but one. Every right the kernel's ABI
//! knows is handled and required: an error, and not a weaker domain, is the answer to a kernel
//! that refuses.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::spec::{Access, LandlockPlan};

/// The newest ABI whose rights are granted one by one here.
const ABI_KNOWN: u8 = 7;

/// The ABI of the running kernel, 0 where there is none.
pub(crate) fn kernel_abi() -> u8 {
    crate::sys::landlock_abi()
}

/// The domain of a payload, not yet entered.
#[derive(Debug)]
pub(crate) struct Domain {
    ruleset: RulesetCreated,
    /// One sentence on what it does, for the report.
    pub description: String,
}

impl Domain {
    /// Makes the ruleset of `plan`. Paths are looked up from the current root.
    pub fn prepare(plan: &LandlockPlan) -> io::Result<Self> {
        let abi_number = kernel_abi().min(ABI_KNOWN);
        if abi_number < plan.abi_min {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let abi = ABI::from(i32::from(abi_number));
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .map_err(system)?;
        let mut description = format!("ABI {abi_number}: paths");
        if plan.deny_tcp && abi_number >= 4 {
            ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(system)?;
            description.push_str(", no TCP");
        }
        if abi_number >= 6 {
            ruleset = ruleset.scope(Scope::from_all(abi)).map_err(system)?;
            description.push_str(", no signals to and no abstract sockets of others");
        }
        let mut created = ruleset.create().map_err(system)?;
        for (path, access) in &plan.grants {
            let rights = rights(*access, abi);
            if !path.exists() {
                continue; // the host lacks it, so there is nothing to grant
            }
            let path = PathFd::new(path).map_err(system)?;
            created = created.add_rule(PathBeneath::new(path, rights)).map_err(system)?;
        }
        Ok(Domain { ruleset: created, description })
    }

    /// A domain in which nothing of the file system can be opened, for a process that needs none.
    pub fn nothing() -> io::Result<Self> {
        Self::beneath(&[])
    }

    /// A domain that may change files below `directories` and open nothing else.
    pub fn beneath(directories: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let abi = ABI::from(i32::from(kernel_abi().min(ABI_KNOWN)));
        let created = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .and_then(Ruleset::create)
            .map_err(system)?;
        let mut domain = Domain { ruleset: created, description: String::new() };
        for directory in directories {
            domain = domain.grant(*directory, Access::Write)?;
        }
        Ok(domain)
    }

    /// The domain of a process that uses its own descriptors and at most what `grants` name: no
    /// signal to and no abstract socket of anybody.
    pub fn confined(grants: &[(&Path, Access)]) -> io::Result<Self> {
        let number = kernel_abi().min(ABI_KNOWN);
        let abi = ABI::from(i32::from(number));
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .map_err(system)?;
        if number >= 4 {
            ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(system)?;
        }
        if number >= 6 {
            ruleset = ruleset.scope(Scope::from_all(abi)).map_err(system)?;
        }
        let created = ruleset.create().map_err(system)?;
        let mut domain = Domain { ruleset: created, description: String::new() };
        for (path, access) in grants {
            let path = PathFd::new(path).map_err(system)?;
            domain = domain.grant(path.as_fd(), *access)?;
        }
        Ok(domain)
    }

    /// Adds a grant below what `directory` refers to.
    pub fn grant(self, directory: BorrowedFd<'_>, access: Access) -> io::Result<Self> {
        let abi = ABI::from(i32::from(kernel_abi().min(ABI_KNOWN)));
        let rule = PathBeneath::new(directory, rights(access, abi));
        let ruleset = self.ruleset.add_rule(rule).map_err(system)?;
        Ok(Domain { ruleset, ..self })
    }

    /// A domain that may read files below `directories` and open nothing else, without TCP where the
    /// kernel can refuse that.
    pub fn reading(directories: &[OwnedFd]) -> io::Result<Self> {
        let abi_number = kernel_abi().min(ABI_KNOWN);
        let abi = ABI::from(i32::from(abi_number));
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))
            .map_err(system)?;
        if abi_number >= 4 {
            ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(system)?;
        }
        if abi_number >= 6 {
            ruleset = ruleset.scope(Scope::from_all(abi)).map_err(system)?;
        }
        let mut created = ruleset.create().map_err(system)?;
        for directory in directories {
            let rule = PathBeneath::new(directory, AccessFs::ReadFile | AccessFs::ReadDir);
            created = created.add_rule(rule).map_err(system)?;
        }
        Ok(Domain { ruleset: created, description: String::new() })
    }

    /// A domain that may change files below `directory`, write to the device `null`, and read whatever
    /// its ids may read. Networks are not its business.
    pub fn writing(directory: BorrowedFd<'_>, null: BorrowedFd<'_>) -> io::Result<Self> {
        let abi = ABI::from(i32::from(kernel_abi().min(ABI_KNOWN)));
        let handled = AccessFs::from_write(abi);
        let created = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(handled)
            .and_then(Ruleset::create)
            .map_err(system)?;
        let files = handled & rights(Access::Write, abi);
        let device = handled & rights(Access::Device, abi);
        let created = created.add_rule(PathBeneath::new(directory, files)).map_err(system)?;
        let created = created.add_rule(PathBeneath::new(null, device)).map_err(system)?;
        Ok(Domain { ruleset: created, description: String::new() })
    }

    /// Enters the domain for good. Needs `no_new_privs`.
    ///
    /// # Errors
    /// `EPERM` without `no_new_privs`; `EOPNOTSUPP` if the kernel enforces less than was asked.
    pub fn enter(self) -> io::Result<()> {
        let status = self.ruleset.restrict_self().map_err(system)?;
        if status.ruleset != RulesetStatus::FullyEnforced || !status.no_new_privs {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(())
    }
}

/// Landlock's rights for one kind of grant, as far as `abi` knows them.
fn rights(access: Access, abi: ABI) -> BitFlags<AccessFs> {
    let list: BitFlags<AccessFs> = AccessFs::ReadDir.into();
    let read = list | AccessFs::ReadFile;
    let wanted = match access {
        Access::List => list,
        Access::ReadExecute => read | AccessFs::Execute,
        Access::Write => AccessFs::from_all(abi) & !(AccessFs::MakeChar | AccessFs::MakeBlock),
        Access::Device => read | AccessFs::WriteFile | AccessFs::IoctlDev | AccessFs::Truncate,
        Access::Proc => read | AccessFs::WriteFile | AccessFs::Truncate,
        Access::Files => {
            let make = AccessFs::MakeReg | AccessFs::MakeDir;
            read | AccessFs::WriteFile | AccessFs::RemoveFile | make
        }
        Access::Porter => {
            let files = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg;
            let directories = AccessFs::MakeDir | AccessFs::RemoveDir | AccessFs::Refer;
            read | files | AccessFs::RemoveFile | directories
        }
    };
    wanted & AccessFs::from_all(abi)
}

/// The system error at the bottom of one of the crate's errors.
fn system(error: impl std::error::Error) -> io::Error {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(errno) = inner.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(errno);
        }
        source = inner.source();
    }
    io::Error::other(error.to_string())
}
