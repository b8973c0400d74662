//! `worker serve`: its command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use stockade_runtime::policy::parse_duration;

use super::on_work::OnWorkArgs;
use super::poll::{BlockMs, Cadence, PollArgs};
use super::serving::{ClaimArgs, SessionArgs};

/// Run the sessions of an environment when a webhook tells of them
///
/// As `worker poll --jail`, but the queue is asked only when a delivery of the webhook
/// `session.status_run_started` arrives whose signature is right, and every --safety-poll in case one
/// was lost. A delivery is a hint and decides nothing. It stops, drains and reads keys again as
/// `worker poll` does.
///
/// The signing key is read from --webhook-key-file or ANTHROPIC_WEBHOOK_SIGNING_KEY.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// Listen for deliveries on ADDRESS [default: 127.0.0.1:8787]
    ///
    /// The default is for a reverse proxy on this host that speaks TLS.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8787",
        hide_default_value = true
    )]
    pub listen: SocketAddr,

    /// Take deliveries at PATH [default: /webhook]
    #[arg(long, value_name = "PATH", default_value = "/webhook", hide_default_value = true)]
    pub webhook_path: String,

    /// Read the webhook's signing key from FILE, which only its owner can read
    #[arg(long, value_name = "FILE")]
    pub webhook_key_file: Option<PathBuf>,

    /// Speak TLS, with the certificate chain in FILE (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Speak TLS, with the private key in FILE (PEM), which only its owner can read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Ask the queue without a delivery every DURATION [default: 5m]
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "5m",
        hide_default_value = true,
        value_parser = parse_duration
    )]
    pub safety_poll: Duration,

    #[command(flatten)]
    pub session: SessionArgs,

    #[command(flatten)]
    pub claim: ClaimArgs,
}

const EXAMPLES: &str = "\
Examples:
  sudo worker serve --jail --environment-id env_… --environment-key-file /etc/stockade/key \\
    --webhook-key-file /etc/stockade/webhook-key
  worker serve --jail --listen 0.0.0.0:8443 --tls-cert chain.pem --tls-key key.pem

Exit codes: as for `worker poll`.";

/// POLL-11: age from which items that somebody polled and did not confirm are taken over.
const RECLAIM_MS: u64 = 2000;

impl ServeArgs {
    /// The same as options of `worker poll`, with what POLL-11 says of draining.
    pub fn as_poll(&self) -> PollArgs {
        PollArgs {
            session: self.session.clone(),
            claim: self.claim.clone(),
            once: false,
            drain_on_empty: false,
            block_ms: BlockMs(None),
            cadence: Cadence::Sdk,
            reclaim_older_than_ms: Some(RECLAIM_MS),
            on_work: OnWorkArgs::default(),
        }
    }
}
