//! A development server that behaves as if AWS hosted it (protocol §10): requests are signed with AWS
//! credentials or carry an API key of the platform, every one names the workspace, and there is no
//! list of work items.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::fault::Endpoint;
use super::http::Ask;
use super::reply::Reply;
use super::sigv4::{Claim, Received};
use super::state::{State, Who};

const SERVICE: &str = "aws-external-anthropic";
/// How far the clock of a signature may be off.
const SKEW_MAX: Duration = Duration::from_secs(300);

/// Where the control plane is hosted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    Aws,
}

/// `[server.aws]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub region: String,
    pub workspace_id: String,
    /// Key pairs that are valid; none makes one.
    pub keys: Vec<KeyPair>,
    /// What this server's clock is ahead of the host's, seconds.
    pub clock_ahead_s: i64,
}

/// A key pair, with the token that must come with it if it is temporary.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

/// What is valid from now on; what was valid before and is not named is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Valid {
    keys: Option<Vec<KeyPair>>,
    api_keys: Option<Vec<String>>,
}

/// Credentials were rotated.
pub fn replace(state: &mut State, valid: Valid) {
    if let Some(keys) = valid.keys {
        state.settings.aws.keys = keys;
    }
    if let Some(keys) = valid.api_keys {
        state.identity.aws_api_keys = keys;
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            region: "us-east-1".to_owned(),
            workspace_id: "wrkspc_dev".to_owned(),
            keys: Vec::new(),
            clock_ahead_s: 0,
        }
    }
}

/// The variables by which a worker finds this server, one per line.
pub fn variables(settings: &Settings, made: &KeyPair, environment: &str, url: &str) -> String {
    let pair = settings.keys.first().unwrap_or(made);
    let mut text = format!(
        "ANTHROPIC_AWS_BASE_URL={url}\nANTHROPIC_ENVIRONMENT_ID={environment}\n\
         ANTHROPIC_AWS_WORKSPACE_ID={}\nAWS_REGION={}\nAWS_ACCESS_KEY_ID={}\n\
         AWS_SECRET_ACCESS_KEY={}\n",
        settings.workspace_id, settings.region, pair.access_key_id, pair.secret_access_key
    );
    if let Some(token) = &pair.session_token {
        text.push_str(&format!("AWS_SESSION_TOKEN={token}\n"));
    }
    text
}

/// Finds out who sent a request; the reply if it is refused.
pub fn credential(state: &mut State, endpoint: Endpoint, ask: &Ask) -> Result<Who, Reply> {
    let workspace = ask.header("anthropic-workspace-id");
    if workspace != Some(state.settings.aws.workspace_id.as_str()) {
        let detail = format!("{endpoint:?} has anthropic-workspace-id {workspace:?}");
        state.violate("bad_workspace", None, detail);
        return Err(Reply::error(400, "anthropic-workspace-id is missing or unknown"));
    }
    let (authorization, api_key) = (ask.header("authorization"), ask.header("x-api-key"));
    let refused = |state: &mut State, kind, reason: &str| {
        state.violate(kind, None, format!("{endpoint:?}: {reason}"));
        Reply::error(403, reason)
    };
    let own_keys = state.identity.aws_api_keys.clone();
    let own = |key: &str| own_keys.iter().any(|own| own == key);
    match (authorization, api_key) {
        (None, Some(key)) if own(key) || key == state.identity.operator_key => {
            Ok(if own(key) { Who::Platform } else { Who::Operator })
        }
        (Some(value), None) if value.strip_prefix("Bearer ").is_some_and(own) => Ok(Who::Platform),
        (Some(value), None) => match Claim::parse(value) {
            Some(claim) => match verify(state, ask, &claim) {
                Ok(()) => Ok(Who::Platform),
                Err(reason) => {
                    // What the platform answers is no mistake of a worker by itself.
                    let mut reply = Reply::error(403, &reason);
                    reply.headers.push(("date", httpdate::fmt_http_date(now(state))));
                    Err(reply)
                }
            },
            None => {
                Err(refused(state, "bearer", "a bearer token is not accepted on this platform"))
            }
        },
        (Some(_), Some(_)) => {
            Err(refused(state, "dual_credential", "there are several credentials"))
        }
        (None, Some(_)) => Err(refused(state, "api_key", "the API key is not valid")),
        (None, None) => Err(refused(state, "no_credential", "there is no credential")),
    }
}

