//! What the queue must be told. The daemon fills this from flags, environment and files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use url::{Host, Url};

use super::handover::Handler;
use super::shutdown::Shutdown;
use super::trace::Tracer;
use super::trigger::Trigger;

/// What makes a worker poll, and who serves what it claims. The default: it polls all the time and
/// serves items itself.
#[derive(Default)]
pub struct Drive {
    /// Polls only when it is triggered (HOOK-8).
    pub trigger: Option<Arc<Trigger>>,
    /// Hands sessions over (ONWORK-1).
    pub handler: Option<Arc<dyn Handler>>,
    /// Told to drain when the poll is refused for good: what runs may finish (POLL-5, SHUT-2).
    pub shutdown: Option<Arc<Shutdown>>,
}

/// Settings of one environment's queue.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    pub base_url: Url,
    /// Lets `base_url` be http:// on another host than this one.
    pub insecure_http: bool,
    pub environment_id: String,
    /// Unique per process (POLL-14).
    pub worker_id: String,
    pub workspace_id: Option<String>,
    pub anthropic_version: String,
    /// Added to every request; none of those that the client sets (AUTH-7, HDR-10).
    pub custom_headers: HeaderMap,
    /// How long the server may hold a poll: 1..=999; none does not wait (POLL-1).
    pub block_ms: Option<u16>,
    pub reclaim_older_than_ms: Option<u64>,
    /// End after the first empty poll (POLL-11).
    pub drain: bool,
    pub cadence: Cadence,
    /// How long a session may be idle before its item is handed back; none: for ever.
    pub max_idle: Option<Duration>,
    /// Outer limit of one call (RUN-17).
    pub tool_timeout: Duration,
    /// Up to where `timeout_ms` of a bash call may extend it.
    pub tool_timeout_max: Duration,
    /// How long a call in flight may go on when everything should end (SHUT-2, LEASE-14).
    pub drain_limit: Duration,
    /// How long a killed call may take to return before it is abandoned.
    pub kill_limit: Duration,
    /// How long a session whose tools could not be opened is answered with errors.
    pub refusal_limit: Duration,
    /// How long an item that was handed over is ours beyond doubt: what is assumed of a TTL that
    /// only the holder hears of (RACE-22, LEASE-3).
    pub handed_over_ttl: Duration,
    /// Longest silence on an event stream (SSE-5).
    pub stream_silence: Duration,
    /// Roots that count beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Makes spans of items, tool runs and requests (OBS-1 to OBS-3).
    pub tracer: Option<Arc<dyn Tracer>>,
}

/// When to poll again after an empty poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cadence {
    /// Without a pause for `warm` after work was seen, then as the SDKs do. Deviates from POLL-2.
    ///
    /// Request rate: while warm one poll per server hold (`block_ms`, about one a second), and
    /// never more than four a second if the server does not hold; after that one every 1–3 s plus
    /// the hold, about 0.33 a second.
    Eager { warm: Duration },
    /// A pause of U(1,3) s after every empty poll (POLL-2).
    Sdk,
}

/// Shortest time between the starts of two empty polls of the eager cadence.
pub const EAGER_SPACING: Duration = Duration::from_millis(250);

pub const DEFAULT_VERSION: &str = "2026-10-21";

