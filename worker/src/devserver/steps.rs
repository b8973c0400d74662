//! One step of a scripted session, as written and as taken.
//!
//! A step is a table with one action. The short form names a tool and its input in one key
//! (`{ bash = "echo hi" }`) and waits for the result, so that a list of calls reads like a shell
//! history. [`StepScript`] is what is written, [`Step`] what is left after checking.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::expect::Expect;
use super::fault::Fault;
use super::memory::Meddling;

/// A step as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepScript {
    // Calls: a tool by name, or in short.
    bash: Option<Value>,
    read: Option<Value>,
    write: Option<Value>,
    edit: Option<Value>,
    glob: Option<Value>,
    grep: Option<Value>,
    tool: Option<String>,
    custom: Option<String>,
    input: Option<Value>,
    // What holds for a call.
    id: Option<String>,
    permission: Option<Value>,
    thread: Option<String>,
    wait: Option<bool>,
    unowned: bool,
    duplicate: bool,
    gap: bool,
    within_s: Option<f64>,
    expect: Option<Expect>,
    repeat: Option<usize>,
    // Other actions.
    message: Option<String>,
    confirm: Option<String>,
    deny: Option<String>,
    deny_message: Option<String>,
    answer: Option<String>,
    text: Option<String>,
    server_tool: Option<String>,
    wait_for: Option<Vec<String>>,
    delay_ms: Option<u64>,
    thread_started: Option<String>,
    thread_terminated: Option<String>,
    idle: Option<String>,
    emit: Option<Value>,
    fault: Option<Fault>,
    disconnect: bool,
    terminate: bool,
    delete: bool,
    wait_stopped: bool,
    memory_store: Option<String>,
    put: BTreeMap<String, String>,
    remove: Vec<String>,
}

/// A checked step.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "StepScript")]
pub struct Step {
    pub act: Act,
    times: usize,
    /// How long its result may take; the session's limit if none.
    pub within: Option<Duration>,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Act {
    Call(Box<CallStep>),
    Message(String),
    /// A verdict on a call that waits for one.
    Confirm {
        of: String,
        allow: bool,
        message: Option<String>,
        wait: bool,
    },
    /// The customer's backend answers a call that the worker does not own.
    Answer {
        of: String,
        text: String,
    },
    /// A tool that the server runs itself: call and result, both in the log.
    ServerTool {
        name: String,
        input: Value,
        text: String,
    },
    WaitFor(Vec<String>),
    Delay(Duration),
    ThreadStarted(String),
    ThreadTerminated(String),
    Idle(String),
    Emit {
        event: Value,
        gap: bool,
    },
    Fault(Fault),
    Disconnect,
    Terminate,
    Delete,
    /// Waits until the worker has stopped the session's item.
    WaitStopped,
    /// Another writer changes a memory store.
    Memory {
        store: String,
        with: Meddling,
    },
}

/// A tool call to be emitted.
#[derive(Debug, Clone)]
pub struct CallStep {
    pub label: Option<String>,
    pub name: String,
    pub custom: bool,
    pub input: Value,
    pub permission: Option<Value>,
    pub thread: Option<String>,
    pub wait: bool,
    pub unowned: bool,
    pub duplicate: bool,
    pub gap: bool,
    pub expect: Option<Expect>,
}

impl Step {
    /// How often it is taken.
    pub fn times(&self) -> usize {
        self.times
    }
}

impl TryFrom<StepScript> for Step {
    type Error = String;

    fn try_from(written: StepScript) -> Result<Step, String> {
        let times = written.repeat.unwrap_or(1);
        let within = match written.within_s {
            Some(seconds) if seconds > 0.0 && seconds <= 86_400.0 => {
                Some(Duration::from_secs_f64(seconds))
            }
            Some(_) => return Err("`within_s` is not between 0 and 86400".to_owned()),
            None => None,
        };
        let call = written.call()?;
        let mut acts: Vec<Act> = call.map(Box::new).map(Act::Call).into_iter().collect();
        acts.extend(written.other_acts());
        if acts.len() > 1 {
            return Err("a step does more than one thing: write one step for each".to_owned());
        }
        let act = acts.pop().ok_or("a step does nothing: name a tool or another action")?;
        let meddles = !written.put.is_empty() || !written.remove.is_empty();
        if meddles && !matches!(act, Act::Memory { .. }) {
            return Err("`put` and `remove` need a `memory_store`".to_owned());
        }
        if !matches!(act, Act::Call(_)) && written.has_call_keys(&act) {
            return Err("a key of this step belongs to a call, and the step is none".to_owned());
        }
        Ok(Step { act, times, within })
    }
}

impl StepScript {
    fn call(&self) -> Result<Option<CallStep>, String> {
        let short = [
            ("bash", "command", &self.bash),
            ("read", "file_path", &self.read),
            ("write", "", &self.write),
            ("edit", "", &self.edit),
            ("glob", "pattern", &self.glob),
            ("grep", "pattern", &self.grep),
        ];
        let mut named = Vec::new();
        for (name, key, value) in short {
            match value {
                Some(Value::String(text)) if !key.is_empty() => {
                    named.push((name.to_owned(), false, json!({ key: text })));
                }
                Some(input @ Value::Object(_)) => {
                    named.push((name.to_owned(), false, input.clone()))
                }
                Some(_) => return Err(format!("`{name}` takes its input as a table")),
                None => {}
            }
        }
        let input = self.input.clone().unwrap_or_else(|| json!({}));
        let long = [(&self.tool, false), (&self.custom, true)];
        named.extend(
            long.into_iter()
                .filter_map(|(name, custom)| Some((name.clone()?, custom, input.clone()))),
        );
        if named.len() > 1 {
            return Err("a step names more than one tool: write one step for each".to_owned());
        }
        let Some((name, custom, input)) = named.pop() else { return Ok(None) };
        let answered = matches!(&self.permission, None | Some(Value::Null))
            || self.permission.as_ref().and_then(Value::as_str) == Some("allow");
        let permission = match self.permission.as_ref().and_then(Value::as_str) {
            Some("null") => Some(Value::Null),
            _ => self.permission.clone(),
        };
        let answered = answered || permission == Some(Value::Null);
        Ok(Some(CallStep {
            label: self.id.clone(),
            name,
            custom,
            input,
            permission,
            thread: self.thread.clone(),
            wait: self.wait.unwrap_or(answered && !self.unowned),
            unowned: self.unowned,
            duplicate: self.duplicate,
            gap: self.gap,
            expect: self.expect.clone(),
        }))
    }

