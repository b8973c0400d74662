//! The way to a collector: the HTTP client that is here anyway.
//!
//! The SDK's thread is no thread of the runtime, so the request is handed to the runtime and waited
//! for; it has a limit of its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;

use crate::queue::{BoxFuture, Outgoing, Transport};

/// Longest answer of a collector.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Sends batches of spans.
pub struct Collector {
    transport: Arc<dyn Transport>,
    runtime: Handle,
    timeout: Duration,
}

impl Collector {
    /// Call in the runtime that is to carry the requests.
    pub fn new(transport: Arc<dyn Transport>, timeout: Duration) -> Collector {
        Collector { transport, runtime: Handle::current(), timeout }
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'b, Result<http::Response<Bytes>, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        let (transport, timeout) = (Arc::clone(&self.transport), self.timeout);
        let sent = self.runtime.spawn(async move {
            tokio::time::timeout(timeout, exchange(&*transport, request)).await
        });
        Box::pin(async move { sent.await?? })
    }
}

async fn exchange(
    transport: &dyn Transport,
    request: http::Request<Bytes>,
) -> Result<http::Response<Bytes>, HttpError> {
    let (head, body) = request.into_parts();
    let url = head.uri.to_string().parse()?;
    let outgoing = Outgoing { method: head.method, url, headers: head.headers, body: Some(body) };
    let mut incoming = transport.send(outgoing).await?;
    let mut answer = BytesMut::new();
    while let Some(piece) = incoming.body.chunk().await? {
        if answer.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err("the answer is too large".into());
        }
        answer.extend_from_slice(&piece);
    }
    let mut response = http::Response::new(answer.freeze());
    *response.status_mut() = http::StatusCode::from_u16(incoming.status)?;
    *response.headers_mut() = incoming.headers;
    Ok(response)
}
