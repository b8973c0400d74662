//! Memory, process, CPU, I/O and device limits of a whole jail, on cgroup v1, v2 and hybrid hosts.
//! The only file that names the cgroups crate; what the crate lacks is here and in `cgroup_files`.
//!
//! Runs in the launcher. A session with tools on the host has a second group beside its jail's, for
//! those: the same limits, and no list of devices. A jail has one cgroup (per hierarchy on v1), below a group of ours named
//! `stockade`, made with its limits while init builds the mount tree. On v2 the payload is born in
//! it. v1 has no such call: init joins through descriptors opened here, clones the payload, and
//! leaves again. So the payload is limited from its first instruction, and init, outside, survives
//! an out-of-memory kill and can report it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups_rs::blkio::BlkIoController;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::devices::{DevicePermissions, DeviceType, DevicesController};
use cgroups_rs::hierarchies::{V1, is_cgroup2_unified_mode};
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use cgroups_rs::{Controllers, MaxValue};
use serde::{Deserialize, Serialize};

use crate::host::{CgroupOffer, Level};
use crate::spec::CgroupPlan;

use super::cgroup_door::CgroupDoor;
use super::cgroup_files::{empty_into_leaf, enable_controllers, make_group, remove_group, write};

/// Our group; jails are its children.
const OURS: &str = "stockade";
/// Before a jail's name: the group of its session's tools on the host.
const OUTSIDE: &str = "outside-";
const MOUNT: &str = "/sys/fs/cgroup";
const CPU_PERIOD_US: u64 = 100_000;
/// Controllers used where they exist, in the order in which a process joins them.
const V1_CONTROLLERS: [(&str, Controllers); 5] = [
    ("blkio", Controllers::BlkIo),
    ("memory", Controllers::Mem),
    ("pids", Controllers::Pids),
    ("cpu", Controllers::Cpu),
    ("devices", Controllers::Devices),
];

/// What the limits of a jail counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupEvents {
    /// Processes killed because memory ran out.
    pub oom_kills: u64,
    /// Forks refused because of the process limit.
    pub forks_refused: u64,
    /// Most memory used at once, in bytes.
    pub memory_peak: u64,
}

/// Which controllers this process can give to jails.
pub(crate) fn offer(level: Level) -> CgroupOffer {
    if is_cgroup2_unified_mode() {
        return match v2_base(level) {
            Ok(base) => {
                let text = fs::read_to_string(base.parent.join("cgroup.controllers"));
                let text = text.unwrap_or_default();
                CgroupOffer::V2 {
                    controllers: text.split_whitespace().map(str::to_owned).collect(),
                }
            }
            Err(reason) => CgroupOffer::Absent { reason },
        };
    }
    if level == Level::Rootless {
        let reason = "cgroup v1 cannot be delegated to an unprivileged user".to_owned();
        return CgroupOffer::Absent { reason };
    }
    let mounts = V1::new();
    let found = V1_CONTROLLERS.iter().filter(|(_, id)| mount_of(&mounts, id.clone()).is_some());
    let controllers: Vec<_> = found.map(|(name, _)| (*name).to_owned()).collect();
    if controllers.is_empty() {
        return CgroupOffer::Absent {
            reason: format!("no cgroup hierarchy is mounted at {MOUNT}"),
        };
    }
    CgroupOffer::V1 { controllers }
}

fn mount_of(mounts: &V1, controller: Controllers) -> Option<PathBuf> {
    mounts.get_mount_point(controller)
}

/// Where on v2 our group goes: below the worker's own cgroup if that is delegated to us, else, as
/// root, at the top.
struct V2Base {
    parent: PathBuf,
    delegated: bool,
}

fn v2_base(level: Level) -> Result<V2Base, String> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    // Inside our own leaf already (a restarted worker in the same unit): its parent is the unit.
    let own = own.strip_suffix("/stockade-worker").unwrap_or(own);
    let parent = Path::new(MOUNT).join(own);
    let marked = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0u8; 8];
        rustix::fs::getxattr(&parent, *name, &mut value).is_ok_and(|n| value[..n] == *b"1")
    });
    let writable =
        nix::unistd::access(&parent.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK).is_ok()
            && nix::unistd::access(&parent, nix::unistd::AccessFlags::W_OK).is_ok();
    match level {
        Level::Root if marked && !own.is_empty() => Ok(V2Base { parent, delegated: true }),
        Level::Root => {
            // The root of the hierarchy may hold processes and children with controllers at once;
            // what a container sees as the top is a group like any other, and has a type.
            let parent = PathBuf::from(MOUNT);
            let delegated = parent.join("cgroup.type").exists();
            Ok(V2Base { parent, delegated })
        }
        Level::Rootless if writable && !own.is_empty() => Ok(V2Base { parent, delegated: true }),
        Level::Rootless => {
            Err(format!("the worker's own cgroup /{own} is not delegated to this user"))
        }
    }
}

