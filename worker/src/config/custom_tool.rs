//! `[[custom_tool]]`: programs of the operator's that serve calls of the agent's custom tools by name
//! (protocol TOOL-GEN-0, RUN-15, RUN-16).
//!
//! What is written here is checked as a whole when the file is read, each mistake with its line. Values
//! of environments may be secrets and are never shown.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use stockade_runtime::policy::{ByteSize, parse_duration};
use stockade_runtime::spec::CustomToolPlan;
use toml::Spanned;

/// What a tool may take unless it says something else: as a call of bash.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Last bytes of output that are kept, likewise.
const OUTPUT_BYTES_MAX: u64 = 102_400;
/// Longest reason, in bytes.
const WHY_BYTES_MAX: usize = 500;
/// Longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 1024;
/// The environment of a tool on the host begins with this and nothing else.
pub const HOST_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Beginnings of names that may hold a credential of the control plane.
const WITHHELD: [&str; 2] = ["ANTHROPIC_", "AWS_"];

/// One table as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    name: Spanned<String>,
    command: Spanned<Vec<String>>,
    #[serde(rename = "where")]
    place: Spanned<Whereabouts>,
    timeout: Option<Spanned<String>>,
    output_max: Option<Spanned<String>>,
    #[serde(default)]
    environment: BTreeMap<String, Spanned<SecretString>>,
    #[serde(default)]
    result: ResultForm,
    directory: Option<Spanned<PathBuf>>,
    user: Option<Spanned<u32>>,
    why: Option<Spanned<String>>,
    description: Option<Spanned<String>>,
    seccomp: Option<Spanned<bool>>,
}

/// `where`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Whereabouts {
    Jail,
    Host,
}

/// `result`: what a tool that succeeds has printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResultForm {
    /// Text for the model.
    #[default]
    Text,
    /// A JSON string, or a list of content blocks.
    Json,
}

/// Where a tool runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the jail of the session, as its shell does.
    Jail,
    /// On the host, outside every jail.
    Host {
        /// User and group id as root; that of the control side if none.
        user: Option<u32>,
        /// The operator's reason, for the record.
        why: String,
        /// Whether its system calls are filtered.
        filter: Filter,
    },
}

/// `seccomp`: the system call filter of a tool on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// It is on, as it is unless somebody says otherwise.
    On,
    /// The operator switched it off.
    Off {
        /// Where the file says so, from 1.
        line: usize,
    },
}

/// A tool, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomTool {
    /// Where it runs.
    pub place: Place,
    /// What its output is.
    pub result: ResultForm,
    /// What it does, for traces (OBS-2).
    pub description: Option<String>,
    /// What is started, and its limits.
    pub plan: CustomToolPlan,
}

impl std::fmt::Debug for CustomTool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // INV-12: no values of the environment.
        f.debug_struct("CustomTool")
            .field("name", &self.plan.name)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// A mistake, and where in the file it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Bytes of the file.
    pub at: Range<usize>,
    /// A sentence without its end.
    pub reason: String,
}

fn wrong<T, U>(at: &Spanned<U>, reason: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake { at: at.span(), reason: reason.into() })
}

/// Checks all tables; `line_of` says where a byte of the file is.
///
/// # Errors
/// The first mistake.
pub fn check(
    written: &[Spanned<Written>],
    line_of: &dyn Fn(usize) -> usize,
) -> Result<Vec<CustomTool>, Mistake> {
    let mut tools: Vec<CustomTool> = Vec::new();
    for table in written {
        let tool = table.get_ref().checked(line_of)?;
        let name = &table.get_ref().name;
        if tools.iter().any(|earlier| earlier.plan.name == tool.plan.name) {
            return wrong(name, format!("there are two tools of the name `{}`", name.get_ref()));
        }
        if tools.len() >= CustomToolPlan::COUNT_MAX {
            return wrong(table, format!("more than {} custom tools", CustomToolPlan::COUNT_MAX));
        }
        tools.push(tool);
    }
    Ok(tools)
}

impl Written {
    fn checked(&self, line_of: &dyn Fn(usize) -> usize) -> Result<CustomTool, Mistake> {
        let name = self.name.get_ref();
        if CustomToolPlan::RESERVED.contains(&name.as_str()) {
            return wrong(&self.name, format!("`{name}` is a tool of the toolset"));
        }
        let on_host = *self.place.get_ref() == Whereabouts::Host;
        let plan = CustomToolPlan {
            name: name.clone(),
            argv: self.command.get_ref().iter().map(|part| part.clone().into_bytes()).collect(),
            environment: self.environment(on_host)?,
            workdir: self.directory(on_host)?,
            time_ms_max: self.timeout()?,
            output_bytes_max: self.output_bytes_max()?,
            verbatim: self.result == ResultForm::Json,
        };
        if let Some(reason) = plan.mistake() {
            return wrong(&self.name, format!("cannot run the tool `{name}`: {reason}"));
        }
        let (place, description) = (self.place(on_host, line_of)?, self.description()?);
        Ok(CustomTool { place, result: self.result, description, plan })
    }

