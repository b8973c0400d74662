//! Lays one policy file over a resolved policy, and refuses any value wider than the one before.
//!
//! Pure. Called once per file of a chain, root first. Every comparison of
//! two policies in the product is made here.

use std::path::Path;

use super::bounded::Quantity;
use super::effective::{Written, written_cpus};
use super::error::PolicyError;
use super::file::{At, FilesystemTable, PolicyFile, ProcessTable, entries};
use super::model::{Filesystem, Origin, Policy, Relaxation, Root, Setting};
use super::network;
use super::parse::Source;
use super::paths::{Access, access_at};
use super::stage;

/// Whether a file may widen what is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// A root policy over `base`: any value within the bounds.
    Replace,
    /// A child over its parent: narrower or equal.
    Narrow,
}

/// What "wider" means for one kind of value, and how the value is written.
pub(super) struct Rule<T> {
    pub(super) wider: fn(&T, &T) -> bool,
    pub(super) written: fn(&T) -> String,
}

/// A limit: may only fall.
pub(super) fn falls<T: Ord + Written>() -> Rule<T> {
    Rule { wider: |child, parent| child > parent, written: T::written }
}

/// A limit whose absence is its widest value.
pub(super) fn falls_from_none<T: Ord + Written>() -> Rule<Option<T>> {
    let wider = |child: &Option<T>, parent: &Option<T>| match (child, parent) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(child), Some(parent)) => child > parent,
    };
    Rule { wider, written: Option::written }
}

/// A requirement: may only rise. `true` is above `false`.
fn rises<T: Ord + Written>() -> Rule<T> {
    Rule { wider: |child, parent| child < parent, written: T::written }
}

/// A choice that cannot be compared: may only stay.
fn stays<T: Eq + Written>() -> Rule<T> {
    Rule { wider: |child, parent| child != parent, written: T::written }
}

pub(super) fn cpus() -> Rule<u32> {
    Rule { wider: |child, parent| child > parent, written: |milli| written_cpus(*milli) }
}

pub(super) fn put<T>(
    mode: Mode,
    key: &str,
    slot: &mut Setting<T>,
    new: Setting<T>,
    rule: &Rule<T>,
) -> Result<(), PolicyError> {
    if mode == Mode::Narrow && (rule.wider)(&new.value, &slot.value) {
        let values = ((rule.written)(&new.value), (rule.written)(&slot.value));
        return Err(widened(key, values, &new.origin, &slot.origin));
    }
    *slot = new;
    Ok(())
}

/// `values` are the child's and the parent's.
pub(super) fn widened(
    key: &str,
    values: (String, String),
    at: &Origin,
    parent: &Origin,
) -> PolicyError {
    PolicyError::Widened {
        at: Box::new(at.clone()),
        key: key.to_owned(),
        value: values.0,
        parent: Box::new(parent.clone()),
        parent_value: values.1,
    }
}

/// Lays `file` over `policy`.
pub(super) fn apply(
    policy: &mut Policy,
    source: &Source,
    file: &PolicyFile,
    mode: Mode,
    groups: &[&str],
) -> Result<(), PolicyError> {
    let step = Step { source, mode };
    step.require(policy, file)?;
    step.filesystem(policy, &file.filesystem)?;
    step.paths(policy, &file.filesystem)?;
    step.process(policy, &file.process)?;
    step.groups(policy, file, groups)?;
    network::lay(&mut policy.network, source, &file.network, mode)?;
    stage::lay(&mut policy.stage, source, &file.stage, mode)?;
    step.environment(policy, file)
}

/// One file that is laid over a policy.
pub(super) struct Step<'a> {
    pub(super) source: &'a Source,
    pub(super) mode: Mode,
}

