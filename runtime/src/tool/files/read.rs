//! The read tool: text byte for byte, a range of lines, an image or a PDF file.

use std::fs::File;
use std::io::{self, Read};

use super::failure::{Failure, Spelled};
use super::input::{Line, ReadInput};
use super::roots::Roots;
use super::{FileLimits, answer, beneath, required};
use crate::tool::{Block, ToolResult};

/// How much is read at a time, TOOL-GEN-2.
const CHUNK_BYTES: usize = 64 << 10;

pub fn run(input: &ReadInput, roots: &Roots, limits: &FileLimits) -> Result<ToolResult, Failure> {
    let path = required("file_path", &input.file_path)?;
    let range = match input.view_range.as_deref() {
        None | Some([]) => None,
        Some(&[Line(start), Line(end)]) => Some(Range { start, end }),
        Some(_) => return Err(Failure::RangeShape),
    };
    let spelled = Spelled::new(path);
    let place = roots.find(path)?;
    let (file, status) = place.open_file(&spelled)?;
    let bytes = beneath::bytes(&status);
    match (media(path), range) {
        (Some(_), Some(_)) => Err(Failure::RangeOnMedia),
        (Some(media), None) => read_media(file, bytes, media, &spelled, limits),
        (None, Some(range)) => read_range(file, range, &spelled, limits),
        (None, None) => read_text(file, bytes, &spelled, limits),
    }
}

/// The whole of `file`, or how long it is if that is more than `limit`. A file can grow meanwhile.
pub(super) fn load(file: File, bytes: u64, limit: u64) -> io::Result<Result<Vec<u8>, u64>> {
    if bytes > limit {
        return Ok(Err(bytes));
    }
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    let read = file.take(limit.saturating_add(1)).read_to_end(&mut content)? as u64;
    Ok(if read > limit { Err(read) } else { Ok(content) })
}

fn read_text(
    file: File,
    bytes: u64,
    spelled: &Spelled,
    limits: &FileLimits,
) -> Result<ToolResult, Failure> {
    let limit = limits.text_bytes_max();
    match load(file, bytes, limit).map_err(|error| Failure::io(spelled, &error))? {
        Ok(content) => text(content, spelled),
        Err(bytes) => Err(Failure::ReadTooLong { path: spelled.clone(), bytes, limit }),
    }
}

fn text(content: Vec<u8>, spelled: &Spelled) -> Result<ToolResult, Failure> {
    let text = String::from_utf8(content);
    text.map(answer).map_err(|_| Failure::ReadBinary { path: spelled.clone() })
}

#[derive(Debug, Clone, Copy)]
enum Media {
    Image(&'static str),
    Pdf,
}

/// By extension, TOOL-READ-7.
fn media(path: &str) -> Option<Media> {
    let name = path.trim_end_matches('/').rsplit('/').next()?;
    let (stem, extension) = name.rsplit_once('.')?;
    let media = match extension.to_ascii_lowercase().as_str() {
        "png" => Media::Image("image/png"),
        "jpg" | "jpeg" => Media::Image("image/jpeg"),
        "gif" => Media::Image("image/gif"),
        "webp" => Media::Image("image/webp"),
        "pdf" => Media::Pdf,
        _ => return None,
    };
    (!stem.is_empty()).then_some(media)
}

fn read_media(
    file: File,
    bytes: u64,
    media: Media,
    spelled: &Spelled,
    limits: &FileLimits,
) -> Result<ToolResult, Failure> {
    let limit = match media {
        Media::Image(_) => limits.image_bytes_max,
        Media::Pdf => limits.pdf_bytes_max,
    };
    let data = match load(file, bytes, limit).map_err(|error| Failure::io(spelled, &error))? {
        Ok(data) => data,
        Err(bytes) => return Err(Failure::MediaTooLong { path: spelled.clone(), bytes, limit }),
    };
    let mut result = answer(String::new());
    // The server takes no image of no bytes.
    if !data.is_empty() {
        result.facts.output_bytes = data.len() as u64;
        result.content = vec![match media {
            Media::Image(kind) => Block::Image { media_type: kind.to_owned(), data },
            Media::Pdf => Block::Document { media_type: "application/pdf".to_owned(), data },
        }];
    }
    Ok(result)
}

/// Lines as the caller counts them: from 1, both ends included, an end of 0 or less is the end of the
/// file.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: i64,
    end: i64,
}

fn read_range(
    file: File,
    range: Range,
    spelled: &Spelled,
    limits: &FileLimits,
) -> Result<ToolResult, Failure> {
    let first = u64::try_from(range.start).unwrap_or(1).max(1);
    let last = if range.end <= 0 { u64::MAX } else { range.end.unsigned_abs() };
    let limit = limits.text_bytes_max();
    let selected =
        select(file, first, last, limit).map_err(|error| Failure::io(spelled, &error))?;
    match selected {
        Some(content) => text(content, spelled),
        None if first == last => {
            Err(Failure::LineTooLong { path: spelled.clone(), line: first, limit })
        }
        None => {
            let Range { start, end } = range;
            Err(Failure::RangeTooLong { path: spelled.clone(), start, end, limit })
        }
    }
}

/// The lines `first` to `last` without the last line's end; `None` if they are more than `limit`
/// bytes. Holds no more than that and a chunk.
fn select(mut file: impl Read, first: u64, last: u64, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut selected = Vec::new();
    if last < first {
        return Ok(Some(selected));
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut line = 1;
    loop {
        let mut rest = match file.read(&mut chunk) {
            Ok(0) => return Ok(Some(selected)),
            Ok(count) => &chunk[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest);
            let (content, after) = rest.split_at(end.map_or(rest.len(), |at| at + 1));
            rest = after;
            if line >= first {
                let done = end.is_some() && line == last;
                let kept = if done { &content[..content.len() - 1] } else { content };
                if (selected.len() + kept.len()) as u64 > limit {
                    return Ok(None);
                }
                selected.extend_from_slice(kept);
                if done {
                    return Ok(Some(selected));
                }
            }
            line += u64::from(end.is_some());
        }
    }
}