    fn other_acts(&self) -> Vec<Act> {
        let text = || self.text.clone().unwrap_or_default();
        let verdict = |of: &String, allow| Act::Confirm {
            of: of.clone(),
            allow,
            message: self.deny_message.clone(),
            wait: self.wait.unwrap_or(allow),
        };
        let server_tool = |name: &String| Act::ServerTool {
            name: name.clone(),
            input: self.input.clone().unwrap_or_else(|| json!({})),
            text: text(),
        };
        let emit = |event: &Value| Act::Emit { event: event.clone(), gap: self.gap };
        [
            self.message.clone().map(Act::Message),
            self.confirm.as_ref().map(|of| verdict(of, true)),
            self.deny.as_ref().map(|of| verdict(of, false)),
            self.answer.as_ref().map(|of| Act::Answer { of: of.clone(), text: text() }),
            self.server_tool.as_ref().map(server_tool),
            self.wait_for.clone().map(Act::WaitFor),
            self.delay_ms.map(|ms| Act::Delay(Duration::from_millis(ms))),
            self.thread_started.clone().map(Act::ThreadStarted),
            self.thread_terminated.clone().map(Act::ThreadTerminated),
            self.idle.clone().map(Act::Idle),
            self.emit.as_ref().map(emit),
            self.fault.clone().map(Act::Fault),
            self.disconnect.then_some(Act::Disconnect),
            self.terminate.then_some(Act::Terminate),
            self.delete.then_some(Act::Delete),
            self.wait_stopped.then_some(Act::WaitStopped),
            self.memory_store.clone().map(|store| {
                let with = Meddling { put: self.put.clone(), remove: self.remove.clone() };
                Act::Memory { store, with }
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Whether a step without a call has keys that mean something for calls only.
    fn has_call_keys(&self, act: &Act) -> bool {
        let gap = self.gap && !matches!(act, Act::Emit { .. });
        let input = self.input.is_some() && !matches!(act, Act::ServerTool { .. });
        gap || input
            || self.id.is_some()
            || self.permission.is_some()
            || self.thread.is_some()
            || self.unowned
            || self.duplicate
            || self.expect.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(value: Value) -> Result<Step, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_call_waits_unless_nobody_will_answer_it() {
        #[rustfmt::skip]
        let cases = [
            (json!({"bash": "true"}),                                        true),
            (json!({"bash": "true", "permission": "allow"}),                 true),
            (json!({"bash": "true", "permission": "null"}),                  true),
            (json!({"bash": "true", "permission": "ask"}),                   false),
            (json!({"bash": "true", "permission": "deny"}),                  false),
            (json!({"bash": "true", "permission": "ask", "wait": true}),     true),
            (json!({"custom": "lookup", "unowned": true}),                   false),
            (json!({"custom": "lookup"}),                                    true),
        ];
        for (written, waits) in cases {
            let Act::Call(call) = step(written.clone()).expect("valid").act else { panic!() };
            assert_eq!(call.wait, waits, "{written}");
        }
    }

    #[test]
    fn a_step_does_one_thing() {
        for written in [
            json!({}),
            json!({"bash": "a", "read": "b"}),
            json!({"bash": "a", "delay_ms": 1}),
            json!({"write": "a"}),
            json!({"delay_ms": 1, "expect": {"text": "a"}}),
            json!({"terminate": true, "id": "a"}),
            json!({"bash": "a", "within_s": 0}),
            json!({"bash": "a", "unknown": 0}),
            json!({"bash": "a", "put": {"/a": "b"}}),
            json!({"put": {"/a": "b"}}),
        ] {
            assert!(step(written.clone()).is_err(), "{written}");
        }
    }
}
