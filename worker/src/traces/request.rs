//! What a request is called in a trace, by its method and path: pure (OBS-3).

/// A request's name, the template of its path, and the ids in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Described {
    /// `RESOURCE.METHOD`
    pub name: &'static str,
    /// None for a path that is not known.
    pub route: Option<&'static str>,
    /// Attribute and id, decoded.
    pub ids: Vec<(&'static str, String)>,
}

const ENVIRONMENT: &str = "anthropic.environment.id";
const WORK: &str = "anthropic.environment.work.id";
const SESSION: &str = "anthropic.session.id";
const SKILL: &str = "anthropic.skill.id";
const VERSION: &str = "anthropic.skill.version.id";
const STORE: &str = "gen_ai.memory.store.id";
const MEMORY: &str = "gen_ai.memory.record.id";

/// Method, template and name. A part of a template in braces stands for an id.
#[rustfmt::skip]
const ROUTES: &[(&str, &str, &str)] = &[
    ("GET",    "/v1/environments/{environment_id}/work/poll",                "environments.work.poll"),
    ("GET",    "/v1/environments/{environment_id}/work/stats",               "environments.work.stats"),
    ("GET",    "/v1/environments/{environment_id}/work",                     "environments.work.list"),
    ("GET",    "/v1/environments/{environment_id}/work/{work_id}",           "environments.work.retrieve"),
    ("POST",   "/v1/environments/{environment_id}/work/{work_id}",           "environments.work.update"),
    ("POST",   "/v1/environments/{environment_id}/work/{work_id}/ack",       "environments.work.ack"),
    ("POST",   "/v1/environments/{environment_id}/work/{work_id}/heartbeat", "environments.work.heartbeat"),
    ("POST",   "/v1/environments/{environment_id}/work/{work_id}/stop",      "environments.work.stop"),
    ("GET",    "/v1/sessions/{session_id}",                                  "sessions.retrieve"),
    ("GET",    "/v1/sessions/{session_id}/events",                           "sessions.events.list"),
    ("POST",   "/v1/sessions/{session_id}/events",                           "sessions.events.send"),
    ("GET",    "/v1/sessions/{session_id}/events/stream",                    "sessions.events.stream"),
    ("GET",    "/v1/skills/{skill_id}/versions/{version}",                   "skills.versions.retrieve"),
    ("GET",    "/v1/skills/{skill_id}/versions/{version}/content",           "skills.versions.download"),
    ("GET",    "/v1/memory_stores/{memory_store_id}/memories",               "memory_stores.memories.list"),
    ("POST",   "/v1/memory_stores/{memory_store_id}/memories",               "memory_stores.memories.create"),
    ("GET",    "/v1/memory_stores/{memory_store_id}/memories/{memory_id}",   "memory_stores.memories.retrieve"),
    ("POST",   "/v1/memory_stores/{memory_store_id}/memories/{memory_id}",   "memory_stores.memories.update"),
    ("DELETE", "/v1/memory_stores/{memory_store_id}/memories/{memory_id}",   "memory_stores.memories.delete"),
];

fn attribute(part: &str) -> Option<&'static str> {
    Some(match part {
        "{environment_id}" => ENVIRONMENT,
        "{work_id}" => WORK,
        "{session_id}" => SESSION,
        "{skill_id}" => SKILL,
        "{version}" => VERSION,
        "{memory_store_id}" => STORE,
        "{memory_id}" => MEMORY,
        _ => return None,
    })
}

/// Describes a request; `path` begins with `/v1`, whatever the base URL has before it.
pub fn describe(method: &str, path: &str) -> Described {
    let known = ROUTES.iter().filter(|(of, _, _)| *of == method);
    let found = known.clone().find_map(|(_, route, name)| {
        let ids = ids_in(route, path)?;
        Some(Described { name, route: Some(route), ids })
    });
    found.unwrap_or(Described { name: "request", route: None, ids: Vec::new() })
}

/// The ids of `path`, if it has the form of `route`. Templates without an id at a place come first.
fn ids_in(route: &str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let (mut of_route, mut of_path) = (route.split('/'), path.split('/'));
    let mut ids = Vec::new();
    loop {
        match (of_route.next(), of_path.next()) {
            (None, None) => return Some(ids),
            (Some(part), Some(given)) => match attribute(part) {
                Some(name) => {
                    let id = percent_encoding::percent_decode_str(given).decode_utf8_lossy();
                    ids.push((name, id.into_owned()));
                }
                None if part == given => {}
                None => return None,
            },
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Method, path, name and ids.
    type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)]);

    #[test]
    fn every_request_has_its_name_its_route_and_its_ids() {
        // OBS-3.
        #[rustfmt::skip]
        let cases: &[Case<'_>] = &[
            ("GET",  "/v1/environments/env_1/work/poll", "environments.work.poll", &[(ENVIRONMENT, "env_1")]),
            ("GET",  "/v1/environments/env_1/work/stats", "environments.work.stats", &[(ENVIRONMENT, "env_1")]),
            ("GET",  "/v1/environments/env_1/work/work_1", "environments.work.retrieve",
                &[(ENVIRONMENT, "env_1"), (WORK, "work_1")]),
            ("POST", "/v1/environments/env_1/work/work_1", "environments.work.update",
                &[(ENVIRONMENT, "env_1"), (WORK, "work_1")]),
            ("POST", "/v1/environments/e%2F1/work/w/ack", "environments.work.ack", &[(ENVIRONMENT, "e/1"), (WORK, "w")]),
            ("GET",  "/v1/environments/e/work", "environments.work.list", &[(ENVIRONMENT, "e")]),
            ("POST", "/v1/sessions/s/events", "sessions.events.send", &[(SESSION, "s")]),
            ("GET",  "/v1/sessions/s/events/stream", "sessions.events.stream", &[(SESSION, "s")]),
            ("GET",  "/v1/skills/k/versions/latest/content", "skills.versions.download",
                &[(SKILL, "k"), (VERSION, "latest")]),
            ("DELETE", "/v1/memory_stores/m/memories/r", "memory_stores.memories.delete",
                &[(STORE, "m"), (MEMORY, "r")]),
            ("GET",  "/v1/else", "request", &[]),
        ];
        for (method, path, name, ids) in cases {
            let got = describe(method, path);
            let got_ids: Vec<(&str, &str)> =
                got.ids.iter().map(|(name, id)| (*name, id.as_str())).collect();
            assert_eq!((got.name, got_ids.as_slice()), (*name, *ids), "{method} {path}");
        }
    }
}
