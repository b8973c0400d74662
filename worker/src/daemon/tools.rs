//! The tools of one session: its calls go to the executor of its jail, or to a custom tool on the host,
//! which needs the jail as well: what limits it is made and removed with it.

use std::sync::Arc;
use std::time::Duration;

use stockade_runtime::audit::{CallStatus, Event, Fingerprint, Ids as AuditIds};
use stockade_runtime::jail::LimitHit;
use stockade_runtime::session::{CallError, Called, Session};
use stockade_runtime::tool::{Block, CallFacts, ShellFate, ToolResult};

use super::custom::{CustomTools, too_long};
use super::furnish::{Furnisher, Furnishing};
use super::jails::Jails;
use super::record::{Record, audit_ids};
use crate::queue::{
    Call, CallOutcome, CancelToken, ItemEnd, OpenError, Opening, Owner, SessionTools, ShutdownWatch,
};
use crate::{explain, footer};

/// See [`SessionTools`].
pub struct Tools {
    ids: AuditIds,
    session_id: String,
    jails: Arc<Jails>,
    record: Arc<Record>,
    custom: Arc<CustomTools>,
    /// None after the jail ended by itself, until the next call.
    session: Option<Session>,
    /// What its jail was furnished with, and another one would be.
    furnishing: Furnishing,
    replaced: bool,
}

impl SessionTools for Tools {
    fn owner(&self) -> Owner {
        let custom = Arc::clone(&self.custom);
        Box::new(move |name, kind| custom.owns(name, kind))
    }

    fn limit(&self, call: &Call) -> Option<Duration> {
        self.custom.limit(call)
    }

    fn description(&self, call: &Call) -> Option<&str> {
        self.custom.description(call)
    }

    async fn run(&mut self, call: &Call, stop: CancelToken) -> CallOutcome {
        let started = std::time::Instant::now();
        let (ids, input) = (self.ids.with_tool_call(&call.id), call.input.get().as_bytes());
        let event =
            Event::CallStarted { tool: call.name.as_str().into(), input: Fingerprint::of(input) };
        // Written before the effect: without the record there is no call.
        if self.record.has_failed() || !self.record.write(&ids, &event) {
            let name = &call.name;
            return CallOutcome::error(format!(
                "{name}: not run: the audit log of this host cannot be written"
            ));
        }
        let (mut result, hits) = self.perform(call, stop).await;
        for hit in &hits {
            self.record.write(&ids, &limit_event(hit));
        }
        // Before the result is taken apart, and of what will be posted in the main.
        let output = fingerprint(&result);
        let content = self.custom.blocks(call, &mut result);
        let event = Event::CallEnded {
            status: status(&result),
            output,
            duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            truncated: result.facts.truncated,
            timed_out: result.facts.timed_out,
        };
        self.record.write(&ids, &event);
        CallOutcome { content, is_error: result.is_error }
    }
}

impl Tools {
    /// Those of the session that is being opened, with its jail made and furnished. `shutdown` cuts
    /// the last syncs of its memory stores short.
    ///
    /// # Errors
    /// What the session cannot run without.
    pub async fn open(
        furnisher: &Furnisher,
        opening: &Opening<'_>,
        shutdown: ShutdownWatch,
    ) -> Result<Tools, OpenError> {
        let (ids, session_id) = (audit_ids(opening.ids), opening.session.id.clone());
        let mut furnishing = furnisher.furnishing(opening, &ids, shutdown)?;
        let session = Some(furnishing.open().await?);
        let (jails, record) = (Arc::clone(&furnisher.jails), Arc::clone(&furnisher.record));
        let custom = Arc::clone(&furnisher.custom);
        Ok(Tools { ids, session_id, jails, record, custom, session, furnishing, replaced: false })
    }

    /// Ends the session's use of its jail; see [`Furnishing::close`].
    pub async fn close(self, how: ItemEnd) {
        self.furnishing.close(self.session, how).await;
    }

