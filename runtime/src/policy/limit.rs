//! `--limit KEY=VALUE`: one more narrowing step, from the command line.
//!
//! Pure. Values are read by the types that read policy files, so the bounds are the same.

use super::bounded::Quantity;
use super::error::PolicyError;
use super::file::{
    CpuShare, CpuTime, Inodes, Memory, OpenFiles, Output, Pids, Swap, TmpSize, WallTime,
    WorkspaceSize,
};
use super::model::{Origin, Policy, Setting};
use super::narrow::{Mode, Rule, cpus, falls, falls_from_none, put};
use super::units::UnitError;

/// Keys of `--limit KEY=VALUE`, in the order of the help text.
pub const LIMIT_KEYS: [&str; 11] = [
    "memory",
    "swap",
    "pids",
    "cpu",
    "cpu-time",
    "wall",
    "disk",
    "inodes",
    "tmp",
    "output",
    "open-files",
];

impl Policy {
    /// Lowers one limit, as `--limit KEY=VALUE` asks. [`LIMIT_KEYS`] are the keys; values are
    /// written as in a policy file. Setting the value in force again is harmless.
    ///
    /// # Errors
    /// [`PolicyError::UnknownLimit`] and [`PolicyError::LimitValue`] for what cannot be read,
    /// [`PolicyError::Widened`] if the policy allows less; the policy is then unchanged.
    pub fn narrow_limit(&mut self, key: &str, value: &str) -> Result<(), PolicyError> {
        let (process, files) = (&mut self.process, &mut self.filesystem);
        let limit = CommandLine { key, value };
        let small = |number: u64| number as u32;
        match key {
            "memory" => limit.lower(&mut process.memory, Memory::get, &falls()),
            "swap" => limit.lower(&mut process.swap, Swap::get, &falls()),
            "pids" => limit.lower(&mut process.pids, |n: &Pids| small(n.get()), &falls()),
            "cpu" => limit.lower(&mut process.cpu_milli, CpuShare::get, &cpus()),
            "cpu-time" => limit.lower(&mut process.cpu_time, CpuTime::get, &falls_from_none()),
            "wall" => limit.lower(&mut process.wall_time, WallTime::get, &falls_from_none()),
            "disk" => limit.lower(&mut files.workspace_size, WorkspaceSize::get, &falls()),
            "inodes" => limit.lower(&mut files.workspace_inodes, Inodes::get, &falls()),
            "tmp" => limit.lower(&mut files.tmp_size, TmpSize::get, &falls()),
            "output" => limit.lower(&mut process.output, Output::get, &falls_from_none()),
            "open-files" => {
                limit.lower(&mut process.open_files, |n: &OpenFiles| small(n.get()), &falls())
            }
            _ => {
                Err(PolicyError::UnknownLimit { key: key.to_owned(), known: LIMIT_KEYS.join(", ") })
            }
        }
    }
}

/// One `--limit KEY=VALUE`.
struct CommandLine<'a> {
    key: &'a str,
    value: &'a str,
}

impl CommandLine<'_> {
    fn lower<Q: Quantity, T>(
        &self,
        slot: &mut Setting<T>,
        value: impl Fn(&Q) -> T,
        rule: &Rule<T>,
    ) -> Result<(), PolicyError> {
        let key = self.key.to_owned();
        let refused = |source: UnitError| PolicyError::LimitValue { key, source };
        let quantity = Q::from_text(self.value).map_err(refused)?;
        let column = self.key.chars().count() + 2;
        let origin = Origin { file: "--limit".to_owned(), line: 1, column };
        put(Mode::Narrow, self.key, slot, Setting { value: value(&quantity), origin }, rule)
    }
}