impl Step<'_> {
    /// Puts what the file writes for `key`, if it does, where it may.
    pub(super) fn set<W, T>(
        &self,
        key: &str,
        slot: &mut Setting<T>,
        written: &Option<At<W>>,
        value: impl Fn(&W) -> T,
        rule: &Rule<T>,
    ) -> Result<(), PolicyError> {
        match written {
            None => Ok(()),
            Some(at) => put(self.mode, key, slot, self.setting(at, value(at.get())), rule),
        }
    }

    pub(super) fn setting<W, T>(&self, at: &At<W>, value: T) -> Setting<T> {
        Setting { value, origin: self.source.origin(at.span()) }
    }

    fn origin<W>(&self, at: &At<W>) -> Origin {
        self.source.origin(at.span())
    }

    fn require(&self, policy: &mut Policy, file: &PolicyFile) -> Result<(), PolicyError> {
        let (to, from) = (&mut policy.require, &file.require);
        self.set("require.level", &mut to.level, &from.level, |level| *level, &rises())?;
        let abi = &mut to.landlock_abi;
        self.set("require.landlock_abi", abi, &from.landlock_abi, |n| n.get() as u8, &rises())?;
        self.set("require.cgroup", &mut to.cgroup, &from.cgroup, |on| *on, &rises())?;
        let Some(list) = &from.relax else { return Ok(()) };
        let mut relax = Vec::new();
        for (index, entry) in list.get().iter().enumerate() {
            let new = Relaxation {
                layer: *entry.layer.get(),
                why: entry.why.get().clone(),
                off: entry.off.as_ref().is_some_and(|off| *off.get()),
                origin: self.origin(&entry.layer),
            };
            let old = to.relax.iter().find(|old| old.layer == new.layer);
            let allowed = old.is_some_and(|old| old.off || !new.off);
            if self.mode == Mode::Narrow && !allowed {
                let state = |off| if off { "off" } else { "may be missing" };
                let values = (
                    format!("{} {}", new.layer, state(new.off)),
                    old.map_or("required".to_owned(), |old| state(old.off).to_owned()),
                );
                let parent = old.map_or(&policy.lists.relax, |old| &old.origin);
                let key = format!("require.relax[{index}]");
                return Err(widened(&key, values, &new.origin, parent));
            }
            relax.push(new);
        }
        to.relax = relax;
        policy.lists.relax = self.origin(list);
        Ok(())
    }

    fn filesystem(&self, policy: &mut Policy, from: &FilesystemTable) -> Result<(), PolicyError> {
        let to = &mut policy.filesystem;
        self.set("filesystem.root", &mut to.root, &from.root, |text| root(text), &stays())?;
        let (slot, written) = (&mut to.workspace_size, &from.workspace_size);
        self.set("filesystem.workspace_size", slot, written, Quantity::get, &falls())?;
        let (slot, written) = (&mut to.workspace_inodes, &from.workspace_inodes);
        self.set("filesystem.workspace_inodes", slot, written, Quantity::get, &falls())?;
        let (slot, written) = (&mut to.workspace_storage, &from.workspace_storage);
        self.set("filesystem.workspace_storage", slot, written, |kind| *kind, &falls())?;
        let (slot, written) = (&mut to.tmp_size, &from.tmp_size);
        self.set("filesystem.tmp_size", slot, written, Quantity::get, &falls())?;
        let (slot, written) = (&mut to.tmp_inodes, &from.tmp_inodes);
        self.set("filesystem.tmp_inodes", slot, written, Quantity::get, &falls())?;
        let (slot, written) = (&mut to.shm_size, &from.shm_size);
        self.set("filesystem.shm_size", slot, written, Quantity::get, &falls())?;
        // Nothing kept is the narrowest: `None` is below every duration.
        self.set("filesystem.retain", &mut to.retain, &from.retain, Quantity::get, &falls())
    }

    /// Both lists at once: a read-only path beneath a writable one is a hole in it, and a child
    /// that drops the hole would write where its parent could not.
    fn paths(&self, policy: &mut Policy, from: &FilesystemTable) -> Result<(), PolicyError> {
        let mut new = policy.filesystem.clone();
        for (list, slot) in
            [(&from.read_only, &mut new.read_only), (&from.writable, &mut new.writable)]
        {
            if let Some(list) = list {
                let paths = list.get().iter();
                *slot = paths.map(|path| self.setting(path, path.get().into())).collect();
            }
        }
        if self.mode == Mode::Narrow {
            self.paths_are_narrower(policy, from, &new)?;
        }
        root_stays_read_only(&new)?;
        if from.read_only.is_some() {
            new.writable.retain(|old| new.read_only.iter().all(|path| path.value != old.value));
        }
        policy.filesystem = new;
        if let Some(list) = &from.read_only {
            policy.lists.read_only = self.origin(list);
        }
        if let Some(list) = &from.writable {
            policy.lists.writable = self.origin(list);
        }
        Ok(())
    }

    fn paths_are_narrower(
        &self,
        parent: &Policy,
        from: &FilesystemTable,
        new: &Filesystem,
    ) -> Result<(), PolicyError> {
        let old = &parent.filesystem;
        for (name, list, wanted) in [
            ("read_only", &from.read_only, Access::Read),
            ("writable", &from.writable, Access::Write),
        ] {
            for (index, path) in entries(list).iter().enumerate() {
                let given = access(old, Path::new(path.get()));
                if given < wanted {
                    let place = match given {
                        Access::Hidden if wanted == Access::Read => &parent.lists.read_only,
                        Access::Hidden => &parent.lists.writable,
                        _ => decider(old, Path::new(path.get())).unwrap_or(&parent.lists.writable),
                    };
                    let key = format!("filesystem.{name}[{index}]");
                    let values = (path.get().written(), shown(given).to_owned());
                    return Err(widened(&key, values, &self.origin(path), place));
                }
            }
        }
        for hole in &old.read_only {
            let (before, after) = (access(old, &hole.value), access(new, &hole.value));
            if after > before {
                let at = from.read_only.as_ref().map(|list| self.origin(list));
                let at = at.unwrap_or_else(|| hole.origin.clone());
                let value = format!("a list without {}", hole.value.written());
                let values = (value, "a read-only path beneath a writable one".to_owned());
                return Err(widened("filesystem.read_only", values, &at, &hole.origin));
            }
        }
        Ok(())
    }

    fn process(&self, policy: &mut Policy, from: &ProcessTable) -> Result<(), PolicyError> {
        let to = &mut policy.process;
        self.set("process.pids", &mut to.pids, &from.pids, |n| n.get() as u32, &falls())?;
        let (slot, written) = (&mut to.open_files, &from.open_files);
        self.set("process.open_files", slot, written, |n| n.get() as u32, &falls())?;
        let (slot, written) = (&mut to.wall_time, &from.wall_time);
        self.set("process.wall_time", slot, written, Quantity::get, &falls_from_none())?;
        let (slot, written) = (&mut to.cpu_time, &from.cpu_time);
        self.set("process.cpu_time", slot, written, Quantity::get, &falls_from_none())?;
        self.set("process.cpus", &mut to.cpu_milli, &from.cpus, Quantity::get, &cpus())?;
        self.set("process.memory", &mut to.memory, &from.memory, Quantity::get, &falls())?;
        self.set("process.swap", &mut to.swap, &from.swap, Quantity::get, &falls())?;
        self.set("process.core", &mut to.core, &from.core, Quantity::get, &falls())?;
        self.set("process.nice", &mut to.nice, &from.nice, |n| n.get() as u8, &rises())?;
        let (slot, written) = (&mut to.io_rate, &from.io_rate);
        self.set("process.io_rate", slot, written, Quantity::get, &falls_from_none())?;
        let (slot, written) = (&mut to.output, &from.output);
        self.set("process.output", slot, written, Quantity::get, &falls_from_none())?;
        let (slot, written) = (&mut to.hide_uptime, &from.hide_uptime);
        self.set("process.hide_uptime", slot, written, |on| *on, &rises())
    }

    fn groups(
        &self,
        policy: &mut Policy,
        file: &PolicyFile,
        catalogue: &[&str],
    ) -> Result<(), PolicyError> {
        let Some(list) = &file.syscalls.groups else { return Ok(()) };
        let place = &policy.lists.groups;
        let mut groups = self.subset("syscalls.groups", list, &policy.syscalls.groups, place)?;
        groups.sort_by_key(|group| catalogue.iter().position(|known| *known == group.value));
        policy.syscalls.groups = groups;
        policy.lists.groups = self.origin(list);
        Ok(())
    }

    /// A variable that the child sets is no longer taken from the caller.
    fn environment(&self, policy: &mut Policy, file: &PolicyFile) -> Result<(), PolicyError> {
        let (to, from) = (&mut policy.environment, &file.environment);
        if let Some(list) = &from.pass {
            to.pass = self.subset("environment.pass", list, &to.pass, &policy.lists.pass)?;
            policy.lists.pass = self.origin(list);
        }
        for (name, value) in &from.set {
            to.pass.retain(|passed| passed.value != *name.get());
            to.set.insert(name.get().clone(), self.setting(value, value.get().clone()));
        }
        Ok(())
    }

    /// The entries of a child's list, each of which its parent must have.
    fn subset(
        &self,
        key: &str,
        list: &At<Vec<At<String>>>,
        parent: &[Setting<String>],
        place: &Origin,
    ) -> Result<Vec<Setting<String>>, PolicyError> {
        let missing =
            |entry: &At<String>| parent.iter().all(|setting| setting.value != *entry.get());
        if self.mode == Mode::Narrow
            && let Some((index, entry)) =
                list.get().iter().enumerate().find(|(_, entry)| missing(entry))
        {
            let names: Vec<String> = parent.iter().map(|old| old.value.written()).collect();
            let values = (entry.get().written(), format!("[{}]", names.join(", ")));
            return Err(widened(&format!("{key}[{index}]"), values, &self.origin(entry), place));
        }
        Ok(list.get().iter().map(|entry| self.setting(entry, entry.get().clone())).collect())
    }
}

