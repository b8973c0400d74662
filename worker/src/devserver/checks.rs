//! Headers and credentials (§1.2, §1.3): what every request must have, and who sent it.

use super::fault::Endpoint;
use super::http::Ask;
use super::record::Record;
use super::reply::Reply;
use super::skill;
use super::state::{State, Who};

const MANAGED_AGENTS: &str = "managed-agents-2026-04-01";
const MEMORY: &str = "agent-memory-2026-07-22";
const VERSIONS: &[&str] = &["2026-10-21", "2023-06-01"];

/// Checks a request and finds out who sent it; the reply if it is refused.
pub fn headers(state: &mut State, endpoint: Endpoint, ask: &mut Ask) -> Result<(), Reply> {
    version(state, endpoint, ask);
    beta(state, endpoint, ask);
    body(state, endpoint, ask);
    let who = credential(state, endpoint, ask)?;
    ask.who = who;
    let name = match &ask.who {
        Who::Key => "environment_key",
        Who::Token { .. } => "sessions_token",
        Who::Operator => "operator_key",
    };
    *state.record.credentials.entry(name).or_default() += 1;
    permitted(state, endpoint, ask)?;
    read_only(state, endpoint, ask)?;
    if endpoint == Endpoint::Poll && ask.header("anthropic-worker-id").is_none_or(str::is_empty) {
        state.violate("no_worker_id", None, "a poll has no Anthropic-Worker-ID".to_owned());
    }
    if endpoint != Endpoint::Poll && ask.header("anthropic-worker-id").is_some() {
        let detail = format!("{endpoint:?} has an Anthropic-Worker-ID");
        state.violate("stray_worker_id", None, detail);
    }
    Ok(())
}

fn version(state: &mut State, endpoint: Endpoint, ask: &Ask) {
    let version = ask.header("anthropic-version").unwrap_or("none");
    Record::value(&mut state.record.versions, version);
    if !VERSIONS.contains(&version) {
        let detail = format!("{endpoint:?} has anthropic-version {version:?}");
        state.violate("bad_version", None, detail);
    }
    let agent = ask.header("user-agent").unwrap_or("none");
    Record::value(&mut state.record.user_agents, agent);
}

fn beta(state: &mut State, endpoint: Endpoint, ask: &Ask) {
    use Endpoint as E;
    let values: Vec<&str> = ask
        .headers
        .get_all("anthropic-beta")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let right = match endpoint {
        // HDR-3: the older shape is asked for by its name.
        E::Skill | E::SkillContent => matches!(values[..], [] | [skill::EPOCH_BETA]),
        E::MemoryList | E::MemoryGet | E::MemoryCreate | E::MemoryUpdate | E::MemoryDelete => {
            matches!(values[..], [MEMORY | MANAGED_AGENTS])
        }
        _ => values == [MANAGED_AGENTS],
    };
    if !right {
        state.violate("bad_beta", None, format!("{endpoint:?} has anthropic-beta {values:?}"));
    }
}

/// HDR-7
fn body(state: &mut State, endpoint: Endpoint, ask: &Ask) {
    let kind = ask.header("content-type").unwrap_or_default();
    if !ask.body.is_empty() && !kind.starts_with("application/json") {
        let detail = format!("{endpoint:?} has a body of content-type {kind:?}");
        state.violate("bad_body", None, detail);
    }
}

