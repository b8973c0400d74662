//! The operator's own tools (`[[custom_tool]]`), as a session has them: which calls they serve, how long
//! those may take, and what their output becomes.
//!
//! Tools in the jail go the way of bash: the jail's executor starts them. Tools on the host are started
//! by a process per user, made while the worker still has the rights of whoever started it; the control
//! side sends it calls and gets results, and never starts a program itself. What such a tool cannot do
//! although it may have the control side's id: read its memory, which holds the credentials. That process
//! is not dumpable (prctl(2), `PR_SET_DUMPABLE`), so the kernel asks for `CAP_SYS_PTRACE` (ptrace(2)).
//!
//! What limits it is the cgroup beside that of its session's jail, so it needs a session whose jail lives.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use stockade_runtime::audit::{Event, Text};
use stockade_runtime::host::Level;
use stockade_runtime::session::{
    CallError, Outside, OutsideCallError, OutsideError, OutsidePlan, Session,
};
use stockade_runtime::spec::{CustomToolPlan, OutsideLimits};
use stockade_runtime::tool::shell::ShellPlan;
use stockade_runtime::tool::{Block, CallFacts, ToolResult};

use crate::config::custom_tool::{CustomTool, Filter, Place, ResultForm};
use crate::queue::{Call, CallKind, CancelToken, ContentBlock, TOOLSET};

/// All custom tools of this worker.
#[derive(Debug, Default)]
pub struct CustomTools {
    tools: Vec<CustomTool>,
    /// What starts those on the host, by the user that they run as.
    outside: BTreeMap<Option<u32>, Outside>,
    /// Whether those run in a cgroup of their session.
    grouped: bool,
}

/// Custom tools that cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum CustomToolsError {
    /// Another user is a matter of root.
    #[error("cannot run the tool {name} as user {user}: the worker was started without root")]
    User {
        /// Which tool.
        name: String,
        /// As whom.
        user: u32,
    },
    /// The process that starts them does not come about.
    #[error(transparent)]
    Outside(#[from] OutsideError),
}

impl CustomToolsError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            CustomToolsError::User { .. } => Some("leave `user` out: it runs as you then"),
            CustomToolsError::Outside(_) => None,
        }
    }
}

impl CustomTools {
    /// Starts what starts tools on the host, each under `limits`. To be called with one thread, before the
    /// caller gives up its rights.
    ///
    /// # Errors
    /// [`CustomToolsError`]; nothing is left running then.
    pub fn start(
        tools: Vec<CustomTool>,
        level: Level,
        limits: &OutsideLimits,
    ) -> Result<CustomTools, CustomToolsError> {
        CustomTools::check_users(&tools, level)?;
        let mut by_user: BTreeMap<Option<u32>, Vec<&CustomTool>> = BTreeMap::new();
        for tool in &tools {
            let Place::Host { user, .. } = &tool.place else { continue };
            by_user.entry(*user).or_default().push(tool);
        }
        let mut outside = BTreeMap::new();
        for (user, tools) in by_user {
            let (argv, environment, workdir) = (Vec::new(), Vec::new(), "/".into());
            let custom = tools.iter().map(|tool| tool.plan.clone()).collect();
            let shell = ShellPlan { argv, environment, workdir, custom };
            let bare = tools.iter().filter(|tool| !is_filtered(tool));
            let unfiltered = bare.map(|tool| tool.plan.name.clone()).collect();
            let limits = limits.clone();
            let plan = OutsidePlan { level, user, shell, unfiltered, limits };
            outside.insert(user, Outside::start(&plan)?);
        }
        Ok(CustomTools { tools, outside, grouped: limits.grouped })
    }

    /// Whether a worker of this level can run them as whom they are to run.
    ///
    /// # Errors
    /// [`CustomToolsError::User`].
    pub fn check_users(tools: &[CustomTool], level: Level) -> Result<(), CustomToolsError> {
        for tool in tools {
            if let (Level::Rootless, Place::Host { user: Some(user), .. }) = (level, &tool.place) {
                return Err(CustomToolsError::User { name: tool.plan.name.clone(), user: *user });
            }
        }
        Ok(())
    }

    /// Whether a call is ours: one of the toolset, or a custom call by the name of a tool of ours
    /// (RUN-15, RUN-16).
    pub fn owns(&self, name: &str, kind: CallKind) -> bool {
        match kind {
            CallKind::Builtin => TOOLSET.contains(&name),
            CallKind::Custom => self.named(name).is_some(),
        }
    }

    /// Those that each jail has.
    pub fn in_jails(&self) -> Vec<CustomToolPlan> {
        let inside = self.tools.iter().filter(|tool| tool.place == Place::Jail);
        inside.map(|tool| tool.plan.clone()).collect()
    }

    /// What is recorded before the first of them can be called.
    pub fn records(&self) -> Vec<Event> {
        let outside = self.tools.iter().filter_map(|tool| match &tool.place {
            Place::Jail => None,
            Place::Host { user, why, .. } => Some(Event::ToolOutside {
                tool: tool.plan.name.as_str().into(),
                user: *user,
                cgroup: self.grouped,
                filter: is_filtered(tool),
                why: Text::of(why),
            }),
        });
        outside.collect()
    }

    /// How long a call may take, where one of ours serves it.
    pub fn limit(&self, call: &Call) -> Option<Duration> {
        self.serving(call).map(|tool| Duration::from_millis(tool.plan.time_ms_max))
    }

    /// What the operator says that it does, where one of ours serves it.
    pub fn description(&self, call: &Call) -> Option<&str> {
        self.serving(call).and_then(|tool| tool.description.as_deref())
    }

    /// Whether a tool on the host serves the call.
    pub fn is_outside(&self, call: &Call) -> bool {
        self.serving(call).is_some_and(|tool| tool.place != Place::Jail)
    }