    /// Runs the call, and makes sure that there is a jail to run it in.
    async fn perform(&mut self, call: &Call, stop: CancelToken) -> (ToolResult, Vec<LimitHit>) {
        let name = &call.name;
        if self.session.as_ref().is_some_and(Session::is_over) {
            tracing::error!(
                event = "jail.lost",
                session_id = self.session_id,
                "the session's jail ended while no call ran"
            );
            if let Some(session) = self.session.take() {
                self.jails.dispose(&self.ids, session).await;
            }
        }
        if self.session.is_none() {
            match self.furnishing.open().await {
                Ok(session) => (self.session, self.replaced) = (Some(session), true),
                Err(error) => {
                    // What the session would hear at its start; the log has the reason.
                    tracing::error!(
                        event = "session.not_reopened",
                        session_id = self.session_id,
                        error = error.for_log,
                        "the session has no jail any more"
                    );
                    return (ToolResult::error(format!("{name}: {}", error.for_model)), Vec::new());
                }
            }
        }
        let Some(session) = self.session.as_mut() else {
            return (ToolResult::error(format!("{name}: no jail")), Vec::new());
        };
        match perform_in(session, &self.custom, call, stop).await {
            Ok(Called { mut result, limits: hits, denials }) => {
                if std::mem::take(&mut self.replaced) {
                    note(&mut result, REPLACED);
                }
                if let Some(text) = footer::all(&hits, &denials, self.jails.deny_detail()) {
                    note(&mut result, &text);
                }
                // Nothing can be run in this jail any more: the next call gets another.
                if result.facts.shell == ShellFate::Gone
                    && let Some(session) = self.session.take()
                {
                    self.jails.dispose(&self.ids, session).await;
                }
                (result, hits)
            }
            Err(CallError::TooLong { bytes }) => (too_long(name, bytes), Vec::new()),
            Err(error) => (self.lost(name, error).await, Vec::new()),
        }
    }

    /// The jail is gone, or does not answer: the call's outcome is not known (INV-9).
    async fn lost(&mut self, name: &str, error: CallError) -> ToolResult {
        tracing::error!(
            event = "jail.lost",
            session_id = self.session_id,
            error = %error,
            "the session's jail ended in the middle of a call"
        );
        if let Some(session) = self.session.take() {
            self.jails.dispose(&self.ids, session).await;
        }
        ToolResult {
            facts: CallFacts { cancelled: true, ..CallFacts::default() },
            ..ToolResult::error(format!(
                "{name}: the jail of this session ended while this call ran; its outcome is \
                 unknown and it was not run again. The next call gets a fresh jail: files outside \
                 directories of the host are lost"
            ))
        }
    }
}

/// In the jail, or on the host: limited beside the jail, and not served by its broker.
async fn perform_in(
    session: &mut Session,
    custom: &CustomTools,
    call: &Call,
    stop: CancelToken,
) -> Result<Called, CallError> {
    if custom.is_outside(call) {
        let result = custom.run_outside(call, session, stop).await;
        // It was ended with the jail, at some point of what it did.
        if session.is_over() {
            return Err(CallError::Ended);
        }
        let limits = session.outside_limits(&result).await?;
        return Ok(Called { result, limits, denials: Vec::new() });
    }
    let input = call.input.get().as_bytes().to_vec();
    session.call(&call.id, &call.name, input, stop.cancelled_owned()).await
}

const REPLACED: &str = "[jail] The jail of this session was replaced by a fresh one before this \
     call: files outside directories of the host, processes and shell state are lost.";

/// Adds a paragraph of ours below what the tool said.
fn note(result: &mut ToolResult, text: &str) {
    match result.content.last_mut() {
        Some(Block::Text(last)) if last.is_empty() => text.clone_into(last),
        Some(Block::Text(last)) => {
            last.push('\n');
            last.push_str(text);
        }
        _ => result.content.push(Block::Text(text.to_owned())),
    }
}

fn status(result: &ToolResult) -> CallStatus {
    match (result.facts.cancelled, result.is_error) {
        (true, _) => CallStatus::Cancelled,
        (false, true) => CallStatus::Error,
        (false, false) => CallStatus::Ok,
    }
}

/// Of all blocks of the result, one after the other.
fn fingerprint(result: &ToolResult) -> Fingerprint {
    let bytes = |block: &Block| -> Vec<u8> {
        match block {
            Block::Text(text) => text.as_bytes().to_vec(),
            Block::Image { data, .. } | Block::Document { data, .. } => data.clone(),
        }
    };
    match result.content.as_slice() {
        [Block::Text(text)] => Fingerprint::of(text.as_bytes()),
        blocks => Fingerprint::of(&blocks.iter().flat_map(bytes).collect::<Vec<u8>>()),
    }
}

fn limit_event(hit: &LimitHit) -> Event {
    let (value, count) = match hit {
        LimitHit::WallTime { milliseconds } => (*milliseconds, 1),
        LimitHit::Memory { bytes, kills } => (*bytes, *kills),
        LimitHit::Processes { max, refused } => (u64::from(*max), *refused),
        LimitHit::Bytes { bytes, .. } | LimitHit::Output { bytes } => (*bytes, 1),
        LimitHit::Inodes { inodes, .. } => (*inodes, 1),
        LimitHit::CpuTime { seconds } => (*seconds, 1),
    };
    Event::LimitHit { limit: explain::setting(hit).into(), value, count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_stands_below_the_output_and_in_place_of_none() {
        let mut some = ToolResult::text("out");
        note(&mut some, "[jail] x");
        assert_eq!(some.content, [Block::Text("out\n[jail] x".to_owned())]);
        let mut none = ToolResult::text("");
        note(&mut none, "[jail] x");
        assert_eq!(none.content, [Block::Text("[jail] x".to_owned())]);
    }
}