    fn description(&self) -> Result<Option<String>, Mistake> {
        let Some(written) = &self.description else { return Ok(None) };
        let text = written.get_ref();
        if text.trim().is_empty() || text.len() > DESCRIPTION_BYTES_MAX {
            let reason = format!("`description` has 1 to {DESCRIPTION_BYTES_MAX} bytes");
            return wrong(written, reason);
        }
        Ok(Some(text.clone()))
    }

    fn place(&self, on_host: bool, line_of: &dyn Fn(usize) -> usize) -> Result<Place, Mistake> {
        let name = self.name.get_ref();
        let why = self.why.as_ref().filter(|why| !why.get_ref().trim().is_empty());
        match (on_host, why) {
            (false, _) => match (&self.user, &self.why, &self.seccomp) {
                (Some(user), ..) => wrong(user, "`user` is for tools on the host"),
                (_, Some(why), _) => wrong(why, "`why` is for tools on the host"),
                (_, _, Some(seccomp)) => wrong(
                    seccomp,
                    "`seccomp` is for tools on the host; in the jail the policy's filter holds",
                ),
                (None, None, None) => Ok(Place::Jail),
            },
            (true, None) => wrong(
                &self.place,
                format!(
                    "`{name}` would run outside the jail, with the rights of a user of this host; \
                     say `why = \"…\"`"
                ),
            ),
            (true, Some(why)) if why.get_ref().len() > WHY_BYTES_MAX => {
                wrong(why, format!("`why` is longer than {WHY_BYTES_MAX} bytes"))
            }
            (true, Some(why)) => match &self.user {
                Some(user) if *user.get_ref() == 0 => wrong(user, "`user` may not be root"),
                user => {
                    let user = user.as_ref().map(|user| *user.get_ref());
                    let off = self.seccomp.as_ref().filter(|on| !on.get_ref());
                    let filter = off
                        .map_or(Filter::On, |off| Filter::Off { line: line_of(off.span().start) });
                    Ok(Place::Host { user, why: why.get_ref().clone(), filter })
                }
            },
        }
    }

    fn timeout(&self) -> Result<u64, Mistake> {
        let Some(written) = &self.timeout else { return Ok(TIMEOUT.as_millis() as u64) };
        match parse_duration(written.get_ref()) {
            Ok(duration) => Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
            Err(error) => wrong(written, format!("`timeout`: {error}")),
        }
    }

    fn output_bytes_max(&self) -> Result<u64, Mistake> {
        let Some(written) = &self.output_max else { return Ok(OUTPUT_BYTES_MAX) };
        match written.get_ref().parse::<ByteSize>() {
            Ok(size) => Ok(size.bytes()),
            Err(error) => wrong(written, format!("`output_max`: {error}")),
        }
    }

    fn directory(&self, on_host: bool) -> Result<Option<PathBuf>, Mistake> {
        match &self.directory {
            None => Ok(on_host.then(|| PathBuf::from("/"))),
            Some(directory) if !on_host => wrong(directory, "`directory` is for tools on the host"),
            Some(directory) if !directory.get_ref().is_absolute() => {
                wrong(directory, "`directory` is not an absolute path")
            }
            Some(directory) => Ok(Some(directory.get_ref().clone())),
        }
    }