fn root(text: &str) -> Root {
    if text == "host" { Root::Host } else { Root::Directory(text.into()) }
}

/// A jail that could write its own root would change what the next jail runs.
fn root_stays_read_only(files: &Filesystem) -> Result<(), PolicyError> {
    let Root::Directory(root) = &files.root.value else { return Ok(()) };
    let overlaps = |path: &Path| path.starts_with(root) || root.starts_with(path);
    match files.writable.iter().find(|path| overlaps(&path.value)) {
        None => Ok(()),
        Some(path) => Err(PolicyError::Refused {
            at: path.origin.clone(),
            key: "filesystem.writable".to_owned(),
            value: path.value.display().to_string(),
            reason: format!(
                "it overlaps the root file system {}, set at {}",
                root.display(),
                files.root.origin
            ),
        }),
    }
}

fn shown(access: Access) -> &'static str {
    match access {
        Access::Hidden => "not shown",
        Access::Read => "read-only",
        Access::Write => "writable",
    }
}

fn access(of: &Filesystem, path: &Path) -> Access {
    let read_only = of.read_only.iter().map(|setting| setting.value.as_path());
    access_at(path, read_only, of.writable.iter().map(|setting| setting.value.as_path()))
}

/// The place of the entry that decides about `path`.
fn decider<'a>(of: &'a Filesystem, path: &Path) -> Option<&'a Origin> {
    let all = of.read_only.iter().chain(&of.writable);
    let above = all.filter(|setting| path.starts_with(&setting.value));
    above.max_by_key(|setting| setting.value.components().count()).map(|setting| &setting.origin)
}