    /// Whether there are tools on the host.
    pub fn any_outside(&self) -> bool {
        !self.outside.is_empty()
    }

    /// Runs a call that a tool on the host serves, in the cgroup of `session`; ends it when that is over.
    pub async fn run_outside(
        &self,
        call: &Call,
        session: &Session,
        stop: CancelToken,
    ) -> ToolResult {
        let end = async {
            tokio::select! {
                () = stop.cancelled_owned() => {}
                () = session.over() => {}
            }
        };
        let name = &call.name;
        let outside = self.serving(call).and_then(|tool| match &tool.place {
            Place::Host { user, .. } => self.outside.get(user),
            Place::Jail => None,
        });
        let Some(outside) = outside else {
            return ToolResult::error(format!("{name}: nothing on the host can start it"));
        };
        let input = call.input.get().as_bytes().to_vec();
        let called = outside.call(name, input, session.outside(), end).await;
        called.unwrap_or_else(|error| match error {
            OutsideCallError::Call { reason: CallError::TooLong { bytes } } => {
                too_long(name, bytes)
            }
            OutsideCallError::NotStarted { source } => {
                tracing::error!(
                    event = "tool.outside_gone",
                    tool = name,
                    error = %source,
                    "custom tools of this user cannot be started on the host any more"
                );
                ToolResult::error(format!(
                    "{name}: not run: nothing on the host can start it any more. The operator finds \
                     the reason in the worker's log"
                ))
            }
            error => {
                tracing::error!(
                    event = "tool.outside_lost",
                    tool = name,
                    error = %error,
                    "a custom tool on the host has no result"
                );
                // INV-9: it may have begun.
                ToolResult {
                    facts: CallFacts { cancelled: true, ..CallFacts::default() },
                    ..ToolResult::error(format!(
                        "{name}: its process on the host ended while this call ran; its outcome is \
                         unknown and it was not run again"
                    ))
                }
            }
        })
    }

    /// The blocks that a result becomes.
    pub fn blocks(&self, call: &Call, result: &mut ToolResult) -> Vec<ContentBlock> {
        let form = self.serving(call).map_or(ResultForm::Text, |tool| tool.result);
        let mut blocks = Vec::new();
        let mut content = std::mem::take(&mut result.content).into_iter();
        if form == ResultForm::Json && !result.is_error {
            match content.next() {
                Some(Block::Text(text)) => match written(&text) {
                    Ok(written) => blocks.extend(written),
                    Err(reason) => {
                        result.is_error = true;
                        let name = &call.name;
                        let text = format!("{name}: its output is not a result: {reason}");
                        blocks.push(ContentBlock::Text(text));
                    }
                },
                other => blocks.extend(other.map(block)),
            }
        }
        blocks.extend(content.map(block));
        blocks
    }

    fn named(&self, name: &str) -> Option<&CustomTool> {
        self.tools.iter().find(|tool| tool.plan.name == name)
    }

    fn serving(&self, call: &Call) -> Option<&CustomTool> {
        self.named(&call.name).filter(|_| call.kind == CallKind::Custom)
    }
}

fn is_filtered(tool: &CustomTool) -> bool {
    matches!(tool.place, Place::Host { filter: Filter::On, .. })
}

/// The result of a call whose input nobody takes.
pub fn too_long(name: &str, bytes: usize) -> ToolResult {
    ToolResult::error(format!("invalid {name} input: {bytes} bytes are too many"))
}

fn block(block: Block) -> ContentBlock {
    match block {
        Block::Text(text) => ContentBlock::Text(text),
        Block::Image { media_type, data } => ContentBlock::Image { media_type, data },
        Block::Document { media_type, data } => ContentBlock::Document { media_type, data },
    }
}

/// What a tool wrote as JSON: a string, or a list of blocks.
fn written(text: &str) -> Result<Vec<ContentBlock>, String> {
    match serde_json::from_str(text) {
        Ok(Value::String(text)) => Ok(vec![ContentBlock::Text(text)]),
        Ok(Value::Array(blocks)) if blocks.iter().all(Value::is_object) => {
            Ok(blocks.into_iter().map(ContentBlock::passed).collect())
        }
        Ok(_) => Err("neither a string nor a list of content blocks".to_owned()),
        // Place and kind of the mistake; nothing of the output.
        Err(error) => Err(format!("no JSON at line {} column {}", error.line(), error.column())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_is_json_becomes_blocks_or_an_error_that_shows_none_of_it() {
        let texts = |text: &str| -> Result<Vec<String>, String> {
            let blocks = written(text)?.into_iter().map(|block| match block {
                ContentBlock::Text(text) => text,
                other => other.as_passed().map(ToString::to_string).unwrap_or_default(),
            });
            Ok(blocks.collect())
        };
        assert_eq!(texts(" \"a\\nb\" \n"), Ok(vec!["a\nb".to_owned()]));
        assert_eq!(texts("[]"), Ok(Vec::new()));
        let two = texts(r#"[{"type":"text","text":"a"},{"type":"image","source":{}}]"#);
        assert_eq!(two, Ok(vec!["a".to_owned(), r#"{"source":{},"type":"image"}"#.to_owned()]));
        for (text, want) in [
            ("", "no JSON at line 1 column 0"),
            ("secret words", "no JSON at line 1 column 1"),
            ("7", "neither a string"),
            ("{\"type\":\"text\"}", "neither a string"),
            ("[1]", "neither a string"),
        ] {
            let reason = texts(text).expect_err(text);
            assert!(reason.contains(want) && !reason.contains("secret"), "{text}: {reason}");
        }
        let deep = "[".repeat(100_000);
        assert!(texts(&deep).is_err(), "bounded depth");
    }
}