    fn environment(&self, on_host: bool) -> Result<Vec<Vec<u8>>, Mistake> {
        let mut all = Vec::new();
        for (name, value) in &self.environment {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(plain) {
                return wrong(value, format!("`{name}` is not the name of a variable"));
            }
            let upper = name.to_ascii_uppercase();
            if WITHHELD.iter().any(|start| upper.starts_with(start)) {
                let reason = format!("`{name}` may hold a credential of the control plane");
                return wrong(value, reason);
            }
            all.push(format!("{name}={}", value.get_ref().expose_secret()).into_bytes());
        }
        if on_host && !self.environment.contains_key("PATH") {
            all.push(HOST_PATH.as_bytes().to_vec());
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        custom_tool: Vec<Spanned<Written>>,
    }

    fn read(text: &str) -> Result<Vec<CustomTool>, Mistake> {
        let file: File = toml::from_str(text).expect(text);
        check(&file.custom_tool, &|at| text[..at].matches('\n').count() + 1)
    }

    const JAIL: &str =
        "[[custom_tool]]\nname = \"a\"\ncommand = [\"/bin/a\", \"x\"]\nwhere = \"jail\"\n";
    const HOST: &str =
        "[[custom_tool]]\nname = \"b\"\ncommand = [\"/bin/b\"]\nwhere = \"host\"\nwhy = \"w\"\n";

    #[test]
    fn what_is_left_out_has_its_default() {
        let tools = read(&format!("{JAIL}{HOST}")).expect("valid");
        let (jail, host) = (&tools[0], &tools[1]);
        assert_eq!((jail.plan.time_ms_max, jail.plan.output_bytes_max), (120_000, 102_400));
        assert_eq!(
            (&jail.place, jail.result, jail.plan.verbatim),
            (&Place::Jail, ResultForm::Text, false)
        );
        assert_eq!((jail.plan.environment.len(), &jail.plan.workdir), (0, &None));
        assert_eq!(host.plan.environment, [HOST_PATH.as_bytes()]);
        assert_eq!(host.plan.workdir.as_deref(), Some(std::path::Path::new("/")));
        let on = Filter::On;
        assert_eq!(host.place, Place::Host { user: None, why: "w".to_owned(), filter: on });
        assert_eq!((&jail.description, &host.description), (&None, &None));
        let described = read(&format!("{JAIL}description = \"Finds a\"\n")).expect("valid");
        assert_eq!(described[0].description.as_deref(), Some("Finds a"));
        let all = read(&format!(
            "{HOST}user = 4711\ndirectory = \"/srv\"\ntimeout = \"5m\"\noutput_max = \"1MiB\"\n\
             result = \"json\"\nenvironment = {{ TOKEN = \"sk-planted\", PATH = \"/x\" }}\n"
        ));
        let all = &all.expect("valid")[0];
        assert_eq!(all.place, Place::Host { user: Some(4711), why: "w".to_owned(), filter: on });
        assert_eq!((all.plan.time_ms_max, all.plan.output_bytes_max), (300_000, 1 << 20));
        assert_eq!(all.plan.environment, [&b"PATH=/x"[..], b"TOKEN=sk-planted"]);
        assert!(all.plan.verbatim);
        assert!(!format!("{all:?}").contains("planted"), "INV-12");
        for (written, want) in [("true", Filter::On), ("false", Filter::Off { line: 6 })] {
            let tools = read(&format!("{HOST}seccomp = {written}\n")).expect("valid");
            let Place::Host { filter, .. } = tools[0].place else { panic!("it is on the host") };
            assert_eq!(filter, want);
        }
    }

    #[test]
    fn each_mistake_has_its_place() {
        #[rustfmt::skip]
        let cases = [
            // RUN-15: a later duplicate would replace an earlier one, so there is none.
            (format!("{JAIL}{JAIL}"),                            6, "two tools of the name `a`"),
            (JAIL.replace("\"a\"", "\"bash\""),                  2, "`bash` is a tool of the toolset"),
            (JAIL.replace("\"a\"", "\"a b\""),                   2, "its name is not"),
            (JAIL.replace("/bin/a", "a"),                        2, "absolute path"),
            (format!("{JAIL}user = 1\n"),                        5, "`user` is for tools on the host"),
            (format!("{JAIL}why = \"x\"\n"),                     5, "`why` is for tools on the host"),
            (format!("{JAIL}directory = \"/\"\n"),               5, "`directory` is for tools on the host"),
            (format!("{JAIL}seccomp = true\n"),                   5, "`seccomp` is for tools on the host"),
            (format!("{JAIL}timeout = \"2h\"\n"),                2, "time limit"),
            (format!("{JAIL}timeout = \"soon\"\n"),              5, "`timeout`: "),
            (format!("{JAIL}output_max = \"2MiB\"\n"),           2, "output limit"),
            (format!("{JAIL}output_max = \"much\"\n"),           5, "`output_max`: "),
            (HOST.replace("why = \"w\"\n", ""),                  4, "outside the jail"),
            (HOST.replace("\"w\"", "\" \""),                     4, "say `why = "),
            (HOST.replace("\"w\"", &format!("\"{}\"", "w".repeat(501))), 5, "longer than 500 bytes"),
            (format!("{JAIL}description = \" \"\n"),             5, "`description` has 1 to 1024"),
            (format!("{JAIL}description = \"{}\"\n", "d".repeat(1025)), 5, "`description` has 1 to 1024"),
            (format!("{HOST}user = 0\n"),                        6, "may not be root"),
            (format!("{HOST}directory = \"srv\"\n"),             6, "not an absolute path"),
            (format!("{HOST}environment = {{ ANTHROPIC_X = \"1\" }}\n"), 6, "may hold a credential"),
            (format!("{HOST}environment = {{ aws_profile = \"1\" }}\n"), 6, "may hold a credential"),
            (format!("{HOST}environment = {{ \"A=B\" = \"1\" }}\n"),     6, "not the name of a variable"),
        ];
        for (text, line, want) in cases {
            let mistake = read(&text).expect_err(&text);
            assert!(mistake.reason.contains(want), "{text}: {}", mistake.reason);
            assert_eq!(
                text[..mistake.at.start].matches('\n').count() + 1,
                line,
                "{text}: {mistake:?}"
            );
        }
    }
}
