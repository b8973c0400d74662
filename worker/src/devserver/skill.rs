//! Skill versions and their archives (E-SKV, E-SKD).

use std::io::{Cursor, Write as _};

use base64::Engine as _;
use bytes::Bytes;
use serde_json::json;
use zip::write::SimpleFileOptions;

use super::fault::Endpoint;
use super::http::Ask;
use super::reply::Reply;
use super::script::SkillScript;
use super::state::State;

/// Answers both endpoints.
pub fn answer(state: &State, endpoint: Endpoint, ask: &Ask) -> Reply {
    let versions: Vec<&SkillScript> =
        state.skills.iter().filter(|skill| skill.id == ask.id(0)).collect();
    let content = endpoint == Endpoint::SkillContent;
    let found = match ask.id(1) {
        "latest" if !content => versions.last(),
        version => versions.iter().find(|skill| skill.version == version),
    };
    match found {
        None => Reply::error(404, "there is no such skill version"),
        Some(skill) if content => match archive(skill) {
            Ok(bytes) => Reply::bytes(200, "application/zip", Bytes::from(bytes)),
            Err(error) => Reply::error(500, &format!("cannot make the archive: {error}")),
        },
        Some(skill) => Reply::json(&json!({
            "type": "skill_version",
            "id": skill.version,
            "skill_id": skill.id,
            "name": skill.name,
            "description": skill.description,
            "created_at": state.clock.stamp(0),
        })),
    }
}

/// The archive as written, or one made of the files: below one directory, as the service does.
fn archive(skill: &SkillScript) -> Result<Vec<u8>, String> {
    if let Some(text) = &skill.archive_base64 {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        return decoded.map_err(|error| error.to_string());
    }
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (path, text) in &skill.files {
        let mode = if skill.executable.contains(path) { 0o755 } else { 0o644 };
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .unix_permissions(mode);
        zip.start_file(format!("{}/{path}", skill.name), options)
            .map_err(|error| error.to_string())?;
        zip.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
    }
    Ok(zip.finish().map_err(|error| error.to_string())?.into_inner())
}
