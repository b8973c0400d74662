//! Results of tool calls, and the request body that posts one (EV-1, EV-2, RUN-21, RUN-22).
//!
//! The body is made once and kept as bytes: what is posted again is the same to the byte.

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::event::{Call, CallKind};

/// Text of one result, all blocks together.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Images and documents of one result, before they are encoded; above the limit of the read tool.
pub const MEDIA_BYTES_MAX: usize = 24 << 20;
/// Blocks of one result.
pub const BLOCKS_MAX: usize = 256;
/// What stands for an empty result (RUN-21).
pub const NO_OUTPUT: &str = "(no output)";

/// One block of a result.
#[derive(Clone, PartialEq)]
pub enum ContentBlock {
    Text(String),
    Image {
        media_type: String,
        data: Vec<u8>,
    },
    Document {
        media_type: String,
        data: Vec<u8>,
    },
    /// An image, a document or a search result as the tool wrote it (RUN-21); made by [`passed`]
    /// only.
    ///
    /// [`passed`]: ContentBlock::passed
    Passed(Value),
}

impl ContentBlock {
    /// What passes as it was written.
    #[cfg(test)]
    pub fn as_passed(&self) -> Option<&Value> {
        match self {
            ContentBlock::Passed(block) => Some(block),
            _ => None,
        }
    }

    /// A block that a tool wrote itself: what may be posted passes, anything else becomes a text of
    /// its JSON (RUN-21).
    pub fn passed(block: Value) -> ContentBlock {
        match (block["type"].as_str(), block["text"].as_str()) {
            (Some("text"), Some(text)) => ContentBlock::Text(text.to_owned()),
            (Some("image" | "document" | "search_result"), _) => ContentBlock::Passed(block),
            _ => ContentBlock::Text(block.to_string()),
        }
    }
}

/// What a call gave.
#[derive(Clone, PartialEq)]
pub struct CallOutcome {
    pub content: Vec<ContentBlock>,
    pub is_error: bool,
}

impl std::fmt::Debug for CallOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // INV-12: no content.
        f.debug_struct("CallOutcome")
            .field("blocks", &self.content.len())
            .field("is_error", &self.is_error)
            .finish()
    }
}

impl CallOutcome {
    /// One block of text.
    pub fn text(text: impl Into<String>) -> CallOutcome {
        CallOutcome { content: vec![ContentBlock::Text(text.into())], is_error: false }
    }

    /// One block of text that says what went wrong.
    pub fn error(text: impl Into<String>) -> CallOutcome {
        CallOutcome { is_error: true, ..CallOutcome::text(text) }
    }

    /// How much of texts and files there is.
    pub fn bytes(&self) -> usize {
        let size = |block: &ContentBlock| match block {
            ContentBlock::Text(text) => text.len(),
            ContentBlock::Image { data, .. } | ContentBlock::Document { data, .. } => data.len(),
            ContentBlock::Passed(block) => block.to_string().len(),
        };
        self.content.iter().map(size).sum()
    }
}

/// The body that posts `outcome` as the result of `call`.
pub fn result_body(call: &Call, outcome: &CallOutcome) -> Bytes {
    let content = blocks(&outcome.content);
    let (kind, reference) = match call.kind {
        CallKind::Builtin => ("user.tool_result", "tool_use_id"),
        CallKind::Custom => ("user.custom_tool_result", "custom_tool_use_id"),
    };
    let event =
        json!({"type": kind, reference: call.id, "is_error": outcome.is_error, "content": content});
    Bytes::from(json!({"events": [event]}).to_string())
}

fn blocks(content: &[ContentBlock]) -> Vec<Value> {
    let mut left = Left { text: TEXT_BYTES_MAX, media: MEDIA_BYTES_MAX };
    let mut out: Vec<Value> =
        content.iter().take(BLOCKS_MAX).map(|block| left.block(block)).collect();
    if content.len() > BLOCKS_MAX {
        let more = content.len() - BLOCKS_MAX;
        out.push(text_block(&format!("[{more} more blocks were left out: at most {BLOCKS_MAX}]")));
    }
    if out.is_empty() {
        out.push(text_block(NO_OUTPUT));
    }
    out
}

/// What may still be added to a result.
struct Left {
    text: usize,
    media: usize,
}

impl Left {
    fn block(&mut self, block: &ContentBlock) -> Value {
        match block {
            ContentBlock::Text(text) => self.text(text),
            ContentBlock::Image { media_type, data } => self.media("image", media_type, data),
            ContentBlock::Document { media_type, data } => self.media("document", media_type, data),
            ContentBlock::Passed(block) => self.passed(block),
        }
    }

    fn text(&mut self, text: &str) -> Value {
        if text.is_empty() {
            return text_block(NO_OUTPUT);
        }
        if text.len() <= self.text {
            self.text -= text.len();
            return text_block(text);
        }
        let kept = &text[..text.floor_char_boundary(self.text)];
        self.text = 0;
        let lost = text.len() - kept.len();
        text_block(&format!(
            "{kept}\n[{lost} bytes were left out: a result holds {TEXT_BYTES_MAX}]"
        ))
    }

