//! What is recorded: one variant per event, with a stable name and typed fields.
//!
//! A field is a number, a flag, one of a few words, a bounded [`Name`] or [`Text`] of this program's
//! making, or a [`Fingerprint`]. There is no variant that could hold tool input, tool output, file
//! data, a header or a value of an environment variable (INV-12).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ending::{CallStatus, ItemEnd, LeaseLoss, NotPosted, StopReason};
use super::value::{Digest, Fingerprint, List, Name, Text};

/// What a record is about. Each is an opaque id of the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// The environment that work comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Name>,
    /// The work item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Name>,
    /// The session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Name>,
    /// The tool call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<Name>,
}

impl Ids {
    /// The same, about one tool call.
    pub fn with_tool_call(&self, id: impl AsRef<str>) -> Ids {
        Ids { tool_call: Some(Name::from(id)), ..self.clone() }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event")]
#[non_exhaustive]
pub enum Event {
    /// A worker begins to ask for work.
    #[serde(rename = "worker.started")]
    WorkerStarted {
        /// Of the worker.
        version: Name,
        /// The policy that sessions get.
        policy: Name,
        /// Of the resolved policy.
        policy_sha256: Digest,
        /// Host (and port) of the control plane; nothing else of the address.
        base_url_host: Name,
        /// Level of enforcement: `root` or `rootless`.
        level: Name,
    },
    /// A custom tool that runs outside every jail may be called from now on.
    #[serde(rename = "tool.outside")]
    ToolOutside {
        /// Its name.
        tool: Name,
        /// The user it runs as, as far as that is configured.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<u32>,
        /// Whether it runs in a cgroup with the limits of its session's jail.
        #[serde(default)]
        cgroup: bool,
        /// Whether it runs under a system call filter.
        #[serde(default)]
        filter: bool,
        /// The operator's reason.
        why: Text,
    },
    /// It has stopped.
    #[serde(rename = "worker.stopped")]
    WorkerStopped {
        /// Why.
        reason: StopReason,
    },
    /// A work item was received.
    #[serde(rename = "item.claimed")]
    ItemClaimed {
        /// `session` and the like.
        kind: Name,
    },
    /// The claim is about to be confirmed.
    #[serde(rename = "item.acked")]
    ItemAcked {},
    /// A script of the operator's is about to be started for the work item.
    #[serde(rename = "item.handed_over")]
    ItemHandedOver {
        /// The script.
        program: Text,
        /// Whether it gets the environment key.
        with_key: bool,
        /// Whether the session may go on when it has ended.
        detached: bool,
    },
    /// The script has ended, or was never started.
    #[serde(rename = "item.script_ended")]
    ItemScriptEnded {
        /// Its exit code.
        #[serde(skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// The signal that ended it.
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// Why it was not started.
        #[serde(skip_serializing_if = "Option::is_none")]
        not_started: Option<Text>,
        /// From its start, microseconds.
        duration_us: u64,
    },
    /// The launch record: a jail was made and proven; no tool has run in it.
    #[serde(rename = "jail.launched")]
    JailLaunched {
        /// Its name on this host.
        jail: Name,
        /// The policy it was made from.
        policy: Name,
        /// Of the resolved policy.
        policy_sha256: Digest,
        /// Of the jail spec.
        spec_sha256: Digest,
        /// The enforcement report: layers with what was wanted, got and why, the forbidden acts,
        /// digests of mounts and filter, limits.
        report: Box<Value>,
    },
    /// No jail came about.
    #[serde(rename = "jail.failed")]
    JailFailed {
        /// The step that failed, or `canary`.
        step: Name,
        /// What was refused.
        reason: Text,
    },
    /// A skill is in the jail; no tool has run.
    #[serde(rename = "skill.laid")]
    SkillLaid {
        /// Its id.
        skill: Name,
        /// The version that was meant, also where the session says `latest`.
        version: Name,
        /// The directory below the place of skills.
        directory: Text,
        /// Of the archive as it was downloaded.
        archive: Fingerprint,
        /// Files that were in it.
        files: u64,
        /// Their bytes.
        bytes: u64,
        /// Members that were left out: links, devices and the like.
        skipped: u64,
    },
    /// A skill is not in the jail; the session goes on without it.
    #[serde(rename = "skill.failed")]
    SkillFailed {
        /// Its id.
        skill: Name,
        /// As the session names it: a version or `latest`.
        version: Name,
        /// Why, in one word.
        reason: Name,
    },
    /// Input of a session was fetched and is about to be laid into its workspace.
    #[serde(rename = "stage.laid")]
    StageLaid {
        /// The policy's rule.
        rule: Name,
        /// `https`, `git`, `s3` or `local`.
        kind: Name,
        /// Host (and port) that it came from; nothing else of the address. None for this host's files.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<Text>,
        /// Of what was fetched; of a commit's archive.
        sha256: Digest,
        /// Its bytes.
        bytes: u64,
        /// Of git.
        #[serde(skip_serializing_if = "Option::is_none")]
        commit: Option<Name>,
    },
    /// Input of a session could not be had, or not be laid.
    #[serde(rename = "stage.failed")]
    StageFailed {
        /// The policy's rule.
        rule: Name,
        /// `https`, `git`, `s3` or `local`.
        kind: Name,
        /// Why, in one word.
        reason: Name,
        /// Whether the session does not run without it.
        required: bool,
    },
    /// A tool call is about to run.
    #[serde(rename = "call.started")]
    CallStarted {
        /// `bash`, `read` and so on.
        tool: Name,
        /// Of the call's input.
        input: Fingerprint,
    },
    /// It has ended, or its outcome will never be known.
    #[serde(rename = "call.ended")]
    CallEnded {
        /// How.
        status: CallStatus,
        /// Of the result as it is about to be posted.
        output: Fingerprint,
        /// From hand-over to the result, microseconds.
        duration_us: u64,
        /// Whether output was dropped.
        truncated: bool,
        /// Whether a time limit ended it.
        timed_out: bool,
    },
    /// The control plane has accepted the result.
    #[serde(rename = "call.posted")]
    CallPosted {},
    /// The result will not be posted.
    #[serde(rename = "call.not_posted")]
    CallNotPosted {
        /// Why.
        reason: NotPosted,
    },
    /// A limit of the policy took effect.
    #[serde(rename = "limit.hit")]
    LimitHit {
        /// The policy's key, such as `process.memory`.
        limit: Name,
        /// The limit, in the key's unit.
        value: u64,
        /// How often, where that is counted.
        count: u64,
    },
    /// Rules of egress come into force in a session's jail.
    #[serde(rename = "egress.rules")]
    EgressRules {
        /// From 1; each change is one more.
        generation: u64,
        /// How many there are.
        rules: u64,
        /// The policy they are from.
        policy: Name,
        /// Of the resolved policy.
        policy_sha256: Digest,
        /// In report mode: until when (RFC 3339) destinations that no rule names are let through.
        #[serde(skip_serializing_if = "Option::is_none")]
        report_until: Option<Name>,
    },
    /// A connection is about to be made.
    #[serde(rename = "egress.allowed")]
    EgressAllowed {
        /// Of the decision, in the life of the jail.
        number: u64,
        /// Name or address that the jail asked for.
        host: Text,
        /// TCP port.
        port: u16,
        /// The address that is dialled.
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<Name>,
        /// The rule that allows it; none in report mode.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<Text>,
        /// Where the rule was written.
        #[serde(skip_serializing_if = "Option::is_none")]
        origin: Option<Text>,
        /// Of the rules in force.
        generation: u64,
        /// Whether report mode allows it, and no rule.
        reported: bool,
    },
    /// A connection or a lookup is about to be refused; the first of its kind in a call.
    #[serde(rename = "egress.denied")]
    EgressDenied {
        /// Of the decision, in the life of the jail.
        number: u64,
        /// Name or address that the jail asked for.
        host: Text,
        /// TCP port; 53 for a name that was looked up.
        port: u16,
        /// Why, in one word.
        reason: Name,
        /// The address it is about, where the reason is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<Name>,
        /// What kind of address that is.
        #[serde(skip_serializing_if = "Option::is_none")]
        address_class: Option<Name>,
        /// Of the rules in force.
        generation: u64,
    },
    /// An allowed destination could not be had: a fault, no decision.
    #[serde(rename = "egress.failed")]
    EgressFailed {
        /// Of the decision, in the life of the jail.
        number: u64,
        /// Name or address that the jail asked for.
        host: Text,
        /// TCP port.
        port: u16,
        /// Why, in one word.
        reason: Name,
        /// Of the rules in force.
        generation: u64,
    },
    /// Refusals of the same kind, in the same call, that were only counted.
    #[serde(rename = "egress.repeated")]
    EgressRepeated {
        /// As in the first one; none for targets beyond those that are remembered.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<Text>,
        /// As in the first one.
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// Why, in one word.
        reason: Name,
        /// What kind of address it is about, where the reason is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        address_class: Option<Name>,
        /// How many, without the first.
        count: u64,
    },
    /// Connections to the same destination, in the same call, that were only counted.
    #[serde(rename = "egress.summed")]
    EgressSummed {
        /// Where to; none for destinations beyond those that are remembered.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<Text>,
        /// TCP port.
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// The rule that allows them; none in report mode.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<Text>,
        /// Of the rules in force.
        generation: u64,
        /// Whether report mode allows them, and no rule.
        reported: bool,
        /// How many began, without those recorded one by one.
        connections: u64,
        /// Bytes from the jail, of those that ended.
        bytes_out: u64,
        /// Bytes into the jail, of those that ended.
        bytes_in: u64,
        /// How long those that ended lasted, together, microseconds.
        duration_us: u64,
    },
    /// A connection has ended.
    #[serde(rename = "egress.closed")]
    EgressClosed {
        /// Of its decision.
        number: u64,
        /// As in its decision.
        host: Text,
        /// As in its decision.
        port: u16,
        /// Bytes from the jail.
        bytes_out: u64,
        /// Bytes into the jail.
        bytes_in: u64,
        /// From the decision to the end, microseconds.
        duration_us: u64,
        /// The address that answered: of several that were checked, perhaps not the first.
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<Name>,
        /// Why it was closed, in one word, if we did.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<Name>,
    },
    /// A memory store is in the jail; no tool has run since.
    #[serde(rename = "memory.mounted")]
    MemoryMounted {
        /// The store.
        store: Name,
        /// Where it is in the jail.
        path: Text,
        /// `read_write` or `read_only`.
        access: Name,
        /// Files that were made of memories.
        memories: u64,
        /// Memories that no file could be made of.
        unwritable: u64,
    },
    /// Requests that change a memory store are about to be sent.
    #[serde(rename = "memory.sending")]
    MemorySending {
        /// The store.
        store: Name,
        /// Files that are to become memories.
        creates: u64,
        /// Memories that are to get the text of their file.
        updates: u64,
        /// Memories that are to be deleted.
        deletes: u64,
    },
    /// A sync of a memory store has changed something, or met trouble.
    #[serde(rename = "memory.synced")]
    MemorySynced {
        /// The store.
        store: Name,
        /// `regular`, `final` or `flush`.
        pass: Name,
        /// Memories made of files.
        created: u64,
        /// Memories that got the text of their file.
        updated: u64,
        /// Memories deleted because their file was.
        deleted: u64,
        /// Files that got the text of their memory.
        pulled: u64,
        /// Files removed because their memory was.
        removed: u64,
        /// Edits of files that gave way to the server's text.
        edits_lost: u64,
        /// Files that the store refuses.
        refused: u64,
        /// Memories and files left for the next sync.
        failed: u64,
    },
    /// The folder of a memory store was destroyed and has been filled anew; nothing was sent.
    #[serde(rename = "memory.recovered")]
    MemoryRecovered {
        /// The store.
        store: Name,
        /// Files that were made of memories.
        memories: u64,
    },
    /// A sync of a memory store did not take place, or not to its end.
    #[serde(rename = "memory.not_synced")]
    MemoryNotSynced {
        /// The store.
        store: Name,
        /// `regular`, `final` or `flush`.
        pass: Name,
        /// `untrusted`, `cut-off`, or what failed.
        reason: Name,
        /// Files that were left alone or not uploaded, as far as that is known.
        files: u64,
    },
    /// The folder of a memory store is gone.
    #[serde(rename = "memory.disposed")]
    MemoryDisposed {
        /// The store.
        store: Name,
        /// Files in it whose changes are not on the server; absent if nobody could tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unsynced: Option<u64>,
    },
    /// The work item belongs to this worker no more.
    #[serde(rename = "lease.lost")]
    LeaseLost {
        /// How that is known.
        cause: LeaseLoss,
    },
    /// Nothing more is done for the work item.
    #[serde(rename = "item.ended")]
    ItemEnded {
        /// Why.
        reason: ItemEnd,
    },
    /// The receipt of a session's disposal.
    #[serde(rename = "session.disposed")]
    SessionDisposed {
        /// What is gone: processes, cgroup, mounts, workspace, ids.
        removed: List,
        /// What stays, and where, because the operator asked for it.
        kept: Vec<Kept>,
        /// Files that were in the workspace, if counted.
        #[serde(skip_serializing_if = "Option::is_none")]
        files: Option<u64>,
        /// Their bytes, if counted.
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// What could not be removed.
        left: List,
    },
    /// What an earlier worker left was removed at a start.
    #[serde(rename = "recovery")]
    Recovery {
        /// What is gone.
        removed: List,
        /// What could not be removed.
        left: List,
    },
    /// Part of the configuration was read again.
    #[serde(rename = "config.reloaded")]
    ConfigReloaded {
        /// `environment-key`, `policy` and the like.
        what: Name,
        /// Of the new one, where it is not a secret.
        #[serde(skip_serializing_if = "Option::is_none")]
        sha256: Option<Digest>,
    },
    /// Half a line stands before this one: a write was cut off. Written by the log itself.
    #[serde(rename = "log.repaired")]
    LogRepaired {
        /// The bytes between the last whole record and the line break before this one.
        torn: Fingerprint,
    },
}

/// Something that outlives a session by the operator's wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// `outputs`, `workdir` and the like.
    pub what: Name,
    /// Where.
    pub path: Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_stable_names_and_flat_fields() {
        let input = Fingerprint::of(b"{}");
        let json = |event: &Event| serde_json::to_value(event).expect("JSON");
        let call = json(&Event::CallStarted { tool: "bash".into(), input });
        assert_eq!(call["event"], "call.started");
        assert_eq!(call["tool"], "bash");
        assert_eq!(call["input"]["bytes"], 2);
        let ended = json(&Event::ItemEnded { reason: ItemEnd::SessionTerminated });
        assert_eq!(
            ended,
            serde_json::json!({ "event": "item.ended", "reason": "session_terminated" })
        );
        let posted = json(&Event::CallPosted {});
        assert_eq!(posted, serde_json::json!({ "event": "call.posted" }));
    }

    #[test]
    fn ids_that_are_not_known_are_left_out() {
        let ids = Ids { session: Some("sesn_1".into()), ..Ids::default() };
        let call = ids.with_tool_call("sevt_9");
        let json = serde_json::to_value(&call).expect("JSON");
        assert_eq!(json, serde_json::json!({ "session": "sesn_1", "tool_call": "sevt_9" }));
    }
}
