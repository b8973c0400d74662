//! Answers: a status, headers and a body; the error envelope of §2.7.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// A body that is complete, or one that grows.
#[derive(Debug)]
pub enum Content {
    Full(Option<Bytes>),
    Growing(mpsc::UnboundedReceiver<Bytes>),
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Growing(chunks) => {
                chunks.poll_recv(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Content::Full(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Content::Full(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                hyper::body::SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
            Content::Growing(_) => hyper::body::SizeHint::default(),
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: Option<&'static str>,
    pub headers: Vec<(&'static str, String)>,
    pub content: Content,
}

impl Reply {
    /// 200 with JSON.
    pub fn json(value: &Value) -> Reply {
        Reply::text(value.to_string())
    }

    /// 200 with JSON that is written already.
    pub fn text(json: String) -> Reply {
        Reply::bytes(200, "application/json", Bytes::from(json))
    }

    pub fn bytes(status: u16, content_type: &'static str, bytes: Bytes) -> Reply {
        let content = Content::Full((!bytes.is_empty()).then_some(bytes));
        Reply { status, content_type: Some(content_type), headers: Vec::new(), content }
    }

    /// A status without a body.
    pub fn empty(status: u16) -> Reply {
        let content = Content::Full(None);
        Reply { status, content_type: None, headers: Vec::new(), content }
    }

    /// A stream of events.
    pub fn stream(chunks: mpsc::UnboundedReceiver<Bytes>) -> Reply {
        Reply {
            status: 200,
            content_type: Some("text/event-stream"),
            headers: vec![("cache-control", "no-store".to_owned())],
            content: Content::Growing(chunks),
        }
    }

    /// An error with the type that belongs to its status.
    pub fn error(status: u16, message: &str) -> Reply {
        Reply::error_with(status, message, &Value::Null)
    }

    /// The same with `details`.
    pub fn error_with(status: u16, message: &str, details: &Value) -> Reply {
        let mut error = json!({"type": error_type(status, details), "message": message});
        if !details.is_null() {
            error["details"] = details.clone();
        }
        let body = json!({"type": "error", "error": error, "request_id": "req_dev"});
        let mut reply = Reply::json(&body);
        reply.status = status;
        reply
    }

    /// As hyper sends it.
    pub fn into_response(self, request_id: u64) -> Response<Content> {
        let mut builder = Response::builder()
            .status(StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
            .header("request-id", format!("req_{request_id:08}"));
        if let Some(content_type) = self.content_type {
            builder = builder.header("content-type", content_type);
        }
        for (name, value) in &self.headers {
            builder = builder.header(*name, value);
        }
        builder.body(self.content).unwrap_or_else(|_| {
            let mut broken = Response::new(Content::Full(None));
            *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            broken
        })
    }
}

fn error_type(status: u16, details: &Value) -> &'static str {
    match (status, details["error_code"].as_str()) {
        (_, Some("memory_precondition_failed")) => "memory_precondition_failed_error",
        (_, Some("memory_path_conflict")) => "memory_path_conflict_error",
        (401, _) => "authentication_error",
        (402, _) => "billing_error",
        (403, _) => "permission_error",
        (404, _) => "not_found_error",
        (408, _) => "timeout_error",
        (409, _) => "conflict_error",
        (429, _) => "rate_limit_error",
        (529, _) => "overloaded_error",
        (500.., _) => "api_error",
        _ => "invalid_request_error",
    }
}