fn credential(state: &mut State, endpoint: Endpoint, ask: &Ask) -> Result<Who, Reply> {
    let bearers: Vec<&str> = ask
        .headers
        .get_all("authorization")
        .iter()
        .filter_map(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .collect();
    let api_key = ask.header("x-api-key");
    match (&bearers[..], api_key) {
        ([], Some(key)) if key == state.identity.operator_key => return Ok(Who::Operator),
        ([token], None) => {
            if *token == state.identity.key {
                return Ok(Who::Key);
            }
            if let Some(who) = state.tokens.get(*token) {
                return Ok(who.clone());
            }
        }
        ([], None) => {
            state.violate("no_credential", None, format!("{endpoint:?} has no credential"));
        }
        (_, Some(_)) => {
            state.violate("api_key", None, format!("{endpoint:?} has an x-api-key"));
        }
        _ => {
            state.violate("dual_credential", None, format!("{endpoint:?} has several credentials"));
        }
    }
    Err(Reply::error(401, "the credential is not valid"))
}

/// AUTH-12, AUTH-6.
fn permitted(state: &mut State, endpoint: Endpoint, ask: &Ask) -> Result<(), Reply> {
    use Endpoint as E;
    let memory = matches!(
        endpoint,
        E::MemoryList | E::MemoryGet | E::MemoryCreate | E::MemoryUpdate | E::MemoryDelete
    );
    let allowed = match &ask.who {
        Who::Key => !memory && !matches!(endpoint, E::WorkGet | E::WorkMetadata),
        Who::Token { .. } => {
            !matches!(endpoint, E::Poll | E::WorkGet | E::WorkMetadata | E::WorkList)
        }
        Who::Operator => !matches!(endpoint, E::Poll | E::Ack | E::Heartbeat | E::WorkList),
    };
    if !allowed {
        let detail = format!("{endpoint:?} with the wrong kind of credential");
        state.violate("credential_misuse", None, detail);
        return Err(Reply::error(403, "this credential is not accepted here"));
    }
    let Who::Token { work, .. } = ask.who else { return Ok(()) };
    let own = state.queue.items.get(work).map(|work| (work.id.clone(), work.session.clone()));
    let (own_work, own_session) = own.unwrap_or_default();
    let foreign = match endpoint {
        E::Ack | E::Heartbeat | E::Stop => ask.id(1) != own_work,
        E::Session | E::List | E::Stream | E::Send => Some(ask.id(0)) != own_session.as_deref(),
        _ => false,
    };
    if foreign {
        let detail = format!("{endpoint:?} of {} with the token of {own_work}", ask.id(0));
        state.violate("credential_misuse", None, detail);
        return Err(Reply::error(403, "the token belongs to another item"));
    }
    Ok(())
}

/// The session that a request is about.
pub fn session_of(state: &mut State, endpoint: Endpoint, ask: &Ask) -> Option<usize> {
    use Endpoint as E;
    match endpoint {
        E::Session | E::List | E::Stream | E::Send => state.session_at(ask.id(0)),
        E::Ack | E::Heartbeat | E::Stop => {
            let session = state.queue.find(ask.id(1))?.session.clone()?;
            state.session_at(&session)
        }
        // Skills and memories name no session; whoever asks for them does.
        E::Skill
        | E::SkillContent
        | E::MemoryList
        | E::MemoryGet
        | E::MemoryCreate
        | E::MemoryUpdate
        | E::MemoryDelete => {
            let Who::Token { work, .. } = ask.who else { return None };
            let session = state.queue.items.get(work)?.session.clone()?;
            state.session_at(&session)
        }
        _ => None,
    }
}

/// MEM-8: a session that has a store read-only does not write it.
fn read_only(state: &mut State, endpoint: Endpoint, ask: &Ask) -> Result<(), Reply> {
    use Endpoint as E;
    if !matches!(endpoint, E::MemoryCreate | E::MemoryUpdate | E::MemoryDelete) {
        return Ok(());
    }
    let Some(at) = session_of(state, endpoint, ask) else { return Ok(()) };
    let mut of_store = state.sessions[at]
        .script
        .resources
        .iter()
        .filter(|one| one["memory_store_id"] == ask.id(0))
        .peekable();
    if of_store.peek().is_some() && of_store.all(|one| one["access"] == "read_only") {
        let detail = format!("{endpoint:?} of {}, which the session has read-only", ask.id(0));
        state.violate("read_only_store", Some(at), detail);
        return Err(Reply::error(403, "the session has this store read-only"));
    }
    Ok(())
}
