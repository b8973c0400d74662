//! Headers that the operator adds to every request.

use http::header::{HeaderName, HeaderValue};

use super::{Refusal, Surroundings, refuse};
use crate::cli::poll::PollArgs;

/// Most headers and the longest of them.
const HEADERS_MAX: usize = 32;
const HEADER_BYTES_MAX: usize = 8 << 10;
/// Headers that only this program sets: credentials (AUTH-7) and what belongs to the connection.
const OWN_HEADERS: &[&str] = &[
    "authorization",
    "x-api-key",
    "proxy-authorization",
    "cookie",
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "accept",
    "user-agent",
    "anthropic-version",
    "anthropic-beta",
    "anthropic-worker-id",
    "anthropic-workspace-id",
];

/// Those that are sent with every request; values are marked sensitive.
pub type Headers = Vec<(HeaderName, HeaderValue)>;

/// HDR-10, AUTH-7: those of the variable may be meant for other programs as well, so what cannot be
/// sent is dropped and told; one on the command line is refused.
pub fn of(args: &PollArgs, around: &Surroundings) -> Result<(Headers, Vec<HeaderName>), Refusal> {
    let variable = (around.variable)("ANTHROPIC_CUSTOM_HEADERS").unwrap_or_default();
    let Some(lines) = variable.to_str() else {
        let hint = "write one `NAME: VALUE` per line";
        return refuse("cannot use ANTHROPIC_CUSTOM_HEADERS: it is not text", hint);
    };
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let (name, value) = header("ANTHROPIC_CUSTOM_HEADERS", line)?;
        if OWN_HEADERS.contains(&name.as_str()) {
            dropped.push(name);
        } else {
            kept.push((name, value));
        }
    }
    for line in &args.session.custom_headers {
        let (name, value) = header("--custom-header", line)?;
        if OWN_HEADERS.contains(&name.as_str()) {
            let text = format!("cannot use --custom-header: `{name}` is set by the worker");
            return refuse(text, "leave it out; options of their own set what may be changed");
        }
        kept.push((name, value));
    }
    if kept.len() > HEADERS_MAX {
        let text = format!("cannot send {} headers with every request", kept.len());
        return refuse(text, format!("at most {HEADERS_MAX}"));
    }
    Ok((kept, dropped))
}

/// One `NAME: VALUE`. The value is in no error: it may be a secret.
fn header(from: &str, line: &str) -> Result<(HeaderName, HeaderValue), Refusal> {
    let parts = line.split_once(':').filter(|_| line.len() <= HEADER_BYTES_MAX);
    let parsed = parts.and_then(|(name, value)| {
        let name = name.trim().parse::<HeaderName>().ok()?;
        let mut value = HeaderValue::from_str(value.trim()).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    });
    parsed
        .map_or_else(|| refuse(format!("cannot use {from}: not a header"), "write NAME: VALUE"), Ok)
}
