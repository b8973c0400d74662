//! Writes a resolved policy: as a policy file that means the same, as JSON, and as the canonical
//! bytes that its digest is made of.
//!
//! Pure. One list of lines serves all three, so that what an operator reads is what is digested.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::host::Level;

use super::model::{Origin, Policy, Root, Setting, Storage};
use super::network::{
    DenyDetail, EgressRule, Network, NetworkMode, Preset, Protocol, UpstreamProxy,
};
use super::stage;
use super::units::{ByteSize, format_cpus, format_duration};

/// Whether each line of an effective policy tells where its value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origins {
    /// Values only.
    Hide,
    /// `# FILE:LINE:COLUMN` after each value.
    Show,
}

/// A value as TOML text. Equal values give equal text, different values different text.
pub(super) trait Written {
    fn written(&self) -> String;
}

macro_rules! written {
    ($($type:ty: $self:ident => $text:expr;)*) => {
        $(impl Written for $type {
            fn written(&$self) -> String {
                $text
            }
        })*
    };
}

written! {
    bool: self => self.to_string();
    u8: self => self.to_string();
    u32: self => self.to_string();
    u64: self => self.to_string();
    String: self => quoted(self);
    PathBuf: self => quoted(&self.to_string_lossy());
    ByteSize: self => if self.0 == 0 { "0".to_owned() } else { quoted(&self.to_string()) };
    Duration: self => quoted(&format_duration(*self));
    Level: self => quoted(&self.to_string());
    Storage: self => quoted(match self { Storage::Memory => "memory", Storage::Disk => "disk" });
    NetworkMode: self => quoted(self.name());
    DenyDetail: self => quoted(self.name());
    EgressRule: self => written_rule(self);
    UpstreamProxy: self => format!(
        "{{ url = {}, resolves = {} }}",
        quoted(&self.to_string()),
        quoted(self.resolves.name()),
    );
    Root: self => match self {
        Root::Host => quoted("host"),
        Root::Directory(path) => path.written(),
    };
}

impl<T: Written> Written for Option<T> {
    fn written(&self) -> String {
        self.as_ref().map_or_else(|| quoted("none"), T::written)
    }
}

/// CPUs are a number of thousandths in the policy and a decimal number in a file.
pub(super) fn written_cpus(milli: u32) -> String {
    format_cpus(milli)
}

/// The text alone where it says all; a table otherwise.
fn written_rule(rule: &EgressRule) -> String {
    let text = quoted(&rule.to_string());
    let usual = rule.protocol == Protocol::of_port(rule.port);
    if usual && !rule.private {
        return text;
    }
    let private = if rule.private { ", private = true" } else { "" };
    let protocol = match usual {
        true => String::new(),
        false => format!(", protocol = {}", quoted(rule.protocol.name())),
    };
    format!("{{ rule = {text}{private}{protocol} }}")
}

/// The absence of an upstream proxy is the empty string, because `none` could be a host.
pub(super) fn written_upstream(proxy: &Option<UpstreamProxy>) -> String {
    proxy.as_ref().map_or_else(|| quoted(""), UpstreamProxy::written)
}

