//! A tool of the operator's own, as executor and keeper run it. Pure data, and what is wrong with it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A tool of the operator's: a program that is started for each call, with the call's input as its
/// standard input. It shares the jail with the shell and is no more trusted than that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomToolPlan {
    /// What a call names it by.
    pub name: String,
    /// Absolute path of the program, and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=VALUE`, added to the environment of the shell.
    pub environment: Vec<Vec<u8>>,
    /// Where it starts; the working directory of the session if `None`.
    pub workdir: Option<PathBuf>,
    /// Longest time of one call, in milliseconds.
    pub time_ms_max: u64,
    /// Last bytes of what it prints that are kept.
    pub output_bytes_max: u64,
    /// What it prints is data: handed on as it is, and an error if it is too long.
    pub verbatim: bool,
}

impl CustomToolPlan {
    /// Most of them.
    pub const COUNT_MAX: usize = 64;
    /// Longest name, as the control plane has it.
    pub const NAME_BYTES_MAX: usize = 128;
    /// Program, arguments and environment together.
    pub const BYTES_MAX: usize = 128 << 10;
    /// Longest output that can be asked for.
    pub const OUTPUT_BYTES_MAX: u64 = 1 << 20;
    /// Longest time that can be asked for.
    pub const TIME_MS_MAX: u64 = 3_600_000;
    /// Names of the toolset, which no other tool may have.
    pub const RESERVED: [&str; 6] = ["bash", "read", "write", "edit", "glob", "grep"];

    /// What is wrong with this plan by itself, in words that follow "cannot run the tool NAME: ".
    pub fn mistake(&self) -> Option<&'static str> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let strings = || self.argv.iter().chain(&self.environment);
        let bytes: usize = strings().map(Vec::len).sum();
        let absolute = self.argv.first().is_some_and(|path| path.starts_with(b"/"));
        let length = self.name.len();
        if length == 0 || length > Self::NAME_BYTES_MAX || !self.name.chars().all(plain) {
            Some("its name is not 1 to 128 letters, digits, `_` or `-`")
        } else if Self::RESERVED.contains(&self.name.as_str()) {
            Some("a tool of the toolset has this name")
        } else if !absolute {
            Some("its command does not begin with an absolute path")
        } else if strings().any(|string| string.contains(&0)) {
            Some("an argument or variable holds a null character")
        } else if bytes > Self::BYTES_MAX {
            Some("its arguments and environment are longer than 128 KiB")
        } else if !(1..=Self::TIME_MS_MAX).contains(&self.time_ms_max) {
            Some("its time limit is not between 1 ms and 1 h")
        } else if !(1..=Self::OUTPUT_BYTES_MAX).contains(&self.output_bytes_max) {
            Some("its output limit is not between 1 byte and 1 MiB")
        } else {
            None
        }
    }

    /// The first of `tools` that cannot be run, or that has the name of one before it.
    pub fn first_mistake(tools: &[CustomToolPlan]) -> Option<(String, &'static str)> {
        tools.iter().enumerate().find_map(|(at, tool)| {
            let again = tools[..at].iter().any(|earlier| earlier.name == tool.name);
            let reason = match tool.mistake() {
                None if again => "another tool has this name",
                None if at >= Self::COUNT_MAX => "there are more than 64 custom tools",
                other => other?,
            };
            Some((tool.name.clone(), reason))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> CustomToolPlan {
        CustomToolPlan {
            name: name.to_owned(),
            argv: vec![b"/usr/bin/true".to_vec()],
            environment: Vec::new(),
            workdir: None,
            time_ms_max: 1000,
            output_bytes_max: 1000,
            verbatim: false,
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_before_any_jail_is_made() {
        type Change = fn(&mut CustomToolPlan);
        #[rustfmt::skip]
        let cases: [(Change, &str); 11] = [
            (|t| t.name = String::new(),                     "its name is not"),
            (|t| t.name = "a b".into(),                      "its name is not"),
            (|t| t.name = "x".repeat(129),                   "its name is not"),
            (|t| t.name = "bash".into(),                     "toolset has this name"),
            (|t| t.argv.clear(),                             "absolute path"),
            (|t| t.argv[0] = b"true".to_vec(),               "absolute path"),
            (|t| t.environment.push(b"A=\0".to_vec()),       "null character"),
            (|t| t.argv.push(vec![b'x'; 128 << 10]),         "longer than 128 KiB"),
            (|t| t.time_ms_max = 0,                          "time limit"),
            (|t| t.time_ms_max = 3_600_001,                  "time limit"),
            (|t| t.output_bytes_max = 2 << 20,               "output limit"),
        ];
        assert_eq!(tool("lookup_order-2").mistake(), None);
        for (change, want) in cases {
            let mut wrong = tool("lookup");
            change(&mut wrong);
            let mistake = wrong.mistake().expect(want);
            assert!(mistake.contains(want), "{mistake}");
        }
    }

    #[test]
    fn names_are_given_once_and_tools_are_counted() {
        let named = |names: &[&str]| -> Vec<_> { names.iter().map(|name| tool(name)).collect() };
        assert_eq!(CustomToolPlan::first_mistake(&named(&["a", "b"])), None);
        let (name, reason) = CustomToolPlan::first_mistake(&named(&["a", "b", "a"])).expect("two");
        assert_eq!((name.as_str(), reason), ("a", "another tool has this name"));
        let many: Vec<_> = (0..65).map(|number| tool(&format!("t{number}"))).collect();
        assert!(CustomToolPlan::first_mistake(&many).is_some());
        assert_eq!(CustomToolPlan::first_mistake(&many[..64]), None);
    }
}