/// Whom a group is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Members {
    /// The processes of a jail.
    Jail,
    /// Its session's tools on the host, which have the devices of their user.
    Outside,
}

impl Members {
    /// The name of the group that belongs to jail `name`.
    fn group_of(self, name: &str) -> String {
        match self {
            Members::Jail => name.to_owned(),
            Members::Outside => format!("{OUTSIDE}{name}"),
        }
    }
}

/// The cgroup of one jail, or the one beside it.
#[derive(Debug)]
pub(crate) struct JailCgroup {
    /// One directory per hierarchy, without duplicates.
    directories: Vec<PathBuf>,
    v2: bool,
    limits: Vec<String>,
    weaker: Vec<String>,
}

impl JailCgroup {
    /// Makes the cgroup of jail `name` for these `members` and writes every limit of `plan`.
    ///
    /// # Errors
    /// The system error of the first limit that cannot be set, with what was tried; the directories
    /// made so far are removed.
    pub fn create(
        name: &str,
        members: Members,
        plan: &CgroupPlan,
        level: Level,
    ) -> Result<Self, (String, io::Error)> {
        let name = &members.group_of(name);
        let mut made = JailCgroup {
            directories: Vec::new(),
            v2: is_cgroup2_unified_mode(),
            limits: Vec::new(),
            weaker: Vec::new(),
        };
        if made.v2 {
            made.make_v2(name, level)?;
        } else {
            made.make_v1(name)?;
        }
        match made.write_limits(plan, members) {
            Ok(()) => Ok(made),
            Err(error) => {
                let removal = made.remove(Duration::from_millis(100));
                Err(match removal {
                    Ok(()) => error,
                    Err(left) => (format!("{} (and {left} is left)", error.0), error.1),
                })
            }
        }
    }

    fn make_v1(&mut self, name: &str) -> Result<(), (String, io::Error)> {
        let mounts = V1::new();
        let path = Path::new(OURS).join(name);
        for (_, controller) in V1_CONTROLLERS {
            let Some(mount) = mount_of(&mounts, controller) else { continue };
            let directory = mount.join(&path);
            if self.directories.contains(&directory) {
                continue; // co-mounted, as cpu and cpuacct often are
            }
            make_group(&directory)?;
            self.directories.push(directory);
        }
        Ok(())
    }

    fn make_v2(&mut self, name: &str, level: Level) -> Result<(), (String, io::Error)> {
        let base = v2_base(level).map_err(|reason| (reason, io::ErrorKind::Unsupported.into()))?;
        let ours = base.parent.join(OURS);
        let directory = ours.join(name);
        if base.delegated {
            empty_into_leaf(&base.parent)?;
        }
        if !ours.exists() {
            enable_controllers(&base.parent)?;
        }
        enable_controllers(&ours)?;
        make_group(&directory)?;
        self.directories.push(directory);
        Ok(())
    }

    /// Writes all limits through the crate's controllers, each made for the directory that has its
    /// files: the crate's own search would look at every hierarchy again for each of them.
    fn write_limits(
        &mut self,
        plan: &CgroupPlan,
        members: Members,
    ) -> Result<(), (String, io::Error)> {
        let v2 = self.v2;
        let memory = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let memory = MemController::new(self.home(memory)?, v2);
        memory.set_limit(plan.memory_bytes_max as i64).map_err(|e| tried("the memory limit", e))?;
        self.limits.push(format!("memory {} bytes", plan.memory_bytes_max));
        self.limit_swap(&memory, plan)?;
        if v2 && plan.killed_together {
            write(&self.directories[0].join("memory.oom.group"), "1")?;
        }
        PidController::new(self.home("pids.max")?, v2)
            .set_pid_max(MaxValue::Value(i64::from(plan.pids_max)))
            .map_err(|e| tried("the process limit", e))?;
        self.limits.push(format!("{} processes", plan.pids_max));
        let quota = (u64::from(plan.cpu_milli) * CPU_PERIOD_US / 1000).max(1000);
        CpuController::new(self.home(if v2 { "cpu.max" } else { "cpu.cfs_quota_us" })?, v2)
            .set_cfs_quota_and_period(Some(quota as i64), Some(CPU_PERIOD_US))
            .map_err(|e| tried("the CPU limit", e))?;
        self.limits.push(format!("{}.{:03} CPUs", plan.cpu_milli / 1000, plan.cpu_milli % 1000));
        if let Some(rate) = plan.io_bytes_per_second {
            let home = self.home(if v2 { "io.max" } else { "blkio.throttle.read_bps_device" })?;
            self.limit_io(&BlkIoController::new(home, v2), rate)?;
        }
        if !v2
            && members == Members::Jail
            && let Ok(home) = self.home("devices.deny")
        {
            let devices = DevicesController::new(home);
            limit_devices(&devices).map_err(|e| tried("the device list", e))?;
            self.limits.push("devices by number".to_owned());
        }
        Ok(())
    }

