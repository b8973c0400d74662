//! Runs tables of forbidden acts: in a jail, where each must be refused as expected and leave no
//! effect on the host, and in a control run, where the same act must succeed.
//!
//! Without the control a refusal proves little: the act may be misspelt, or the kernel may lack it.

use std::collections::BTreeSet;
use std::process::Command;

use crate::bait::Bait;
use crate::policy::PolicyFile;
use crate::{Exec, Level, locate};

/// Where the act succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// In a jail without these layers.
    Off(&'static [&'static str]),
    /// The same, unless the bare host refuses it to an ordinary user as well.
    OffIfHostAllows(&'static [&'static str]),
    /// On the bare host, as the user of the level.
    Host,
    /// On the bare host, as root, whatever the level.
    HostRoot,
    /// The same, unless this kernel or machine has no such thing at all.
    HostRootIfThere,
    /// In fresh namespaces made by the user of the level, with all capabilities in them.
    Bare,
    /// Nowhere that a test may go; the text says why.
    Impossible(&'static str),
}

/// One forbidden act.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Words of a probe act; the placeholders of [`Bait::fill`] are replaced.
    pub act: &'static str,
    /// Outcomes that count as refused, separated by `|`: names of errors, or `signal 31`.
    pub want: &'static str,
    /// Where it succeeds.
    pub control: Control,
    /// The invariant, and the class of `jail.md`.
    pub cites: &'static str,
}

/// Tries every row in a jail of the default policy at every level, then in its control.
///
/// # Panics
/// With the list of rows that were not refused as expected, or whose control did not succeed.
pub fn check(rows: &[Row]) {
    check_with(rows, &|exec| exec);
}

/// As [`check`], with a change to every jailed run.
///
/// # Panics
/// As [`check`].
pub fn check_with(rows: &[Row], prepare: &dyn Fn(Exec) -> Exec) {
    let mut wrong = Vec::new();
    for level in Level::here() {
        let mut bait = Bait::plant(level);
        let acts: Vec<String> = rows.iter().map(|row| bait.fill(row.act)).collect();
        let outcome = prepare(Exec::at(level)).probe(&each(&acts));
        for (row, act) in rows.iter().zip(&acts) {
            let got = outcome.of(act);
            if !got.is_some_and(|got| refused_as(got, row.want)) {
                let (name, got) = (level.name(), got.unwrap_or("nothing"));
                let (want, cites) = (row.want, row.cites);
                wrong.push(format!("{name}: `{act}` gave `{got}`, not `{want}` ({cites})"));
            }
        }
        if acts.iter().all(|act| outcome.of(act).is_none()) {
            wrong.push(outcome.text());
        }
        wrong.extend(bait.touched().into_iter().map(|mark| format!("{}: {mark}", level.name())));
        wrong.extend(failed_controls(rows, level, prepare));
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Whether an outcome of the probe is one of the wanted refusals.
pub fn refused_as(got: &str, want: &str) -> bool {
    want.split('|').any(|name| got == name || got.strip_prefix("errno ") == Some(name))
}

/// The words of `probe each` for these acts.
pub fn each(acts: &[String]) -> Vec<&str> {
    std::iter::once("each").chain(acts.iter().map(String::as_str)).collect()
}

fn failed_controls(rows: &[Row], level: Level, prepare: &dyn Fn(Exec) -> Exec) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut layer_sets = BTreeSet::new();
    for row in rows {
        match row.control {
            Control::Off(layers) => drop(layer_sets.insert(layers)),
            Control::OffIfHostAllows(layers) => {
                if outside(row.control, level, row.act).starts_with("ok") {
                    layer_sets.insert(layers);
                } else {
                    eprintln!("no control for `{}`: this host refuses it, too", row.act);
                }
            }
            Control::Impossible(why) => eprintln!("no control for `{}`: {why}", row.act),
            Control::Host | Control::HostRoot | Control::HostRootIfThere | Control::Bare => {
                let got = outside(row.control, level, row.act);
                if got.starts_with("ok") {
                    continue;
                }
                let act = row.act;
                if row.control == Control::HostRootIfThere {
                    eprintln!("no control for `{act}`: this host gives `{}`", got.trim());
                } else {
                    let (name, control) = (level.name(), row.control);
                    wrong.push(format!("{name}: control {control:?} of `{act}` gave `{got}`"));
                }
            }
        }
    }
    for layers in layer_sets {
        wrong.extend(failed_with_layers_off(rows, layers, level, prepare));
    }
    wrong
}

fn failed_with_layers_off(
    rows: &[Row],
    layers: &'static [&'static str],
    level: Level,
    prepare: &dyn Fn(Exec) -> Exec,
) -> Vec<String> {
    let bait = Bait::plant(level);
    let policy = PolicyFile::without(layers);
    let mine = |row: &&Row| match row.control {
        Control::Off(these) => these == layers,
        Control::OffIfHostAllows(these) => {
            these == layers && outside(row.control, level, row.act).starts_with("ok")
        }
        _ => false,
    };
    let acts: Vec<String> = rows.iter().filter(mine).map(|row| bait.fill(row.act)).collect();
    let outcome = prepare(Exec::at(level).policy(policy.path())).probe(&each(&acts));
    let failed =
        acts.iter().filter(|act| !outcome.of(act).is_some_and(|got| got.starts_with("ok")));
    let mut wrong: Vec<String> = failed
        .map(|act| {
            let (name, got) = (level.name(), outcome.of(act).unwrap_or("nothing"));
            format!("{name}: control of `{act}` without {layers:?} gave `{got}`")
        })
        .collect();
    if acts.iter().all(|act| outcome.of(act).is_none()) {
        wrong.push(outcome.text());
    }
    wrong
}

/// The outcome of an act outside any jail, with fresh bait and in the bait's directory.
fn outside(control: Control, level: Level, act: &str) -> String {
    let bait = Bait::plant(level);
    let act = bait.fill(act);
    let mut line = match control {
        Control::HostRoot | Control::HostRootIfThere => Vec::new(),
        Control::OffIfHostAllows(_) => Level::Rootless.prefix(),
        _ => level.prefix(),
    };
    if control == Control::Bare {
        let kinds = ["--mount", "--net", "--ipc", "--uts", "--pid", "--cgroup", "--fork"];
        line.extend(["unshare", "--user", "--map-root-user"].map(str::to_owned));
        line.extend(kinds.map(str::to_owned));
    }
    line.push(locate::probe().display().to_string());
    line.extend(["each".to_owned(), act.clone()]);
    let done = Command::new(&line[0])
        .args(&line[1..])
        .current_dir(bait.dir())
        .output()
        .expect("cannot run a control");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let outcome = text.strip_prefix(&act).and_then(|rest| rest.strip_prefix(": "));
    outcome.map_or_else(|| String::from_utf8_lossy(&done.stderr).into_owned(), str::to_owned)
}
