//! The rules about calls, without a network: PERM-1..8, THR-1, RUN-2..9, IDLE-4..6.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::gate::{Action, Finish, Gate, REMEMBERED_MAX};
use super::super::wire::event::CallKind;
use super::world::{call, confirmation, end_turn, event, result_of, thread_end};

const MAX: Duration = Duration::from_secs(60);

fn gate() -> Gate {
    let owner = |name: &str, kind: CallKind| kind == CallKind::Builtin && name == "bash";
    Gate::new(Box::new(owner), Some(MAX), REMEMBERED_MAX, Instant::now())
}

fn history(gate: &mut Gate, events: &[Value]) -> Vec<String> {
    gate.history_started();
    events.iter().for_each(|value| gate.history_event(event(value)));
    shown(gate.history_done(Instant::now()))
}

fn live(gate: &mut Gate, value: &Value) -> Vec<String> {
    shown(gate.live(event(value), Instant::now()))
}

fn shown(actions: Vec<Action>) -> Vec<String> {
    let text = |action: Action| match action {
        Action::Run(call) => format!("run {}", call.id),
        Action::Held { id, .. } => format!("held {id}"),
        Action::Denied { id } => format!("denied {id}"),
        Action::NotOwned { id, .. } => format!("not owned {id}"),
    };
    actions.into_iter().map(text).collect()
}

fn gated(permission: Option<Value>) -> Value {
    let mut call = call("t");
    if let Some(permission) = permission {
        call["evaluated_permission"] = permission;
    }
    call
}

#[test]
fn permissions_and_verdicts_in_every_order() {
    // PERM-1..8: {absent, null, allow, ask, deny, unknown} x {none, allow, deny, unknown verdict}
    // x {confirmation before, after, in the history}.
    let permissions = [
        ("absent", None),
        ("null", Some(Value::Null)),
        ("allow", Some(json!("allow"))),
        ("ask", Some(json!("ask"))),
        ("deny", Some(json!("deny"))),
        ("unknown", Some(json!("maybe"))),
    ];
    for (name, permission) in permissions {
        for verdict in [None, Some("allow"), Some("deny"), Some("of the future")] {
            let call = gated(permission.clone());
            let holds = matches!(name, "ask" | "unknown");
            let allowed = verdict == Some("allow");
            let settled = match verdict {
                _ if name == "deny" => "denied t",
                None if holds => "held t",
                None => "run t",
                Some(_) if allowed => "run t",
                Some(_) => "denied t",
            };
            let about = format!("{name} with {verdict:?}");
            let Some(verdict) = verdict else {
                assert_eq!(live(&mut gate(), &call), [settled], "{about}, live");
                assert_eq!(history(&mut gate(), &[call]), [settled], "{about}, history");
                continue;
            };
            let verdict = confirmation("t", verdict);
            let mut before = gate();
            assert!(live(&mut before, &verdict).is_empty(), "{about}: PERM-6");
            assert_eq!(live(&mut before, &call), [settled], "{about}, before");
            for events in [[verdict.clone(), call.clone()], [call.clone(), verdict.clone()]] {
                assert_eq!(history(&mut gate(), &events), [settled], "{about}, history");
            }
            let mut after = gate();
            let first = live(&mut after, &call);
            let then = live(&mut after, &verdict);
            if holds {
                assert_eq!(
                    (first, then),
                    (vec!["held t".to_owned()], vec![settled.to_owned()]),
                    "{about}, after"
                );
            } else if name == "deny" {
                assert_eq!((first, then), (vec!["denied t".to_owned()], vec![]), "{about}, after");
            } else {
                // Given out already; a stray denial is obeyed as long as it has not started.
                let stray: &[&str] = if allowed { &[] } else { &["denied t"] };
                assert_eq!(first, ["run t"], "{about}, after");
                assert_eq!(then, stray, "{about}, after");
            }
        }
    }
}

#[test]
fn a_denied_call_never_runs_even_if_it_was_allowed_before() {
    // PERM-2, RACE-8.
    let mut gate = gate();
    live(&mut gate, &confirmation("t", "allow"));
    assert_eq!(live(&mut gate, &gated(Some(json!("deny")))), ["denied t"]);
    assert!(history(&mut gate, &[gated(None)]).is_empty());
}

#[test]
fn a_custom_call_is_gated_like_a_builtin() {
    // PERM-1.
    let mut gate = Gate::new(Box::new(|_, _| true), Some(MAX), REMEMBERED_MAX, Instant::now());
    let call =
        json!({"type":"agent.custom_tool_use","id":"t","name":"x","evaluated_permission":"ask"});
    assert_eq!(live(&mut gate, &call), ["held t"]);
}