/// Settings that cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    #[error("cannot use {name}: it is empty")]
    Empty { name: &'static str },
    #[error("cannot use {name}: it holds a character that no header may carry")]
    Unprintable { name: &'static str },
    #[error("cannot use the base URL {url}: http:// is for this host only")]
    InsecureHttp { url: String },
    #[error("cannot use the base URL: {reason}")]
    BaseUrl { reason: &'static str },
    #[error("cannot poll with block_ms {value}: from 1 to 999")]
    BlockMs { value: u16 },
    #[error("cannot set up TLS: {reason}")]
    Tls { reason: String },
}

impl QueueSettings {
    /// The defaults of protocol Appendix A.
    pub fn new(base_url: Url, environment_id: &str, worker_id: &str) -> QueueSettings {
        QueueSettings {
            base_url,
            insecure_http: false,
            environment_id: environment_id.to_owned(),
            worker_id: worker_id.to_owned(),
            workspace_id: None,
            anthropic_version: DEFAULT_VERSION.to_owned(),
            custom_headers: HeaderMap::new(),
            block_ms: Some(999),
            reclaim_older_than_ms: None,
            drain: false,
            cadence: Cadence::Eager { warm: Duration::from_secs(60) },
            max_idle: Some(Duration::from_secs(60)),
            tool_timeout: Duration::from_secs(150),
            tool_timeout_max: Duration::from_secs(3600),
            drain_limit: Duration::from_secs(30),
            kill_limit: Duration::from_secs(5),
            refusal_limit: Duration::from_secs(30),
            handed_over_ttl: Duration::from_secs(90),
            stream_silence: Duration::from_secs(600),
            ca_file: None,
            tracer: None,
        }
    }

    /// Refuses what cannot work, before any request (AUTH-11, CLI-3).
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn check(&self) -> Result<(), SettingsError> {
        for (name, value) in [
            ("the environment id", Some(&self.environment_id)),
            ("the worker id", Some(&self.worker_id)),
            ("the workspace id", self.workspace_id.as_ref()),
            ("anthropic-version", Some(&self.anthropic_version)),
        ] {
            let Some(value) = value else { continue };
            if value.is_empty() {
                return Err(SettingsError::Empty { name });
            }
            if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(SettingsError::Unprintable { name });
            }
        }
        if let Some(value) = self.block_ms.filter(|value| !(1..=999).contains(value)) {
            return Err(SettingsError::BlockMs { value });
        }
        self.check_base_url()
    }

    fn check_base_url(&self) -> Result<(), SettingsError> {
        let url = &self.base_url;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(SettingsError::BaseUrl { reason: "it holds a user name or password" });
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(SettingsError::BaseUrl { reason: "it holds a query or fragment" });
        }
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.insecure_http || is_loopback(url) => Ok(()),
            "http" => Err(SettingsError::InsecureHttp { url: url.to_string() }),
            _ => Err(SettingsError::BaseUrl { reason: "it is neither https:// nor http://" }),
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> QueueSettings {
        QueueSettings::new(url.parse().expect(url), "env_1", "host-1")
    }

    #[test]
    fn plain_http_is_for_loopback_only() {
        #[rustfmt::skip]
        let cases = [
            ("https://api.example.com",      true),
            ("http://127.0.0.1:8080/prefix", true),
            ("http://[::1]:1/",              true),
            ("http://localhost:1/",          true),
            ("http://api.example.com",       false),
            ("http://localhost.example.com", false),
            ("http://10.0.0.1",              false),
            ("ftp://127.0.0.1",              false),
            ("https://u:p@api.example.com",  false),
            ("https://api.example.com/?a=b", false),
        ];
        for (url, fine) in cases {
            assert_eq!(settings(url).check().is_ok(), fine, "{url}");
        }
        let open = QueueSettings { insecure_http: true, ..settings("http://10.0.0.1") };
        assert!(open.check().is_ok());
    }

    #[test]
    fn empty_ids_and_a_zero_hold_are_refused() {
        // AUTH-11, POLL-1.
        let good = settings("https://api.example.com");
        assert!(QueueSettings { environment_id: String::new(), ..good.clone() }.check().is_err());
        assert!(QueueSettings { worker_id: "a b".into(), ..good.clone() }.check().is_err());
        assert!(QueueSettings { block_ms: Some(0), ..good.clone() }.check().is_err());
        assert!(QueueSettings { block_ms: Some(1000), ..good.clone() }.check().is_err());
        assert!(QueueSettings { block_ms: None, ..good }.check().is_ok());
    }
}
