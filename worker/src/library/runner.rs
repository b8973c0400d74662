//! Serves one session without a work item (protocol §5).

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::environment::Environment;
use super::error::Error;
use super::host::{self, LibraryHost};
use super::stop::Stop;
use super::toolset::Toolset;
use super::worker::{Choice, Outcome};
use crate::queue::Drive;

/// Attaches to a session and serves its calls until it ends or is idle. There is no work item, so there
/// is no lease to be kept, and nothing says that nobody else serves the session: that is for the caller
/// to know. Results are retried for 300 s (RUN-24).
#[derive(Debug)]
pub struct SessionRunner {
    environment: Environment,
    token: Option<SecretString>,
    session_id: String,
    toolset: Toolset,
    choice: Choice,
}

impl SessionRunner {
    /// With the environment's key.
    pub fn with_key(
        environment: Environment,
        session_id: impl Into<String>,
        toolset: Toolset,
    ) -> SessionRunner {
        let (session_id, choice) = (session_id.into(), Choice::default());
        SessionRunner { environment, token: None, session_id, toolset, choice }
    }

    /// With a token of the session's, as a work item's secret has it, at the vendor's control plane.
    pub fn with_token(
        session_id: impl Into<String>,
        token: impl Into<String>,
        toolset: Toolset,
    ) -> SessionRunner {
        let (session_id, choice) = (session_id.into(), Choice::default());
        let token = Some(SecretString::from(token.into()));
        SessionRunner { environment: Environment::of_a_token(), token, session_id, toolset, choice }
    }

    /// Another control plane.
    pub fn base_url(self, url: impl Into<String>) -> SessionRunner {
        SessionRunner { environment: self.environment.base_url(url), ..self }
    }

    /// Lets go of a session that was idle for so long; `None` is never (IDLE-8) [default: 60 s].
    pub fn max_idle(mut self, max_idle: Option<Duration>) -> SessionRunner {
        self.choice.max_idle = max_idle;
        self
    }

    /// As [`EnvironmentWorker::state_directory`](super::EnvironmentWorker::state_directory).
    pub fn state_directory(mut self, directory: impl Into<PathBuf>) -> SessionRunner {
        self.choice.state = Some(directory.into());
        self
    }

    /// Serves the session until it ends, is idle, or `stop` says so.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub async fn run(&self, stop: Stop) -> Result<Outcome, Error> {
        let mut settings = self.environment.settings()?;
        self.choice.lay(&mut settings);
        let shutdown = stop.joined_with(self.toolset.unusable());
        let host = LibraryHost::new(self.toolset.clone(), 1, shutdown.clone());
        let (environment, journals) = (&self.environment, self.choice.journals()?);
        let queue = host::queue(environment, settings, host, journals, Drive::default())?;
        let served = queue.attend(&self.session_id, self.token.clone(), shutdown);
        Ok(Outcome::of(self.toolset.serving(Box::pin(served)).await))
    }
}