#[test]
fn a_held_call_keeps_one_hold_across_reconnects() {
    // PERM-7, PERM-8, IDLE-3.
    let mut gate = gate();
    let ask = gated(Some(json!("ask")));
    assert_eq!(live(&mut gate, &ask), ["held t"]);
    live(&mut gate, &end_turn());
    assert!(history(&mut gate, &[ask.clone(), end_turn()]).is_empty(), "held already");
    assert_eq!(gate.idle.expires_at(), None);
    assert_eq!(live(&mut gate, &confirmation("t", "deny")), ["denied t"]);
    assert!(gate.idle.expires_at().is_some(), "one release is enough");
}

#[test]
fn a_verdict_from_a_disconnect_releases_a_held_call() {
    // RUN-3: also if the call itself is not in the listing.
    let mut gate = gate();
    live(&mut gate, &gated(Some(json!("ask"))));
    assert_eq!(history(&mut gate, &[confirmation("t", "allow")]), ["run t"]);
}

#[test]
fn the_first_thread_that_the_log_names_is_the_primary_one() {
    // THR-2.
    let status = |word: &str, thread: &str| json!({"type": format!("session.thread_status_{word}"), "session_thread_id": thread});
    let mut one = gate();
    live(&mut one, &status("running", "early"));
    assert_eq!(one.primary_thread(), None, "what the history says is not known yet");
    history(&mut one, &[call("a"), status("running", "x"), status("idle", "y")]);
    assert_eq!(one.primary_thread(), Some("x"));
    live(&mut one, &status("terminated", "z"));
    history(&mut one, &[status("running", "w")]);
    assert_eq!(one.primary_thread(), Some("x"), "the first stands");
    let mut late = gate();
    history(&mut late, &[call("a")]);
    live(&mut late, &thread_end("l"));
    assert_eq!(late.primary_thread(), Some("l"), "the log had none before it");
    let mut failed = gate();
    history(&mut failed, &[call("a")]);
    failed.history_started();
    failed.history_failed();
    live(&mut failed, &status("running", "l"));
    assert_eq!(failed.primary_thread(), None, "the last history was not read");
    history(&mut failed, &[]);
    live(&mut failed, &status("running", "m"));
    assert_eq!(failed.primary_thread(), Some("m"));
}

#[test]
fn calls_of_a_dead_thread_are_dropped() {
    // THR-1.
    let on_thread = |id: &str, permission: Value| {
        json!({"type":"agent.tool_use","id":id,"name":"bash","session_thread_id":"x",
               "evaluated_permission":permission})
    };
    let mut gate = gate();
    assert_eq!(live(&mut gate, &on_thread("held", json!("ask"))), ["held held"]);
    let actions = gate.live(event(&on_thread("queued", Value::Null)), Instant::now());
    let Some(Action::Run(queued)) = actions.into_iter().next() else { panic!("not given out") };
    live(&mut gate, &end_turn());
    assert_eq!(gate.idle.expires_at(), None, "held");
    live(&mut gate, &thread_end("x"));
    assert!(gate.idle.expires_at().is_some(), "the hold is gone with the thread");
    assert!(!gate.is_wanted(&queued), "RUN-14");
    assert!(live(&mut gate, &on_thread("late", Value::Null)).is_empty());
    assert!(live(&mut gate, &confirmation("held", "allow")).is_empty());
    assert_eq!(live(&mut gate, &call("main")), ["run main"], "no thread: unaffected");
    assert!(history(&mut self::gate(), &[on_thread("a", Value::Null), thread_end("x")]).is_empty());
}

#[test]
fn an_unanswered_call_is_routed_again_and_a_busy_one_is_not() {
    // RUN-4, RUN-9, RACE-5.
    let mut gate = gate();
    assert_eq!(live(&mut gate, &call("t")), ["run t"]);
    assert!(live(&mut gate, &call("t")).is_empty(), "seen");
    assert!(history(&mut gate, &[call("t")]).is_empty(), "given out");
    gate.finished("t", Finish::Unanswered, Instant::now());
    assert_eq!(history(&mut gate, &[call("t")]), ["run t"]);
    gate.finished("t", Finish::Answered, Instant::now());
    assert!(history(&mut gate, &[call("t")]).is_empty());
    assert_eq!(live(&mut gate, &call("u")), ["run u"]);
    gate.finished("u", Finish::GaveUp, Instant::now());
    assert!(history(&mut gate, &[call("u")]).is_empty(), "RUN-5");
}

