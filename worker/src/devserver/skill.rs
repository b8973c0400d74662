//! Skill versions and their archives (E-SKV, E-SKD).

use std::io::{Cursor, Write as _};

use base64::Engine as _;
use bytes::Bytes;
use serde_json::json;
use zip::write::SimpleFileOptions;

use super::fault::Endpoint;
use super::http::Ask;
use super::reply::Reply;
use super::script::{ArchiveFormat, SkillScript};
use super::state::State;

/// Asks for the shape in which versions are epoch microseconds (HDR-3).
pub const EPOCH_BETA: &str = "skills-2025-10-02";

/// Answers both endpoints.
pub fn answer(state: &State, endpoint: Endpoint, ask: &Ask) -> Reply {
    let versions: Vec<&SkillScript> =
        state.skills.iter().filter(|skill| skill.id == ask.id(0)).collect();
    let content = endpoint == Endpoint::SkillContent;
    let epoch = ask.header("anthropic-beta") == Some(EPOCH_BETA);
    let found = match ask.id(1) {
        "latest" if !content => versions.last(),
        version if epoch => versions.iter().find(|one| one.epoch.as_deref() == Some(version)),
        version => versions.iter().find(|skill| skill.version == version),
    };
    match found {
        None => Reply::error(404, "there is no such skill version"),
        Some(skill) if content => match archive(skill) {
            Ok(bytes) => Reply::bytes(200, "application/zip", Bytes::from(bytes)),
            Err(error) => Reply::error(500, &format!("cannot make the archive: {error}")),
        },
        Some(skill) if epoch => Reply::json(&json!({
            "type": "skill_version",
            "version": skill.epoch,
            "directory": skill.name,
            "skill_id": skill.id,
            "name": skill.name,
            "description": skill.description,
            "created_at": state.clock.stamp(0),
        })),
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
    let made = match skill.format {
        ArchiveFormat::Zip => return zip(skill),
        ArchiveFormat::Tar => tar(skill),
        ArchiveFormat::Tgz => tar(skill).and_then(|tar| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(&tar).and_then(|()| out.finish())
        }),
        ArchiveFormat::Tbz => tar(skill).and_then(|tar| {
            let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            out.write_all(&tar).and_then(|()| out.finish())
        }),
        ArchiveFormat::Txz => tar(skill).and_then(|tar| {
            let options = lzma_rust2::XzOptions::with_preset(1);
            let mut out = lzma_rust2::XzWriter::new(Vec::new(), options)?;
            out.write_all(&tar).and_then(|()| out.finish())
        }),
    };
    made.map_err(|error| error.to_string())
}

/// Each file: its path in the archive, its text and its mode.
fn members(skill: &SkillScript) -> impl Iterator<Item = (String, &[u8], u32)> {
    skill.files.iter().map(|(path, text)| {
        let mode = if skill.executable.contains(path) { 0o755 } else { 0o644 };
        (format!("{}/{path}", skill.name), text.as_bytes(), mode)
    })
}

fn zip(skill: &SkillScript) -> Result<Vec<u8>, String> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (path, bytes, mode) in members(skill) {
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .unix_permissions(mode);
        zip.start_file(path, options).map_err(|error| error.to_string())?;
        zip.write_all(bytes).map_err(|error| error.to_string())?;
    }
    Ok(zip.finish().map_err(|error| error.to_string())?.into_inner())
}

fn tar(skill: &SkillScript) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes, mode) in members(skill) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, path, bytes)?;
    }
    tar.into_inner()
}