    /// The directory of this jail that has the control file `name`.
    fn home(&self, name: &str) -> Result<PathBuf, (String, io::Error)> {
        let mut all = self.directories.iter();
        all.find(|directory| directory.join(name).exists()).cloned().ok_or_else(|| {
            (format!("cannot find {name}"), io::Error::from_raw_os_error(libc::ENOENT))
        })
    }

    fn limit_swap(
        &mut self,
        memory: &MemController,
        plan: &CgroupPlan,
    ) -> Result<(), (String, io::Error)> {
        let accounted = self.v2 || self.file("memory.memsw.limit_in_bytes").is_some();
        let none_accounted = self.v2 && self.file("memory.swap.max").is_none();
        if accounted && !none_accounted {
            let limit = if self.v2 {
                plan.swap_bytes_max
            } else {
                plan.memory_bytes_max.saturating_add(plan.swap_bytes_max)
            };
            memory.set_memswap_limit(limit as i64).map_err(|e| tried("the swap limit", e))?;
            self.limits.push(format!("swap {} bytes", plan.swap_bytes_max));
            return Ok(());
        }
        // The kernel does not account swap (`swapaccount=0`, or no swap support): keep the
        // group's pages out of it, and say that it is a preference and not a limit.
        if !self.v2 {
            memory.set_swappiness(0).map_err(|e| tried("the swappiness", e))?;
        }
        self.weaker.push("swap is not accounted by this kernel".to_owned());
        Ok(())
    }

    fn limit_io(&mut self, io: &BlkIoController, rate: u64) -> Result<(), (String, io::Error)> {
        let disks = fs::read_dir("/sys/block").map_err(|e| ("cannot list disks".to_owned(), e))?;
        let mut limited = 0;
        for disk in disks.flatten() {
            let Ok(number) = fs::read_to_string(disk.path().join("dev")) else { continue };
            let size = fs::read_to_string(disk.path().join("size")).unwrap_or_default();
            let Some((major, minor)) = number.trim().split_once(':') else { continue };
            let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
            if size.trim() == "0" {
                continue; // an unused loop device or an empty drive
            }
            io.throttle_read_bps_for_device(major, minor, rate)
                .and_then(|()| io.throttle_write_bps_for_device(major, minor, rate))
                .map_err(|e| tried("the disk rate", e))?;
            limited += 1;
        }
        self.limits.push(format!("{rate} bytes a second on {limited} disks"));
        Ok(())
    }

    /// A control file of this jail, in whichever hierarchy has it.
    fn file(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|directory| directory.join(name)).find(|path| path.exists())
    }

    /// Opens what init needs.
    pub fn door(&self) -> io::Result<CgroupDoor> {
        if self.v2 {
            return Ok(CgroupDoor::Birth(File::open(&self.directories[0])?.into()));
        }
        let tasks = |directory: &Path| -> io::Result<OwnedFd> {
            Ok(OpenOptions::new().write(true).open(directory.join("tasks"))?.into())
        };
        let join = self.directories.iter().map(|directory| tasks(directory));
        let parents = self.directories.iter().filter_map(|directory| directory.parent());
        Ok(CgroupDoor::Tasks {
            join: join.collect::<io::Result<_>>()?,
            leave: parents.map(tasks).collect::<io::Result<_>>()?,
        })
    }

    /// Opens what lets a process move itself into the group.
    pub fn members_files(&self) -> io::Result<Vec<OwnedFd>> {
        // `tasks` spares a wait, see `cgroup_door`; v2 has the other only.
        let name = if self.v2 { "cgroup.procs" } else { "tasks" };
        let open = |directory: &PathBuf| -> io::Result<OwnedFd> {
            Ok(OpenOptions::new().write(true).open(directory.join(name))?.into())
        };
        self.directories.iter().map(open).collect()
    }

    /// One sentence on what is limited, for the report.
    pub fn describe(&self) -> String {
        let version = if self.v2 { "cgroup v2" } else { "cgroup v1" };
        let mut text = format!("{version}: {}", self.limits.join(", "));
        for weaker in &self.weaker {
            text = format!("{text}; {weaker}");
        }
        text
    }

    /// What the limits counted so far.
    pub fn events(&self) -> CgroupEvents {
        let (memory, peak) = if self.v2 {
            ("memory.events", "memory.peak")
        } else {
            ("memory.oom_control", "memory.max_usage_in_bytes")
        };
        let read = |name: &str| {
            self.file(name).and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
        };
        CgroupEvents {
            oom_kills: keyed(&read(memory), "oom_kill"),
            forks_refused: keyed(&read("pids.events"), "max"),
            memory_peak: read(peak).trim().parse().unwrap_or(0),
        }
    }

    /// Removes the directories that are empty now; [`remove`](Self::remove) settles the rest.
    pub fn remove_if_empty(&self) {
        for directory in &self.directories {
            if fs::remove_dir(directory).is_err() {
                return; // busy, which is for `remove` to deal with
            }
        }
    }

    /// Removes the directories once they are empty, killing what is still in them.
    ///
    /// # Errors
    /// The path that is left if something remains after `grace`.
    pub fn remove(&self, grace: Duration) -> Result<(), String> {
        self.directories.iter().try_for_each(|directory| remove_group(directory, grace))
    }
}

