//! Spans, as far as the queue knows of them: when one begins, what it is about, how it ends (protocol
//! §11). What is made of them is for whoever implements [`Tracer`].
//!
//! Without a tracer nothing is put together, so that a request costs one look at an `Option`.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use reqwest::header::HeaderMap;
use url::Url;

use super::client::ApiError;
use super::events::Ids;
use super::host::ItemEnd;
use super::lease::LeaseEnd;
use super::wire::event::Call;
use super::wire::outcome::CallOutcome;

/// Makes spans. Never fails and never waits: what becomes of a span is nobody's concern here.
pub trait Tracer: Send + Sync + fmt::Debug + 'static {
    /// A work item, from the poll on that handed it out (OBS-1).
    fn work(&self, ids: &Ids) -> Span;
    /// A tool run (OBS-2).
    fn tool(&self, within: Option<&Span>, ids: &Ids, run: &ToolRun<'_>) -> Span;
    /// A request with all its attempts (OBS-3).
    fn request(&self, within: Option<&Span>, method: &str, path: &str, url: &Url) -> Span;
}

/// What a span of a tool run is about.
#[derive(Debug, Clone, Copy)]
pub struct ToolRun<'a> {
    pub call: &'a Call,
    /// THR-2; the conversation of calls without a thread of their own.
    pub primary_thread: Option<&'a str>,
    /// What the tool does, where whoever serves it knows.
    pub description: Option<&'a str>,
}

/// A span that has begun. One that is dropped ends, with no status.
pub type Span = Arc<dyn OpenSpan>;

/// See [`Span`].
pub trait OpenSpan: Send + Sync + 'static {
    /// Tells the control plane which span a request belongs to (OBS-4).
    fn inject(&self, headers: &mut HeaderMap);
    /// An answer, of whatever status, to a request that was sent again so many times.
    fn answered(&self, status: u16, headers: &HeaderMap, resent: u32);
    /// What a tool gave; content (OBS-4).
    fn gave(&self, outcome: &CallOutcome);
    /// Ends it.
    fn end(&self, how: SpanEnd<'_>);
    /// For the tracer that made it.
    fn as_any(&self) -> &dyn Any;
}

/// Status of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanEnd<'a> {
    Ok,
    /// With `error.type`.
    Error(std::borrow::Cow<'a, str>),
    Unset,
}

impl SpanEnd<'static> {
    /// OBS-1: a lease that is lost, whatever was cut short, and an item that a program had, whose lease
    /// nobody here knows, say nothing about the item.
    pub fn of_item(how: ItemEnd) -> SpanEnd<'static> {
        match how {
            ItemEnd::Idle
            | ItemEnd::SessionEnded
            | ItemEnd::StopRequested
            | ItemEnd::NotASession
            | ItemEnd::Lease(LeaseEnd::Stopped) => SpanEnd::Ok,
            ItemEnd::Lease(_) | ItemEnd::Drained | ItemEnd::Cancelled | ItemEnd::HandedBack => {
                SpanEnd::Unset
            }
            ItemEnd::NotHandedOver => SpanEnd::Error("not_handed_over".into()),
            ItemEnd::StreamRefused => SpanEnd::Error("stream_refused".into()),
            ItemEnd::TooMuch => SpanEnd::Error("too_much".into()),
            ItemEnd::OpenFailed => SpanEnd::Error("no_jail".into()),
            ItemEnd::Failed => SpanEnd::Error("failed".into()),
            ItemEnd::NoCredential => SpanEnd::Error("no_credential".into()),
        }
    }

    /// OBS-2; `None` is a run that was interrupted.
    pub fn of_run(outcome: Option<&CallOutcome>) -> SpanEnd<'static> {
        match outcome {
            None => SpanEnd::Unset,
            Some(outcome) if outcome.is_error => SpanEnd::Error("tool_error".into()),
            Some(_) => SpanEnd::Ok,
        }
    }

    /// OBS-3
    pub fn of_request(error: &ApiError) -> SpanEnd<'static> {
        SpanEnd::Error(match error {
            ApiError::Status { status, body, .. } => match &body.kind {
                Some(kind) => kind.clone().into(),
                None => status.to_string().into(),
            },
            ApiError::Timeout { .. } => "client_timeout_error".into(),
            ApiError::Transport { .. } => "connection_error".into(),
            _ => "client_error".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_is_an_error_and_a_lost_lease_is_neither() {
        // OBS-1.
        #[rustfmt::skip]
        let cases = [
            (ItemEnd::Idle,                        SpanEnd::Ok),
            (ItemEnd::SessionEnded,                SpanEnd::Ok),
            (ItemEnd::Lease(LeaseEnd::Lost),       SpanEnd::Unset),
            (ItemEnd::Lease(LeaseEnd::AssumedLost), SpanEnd::Unset),
            (ItemEnd::Lease(LeaseEnd::Rejected),   SpanEnd::Unset),
            (ItemEnd::Drained,                     SpanEnd::Unset),
            (ItemEnd::Cancelled,                   SpanEnd::Unset),
            (ItemEnd::StreamRefused,               SpanEnd::Error("stream_refused".into())),
            (ItemEnd::Failed,                      SpanEnd::Error("failed".into())),
        ];
        for (how, want) in cases {
            assert_eq!(SpanEnd::of_item(how), want, "{how:?}");
        }
    }

    #[test]
    fn a_tool_that_was_interrupted_has_no_status() {
        // OBS-2.
        assert_eq!(SpanEnd::of_run(None), SpanEnd::Unset);
        let error = CallOutcome::error("no".to_owned());
        assert_eq!(SpanEnd::of_run(Some(&error)), SpanEnd::Error("tool_error".into()));
    }
}