/// Seconds since 1970 as a date and time.
pub(super) fn written_moment(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    quoted(&humantime::format_rfc3339_seconds(time).to_string())
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

/// Collects lines; each may end in its origin.
struct Lines {
    text: String,
    origins: Origins,
    /// Key path and origin of every value, for the JSON form.
    places: Vec<(String, String)>,
    section: &'static str,
}

impl Lines {
    fn new(origins: Origins) -> Self {
        Lines { text: String::new(), origins, places: Vec::new(), section: "" }
    }

    fn section(&mut self, name: &'static str) {
        self.section = name;
        self.text.push_str(&format!("\n[{name}]\n"));
    }

    fn line(&mut self, text: &str, origin: &Origin) {
        self.text.push_str(text);
        if self.origins == Origins::Show {
            self.text.push_str(&format!(" # {origin}"));
        }
        self.text.push('\n');
    }

    fn place(&mut self, key: &str, origin: &Origin) {
        self.places.push((format!("{}.{key}", self.section), origin.to_string()));
    }

    fn value(&mut self, key: &str, text: &str, origin: &Origin) {
        self.line(&format!("{key} = {text}"), origin);
        self.place(key, origin);
    }

    fn setting<T: Written>(&mut self, key: &str, setting: &Setting<T>) {
        self.value(key, &setting.value.written(), &setting.origin);
    }

    fn list<'a>(
        &mut self,
        key: &str,
        at: &Origin,
        items: impl IntoIterator<Item = (String, &'a Origin)>,
    ) {
        let mut items = items.into_iter().peekable();
        if items.peek().is_none() {
            return self.value(key, "[]", at);
        }
        self.line(&format!("{key} = ["), at);
        for (index, (text, origin)) in items.enumerate() {
            self.line(&format!("    {text},"), origin);
            self.place(&format!("{key}[{index}]"), origin);
        }
        self.text.push_str("]\n");
    }

    fn settings<T: Written>(&mut self, key: &str, at: &Origin, items: &[Setting<T>]) {
        self.list(key, at, items.iter().map(|item| (item.value.written(), &item.origin)));
    }
}

/// Every value of `policy`, in the order of the policy format.
fn body(policy: &Policy, origins: Origins) -> Lines {
    let mut out = Lines::new(origins);
    let (lists, require, files) = (&policy.lists, &policy.require, &policy.filesystem);
    out.section("require");
    out.setting("level", &require.level);
    out.setting("landlock_abi", &require.landlock_abi);
    out.setting("cgroup", &require.cgroup);
    out.list(
        "relax",
        &lists.relax,
        require.relax.iter().map(|entry| {
            let (layer, why) = (quoted(entry.layer.name()), entry.why.written());
            (format!("{{ layer = {layer}, why = {why}, off = {} }}", entry.off), &entry.origin)
        }),
    );
    out.section("filesystem");
    out.setting("root", &files.root);
    out.settings("read_only", &lists.read_only, &files.read_only);
    out.settings("writable", &lists.writable, &files.writable);
    out.setting("workspace_size", &files.workspace_size);
    out.setting("workspace_inodes", &files.workspace_inodes);
    out.setting("workspace_storage", &files.workspace_storage);
    out.setting("tmp_size", &files.tmp_size);
    out.setting("tmp_inodes", &files.tmp_inodes);
    out.setting("shm_size", &files.shm_size);
    out.setting("retain", &files.retain);
    let process = &policy.process;
    out.section("process");
    out.setting("pids", &process.pids);
    out.setting("open_files", &process.open_files);
    out.setting("wall_time", &process.wall_time);
    out.setting("cpu_time", &process.cpu_time);
    out.value("cpus", &written_cpus(process.cpu_milli.value), &process.cpu_milli.origin);
    out.setting("memory", &process.memory);
    out.setting("swap", &process.swap);
    out.setting("core", &process.core);
    out.setting("nice", &process.nice);
    out.setting("io_rate", &process.io_rate);
    out.setting("output", &process.output);
    out.setting("hide_uptime", &process.hide_uptime);
    out.section("syscalls");
    out.settings("groups", &lists.groups, &policy.syscalls.groups);
    network(&mut out, &policy.network);
    out.section("environment");
    out.settings("pass", &lists.pass, &policy.environment.pass);
    out.section("environment.set");
    for (name, value) in &policy.environment.set {
        out.setting(name, value);
    }
    for (index, rule) in policy.stage.rules.iter().enumerate() {
        out.text.push_str("\n[[stage]]\n");
        for (key, text) in stage::show(rule) {
            out.line(&format!("{key} = {text}"), &rule.origin);
            out.places.push((format!("stage[{index}].{key}"), rule.origin.to_string()));
        }
    }
    out
}

/// The rules of presets stand among those of the policy, with their place in the preset: the text
/// means the same to a later version, whose presets may differ.
fn network(out: &mut Lines, network: &Network) {
    out.section("network");
    out.setting("mode", &network.mode);
    if let NetworkMode::Report { until } = network.mode.value {
        out.value("expires", &written_moment(until), &network.lists.expires);
    }
    out.settings("allow", &network.lists.allow, &network.all_rules());
    out.setting("connections", &network.connections);
    out.setting("connection_rate", &network.connection_rate);
    out.setting("bytes_out", &network.bytes_out);
    out.setting("bytes_in", &network.bytes_in);
    out.setting("idle_time", &network.idle_time);
    out.setting("connection_time", &network.connection_time);
    out.setting("wildcard_names", &network.wildcard_names);
    out.setting("deny_detail", &network.deny_detail);
    let upstream = &network.upstream_proxy;
    out.value("upstream_proxy", &written_upstream(&upstream.value), &upstream.origin);
}

fn preset_used(name: &Setting<String>) -> Value {
    let version = Preset::find(&name.value).map(Preset::version);
    json!({ "name": name.value, "version": version, "at": name.origin.to_string() })
}

impl Policy {
    /// A standalone policy file that resolves to the same values.
    pub fn to_toml(&self, origins: Origins) -> String {
        let name = self.name.written();
        format!("schema = 1\nname = {name}\n{}", body(self, origins).text)
    }

    /// The values as JSON, with the digest, the files read and, where asked, all origins.
    pub fn to_json(&self, origins: Origins) -> Value {
        let values: Map<String, Value> =
            toml::from_str(&body(self, Origins::Hide).text).expect("what we write is TOML");
        let mut document = json!({
            "schema": "stockade.policy.effective",
            "schema_version": 1,
            "name": self.name,
            "digest": self.digest_hex(),
            "sources": self.sources,
            "presets": self.network.presets.iter().map(preset_used).collect::<Vec<Value>>(),
            "policy": values,
        });
        if origins == Origins::Show {
            let places = body(self, Origins::Hide).places.into_iter();
            let places = places.map(|(key, place)| (key, Value::String(place)));
            document["origins"] = Value::Object(places.collect());
        }
        document
    }

    /// The values as bytes: equal for equal values, whoever wrote them, wherever and under
    /// whatever name.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        format!("stockade policy 1\n{}", body(self, Origins::Hide).text).into_bytes()
    }

    /// SHA-256 of [`Policy::canonical_bytes`].
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.canonical_bytes()).into()
    }

    /// The digest as `sha256:` and 64 hexadecimal digits.
    pub fn digest_hex(&self) -> String {
        let digits: String = self.digest().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{digits}")
    }
}