/// AWS-6
pub fn permits(endpoint: Endpoint) -> bool {
    endpoint != Endpoint::WorkList
}

fn now(state: &State) -> SystemTime {
    let ahead = state.settings.aws.clock_ahead_s;
    let by = Duration::from_secs(ahead.unsigned_abs());
    if ahead < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
}

fn verify(state: &mut State, ask: &Ask, claim: &Claim<'_>) -> Result<(), String> {
    let settings = &state.settings.aws;
    let made = [state.identity.aws_pair.clone()];
    let keys = if settings.keys.is_empty() { &made[..] } else { &settings.keys[..] };
    let pair = keys.iter().find(|pair| pair.access_key_id == claim.access_key);
    let Some(pair) = pair.cloned() else {
        return Err("the security token included in the request is invalid".to_owned());
    };
    if claim.region != settings.region || claim.service != SERVICE {
        return Err(format!("the credential is scoped to {}/{}", claim.region, claim.service));
    }
    let date_time = ask.header("x-amz-date").unwrap_or_default();
    let at = time_of(date_time).filter(|_| date_time.starts_with(claim.date));
    let at = at.ok_or("x-amz-date is missing or of another day")?;
    let now = now(state);
    let skew = now.duration_since(at).unwrap_or_else(|earlier| earlier.duration());
    if skew > SKEW_MAX {
        return Err(format!("signature expired: {date_time} is {} s off", skew.as_secs()));
    }
    if ask.header("x-amz-security-token") != pair.session_token.as_deref() {
        return Err("the security token included in the request is invalid".to_owned());
    }
    let request = Received {
        method: ask.method.as_str(),
        path: ask.uri.path(),
        query: ask.uri.query().unwrap_or_default(),
        headers: &ask.headers,
        body: &ask.body,
    };
    if !claim.is_of(&request, &pair.secret_access_key, date_time) {
        let reason = "the request signature we calculated does not match";
        state.violate("bad_signature", None, format!("{} {reason}", ask.uri.path()));
        return Err(reason.to_owned());
    }
    *state.record.aws_keys.entry(pair.access_key_id).or_default() += 1;
    coverage(state, ask, claim);
    Ok(())
}

/// AWS-5: which headers a signature must cover, and which it must not.
fn coverage(state: &mut State, ask: &Ask, claim: &Claim<'_>) {
    let must = |name: &str| {
        matches!(name, "host" | "accept" | "content-type")
            || name.starts_with("x-amz-")
            || name.starts_with("anthropic-")
    };
    let names = ask.headers.keys().map(|name| name.as_str().to_owned());
    let missing: Vec<String> =
        names.filter(|name| must(name) && !claim.signed.contains(&name.as_str())).collect();
    if !missing.is_empty() {
        state.violate("unsigned_header", None, format!("not signed: {missing:?}"));
    }
    let changing = ["connection", "traceparent", "tracestate", "baggage"];
    for name in claim.signed.iter().filter(|name| changing.contains(*name)) {
        state.violate("signed_header", None, format!("{name} changes on its way"));
    }
}

/// `YYYYMMDDTHHMMSSZ`
fn time_of(text: &str) -> Option<SystemTime> {
    let digits = text.len() == 16 && text.is_ascii();
    let (date, time) = text.split_once('T').filter(|_| digits)?;
    let time = time.strip_suffix('Z')?;
    let (year, month, day) = (date.get(..4)?, date.get(4..6)?, date.get(6..8)?);
    let (hour, minute, second) = (time.get(..2)?, time.get(2..4)?, time.get(4..6)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    humantime::parse_rfc3339(&text).ok()
}
