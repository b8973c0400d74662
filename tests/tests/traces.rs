//! Traces from end to end (protocol §11): what a collector receives of a session, what it must not
//! receive, and a collector that is gone, silent or refuses.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use e2e::play::{SOON, bash, passed, session};
use e2e::{Devserver, Level, Poll, Ran};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};

const OK: i32 = 1;
const ERROR: i32 = 2;
const UNSET: i32 = 0;
const INTERNAL: i32 = 1;
const CLIENT: i32 = 3;
const PLANTED: &str = "planted-7c1e9a";

/// What a collector does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Takes,
    Refuses,
    Hangs,
}

/// Everything that was sent to a collector: heads and bodies.
type Taken = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

fn collector(manner: Manner) -> (String, Taken) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let taken = Taken::default();
    let keeps = Arc::clone(&taken);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let keeps = Arc::clone(&keeps);
            thread::spawn(move || serve(stream, manner, &keeps));
        }
    });
    (format!("http://{address}"), taken)
}

fn serve(mut stream: TcpStream, manner: Manner, keeps: &Taken) {
    loop {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.and_then(|text| text.parse().ok()).unwrap_or(0)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        keeps.lock().expect("not poisoned").push((head, body));
        let status = match manner {
            Manner::Takes => "200 OK",
            Manner::Refuses => "500 Internal Server Error",
            Manner::Hangs => {
                thread::sleep(Duration::from_secs(60));
                return;
            }
        };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn spans(taken: &Taken) -> Vec<Span> {
    let taken = taken.lock().expect("not poisoned");
    let requests = taken.iter().map(|(_, body)| {
        ExportTraceServiceRequest::decode(body.as_slice()).expect("a request of OTLP")
    });
    requests
        .flat_map(|request| request.resource_spans)
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect()
}

fn pairs(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &KeyValue| match value.value.as_ref().and_then(|any| any.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn status(span: &Span) -> i32 {
    span.status.as_ref().map_or(UNSET, |status| status.code)
}

fn tracing(level: Level, endpoint: &str) -> Poll {
    Poll::at(level)
        .options(["--otlp-endpoint", endpoint])
        .variable("OTEL_BSP_SCHEDULE_DELAY", "100")
}

/// One session: a call that succeeds, one that fails; their input and output is planted.
fn calls() -> Value {
    let calls =
        [bash(&format!("echo {PLANTED}-out-{PLANTED}")), bash(&format!("{PLANTED}; exit 3"))];
    session("traced", calls)
}

fn traced(server: Devserver, poll: Poll, sessions: &[Value]) -> (Value, Ran) {
    sessions.iter().for_each(|session| drop(server.push(session)));
    let worker = poll.serve(&server);
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    let report = passed(server.end(), &ran.stderr);
    (report, ran)
}

#[test]
fn a_session_is_told_in_spans_of_the_item_the_tools_and_the_requests() {
    // OBS-1, OBS-2, OBS-3, OBS-4.
    for level in Level::here() {
        let (endpoint, taken) = collector(Manner::Takes);
        let fault = "[[fault]]\non = \"session\"\ndo = \"503\"\nretry_after_ms = 100\n";
        let poll = tracing(level, &endpoint).variable("OTEL_RESOURCE_ATTRIBUTES", "a.b=c");
        let poll = poll.variable("OTEL_EXPORTER_OTLP_HEADERS", "x-collector=planted%20header");
        let (report, ran) = traced(Devserver::with(fault, &[]), poll, &[calls()]);
        let all = spans(&taken);
        let (work, tools) =
            (named(&all, "anthropic.environment.work"), named(&all, "anthropic.tool_use bash"));
        assert_eq!((work.len(), tools.len()), (1, 2), "{:#?}", all.iter().map(|s| &s.name));
        let (item, session) = (pairs(&work[0].attributes), "sesn_1");
        assert_eq!((work[0].kind, status(work[0])), (INTERNAL, OK));
        assert_eq!(item["gen_ai.provider.name"], "anthropic");
        assert_eq!(item["anthropic.environment.id"], "env_dev");
        assert!(item["anthropic.session.id"].starts_with("sesn_"), "{session} {item:?}");
        assert!(item.contains_key("anthropic.environment.work.id"));
        let failed = tools.iter().filter(|tool| status(tool) == ERROR).count();
        assert_eq!(failed, 1, "{tools:#?}");
        for tool in &tools {
            let said = pairs(&tool.attributes);
            assert_eq!((tool.kind, &tool.parent_span_id), (INTERNAL, &work[0].span_id));
            assert_eq!(tool.trace_id, work[0].trace_id);
            for (name, value) in [
                ("gen_ai.operation.name", "execute_tool"),
                ("gen_ai.tool.name", "bash"),
                ("gen_ai.tool.type", "function"),
                ("anthropic.toolset.name", "agent_toolset_20260401"),
            ] {
                assert_eq!(said[name], value, "{said:?}");
            }
            let error = said.get("error.type").map(String::as_str);
            assert_eq!(error, (status(tool) == ERROR).then_some("tool_error"));
            let sent = named(&all, "anthropic.sessions.events.send");
            assert!(sent.iter().any(|sent| sent.start_time_unix_nano >= tool.end_time_unix_nano));
        }
        requests(&all, work[0]);
        let sent = report["traced_requests"].as_u64();
        assert!(sent > Some(5), "W3C context: {sent:?}");
        let heads: Vec<String> =
            taken.lock().expect("kept").iter().map(|(h, _)| h.clone()).collect();
        assert!(heads.iter().all(|head| head.starts_with("post /v1/traces http/1.1")), "{heads:?}");
        assert!(heads.iter().all(|head| head.contains("x-collector: planted header")), "{heads:?}");
        for (head, body) in taken.lock().expect("kept").iter() {
            let text = String::from_utf8_lossy(body);
            assert!(!text.contains(PLANTED), "INV-12: {head}");
            assert!(!text.contains("sk-ant-"), "AUTH-8: {head}");
        }
        assert!(!ran.stderr.contains("anthropic.environment.work"), "spans are no log events");
        assert!(!ran.stderr.contains("planted%20header"));
    }
}

/// OBS-3
fn requests(all: &[Span], work: &Span) {
    let of = |name: &str| {
        let found = named(all, &format!("anthropic.{name}"));
        found
            .first()
            .map(|span| (pairs(&span.attributes), *span))
            .unwrap_or_else(|| panic!("{name}"))
    };
    for name in [
        "environments.work.ack",
        "environments.work.heartbeat",
        "environments.work.stop",
        "sessions.retrieve",
        "sessions.events.list",
        "sessions.events.send",
        "sessions.events.stream",
    ] {
        let (said, span) = of(name);
        assert_eq!((span.kind, &span.parent_span_id), (CLIENT, &work.span_id), "{name}");
        assert_eq!(said["server.address"], "127.0.0.1");
        assert_eq!(said["url.scheme"], "http");
        assert!(said["url.full"].contains(&said["url.path"]), "{said:?}");
        assert!(said["anthropic.request.id"].starts_with("req_"), "{said:?}");
    }
    let (poll, span) = of("environments.work.poll");
    assert!(span.parent_span_id.is_empty(), "no item yet");
    assert_eq!(poll["http.request.method"], "GET");
    assert_eq!(poll["http.route"], "/v1/environments/{environment_id}/work/poll");
    assert_eq!(poll["url.query"], "block_ms=999");
    assert_eq!(poll["http.response.status_code"], "200");
    let (fetched, span) = of("sessions.retrieve");
    assert_eq!(fetched["http.request.resend_count"], "1");
    assert_eq!((fetched["http.response.status_code"].as_str(), status(span)), ("200", UNSET));
    assert!(fetched["anthropic.session.id"].starts_with("sesn_"));
}

#[test]
fn a_tool_run_names_its_conversation_and_what_the_tool_does() {
    // OBS-2, THR-2: the thread of the call, else the primary one; never an MCP tool, which the
    // control plane runs.
    let (endpoint, taken) = collector(Manner::Takes);
    let on = |mut call: Value, thread: &str| {
        call["thread"] = json!(thread);
        call
    };
    let steps = [
        bash("true # before"),
        json!({"thread_started": "main"}),
        json!({"thread_started": "helper"}),
        bash("true # primary"),
        on(bash("true # helper"), "helper"),
        json!({"custom": "described", "input": {}}),
        json!({"custom": "plain", "input": {}}),
        json!({"emit": {"type": "agent.mcp_tool_use", "name": "remote", "input": {}}}),
        bash("true # last"),
    ];
    let tool = |name: &str, more: &str| {
        format!(
            "[[custom_tool]]\nname = \"{name}\"\nwhere = \"jail\"\ncommand = [\"/bin/true\"]\n{more}\n"
        )
    };
    let poll = tracing(Level::here()[0], &endpoint);
    let file = poll.home().join("worker.toml");
    let text = [tool("described", "description = \"Counts orders\""), tool("plain", "")].concat();
    std::fs::write(&file, text).expect("written");
    let poll = poll.path("--config", &file);
    traced(Devserver::with("", &[]), poll, &[session("threads", steps)]);
    let mut all = spans(&taken);
    all.retain(|span| span.name.contains("tool_use "));
    all.sort_by_key(|span| span.start_time_unix_nano);
    let (main, helper) = (Some("sthr_1_1"), Some("sthr_1_2"));
    let bash = Some("Runs a command in the persistent shell of the session");
    #[rustfmt::skip]
    let wanted = [
        ("anthropic.tool_use bash",             None,   None,   bash),
        ("anthropic.tool_use bash",             main,   None,   bash),
        ("anthropic.tool_use bash",             helper, helper, bash),
        ("anthropic.custom_tool_use described", main,   None,   Some("Counts orders")),
        ("anthropic.custom_tool_use plain",     main,   None,   None),
        ("anthropic.tool_use bash",             main,   None,   bash),
    ];
    assert_eq!(all.len(), wanted.len(), "{all:#?}");
    for (span, (name, conversation, thread, description)) in all.iter().zip(wanted) {
        let said = pairs(&span.attributes);
        let get = |key: &str| said.get(key).map(String::as_str);
        assert_eq!(span.name, name);
        assert_eq!(get("gen_ai.conversation.id"), conversation, "{said:?}");
        assert_eq!(get("anthropic.session.thread.id"), thread, "{said:?}");
        assert_eq!(get("gen_ai.tool.description"), description, "{said:?}");
    }
}

#[test]
fn content_is_sent_to_those_who_ask_for_it_and_is_cut() {
    // OBS-4.
    let (endpoint, taken) = collector(Manner::Takes);
    let poll = tracing(Level::here()[0], &endpoint)
        .variable("ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE", "content")
        .variable("ANTHROPIC_OPEN_TELEMETRY_TRACES_MAX_CONTENT_BYTES", "18")
        .variable("ANTHROPIC_OPEN_TELEMETRY_PROPAGATION", "false");
    let (report, _) = traced(Devserver::with("", &[]), poll, &[calls()]);
    assert_eq!(report["traced_requests"], 0, "no context is sent");
    let all = spans(&taken);
    let tools = named(&all, "anthropic.tool_use bash");
    let said = pairs(&tools[0].attributes);
    assert_eq!(said["anthropic.tool_result.content"], format!("{PLANTED}-out"));
    assert_eq!(said["gen_ai.tool.call.arguments"].len(), 18);
}

#[test]
fn without_an_endpoint_or_where_it_is_switched_off_nothing_is_sent() {
    // OBS-4.
    let (endpoint, taken) = collector(Manner::Takes);
    for (name, value) in
        [("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("ANTHROPIC_OPEN_TELEMETRY", "false")]
    {
        let poll = Poll::at(Level::here()[0]).variable("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
        let poll = poll.variable(name, value);
        let (report, _) = traced(Devserver::with("", &[]), poll, &[calls()]);
        assert_eq!(report["traced_requests"], 0, "{name}");
    }
    assert!(taken.lock().expect("kept").is_empty());
}

#[test]
fn a_collector_that_is_gone_silent_or_refuses_delays_nothing() {
    // OBS-4, INV-11: and the worker's end waits for it five seconds at most.
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        format!("http://{}", listener.local_addr().expect("an address"))
    };
    let endpoints = [gone, collector(Manner::Refuses).0, collector(Manner::Hangs).0];
    for endpoint in endpoints {
        let server = Devserver::with("", &[]);
        server.push(&calls());
        let began = Instant::now();
        let worker = tracing(Level::here()[0], &endpoint).serve(&server);
        server.wait_done(SOON);
        let served = began.elapsed();
        let asked = Instant::now();
        let ran = worker.stop().ended(0);
        assert!(asked.elapsed() < Duration::from_secs(9), "{endpoint}: {:?}", asked.elapsed());
        passed(server.end(), &ran.stderr);
        let lines = ran.stderr.lines().filter(|line| line.contains("opentelemetry")).count();
        assert_eq!(lines, 0, "{endpoint}: the log of a library: {}", ran.stderr);
        assert!(served < SOON, "{endpoint}: {served:?}");
    }
}

#[test]
fn a_lost_lease_and_a_failed_item_have_the_status_that_says_so() {
    // OBS-1: unset and error; the tool that was interrupted has none either (OBS-2).
    let (endpoint, taken) = collector(Manner::Takes);
    let mut lost = session("lost", [json!({"bash": "sleep 20", "wait": false})]);
    lost["calls"].as_array_mut().expect("calls").push(json!({"delay_ms": 60000}));
    lost["end"] = json!("open");
    let server = Devserver::with("[server]\nttl_seconds = 4\n", &[]);
    server.push(&lost);
    let worker =
        tracing(Level::here()[0], &endpoint).options(["--max-sessions", "1"]).serve(&server);
    let began = || worker.audited().iter().any(|one| one["event"] == "call.started");
    assert!(e2e::poll::wait_for(SOON, began), "{}", worker.said());
    server.fault(&json!({"on": "heartbeat", "do": "412"}));
    server.fault(&json!({"on": "session", "do": "404", "times": 100}));
    worker.wait_for_event("work.ended", SOON);
    worker.wait_for_events("work.ended", 2, SOON);
    worker.stop().ended(0);
    let all = spans(&taken);
    let items = named(&all, "anthropic.environment.work");
    assert_eq!(status(items[0]), UNSET, "the lease was lost: {items:#?}");
    assert_eq!(status(items[1]), ERROR, "the session cannot be fetched: {items:#?}");
    assert_eq!(pairs(&items[1].attributes)["error.type"], "failed");
    let tools = named(&all, "anthropic.tool_use bash");
    assert_eq!((tools.len(), status(tools[0])), (1, UNSET));
    let failed = named(&all, "anthropic.sessions.retrieve");
    let error = failed.iter().find(|span| status(span) == ERROR).expect("a 404");
    assert_eq!(pairs(&error.attributes)["error.type"], "not_found_error");
}
