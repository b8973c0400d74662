//! Answers scrapers.

use std::convert::Infallible;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::listener::{self, Answer, Answers, not_allowed, text};
use crate::queue::ShutdownWatch;

/// What all connections share.
pub struct Endpoint {
    pub handle: PrometheusHandle,
    pub shutdown: ShutdownWatch,
}

impl Answers for Endpoint {
    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        // Of a body nothing is read.
        Ok(self.reply(request.method(), request.uri().path()))
    }
}

impl Endpoint {
    fn reply(&self, method: &Method, path: &str) -> Answer {
        if let Some(answer) = listener::health(method, path, &self.shutdown) {
            return answer;
        }
        match (path, method) {
            ("/metrics", &Method::GET | &Method::HEAD) => {
                super::refresh(&self.shutdown);
                let mut answer = text(StatusCode::OK, &self.handle.render());
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert(CONTENT_TYPE, kind);
                answer
            }
            ("/metrics", _) => not_allowed("GET, HEAD"),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}
