//! Lays `[network]` of one file over the network of the policies beneath it.
//!
//! Pure. Budgets only fall, like every other limit. Destinations are different: as long as no file
//! of the chain has written `mode`, `allow` or `presets`, nothing can be reached and a child may name
//! what it likes, so that `extends = "default"` is of use. From the first file that has, children may
//! only narrow.

use std::collections::BTreeSet;

use super::super::bounded::Quantity;
use super::super::effective::{Written, written_moment, written_upstream};
use super::super::error::PolicyError;
use super::super::floor::Floor;
use super::super::model::{Origin, Setting};
use super::super::narrow::{Mode, Rule, Step, falls, falls_from_none, put, widened};
use super::super::parse::Source;
use super::check;
use super::model::{
    Network, NetworkMode, NetworkOrigins, PORTS_MAX, RULES_MAX, Resolves, UpstreamProxy,
};
use super::preset::Preset;
use super::rule::EgressRule;
use super::written::{ModeName, NetworkTable};

/// Most rules of a parent that an error repeats.
const SHOWN_MAX: usize = 6;

/// The network that `base` alone means.
///
/// # Errors
/// [`PolicyError::MissingKey`] if `base` leaves a key out.
pub(in super::super) fn floor(
    source: &Source,
    table: &NetworkTable,
) -> Result<Network, PolicyError> {
    let floor = Floor { source };
    let count = |n: u64| n as u32;
    Ok(Network {
        mode: floor.setting("network.mode", &table.mode, |_| NetworkMode::Enforce)?,
        allow: Vec::new(),
        presets: Vec::new(),
        connections: floor
            .setting("network.connections", &table.connections, |n| count(n.get()))?,
        connection_rate: floor
            .setting("network.connection_rate", &table.connection_rate, |n| count(n.get()))?,
        bytes_out: floor.setting("network.bytes_out", &table.bytes_out, Quantity::get)?,
        bytes_in: floor.setting("network.bytes_in", &table.bytes_in, Quantity::get)?,
        idle_time: floor.setting("network.idle_time", &table.idle_time, Quantity::get)?,
        connection_time: floor.setting(
            "network.connection_time",
            &table.connection_time,
            Quantity::get,
        )?,
        wildcard_names: floor
            .setting("network.wildcard_names", &table.wildcard_names, |n| count(n.get()))?,
        deny_detail: floor.setting("network.deny_detail", &table.deny_detail, |level| *level)?,
        upstream_proxy: floor.setting("network.upstream_proxy", &table.upstream_proxy, |_| None)?,
        named: false,
        lists: NetworkOrigins {
            allow: floor.setting("network.allow", &table.allow, |_| ())?.origin,
            presets: floor.setting("network.presets", &table.presets, |_| ())?.origin,
            expires: floor.setting("network.mode", &table.mode, |_| ())?.origin,
        },
    })
}

/// Lays `table` over `network`.
pub(in super::super) fn lay(
    network: &mut Network,
    source: &Source,
    table: &NetworkTable,
    mode: Mode,
) -> Result<(), PolicyError> {
    let step = Step { source, mode };
    step.budgets(network, table)?;
    // Where nothing has been named yet, a child's destinations stand as if it had no parent.
    let mode = if network.named { mode } else { Mode::Replace };
    let step = Step { source, mode };
    step.upstream(network, table)?;
    step.mode(network, table)?;
    step.lists(network, table)?;
    let writes = table.mode.is_some() || table.allow.is_some() || table.presets.is_some();
    network.named = writes || (network.named && step.mode == Mode::Narrow);
    bounds(network)
}

