//! Event streams: framing (§2.5) and the faults of a stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use super::fault::{Fault, Kind};
use super::session::{Event, Signal};

/// One event as a frame: a name, one line of data, a blank line (SSE-1, SSE-2).
pub fn frame(kind: &str, data: &str) -> Bytes {
    Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
}

/// A keepalive (SSE-3).
pub fn ping() -> Bytes {
    frame("ping", "{\"type\":\"ping\"}")
}

/// The same event in a form that is as valid and less usual: CRLF, a comment, an id, data over two
/// lines, and no space after the first colon.
fn odd_frame(event: &Event) -> Bytes {
    // Only here is a line end certain to be outside of a string.
    let tail = event.json.strip_prefix('{').unwrap_or(&event.json);
    let text = format!(
        ": a comment\r\nevent:{}\r\nid: {}\r\ndata: {{\r\ndata: {tail}\r\n\r\n",
        event.kind, event.id
    );
    Bytes::from(text)
}

/// Carries signals to a body until the session closes the stream or the client has gone.
///
/// `reset` breaks the connection.
pub async fn pump(
    mut signals: mpsc::UnboundedReceiver<Signal>,
    body: mpsc::UnboundedSender<Bytes>,
    fault: Option<Fault>,
    reset: Arc<Notify>,
) {
    let mut stream = Stream { body, fault, seen: 0, silent: false };
    // The head of the answer goes out with the first chunk: do not make the client wait for one.
    if !stream.write(Bytes::from_static(b": open\n\n")) || !stream.faulty_start(&reset).await {
        return;
    }
    loop {
        let signal = tokio::select! {
            signal = signals.recv() => signal,
            () = stream.body.closed() => None,
        };
        match signal {
            None | Some(Signal::Close) => return,
            Some(Signal::Ping) => {
                if !stream.silent && !stream.write(ping()) {
                    return;
                }
            }
            Some(Signal::Event(event)) => {
                if !stream.event(&event).await || !stream.faulty_start(&reset).await {
                    return;
                }
            }
        }
    }
}

struct Stream {
    body: mpsc::UnboundedSender<Bytes>,
    fault: Option<Fault>,
    seen: u64,
    silent: bool,
}

impl Stream {
    fn write(&self, chunk: Bytes) -> bool {
        self.body.send(chunk).is_ok()
    }

    /// What happens after `after` events; false if the stream ends by it.
    async fn faulty_start(&mut self, reset: &Notify) -> bool {
        let Some(fault) = self.fault.as_ref().filter(|fault| self.seen == fault.after) else {
            return true;
        };
        match fault.kind {
            Kind::Eof => false,
            Kind::ErrorEvent => {
                let error =
                    r#"{"type":"error","error":{"type":"overloaded_error","message":"injected"}}"#;
                self.write(frame("error", error));
                false
            }
            Kind::BadJson => {
                self.write(frame("agent.message", "{\"type\":"));
                true
            }
            Kind::Silence => {
                self.silent = true;
                true
            }
            Kind::ResetAfter => {
                tokio::time::sleep(Duration::from_millis(fault.ms)).await;
                reset.notify_one();
                false
            }
            _ => true,
        }
    }

    async fn event(&mut self, event: &Event) -> bool {
        self.seen += 1;
        let whole = frame(&event.kind, &event.json);
        let Some(fault) = &self.fault else { return self.write(whole) };
        if self.silent {
            return true;
        }
        let pause = Duration::from_millis(fault.ms);
        match fault.kind {
            Kind::Split => {
                for at in 0..whole.len() {
                    if !self.write(whole.slice(at..=at)) {
                        return false;
                    }
                    match pause.is_zero() {
                        true => tokio::task::yield_now().await,
                        false => tokio::time::sleep(pause).await,
                    }
                }
                true
            }
            Kind::Slow => {
                tokio::time::sleep(pause).await;
                self.write(whole)
            }
            Kind::Duplicate => self.write(whole.clone()) && self.write(whole),
            Kind::Nameless => {
                let other = event.json.replacen(&event.id, "sevt_nameless", 1);
                self.write(whole) && self.write(Bytes::from(format!("data: {other}\n\n")))
            }
            Kind::Odd => self.write(odd_frame(event)),
            _ => self.write(whole),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> Arc<Event> {
        Arc::new(Event {
            id: "e1".to_owned(),
            kind: "agent.message".to_owned(),
            json: json!({"a": 1, "id": "e1"}).to_string(),
            stamp: String::new(),
        })
    }

    async fn carried(fault: Option<serde_json::Value>, events: usize) -> Vec<String> {
        let (signals, receiver) = mpsc::unbounded_channel();
        let (body, mut chunks) = mpsc::unbounded_channel();
        for _ in 0..events {
            signals.send(Signal::Event(event())).expect("open");
        }
        signals.send(Signal::Close).expect("open");
        let fault = fault.map(|fault| serde_json::from_value(fault).expect("a fault"));
        pump(receiver, body, fault, Arc::new(Notify::new())).await;
        let mut all = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            all.push(String::from_utf8(chunk.to_vec()).expect("text"));
        }
        assert_eq!(all.remove(0), ": open\n\n");
        all
    }

    const FRAME: &str = "event: agent.message\ndata: {\"a\":1,\"id\":\"e1\"}\n\n";

    // SSE-1, SSE-2
    #[tokio::test]
    async fn an_event_is_a_named_frame() {
        assert_eq!(carried(None, 2).await, [FRAME, FRAME]);
    }

    // SIM-6
    #[tokio::test]
    async fn faults_change_what_a_stream_carries() {
        let fault =
            |kind: &str, after: u64| Some(json!({"on": "stream", "do": kind, "after": after}));
        assert_eq!(carried(fault("eof", 1), 3).await, [FRAME]);
        assert_eq!(carried(fault("silence", 1), 3).await, [FRAME]);
        assert_eq!(carried(fault("duplicate", 0), 1).await, [FRAME, FRAME]);
        let split = carried(fault("split", 0), 1).await;
        assert!(split.iter().all(|chunk| chunk.len() == 1));
        assert_eq!(split.concat(), FRAME);
        let error = carried(fault("error-event", 1), 3).await;
        assert!(
            error.len() == 2 && error[1].starts_with("event: error\ndata: {\"type\":\"error\"")
        );
        let bad = carried(fault("bad-json", 0), 1).await;
        assert_eq!(bad, ["event: agent.message\ndata: {\"type\":\n\n", FRAME]);
        let nameless = carried(fault("nameless", 0), 1).await;
        assert_eq!(nameless[1], "data: {\"a\":1,\"id\":\"sevt_nameless\"}\n\n");
        let odd = carried(fault("odd", 0), 1).await.concat();
        assert!(odd.contains("\r\ndata: {\r\ndata: \"a\":1,\"id\":\"e1\"}\r\n\r\n"), "{odd}");
    }
}
