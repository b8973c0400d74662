//! What clients post to a session: results, confirmations, messages. Checks EV-1 and EV-2.

use base64::Engine as _;
use serde_json::{Value, json};

use super::expect::Summary;
use super::reply::Reply;
use super::session::Verdict;
use super::state::{State, Who};

const IMAGES: &[&str] = &["image/png", "image/jpeg", "image/gif", "image/webp"];
/// Events in one request.
const EVENTS_MAX: usize = 1000;

/// Why a result is refused: what a violation is called, and a message.
type Refusal = (&'static str, String);

impl State {
    /// E-SEND. Nothing is applied if one of the events is refused.
    pub fn send(&mut self, session: usize, body: &[u8], who: &Who) -> Reply {
        let body: Value = match serde_json::from_slice(body) {
            Ok(body) => body,
            Err(_) => return Reply::error(400, "the body is not JSON"),
        };
        let Some(events) =
            body["events"].as_array().filter(|all| (1..=EVENTS_MAX).contains(&all.len()))
        else {
            return Reply::error(400, "`events` must be a list of 1 to 1000 events");
        };
        if self.sessions[session].ended {
            return Reply::error(400, "the session has ended");
        }
        for event in events {
            if let Err((kind, message)) = self.check_event(session, event) {
                if !kind.is_empty() {
                    self.violate(kind, Some(session), message.clone());
                }
                return Reply::error(400, &message);
            }
        }
        let mut posted = Vec::new();
        for event in events {
            posted.push(self.apply_event(session, event, who));
        }
        let (stamp, now) = (self.stamp(), self.clock.now());
        self.sessions[session].announce_required(&stamp, now);
        Reply::json(&json!({"data": posted}))
    }

    fn check_event(&mut self, session: usize, event: &Value) -> Result<(), Refusal> {
        match event["type"].as_str() {
            Some("user.tool_result") => self.check_result(session, event, "tool_use_id", false),
            Some("user.custom_tool_result") => {
                self.check_result(session, event, "custom_tool_use_id", true)
            }
            Some("user.tool_confirmation") => match event["result"].as_str() {
                Some("allow" | "deny") if event["tool_use_id"].is_string() => Ok(()),
                _ => Err(("", "a confirmation needs `tool_use_id` and `result`".to_owned())),
            },
            Some(kind) if kind.starts_with("user.") || kind == "system.message" => Ok(()),
            other => Err(("bad_event", format!("events of type {other:?} cannot be posted"))),
        }
    }

    fn check_result(
        &mut self,
        session: usize,
        event: &Value,
        key: &str,
        custom: bool,
    ) -> Result<(), Refusal> {
        let id = event[key].as_str().unwrap_or_default().to_owned();
        if !event["is_error"].is_boolean() {
            return Err((
                "bad_result",
                format!("`is_error` of the result of {id:?} is no boolean"),
            ));
        }
        if event.get("session_thread_id").is_some() {
            return Err(("bad_result", "`session_thread_id` is never sent back".to_owned()));
        }
        check_content(&event["content"]).map_err(|message| ("bad_result", message))?;
        let call = self.sessions[session].call(&id);
        let Some(call) = call else {
            return Err(("unknown_call", format!("there is no call {id:?} that {key} could name")));
        };
        if call.custom != custom {
            return Err((
                "wrong_pairing",
                format!("{id} is answered with the wrong kind of result"),
            ));
        }
        if call.answered_at.is_some() {
            call.reposts += 1;
            let kind = if call.response_lost { "" } else { "double_result" };
            return Err((kind, format!("{id} was answered already")));
        }
        match call.verdict {
            Verdict::Allowed => Ok(()),
            Verdict::Asked => Err(("unconfirmed_result", format!("{id} waits for a confirmation"))),
            Verdict::Denied => Err(("denied_result", format!("{id} was denied"))),
        }
    }

    fn apply_event(&mut self, session: usize, event: &Value, who: &Who) -> Value {
        let (stamp, now) = (self.stamp(), self.clock.now());
        let result_of = event["tool_use_id"].as_str().or(event["custom_tool_use_id"].as_str());
        let is_result = event["type"] != "user.tool_confirmation";
        if let Some(id) = result_of.filter(|_| is_result) {
            self.note_result(session, id, event, who);
        }
        let one = &mut self.sessions[session];
        if let (false, Some(id)) = (is_result, result_of) {
            let verdict =
                if event["result"] == "allow" { Verdict::Allowed } else { Verdict::Denied };
            if let Some(call) = one.call(id).filter(|call| call.verdict == Verdict::Asked) {
                call.verdict = verdict;
            }
        }
        let mut event = event.clone();
        let message = event["type"] == "user.message";
        let id = one.emit(event.clone(), stamp.clone(), now);
        event["id"] = json!(id);
        event["processed_at"] = json!(stamp);
        if message {
            self.ensure_work(session);
        }
        event
    }

    fn note_result(&mut self, session: usize, id: &str, event: &Value, who: &Who) {
        let now = self.clock.now();
        let keep = self.keep_results;
        let by_worker = !matches!(who, Who::Operator);
        let one = &mut self.sessions[session];
        let Some(call) = one.call(id) else { return };
        let unowned = call.unowned;
        call.answered_at = Some(now);
        call.by_worker = by_worker;
        let summary = Summary::of(event);
        let wrong = call.expect.as_ref().map(|expect| expect.differences(&summary));
        call.summary = Some(Summary { text: String::new(), ..summary });
        if keep {
            call.result = Some(event.clone());
        }
        let what = call.label.clone().unwrap_or_else(|| format!("{} {}", call.name, call.id));
        for difference in wrong.into_iter().flatten() {
            one.fail(format!("{what}: {difference}"));
        }
        one.first_result_at.get_or_insert(now);
        if unowned && by_worker {
            self.violate(
                "unowned_result",
                Some(session),
                format!("{id} belongs to another client"),
            );
        }
        if by_worker {
            self.check_lease(session, id, who);
        }
    }

    /// SIM-7: no result of a worker that does not hold the lease.
    fn check_lease(&mut self, session: usize, id: &str, who: &Who) {
        let id_of = self.sessions[session].id.clone();
        let lost = match who {
            Who::Token { work, holding } => {
                let held = self.queue.items.get(*work).and_then(|work| work.holdings.get(*holding));
                held.is_none_or(|held| held.lost_at.is_some())
            }
            Who::Key | Who::Platform => !self.queue.live(&id_of),
            Who::Operator => false,
        };
        if lost {
            self.violate(
                "result_after_lost_lease",
                Some(session),
                format!("{id} was answered by a worker that had lost the lease"),
            );
        }
    }
}

/// EV-2.
fn check_content(content: &Value) -> Result<(), String> {
    let blocks = content.as_array().ok_or("`content` is no list of blocks")?;
    if blocks.is_empty() {
        return Err("`content` is empty".to_owned());
    }
    for block in blocks {
        match block["type"].as_str() {
            Some("text") => match block["text"].as_str() {
                Some("") => return Err("a text block is empty".to_owned()),
                Some(_) => {}
                None => return Err("a text block has no text".to_owned()),
            },
            Some("image") => check_source(&block["source"], IMAGES)?,
            Some("document") => check_source(&block["source"], &["application/pdf"])?,
            Some("search_result") => {
                let complete = block["source"].is_string()
                    && block["title"].is_string()
                    && block["content"].is_array();
                if !complete {
                    return Err("a search result needs source, title and content".to_owned());
                }
            }
            other => return Err(format!("blocks of type {other:?} are not allowed")),
        }
    }
    Ok(())
}

fn check_source(source: &Value, media_types: &[&str]) -> Result<(), String> {
    let media_type = source["media_type"].as_str().unwrap_or_default();
    match source["type"].as_str() {
        Some("base64") if !media_types.contains(&media_type) => {
            Err(format!("media type {media_type:?} is not allowed here"))
        }
        Some("base64") => {
            let data = source["data"].as_str().ok_or("a base64 source has no data")?;
            let decoded = base64::engine::general_purpose::STANDARD.decode(data);
            decoded.map(drop).map_err(|error| format!("the data is no base64: {error}"))
        }
        Some("url") if source["url"].is_string() => Ok(()),
        Some("file") if source["file_id"].is_string() => Ok(()),
        Some("text") if media_type == "text/plain" && source["data"].is_string() => Ok(()),
        other => Err(format!("a source of type {other:?} is not allowed or incomplete")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // EV-2
    #[test]
    fn content_blocks_are_checked() {
        let base64 = |kind: &str, media_type: &str, data: &str| json!([{"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data}}]);
        #[rustfmt::skip]
        let cases = [
            (json!([{"type": "text", "text": "a"}]),          true),
            (json!([{"type": "text", "text": ""}]),           false),
            (json!([{"type": "text"}]),                       false),
            (json!("a"),                                      false),
            (json!([]),                                       false),
            (json!([{"type": "thinking", "text": "a"}]),      false),
            (base64("image", "image/png", "aGk="),            true),
            (base64("image", "image/png", "aGk"),             false),
            (base64("image", "image/bmp", "aGk="),            false),
            (base64("document", "application/pdf", "aGk="),   true),
            (base64("document", "image/png", "aGk="),         false),
            (json!([{"type": "search_result", "source": "s", "title": "t", "content": []}]), true),
            (json!([{"type": "search_result", "source": "s"}]), false),
            (json!([{"type": "image", "source": {"type": "url", "url": "u"}}]), true),
        ];
        for (content, valid) in cases {
            assert_eq!(check_content(&content).is_ok(), valid, "{content}");
        }
    }
}