    fn passed(&mut self, block: &Value) -> Value {
        let size = block.to_string().len();
        if size > self.media {
            return text_block(&format!(
                "[a block of {size} bytes was left out: a result holds {MEDIA_BYTES_MAX}]"
            ));
        }
        self.media -= size;
        block.clone()
    }

    fn media(&mut self, kind: &str, media_type: &str, data: &[u8]) -> Value {
        if data.len() > self.media {
            let size = data.len();
            return text_block(&format!(
                "[{kind} of {size} bytes was left out: a result holds {MEDIA_BYTES_MAX}]"
            ));
        }
        self.media -= data.len();
        let data = base64::engine::general_purpose::STANDARD.encode(data);
        json!({"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data}})
    }
}

fn text_block(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

#[cfg(test)]
mod tests {
    use super::super::event::{Event, parse_event};
    use super::*;

    fn call(kind: &str) -> Call {
        let json =
            format!(r#"{{"type":"{kind}","id":"t1","name":"bash","session_thread_id":"x"}}"#);
        match parse_event(json.as_bytes()) {
            Ok(Event::Call(call)) => call,
            other => panic!("{other:?}"),
        }
    }

    fn posted(content: Vec<ContentBlock>) -> Value {
        let outcome = CallOutcome { content, is_error: false };
        let body = result_body(&call("agent.tool_use"), &outcome);
        let value: Value = serde_json::from_slice(&body).expect("JSON");
        value["events"][0]["content"].clone()
    }

    #[test]
    fn the_type_of_a_result_is_that_of_its_call() {
        // EV-1: strict pairing, is_error always there, no thread id.
        for (kind, want) in [
            (
                "agent.tool_use",
                json!({"type":"user.tool_result","tool_use_id":"t1","is_error":true,
                       "content":[{"type":"text","text":"no"}]}),
            ),
            (
                "agent.custom_tool_use",
                json!({"type":"user.custom_tool_result","custom_tool_use_id":"t1","is_error":true,
                       "content":[{"type":"text","text":"no"}]}),
            ),
        ] {
            let body = result_body(&call(kind), &CallOutcome::error("no"));
            let value: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(value, json!({"events": [want]}));
        }
    }

    #[test]
    fn empty_results_say_that_there_was_no_output() {
        // RUN-21.
        let none = json!([{"type":"text","text":"(no output)"}]);
        assert_eq!(posted(vec![]), none);
        assert_eq!(posted(vec![ContentBlock::Text(String::new())]), none);
    }

    #[test]
    fn bytes_of_an_image_are_base64() {
        // RUN-21, EV-2.
        let data = vec![0xff, 0xfe];
        let got = posted(vec![ContentBlock::Image { media_type: "image/png".into(), data }]);
        let source = json!({"type":"base64","media_type":"image/png","data":"//4="});
        assert_eq!(got, json!([{"type":"image","source":source}]));
    }

    #[test]
    fn blocks_of_a_tools_own_pass_or_become_text() {
        // RUN-21.
        let image = json!({"type":"image","source":{"type":"url","url":"https://x"}});
        #[rustfmt::skip]
        let cases = [
            (json!({"type":"text","text":"a"}),         json!({"type":"text","text":"a"})),
            (json!({"type":"text","text":""}),          json!({"type":"text","text":"(no output)"})),
            (json!({"type":"text","text":"a","x":[]}),  json!({"type":"text","text":"a"})),
            (image.clone(),                             image),
            (json!({"type":"search_result","a":1}),     json!({"type":"search_result","a":1})),
            (json!({"type":"tool_use","id":"x"}),       json!({"type":"text","text":r#"{"id":"x","type":"tool_use"}"#})),
            (json!({"type":"text"}),                    json!({"type":"text","text":r#"{"type":"text"}"#})),
            (json!(7),                                  json!({"type":"text","text":"7"})),
        ];
        for (block, want) in cases {
            assert_eq!(posted(vec![ContentBlock::passed(block.clone())]), json!([want]), "{block}");
        }
    }

    #[test]
    fn results_are_bounded_and_say_so() {
        // INV-11.
        let long = posted(vec![ContentBlock::Text("é".repeat(TEXT_BYTES_MAX))]);
        let text = long[0]["text"].as_str().expect("text");
        assert!(text.len() < TEXT_BYTES_MAX + 100, "{}", text.len());
        assert!(text.ends_with("[1048576 bytes were left out: a result holds 1048576]"));
        let data = vec![0; MEDIA_BYTES_MAX + 1];
        let media =
            posted(vec![ContentBlock::Document { media_type: "application/pdf".into(), data }]);
        assert_eq!(media[0]["type"], "text");
        let many = posted(vec![ContentBlock::Text("x".into()); BLOCKS_MAX + 2]);
        assert_eq!(many.as_array().map(Vec::len), Some(BLOCKS_MAX + 1));
    }
}
