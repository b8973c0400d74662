//! Metrics for whoever scrapes them: what the queue counts (OBS-6) and a few facts of this worker, as
//! text for Prometheus.
//!
//! Off unless an address is given. Without it no recorder is installed, and counting is looking at one
//! pointer. No series has an id or content in it (INV-12).

mod endpoint;

use std::sync::Arc;
use std::time::Duration;

use metrics::{describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tokio::task::JoinHandle;

use crate::listener::{self, Bound};
use crate::queue::ShutdownWatch;
use crate::queue::count::{self, Series, SeriesKind};
use endpoint::Endpoint;

const INFO: &str = "worker_info";
const SLOTS: &str = "worker_session_slots";
const SHUTDOWN: &str = "worker_shutdown_seconds";

/// What is known of a worker besides its queue.
#[rustfmt::skip]
const SERIES: &[Series] = &[
    Series { name: INFO,     kind: SeriesKind::Gauge, help: "1; its labels are version, level and digest of the policy (policy_sha256) at the start." },
    Series { name: SLOTS,    kind: SeriesKind::Gauge, help: "Sessions that may be served at the same time." },
    Series { name: SHUTDOWN, kind: SeriesKind::Gauge, help: "How long the worker has been stopping, seconds; 0 while it is not." },
];

/// Upper bounds of the buckets, seconds. A heartbeat is late after a second.
const HEARTBEAT_BUCKETS: [f64; 11] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
const TOOL_BUCKETS: [f64; 12] =
    [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 150.0, 600.0];

/// How often samples of histograms are summed up, so that they do not pile up where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// What a worker says of itself.
#[derive(Debug)]
pub struct About {
    pub level: String,
    /// Empty where sessions are handed over.
    pub policy_sha256: String,
    pub slots: u32,
}

/// Metrics that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("cannot make a recorder of metrics: {reason}")]
    Recorder { reason: String },
}

/// Counts and answers until it is dropped.
#[derive(Debug)]
pub struct Metrics {
    listener: JoinHandle<()>,
    upkeep: JoinHandle<()>,
}

impl Metrics {
    /// Installs the recorder of this process and answers on `bound` from now on. Needs a runtime.
    ///
    /// # Errors
    /// If this process has a recorder already.
    pub fn start(
        bound: Bound,
        about: &About,
        shutdown: ShutdownWatch,
    ) -> Result<Metrics, MetricsError> {
        let failed = |reason: String| MetricsError::Recorder { reason };
        let buckets = |name: &str| -> &[f64] {
            if name.contains("heartbeat") { &HEARTBEAT_BUCKETS } else { &TOOL_BUCKETS }
        };
        let mut builder = PrometheusBuilder::new();
        for series in count::SERIES.iter().filter(|one| one.kind == SeriesKind::Histogram) {
            let name = Matcher::Full(series.name.to_owned());
            let set = builder.set_buckets_for_metric(name, buckets(series.name));
            builder = set.map_err(|error| failed(error.to_string()))?;
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| failed(error.to_string()))?;
        count::SERIES.iter().chain(SERIES).for_each(describe);
        count::begin();
        let version = env!("CARGO_PKG_VERSION");
        let (level, digest) = (about.level.clone(), about.policy_sha256.clone());
        gauge!(INFO, "version" => version, "level" => level, "policy_sha256" => digest).set(1.0);
        gauge!(SLOTS).set(f64::from(about.slots));
        if let Ok(address) = bound.address() {
            tracing::info!(event = "metrics.listening", %address, "listening for scrapers");
        }
        let samples = handle.clone();
        let upkeep = tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                samples.run_upkeep();
            }
        });
        let endpoint = Arc::new(Endpoint { handle, shutdown });
        let listener = tokio::spawn(async move {
            if let Err(error) = listener::serve(bound, endpoint).await {
                tracing::error!(event = "metrics.failed", %error, "nobody answers scrapers");
            }
        });
        Ok(Metrics { listener, upkeep })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.listener.abort();
        self.upkeep.abort();
    }
}