impl Step<'_> {
    fn budgets(&self, to: &mut Network, from: &NetworkTable) -> Result<(), PolicyError> {
        let count = |n: u64| n as u32;
        let (slot, at) = (&mut to.connections, &from.connections);
        self.set("network.connections", slot, at, |n| count(n.get()), &falls())?;
        let (slot, at) = (&mut to.connection_rate, &from.connection_rate);
        self.set("network.connection_rate", slot, at, |n| count(n.get()), &falls())?;
        let (slot, at) = (&mut to.bytes_out, &from.bytes_out);
        self.set("network.bytes_out", slot, at, Quantity::get, &falls_from_none())?;
        let (slot, at) = (&mut to.bytes_in, &from.bytes_in);
        self.set("network.bytes_in", slot, at, Quantity::get, &falls_from_none())?;
        let (slot, at) = (&mut to.idle_time, &from.idle_time);
        self.set("network.idle_time", slot, at, Quantity::get, &falls())?;
        let (slot, at) = (&mut to.connection_time, &from.connection_time);
        self.set("network.connection_time", slot, at, Quantity::get, &falls_from_none())?;
        let (slot, at) = (&mut to.wildcard_names, &from.wildcard_names);
        self.set("network.wildcard_names", slot, at, |n| count(n.get()), &falls())?;
        let (slot, at) = (&mut to.deny_detail, &from.deny_detail);
        self.set("network.deny_detail", slot, at, |level| *level, &falls())
    }

    fn upstream(&self, to: &mut Network, from: &NetworkTable) -> Result<(), PolicyError> {
        let wider = |child: &Option<UpstreamProxy>, parent: &Option<UpstreamProxy>| {
            let checked = parent.clone().map(|p| UpstreamProxy { resolves: Resolves::Host, ..p });
            child != parent && (child.is_none() || *child != checked)
        };
        let rule = Rule { wider, written: written_upstream };
        let (slot, at) = (&mut to.upstream_proxy, &from.upstream_proxy);
        let value = |entry: &_| check::upstream(entry).expect("checked");
        self.set("network.upstream_proxy", slot, at, value, &rule)
    }

    fn mode(&self, to: &mut Network, from: &NetworkTable) -> Result<(), PolicyError> {
        let Some(at) = &from.mode else { return Ok(()) };
        let expires = from.expires.as_ref();
        let value = match (at.get(), expires) {
            (ModeName::None, _) => NetworkMode::None,
            (ModeName::Report, Some(expires)) => NetworkMode::Report { until: expires.get().get() },
            (ModeName::Enforce | ModeName::Report, _) => NetworkMode::Enforce,
        };
        let new = self.setting(at, value);
        let end = expires.map_or_else(|| new.origin.clone(), |at| self.source.origin(at.span()));
        if let (Mode::Narrow, NetworkMode::Report { until }, NetworkMode::Report { until: old }) =
            (self.mode, value, to.mode.value)
            && until > old
        {
            let values = (written_moment(until), written_moment(old));
            return Err(widened("network.expires", values, &end, &to.lists.expires));
        }
        put(self.mode, "network.mode", &mut to.mode, new, &falls())?;
        to.lists.expires = end;
        Ok(())
    }

    fn lists(&self, to: &mut Network, from: &NetworkTable) -> Result<(), PolicyError> {
        let parent = Parent { rules: to.all_rules(), place: place_of_rules(to) };
        if let Some(list) = &from.allow {
            let mut allow = Vec::new();
            for (index, entry) in list.get().iter().enumerate() {
                let new = self.setting(entry, check::rule(entry.get()).expect("checked"));
                if self.mode == Mode::Narrow {
                    parent.must_cover(&format!("network.allow[{index}]"), &new, &new.origin)?;
                }
                allow.push(new);
            }
            to.allow = allow;
            to.lists.allow = self.source.origin(list.span());
        }
        if let Some(list) = &from.presets {
            let mut presets = Vec::new();
            for (index, entry) in list.get().iter().enumerate() {
                let new = self.setting(entry, entry.get().clone());
                for rule in Preset::find(&new.value).iter().flat_map(|preset| preset.rules()) {
                    if self.mode == Mode::Narrow {
                        let key = format!("network.presets[{index}]");
                        parent.must_cover(&key, &rule.rule, &new.origin)?;
                    }
                }
                presets.push(new);
            }
            to.presets = presets;
            to.lists.presets = self.source.origin(list.span());
        }
        if to.mode.value == NetworkMode::None {
            // A parent's lists are of no use then, and the place of the empty list is that of `mode`.
            if !to.allow.is_empty() || !to.presets.is_empty() {
                to.lists.allow = to.mode.origin.clone();
                to.lists.presets = to.mode.origin.clone();
            }
            to.allow.clear();
            to.presets.clear();
        }
        Ok(())
    }
}

/// Where an operator would look for a rule that is missing.
fn place_of_rules(network: &Network) -> Origin {
    match network.mode.value {
        NetworkMode::None => network.mode.origin.clone(),
        _ if network.allow.is_empty() && !network.presets.is_empty() => {
            network.lists.presets.clone()
        }
        _ => network.lists.allow.clone(),
    }
}

struct Parent {
    rules: Vec<Setting<EgressRule>>,
    place: Origin,
}

impl Parent {
    fn must_cover(
        &self,
        key: &str,
        child: &Setting<EgressRule>,
        at: &Origin,
    ) -> Result<(), PolicyError> {
        if self.rules.iter().any(|rule| rule.value.covers(&child.value)) {
            return Ok(());
        }
        // A rule for the same hosts and port differs in what else it says.
        let same = self.rules.iter().find(|rule| {
            rule.value.port == child.value.port && rule.value.pattern.covers(&child.value.pattern)
        });
        let (text, place) = match same {
            Some(rule) => (rule.value.written(), &rule.origin),
            None => (self.shown(), &self.place),
        };
        let differs = same.is_some_and(|rule| rule.value.protocol != child.value.protocol);
        let (child, text) = match (differs, same) {
            (true, Some(rule)) => (
                format!("{} as {}", child.value.written(), child.value.protocol),
                format!("{text} as {}", rule.value.protocol),
            ),
            _ => (child.value.written(), text),
        };
        Err(widened(key, (child, text), at, place))
    }

    fn shown(&self) -> String {
        let mut texts: Vec<String> =
            self.rules.iter().take(SHOWN_MAX).map(|rule| rule.value.written()).collect();
        if self.rules.len() > SHOWN_MAX {
            texts.push(format!("and {} more", self.rules.len() - SHOWN_MAX));
        }
        format!("[{}]", texts.join(", "))
    }
}

/// Refuses more rules or ports than a jail has room for.
fn bounds(network: &Network) -> Result<(), PolicyError> {
    let rules = network.all_rules();
    let ports: BTreeSet<u16> = rules.iter().map(|rule| rule.value.port).collect();
    for (count, max, what) in
        [(rules.len(), RULES_MAX, "rules"), (ports.len(), PORTS_MAX, "different ports")]
    {
        if count > max {
            return Err(PolicyError::Value {
                at: network.lists.allow.clone(),
                key: "network.allow".to_owned(),
                found: format!("{count} {what}, those of presets included"),
                expected: format!("at most {max}"),
            });
        }
    }
    Ok(())
}