/// Names of all jails on this host that have a cgroup now, or one beside it.
pub(crate) fn existing(level: Level) -> Vec<String> {
    let mut names: Vec<String> = our_groups(level)
        .iter()
        .filter_map(|ours| fs::read_dir(ours).ok())
        .flat_map(|entries| entries.flatten())
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|name| name.strip_prefix(OUTSIDE).map(str::to_owned).unwrap_or(name))
        .filter(|name| name.starts_with("jail-"))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Where the cgroup of jail `name` is going to be, if that depends on the worker's own group: a
/// sweep finds every other place by itself.
pub(crate) fn delegated_place(name: &str, level: Level) -> Option<PathBuf> {
    if !is_cgroup2_unified_mode() {
        return None;
    }
    let base = v2_base(level).ok().filter(|base| base.delegated)?;
    Some(base.parent.join(OURS).join(name))
}

/// Kills what is in the cgroup of jail `name` and in the one beside it, and removes both from every
/// hierarchy, and from where its launcher `noted` it. Whether there was one.
///
/// # Errors
/// The path that is left if something remains after `grace`.
pub(crate) fn remove_by_name(
    name: &str,
    noted: Option<PathBuf>,
    level: Level,
    grace: Duration,
) -> Result<bool, String> {
    let beside = |jail: PathBuf| {
        let outside = jail.with_file_name(Members::Outside.group_of(name));
        [outside, jail]
    };
    our_groups(level)
        .into_iter()
        .map(|ours| ours.join(name))
        .chain(noted)
        .flat_map(beside)
        .filter(|directory| directory.exists())
        .try_fold(false, |_, directory| remove_group(&directory, grace).map(|()| true))
}

/// Our group in every hierarchy, whether it exists or not.
fn our_groups(level: Level) -> Vec<PathBuf> {
    if is_cgroup2_unified_mode() {
        return v2_base(level).map(|base| vec![base.parent.join(OURS)]).unwrap_or_default();
    }
    if level == Level::Rootless {
        return Vec::new(); // what is there belongs to root
    }
    let mounts = V1::new();
    let found =
        V1_CONTROLLERS.iter().filter_map(|(_, controller)| mount_of(&mounts, controller.clone()));
    found.map(|mount| mount.join(OURS)).collect()
}

fn limit_devices(devices: &DevicesController) -> cgroups_rs::error::Result<()> {
    use DevicePermissions::{MkNod, Read, Write};
    // Linux allocated devices (devices.txt): null zero full random urandom, tty ptmx, pts.
    const NODES: [(i64, i64); 8] =
        [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, -1)];
    devices.deny_device(DeviceType::All, -1, -1, &[Read, Write, MkNod])?;
    NODES.iter().try_for_each(|&(major, minor)| {
        devices.allow_device(DeviceType::Char, major, minor, &[Read, Write])
    })
}
/// The system error below one of the crate's errors.
fn tried(what: &str, error: cgroups_rs::error::Error) -> (String, io::Error) {
    let errno = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    let cause =
        errno.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
    (format!("cannot set {what}"), cause)
}

/// The number behind `key` in a file of `KEY NUMBER` lines.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(text, "oom_kill"), 3);
        assert_eq!(keyed(text, "oom"), 0);
        assert_eq!(keyed("max 12\n", "max"), 12);
    }
}
