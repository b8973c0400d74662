//! Turns `policies/syscalls.toml` into Rust constants.
//!
//! Runs when the crate is built. Parsing the catalogue takes longer than compiling and attaching
//! the filter, and every jail start would pay for it; here it is paid once. The TOML files stay
//! the source of truth, and a mistake in them (a name without number, a call in two tables, an
//! unknown key) fails the build with the place of the mistake.
//!
//! The types that the generated code fills are those of `src/policy/syscalls.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Numbers are below this; the dispatch of the filter relies on it.
const NUMBER_LIMIT: u16 = 1024;

/// The libc crate has the calls up to this number, except these.
const LIBC_LAST: u16 = 450;
const LIBC_LACKS: [&str; 2] = ["io_pgetevents", "uretprobe"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    constants: BTreeMap<String, u64>,
    group: Vec<Group>,
    deny: Vec<Denial>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    why: String,
    calls: Vec<String>,
    #[serde(default)]
    rule: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    call: String,
    why: String,
    otherwise: String,
    allow: Vec<BTreeMap<String, Test>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Denial {
    name: String,
    errno: String,
    why: String,
    calls: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Test {
    Equal(Values),
    Form(Form),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    bits: Option<u8>,
    ne: Option<Values>,
    clear: Option<Values>,
    only: Option<Values>,
    mask: Option<Values>,
    eq: Option<Values>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(Value),
    Many(Vec<Value>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Number(u64),
    Name(String),
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
struct Numbers {
    x86_64: Option<u16>,
    aarch64: Option<u16>,
}

fn main() {
    let policies = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap()).join("../policies");
    let file: File = read(&policies.join("syscalls.toml"));
    let numbers: BTreeMap<String, Numbers> = read(&policies.join("syscall-numbers.toml"));
    let mut catalogue = Emitter { file: &file, numbers, used: BTreeSet::new() };
    let code = catalogue.emit();
    catalogue.check_every_number_is_used();
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    fs::write(out.join("syscalls.rs"), code).unwrap();
    fs::write(out.join("numbers_of_libc.rs"), catalogue.numbers_of_libc()).unwrap();
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    println!("cargo::rerun-if-changed={}", path.display());
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Writes the generated source and checks the catalogue on the way.
struct Emitter<'a> {
    file: &'a File,
    numbers: BTreeMap<String, Numbers>,
    used: BTreeSet<String>,
}

impl Emitter<'_> {
    fn emit(&mut self) -> String {
        let file = self.file;
        let mut out = String::from("static CATALOGUE: Catalogue = Catalogue { groups: &[\n");
        for group in &file.group {
            writeln!(out, "Group {{ name: {:?}, why: {:?}, calls: &[", group.name, group.why)
                .unwrap();
            for call in &group.calls {
                writeln!(out, "{},", self.call(call, "None")).unwrap();
            }
            for rule in &group.rule {
                let text = format!("Some({})", self.rule(rule));
                writeln!(out, "{},", self.call(&rule.call, &text)).unwrap();
            }
            out.push_str("] },\n");
        }
        out.push_str("], denials: &[\n");
        for deny in &file.deny {
            let (name, why, refusal) = (&deny.name, &deny.why, refusal(&deny.errno));
            writeln!(out, "Denial {{ name: {name:?}, why: {why:?}, refusal: {refusal}, calls: &[")
                .unwrap();
            for call in &deny.calls {
                writeln!(out, "{},", self.call(call, "None")).unwrap();
            }
            out.push_str("] },\n");
        }
        out.push_str("] };\n");
        out
    }

    fn call(&mut self, name: &str, rule: &str) -> String {
        let Some(&Numbers { x86_64, aarch64 }) = self.numbers.get(name) else {
            panic!("`{name}` has no line in syscall-numbers.toml");
        };
        assert!(self.used.insert(name.into()), "`{name}` stands in two tables");
        assert!(x86_64.max(aarch64).is_some_and(|n| n < NUMBER_LIMIT), "`{name}`: bad number");
        format!("Call {{ name: {name:?}, x86_64: {x86_64:?}, aarch64: {aarch64:?}, rule: {rule} }}")
    }

    fn check_every_number_is_used(&self) {
        for name in self.numbers.keys() {
            assert!(self.used.contains(name), "`{name}` has a number but stands in no table");
        }
    }

    /// For a test: the numbers that the libc crate has for this machine.
    fn numbers_of_libc(&self) -> String {
        let x86_64 = env::var("CARGO_CFG_TARGET_ARCH").unwrap() == "x86_64";
        let known = self.numbers.iter().filter(|(name, numbers)| {
            let number = if x86_64 { numbers.x86_64 } else { numbers.aarch64 };
            number.is_some_and(|n| n <= LIBC_LAST) && !LIBC_LACKS.contains(&name.as_str())
        });
        let lines: String =
            known.map(|(name, _)| format!("({name:?}, libc::SYS_{name}),\n")).collect();
        format!("static NUMBERS_OF_LIBC: &[(&str, libc::c_long)] = &[\n{lines}];\n")
    }

    fn rule(&self, rule: &Rule) -> String {
        let mut entries = Vec::new();
        for entry in &rule.allow {
            assert!(!entry.is_empty(), "`{}`: an entry that tests nothing", rule.call);
            // "One of" is not known to the filter: an entry with such lists becomes one entry for
            // every combination.
            let mut combinations = vec![String::new()];
            for (key, test) in entry {
                let arg = argument(&rule.call, key);
                let choices = self.test(&rule.call, arg, test);
                combinations = combinations
                    .iter()
                    .flat_map(|c| choices.iter().map(move |choice| format!("{c}{choice}, ")))
                    .collect();
            }
            entries.extend(combinations.iter().map(|c| format!("&[{c}]")));
        }
        let (why, refusal, allow) = (&rule.why, refusal(&rule.otherwise), entries.join(", "));
        format!("Rule {{ why: {why:?}, otherwise: {refusal}, allow: &[{allow}] }}")
    }

    /// The alternatives of one test; each is one or more conditions that must hold together.
    fn test(&self, call: &str, arg: u8, test: &Test) -> Vec<String> {
        let form = match test {
            Test::Equal(values) => {
                return one_of(arg, 32, u32::MAX.into(), self.list(values));
            }
            Test::Form(form) => form,
        };
        let bits = form.bits.unwrap_or(32);
        let all = match bits {
            32 => u64::from(u32::MAX),
            64 => u64::MAX,
            other => panic!("`{call}`: bits = {other}, not 32 or 64"),
        };
        match form {
            Form { ne: Some(values), clear: None, only: None, mask: None, eq: None, .. } => {
                let differs = |v| condition(arg, bits, &format!("NotEqual({v:#x})"));
                vec![self.list(values).into_iter().map(differs).collect::<Vec<_>>().join(", ")]
            }
            Form { ne: None, clear: Some(m), only: None, mask: None, eq: None, .. } => {
                one_of(arg, bits, self.bits(m), vec![0])
            }
            Form { ne: None, clear: None, only: Some(m), mask: None, eq: None, .. } => {
                one_of(arg, bits, all & !self.bits(m), vec![0])
            }
            Form { ne: None, clear: None, only: None, mask: Some(m), eq: Some(values), .. } => {
                let (mask, values) = (self.bits(m), self.list(values));
                assert!(values.iter().all(|v| v & !mask == 0), "`{call}`: bits outside {mask:#x}");
                one_of(arg, bits, mask, values)
            }
            _ => panic!("`{call}`: arg{arg} needs `ne`, `clear`, `only`, or `mask` with `eq`"),
        }
    }

    fn list(&self, values: &Values) -> Vec<u64> {
        match values {
            Values::One(value) => vec![self.value(value)],
            Values::Many(values) => values.iter().map(|v| self.value(v)).collect(),
        }
    }

    fn bits(&self, values: &Values) -> u64 {
        self.list(values).into_iter().fold(0, |bits, v| bits | v)
    }

    fn value(&self, value: &Value) -> u64 {
        match value {
            Value::Number(number) => *number,
            Value::Name(name) => match self.file.constants.get(name) {
                Some(number) => *number,
                None => panic!("`{name}` is not one of [constants]"),
            },
        }
    }
}

/// Conditions one of which holds when the bits `mask` of the argument equal one of `values`.
///
/// Two tests that differ in the value of one bit are one test without that bit. Each test costs
/// some instructions, and each instruction costs time when the filter is attached.
fn one_of(arg: u8, bits: u8, mask: u64, values: Vec<u64>) -> Vec<String> {
    let mut tests: Vec<(u64, u64)> = values.into_iter().map(|value| (mask, value)).collect();
    while let Some((a, b)) = pair(&tests) {
        let (mask, value) = tests[a];
        let bit = value ^ tests[b].1;
        tests[a] = (mask & !bit, value & !bit);
        tests.remove(b);
    }
    let write = |(mask, value)| {
        let test = match (bits, mask) {
            (32, 0xffff_ffff) | (64, u64::MAX) => format!("Equal({value:#x})"),
            _ => format!("Masked {{ mask: {mask:#x}, value: {value:#x} }}"),
        };
        condition(arg, bits, &test)
    };
    tests.into_iter().map(write).collect()
}

/// Two tests with the same mask whose values differ in one bit: the first is before the second.
fn pair(tests: &[(u64, u64)]) -> Option<(usize, usize)> {
    let pairs = (0..tests.len()).flat_map(|a| (a + 1..tests.len()).map(move |b| (a, b)));
    let mut pairs = pairs.filter(|&(a, b)| tests[a].0 == tests[b].0);
    pairs.find(|&(a, b)| (tests[a].1 ^ tests[b].1).is_power_of_two())
}

fn condition(arg: u8, bits: u8, test: &str) -> String {
    format!("Condition {{ arg: {arg}, width: Width::Bits{bits}, test: Test::{test} }}")
}

fn argument(call: &str, key: &str) -> u8 {
    match key.strip_prefix("arg").and_then(|n| n.parse().ok()) {
        Some(arg @ 0..=5) => arg,
        _ => panic!("`{call}`: `{key}` is not one of arg0 to arg5"),
    }
}

fn refusal(errno: &str) -> &'static str {
    match errno {
        "EPERM" => "Refusal::NotPermitted",
        "ENOSYS" => "Refusal::NoSuchCall",
        "EAFNOSUPPORT" => "Refusal::NoSuchFamily",
        "EINVAL" => "Refusal::NoSuchOption",
        other => panic!("`{other}` is not EPERM, ENOSYS, EAFNOSUPPORT or EINVAL"),
    }
}
