//! What operators ask of a queue: statistics, items, their metadata, and to stop one (E-STATS,
//! E-LIST, E-GET, E-META, E-STOP).
//!
//! No worker uses this. Most of it wants an API key of the organization, which goes as `x-api-key`
//! and must never be on a host that runs sessions (AUTH-9, AUTH-12); which key a call wants is up to
//! the caller, who has only one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use serde_json::json;

use super::client::{ApiError, Client};
use super::credential::{Credential, CredentialError, EnvironmentKey};
use super::random::Random;
use super::request::Request;
use super::settings::{QueueSettings, SettingsError};
use super::transport::HttpTransport;
use super::wire::operate::{Stats, WorkPage, WorkRow, parse_page, parse_row, parse_stats};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The key of an operator.
#[derive(Debug)]
pub enum OperatorKey {
    /// An API key of the organization.
    Organization(SecretString),
    /// An environment key, for the few calls that accept one.
    Environment(SecretString),
}

/// An operator who cannot ask anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Key(#[from] CredentialError),
}

/// What came of a request to stop an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The request was accepted.
    Now,
    /// It was stopped before.
    Before,
}

/// One environment's queue from outside.
pub struct Operator {
    client: Client,
    credential: Credential,
    environment: String,
}

impl Operator {
    /// No request is sent yet.
    ///
    /// # Errors
    /// Settings or a key that cannot work.
    pub fn new(settings: &QueueSettings, key: &OperatorKey) -> Result<Operator, OperatorError> {
        settings.check()?;
        let credential = match key {
            OperatorKey::Organization(key) => Credential::Organization(key.clone()),
            OperatorKey::Environment(key) => Credential::Environment(EnvironmentKey::new(key)?.0),
        };
        let [transport] = HttpTransport::pools(settings.ca_file.as_deref())?;
        let client = Client::new(settings, Arc::new(transport), Random::system());
        Ok(Operator { client, credential, environment: settings.environment_id.clone() })
    }

    #[cfg(test)]
    pub(super) fn over(client: Client, credential: Credential, environment: &str) -> Operator {
        Operator { client, credential, environment: environment.to_owned() }
    }

    /// E-STATS; with an organization's key.
    ///
    /// # Errors
    /// The answer.
    pub async fn stats(&self) -> Result<Stats, ApiError> {
        let body = self.send(self.get(&["stats"])?).await?;
        parse_stats(&body).ok_or(ApiError::Unreadable { what: "statistics" })
    }

    /// E-LIST, one page; with an environment key, for an organization's is not accepted (AUTH-12).
    ///
    /// # Errors
    /// The answer.
    pub async fn page(&self, limit: u32, page: Option<&str>) -> Result<WorkPage, ApiError> {
        let mut request = self.get(&[])?.query("limit", &limit.to_string());
        if let Some(page) = page {
            request = request.query("page", page);
        }
        let body = self.send(request).await?;
        parse_page(&body).ok_or(ApiError::Unreadable { what: "a list of work items" })
    }

    /// E-GET; with an organization's key (AUTH-12, AUTH-13).
    ///
    /// # Errors
    /// The answer.
    pub async fn item(&self, work: &str) -> Result<WorkRow, ApiError> {
        let body = self.send(self.get(&[work])?).await?;
        parse_row(&body).ok_or(ApiError::Unreadable { what: "a work item" })
    }

    /// E-META: merges `changes` into the item's metadata, and removes what has no value; with an
    /// organization's key.
    ///
    /// # Errors
    /// The answer.
    pub async fn change_metadata(
        &self,
        work: &str,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<WorkRow, ApiError> {
        let body = Bytes::from(json!({ "metadata": changes }).to_string());
        let body = self.send(self.post(&[work])?.json(body)).await?;
        parse_row(&body).ok_or(ApiError::Unreadable { what: "a work item" })
    }

    /// E-STOP; any 2xx will do (API-2), and 409 says that there is nothing to stop.
    ///
    /// # Errors
    /// The answer.
    pub async fn stop(&self, work: &str, force: bool) -> Result<Stopped, ApiError> {
        let body = if force { json!({ "force": true }) } else { json!({}) };
        let request = self.post(&[work, "stop"])?.json(Bytes::from(body.to_string()));
        match self.send(request.conflict_is_final()).await {
            Ok(_) => Ok(Stopped::Now),
            Err(error) if error.status() == Some(409) => Ok(Stopped::Before),
            Err(error) => Err(error),
        }
    }

    async fn send(&self, request: Request) -> Result<Bytes, ApiError> {
        let request = request.timeout(TIMEOUT);
        Ok(self.client.send(&self.credential, &request).await?.body)
    }

    fn get(&self, rest: &[&str]) -> Result<Request, ApiError> {
        Ok(Request::get(&self.path(rest))?)
    }

    fn post(&self, rest: &[&str]) -> Result<Request, ApiError> {
        Ok(Request::post(&self.path(rest))?)
    }

    fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        ["environments", &self.environment, "work"].iter().chain(rest).copied().collect()
    }
}
