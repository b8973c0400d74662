//! The cgroup of a session's tools on the host, beside that of its jail: the same limits, counted for
//! themselves.
//!
//! Runs in the launcher, which makes it with the jail, hands the way into it to the control side, and
//! removes it with all that is in it when the jail ends, also because the control side died. The tools
//! are none of its children: who they are it learns from the group.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::policy::Layer;
use crate::spec::JailSpec;

use super::cgroup::{CgroupEvents, JailCgroup, Members};
use super::message::ToControl;
use super::step::{AtStep as _, Step, StepFailure};
use super::wire::Wire;

/// The group, and the way into it until that is handed over.
#[derive(Debug)]
pub(super) struct OutsideGroup {
    cgroup: JailCgroup,
    door: Vec<OwnedFd>,
}

impl OutsideGroup {
    /// The group beside jail `name`; none if no tool runs on the host, or the jail has none either.
    pub fn make(name: &str, spec: &JailSpec) -> Result<Option<OutsideGroup>, StepFailure> {
        let wanted = spec.tools.as_ref().is_some_and(|plan| plan.outside);
        if !wanted || !spec.applies(Layer::Cgroup) {
            return Ok(None);
        }
        let made = JailCgroup::create(name, Members::Outside, &spec.cgroup, spec.level);
        let cgroup = made.map_err(|(detail, error)| {
            StepFailure::new(Step::Cgroup, format!("{detail} for tools on the host"), &error)
        })?;
        let door = cgroup.members_files();
        let mut group = OutsideGroup { cgroup, door: Vec::new() };
        group.door = door
            .inspect_err(|_| group.cgroup.remove_if_empty())
            .at(Step::Cgroup, "open the cgroup of tools on the host")?;
        Ok(Some(group))
    }

    /// Sends the control side the way into the group.
    pub fn hand_over(&mut self, control: &mut Wire) -> io::Result<()> {
        let door = std::mem::take(&mut self.door);
        let lent: Vec<_> = door.iter().map(|file| file.as_fd()).collect();
        control.send(&ToControl::Outside, &lent)
    }

    /// What its limits counted so far.
    pub fn events(&self) -> CgroupEvents {
        self.cgroup.events()
    }

    /// Kills what is in it, and removes it.
    ///
    /// # Errors
    /// The path that is left if something remains after `grace`.
    pub fn remove(&self, grace: std::time::Duration) -> Result<(), String> {
        self.cgroup.remove(grace)
    }
}
