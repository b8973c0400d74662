//! What `--check` says about the configuration file: custom tools, and its tables as they are in force.
//!
//! Values of environments, and what is in files of credentials, are not shown (INV-12).

use std::time::Duration;

use serde_json::{Value, json};
use stockade_runtime::host::Level;
use stockade_runtime::jail;
use stockade_runtime::policy::{ByteSize, Policy, format_cpus, format_duration};
use stockade_runtime::spec::OutsideLimits;

use crate::config::Config;
use crate::config::custom_tool::{CustomTool, Filter, Place, ResultForm};
use crate::daemon::custom::CustomTools;
use crate::exit::Exit;
use crate::explain;
use crate::settings::Settings;

/// A configuration, and what limits its tools on the host.
pub struct Configured<'a> {
    settings: &'a Settings,
    config: &'a Config,
    policy: &'a Policy,
    /// None without such tools.
    limits: Option<OutsideLimits>,
}

impl<'a> Configured<'a> {
    /// Looks at what this host offers for tools on it. `None` where sessions are handed over: nothing of
    /// the file takes effect then.
    ///
    /// # Errors
    /// The exit code of what was printed.
    pub fn look(
        settings: &'a Settings,
        config: &'a Config,
        policy: Option<&'a Policy>,
        level: Level,
    ) -> anyhow::Result<Result<Option<Configured<'a>>, Exit>> {
        let Some(policy) = policy else { return Ok(Ok(None)) };
        if let Err(error) = CustomTools::check_users(&config.tools, level) {
            explain::complain(&error, error.hint());
            return Ok(Err(Exit::Policy));
        }
        let facts = jail::probe_host(level)?;
        Ok(match config.limits_outside(policy, &facts) {
            Ok(limits) => Ok(Some(Configured { settings, config, policy, limits })),
            Err(error) => {
                explain::complain(&error, Some(&error.hint()));
                Err(Exit::Isolation)
            }
        })
    }

    /// One line for each tool and each table, if a file was named.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let Some(file) = &self.settings.config else { return Vec::new() };
        let mut lines = vec![("configuration", file.display().to_string())];
        lines.extend(self.config.tools.iter().map(|tool| ("custom tool", self.line(tool))));
        for (name, table) in self.tables() {
            let parts = table.as_object().into_iter().flatten();
            let parts = parts.filter(|(_, value)| !value.is_null());
            let parts = parts.map(|(key, value)| match value {
                Value::String(text) => format!("{key} {text}"),
                other => format!("{key} {other}"),
            });
            lines.push((name, parts.collect::<Vec<_>>().join(", ")));
        }
        lines
    }

    /// All of it, also where it is the default.
    pub fn document(&self) -> Value {
        let tools: Vec<Value> = self.config.tools.iter().map(|tool| self.tool(tool)).collect();
        let mut all = json!({ "file": self.settings.config, "custom_tools": tools });
        for (name, table) in self.tables() {
            all[name] = table;
        }
        all
    }

    fn tables(&self) -> [(&'static str, Value); 3] {
        let config = self.config;
        [
            ("skills", config.skills.shown()),
            ("memory", config.memory.shown()),
            ("stage", config.stage.shown()),
        ]
    }

    fn line(&self, tool: &CustomTool) -> String {
        let plan = &tool.plan;
        let where_ = match &tool.place {
            Place::Jail => "in the jail".to_owned(),
            Place::Host { user: None, .. } => "on the host".to_owned(),
            Place::Host { user: Some(user), .. } => format!("on the host as user {user}"),
        };
        let time = format_duration(Duration::from_millis(plan.time_ms_max));
        let output = ByteSize(plan.output_bytes_max);
        let limits = match (&tool.place, self.limits.as_ref()) {
            (Place::Host { filter, .. }, Some(limits)) => {
                let process = &self.policy.process;
                let group = match limits.grouped {
                    true => format!(
                        "{} of memory, {} processes, {} CPUs for each session",
                        process.memory.value,
                        process.pids.value,
                        format_cpus(process.cpu_milli.value)
                    ),
                    false => {
                        format!("{} of data for each process, no cgroup", process.memory.value)
                    }
                };
                let filter = match filter {
                    Filter::On => "system calls filtered".to_owned(),
                    Filter::Off { line } => {
                        format!("no system call filter ({})", self.origin(*line))
                    }
                };
                format!("{group}; {filter}")
            }
            _ => "the limits and the filter of its jail".to_owned(),
        };
        format!("{} {where_}: {}; {time}, {output}; {limits}", plan.name, command(tool).join(" "))
    }

    fn tool(&self, tool: &CustomTool) -> Value {
        let plan = &tool.plan;
        let names = plan.environment.iter().map(|entry| {
            let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
            String::from_utf8_lossy(name).into_owned()
        });
        let mut shown = json!({
            "name": plan.name,
            "where": "jail",
            "command": command(tool),
            "environment": names.collect::<Vec<_>>(),
            "timeout_ms": plan.time_ms_max,
            "output_bytes_max": plan.output_bytes_max,
            "result": match tool.result { ResultForm::Text => "text", ResultForm::Json => "json" },
        });
        if let (Place::Host { user, why, filter }, Some(limits)) = (&tool.place, &self.limits) {
            let process = &self.policy.process;
            shown["where"] = json!("host");
            shown["user"] = json!(user);
            shown["why"] = json!(why);
            shown["directory"] = json!(plan.workdir);
            shown["seccomp"] = match filter {
                Filter::On => json!({ "on": true, "origin": "default" }),
                Filter::Off { line } => json!({ "on": false, "origin": self.origin(*line) }),
            };
            shown["limits"] = json!({
                "cgroup": limits.grouped,
                "memory_bytes": process.memory.value.bytes(),
                "pids": process.pids.value,
                "cpu_milli": process.cpu_milli.value,
            });
        }
        shown
    }

    fn origin(&self, line: usize) -> String {
        let file = self.settings.config.as_deref().map(std::path::Path::display);
        file.map_or_else(|| line.to_string(), |file| format!("{file}:{line}"))
    }
}

fn command(tool: &CustomTool) -> Vec<String> {
    tool.plan.argv.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}