/// Measures what changes while nothing happens.
fn refresh(shutdown: &ShutdownWatch) {
    count::refresh();
    gauge!(SHUTDOWN).set(shutdown.took().unwrap_or_default().as_secs_f64());
}

fn describe(series: &Series) {
    match series.kind {
        SeriesKind::Counter => describe_counter!(series.name, series.help),
        SeriesKind::Gauge => describe_gauge!(series.name, series.help),
        SeriesKind::Histogram => describe_histogram!(series.name, series.help),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::count::{Claimed, Polled};
    use crate::queue::{ItemEnd, LeaseEnd};

    #[test]
    fn every_outcome_has_its_word_and_what_has_ended_is_not_active() {
        // OBS-6.
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            count::begin();
            [Polled::Work, Polled::Empty, Polled::Failed].into_iter().for_each(count::poll);
            let claims = [Claimed::Acked, Claimed::AckFailed, Claimed::AckRefused];
            claims.into_iter().for_each(count::claim);
            let ends = [
                ItemEnd::SessionEnded,
                ItemEnd::Lease(LeaseEnd::Lost),
                ItemEnd::Lease(LeaseEnd::AssumedLost),
                ItemEnd::Lease(LeaseEnd::Stopped),
            ];
            let items = ends.map(|_| count::Item::begin());
            assert!(handle.render().contains("worker_items_active 4"));
            items.into_iter().zip(ends).for_each(|(item, how)| item.end(how));
            for status in ["ok", "error", "timed out", "killed"] {
                count::tool_run("bash", status, Duration::from_millis(3));
            }
            [true, false].into_iter().for_each(count::post_failed);
        });
        let text = handle.render();
        let has = |line: String| assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
        for word in ["work", "empty", "failed"] {
            has(format!("worker_polls_total{{outcome=\"{word}\"}} 1"));
        }
        for word in ["acked", "ack_failed", "ack_refused"] {
            has(format!("worker_claims_total{{outcome=\"{word}\"}} 1"));
        }
        for word in ["session_ended", "lease_lost", "lease_assumed_lost", "lease_ended"] {
            has(format!("worker_items_total{{end=\"{word}\"}} 1"));
        }
        for word in ["lost", "assumed_lost"] {
            has(format!("worker_lease_lost_total{{reason=\"{word}\"}} 1"));
        }
        for word in ["ok", "error", "timed_out", "killed"] {
            has(format!("worker_tool_calls_total{{tool=\"bash\",outcome=\"{word}\"}} 1"));
        }
        for word in ["refused", "gave_up"] {
            has(format!("worker_result_posts_failed_total{{outcome=\"{word}\"}} 1"));
        }
        has("worker_items_active 0".to_owned());
    }

    #[test]
    fn the_age_is_that_of_the_lease_that_waits_longest() {
        // OBS-6, RACE-20.
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let age = || {
            metrics::with_local_recorder(&recorder, count::refresh);
            let text = handle.render();
            let line = text.lines().find(|line| line.starts_with("worker_heartbeat_age_seconds "));
            let age = line.expect("measured").rsplit(' ').next().expect("a value");
            age.parse::<f64>().expect("a number")
        };
        // Since the host was started; other tests have leases too.
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let up = Duration::try_from(up).expect("positive");
        let (new, old) = (count::Lease::begin(up), count::Lease::begin(Duration::ZERO));
        assert!(age() >= up.as_secs_f64());
        old.was_good(up);
        new.was_good(Duration::ZERO);
        assert!(age() >= up.as_secs_f64());
        drop((new, old));
        let others = age();
        assert!(others < up.as_secs_f64(), "{others}");
    }

    #[test]
    fn the_page_lists_every_series_and_no_other() {
        let page = include_str!("../../../docs/metrics.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `worker_")?.split_once('`'));
        let mut listed: Vec<_> = rows.map(|(name, _)| format!("worker_{name}")).collect();
        let mut known: Vec<_> = count::SERIES.iter().chain(SERIES).map(|one| one.name).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known);
    }
}