#[test]
fn a_failed_history_dispatches_nothing_and_forgets_what_it_saw() {
    // RUN-6, RACE-6.
    let mut gate = gate();
    gate.history_started();
    gate.history_event(event(&call("t")));
    gate.history_event(event(&call("u")));
    gate.history_event(event(&result_of("u")));
    gate.history_event(event(&thread_end("x")));
    gate.history_failed();
    assert_eq!(live(&mut gate, &call("t")), ["run t"], "the stream may deliver it");
    assert!(live(&mut gate, &call("u")).is_empty(), "answers stand");
    let mut dead = call("v");
    dead["session_thread_id"] = json!("x");
    assert!(live(&mut gate, &dead).is_empty(), "dead threads stand");
    assert_eq!(gate.idle.expires_at(), None);
}

#[test]
fn somebody_elses_call_is_left_alone_and_keeps_the_session() {
    // RUN-16, IDLE-6.
    let other = json!({"type":"agent.custom_tool_use","id":"o","name":"theirs"});
    let mut gate = gate();
    assert_eq!(history(&mut gate, &[other.clone(), end_turn()]), ["not owned o"]);
    assert_eq!(gate.idle.expires_at(), None, "its owner still has to answer");
    assert!(!gate.nothing_open());
    assert!(history(&mut gate, &[other, end_turn()]).is_empty(), "surfaced once");
    live(&mut gate, &json!({"type":"user.custom_tool_result","custom_tool_use_id":"o"}));
    assert!(gate.nothing_open());
}

#[test]
fn an_approved_call_of_somebody_else_disarms() {
    // IDLE-5.
    let other = json!({"type":"agent.custom_tool_use","id":"o","name":"theirs",
        "evaluated_permission":"ask"});
    let mut gate = gate();
    live(&mut gate, &other);
    live(&mut gate, &end_turn());
    assert_eq!(live(&mut gate, &confirmation("o", "allow")), ["not owned o"]);
    assert_eq!(gate.idle.expires_at(), None);
}

#[test]
fn an_approved_call_holds_the_clock_until_it_is_over() {
    // IDLE-4, RACE-9.
    let mut gate = gate();
    live(&mut gate, &gated(Some(json!("ask"))));
    assert_eq!(live(&mut gate, &confirmation("t", "allow")), ["run t"]);
    live(&mut gate, &end_turn());
    assert_eq!(gate.idle.expires_at(), None);
    gate.finished("t", Finish::Answered, Instant::now());
    assert!(gate.idle.expires_at().is_some());
}

#[test]
fn history_arms_only_at_the_end_of_a_turn_with_nothing_outstanding() {
    // IDLE-6, IDLE-7, RUN-7, RACE-10.
    #[rustfmt::skip]
    let cases: &[(&[Value], bool)] = &[
        (&[], false),
        (&[end_turn()], true),
        (&[end_turn(), json!({"type":"user.message"})], false),
        (&[end_turn(), confirmation("z", "allow")], true),
        (&[call("t"), end_turn()], false),
        (&[call("t"), result_of("t"), end_turn()], true),
        (&[json!({"type":"agent.tool_use","id":"w","name":"web_search"}),
           json!({"type":"agent.tool_result","tool_use_id":"w"}), end_turn()], true),
    ];
    for (events, armed) in cases {
        let mut gate = gate();
        history(&mut gate, events);
        assert_eq!(gate.idle.expires_at().is_some(), *armed, "{events:?}");
    }
}

#[test]
fn the_end_of_a_session_is_seen_in_history_and_live() {
    // RUN-8, RUN-12.
    for kind in ["session.status_terminated", "session.deleted"] {
        let mut gate = gate();
        history(&mut gate, &[json!({"type":kind})]);
        assert!(gate.session_ended(), "{kind}");
        let mut gate = self::gate();
        live(&mut gate, &json!({"type":kind}));
        assert!(gate.session_ended(), "{kind}");
    }
}

#[test]
fn a_long_history_does_not_keep_the_input_of_answered_calls() {
    // INV-11: bounded memory.
    let mut gate = gate();
    gate.history_started();
    for at in 0..10_000 {
        gate.history_event(event(&call(&format!("t{at}"))));
        gate.history_event(event(&result_of(&format!("t{at}"))));
        assert!(gate.collected() <= 64, "{}", gate.collected());
    }
    assert!(shown(gate.history_done(Instant::now())).is_empty());
}

#[test]
fn a_session_is_full_when_more_ids_are_remembered_than_may_be() {
    // INV-11: calls, results, verdicts and threads count.
    let gate_of = |remembered_max| {
        Gate::new(Box::new(|_, _| true), Some(MAX), remembered_max, Instant::now())
    };
    let events = [call("a"), confirmation("a", "allow"), result_of("b"), thread_end("x")];
    for (remembered_max, full) in [(4, false), (3, true)] {
        let mut gate = gate_of(remembered_max);
        for value in &events {
            assert!(!gate.is_full());
            live(&mut gate, value);
        }
        assert_eq!(gate.is_full(), full, "{remembered_max}");
    }
    assert_eq!(REMEMBERED_MAX, 1_000_000);
}
