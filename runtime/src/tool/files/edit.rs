//! The edit tool: replaces one text by another in a file.

use super::failure::{Failure, Spelled};
use super::input::EditInput;
use super::roots::Roots;
use super::{FileLimits, answer, beneath, read, required, write};
use crate::tool::ToolResult;

pub fn run(input: &EditInput, roots: &Roots, limits: &FileLimits) -> Result<ToolResult, Failure> {
    let path = required("file_path", &input.file_path)?;
    let old = required("old_string", &input.old_string)?;
    let spelled = Spelled::new(path);
    let place = roots.find_to_change(path)?;
    let (file, status) = place.open_file(&spelled)?;
    let limit = limits.text_bytes_max();
    let loaded = read::load(file, beneath::bytes(&status), limit);
    let content = match loaded.map_err(|error| Failure::io(&spelled, &error))? {
        Ok(content) => content,
        Err(bytes) => return Err(Failure::EditTooLong { path: spelled, bytes, limit }),
    };
    let Ok(text) = String::from_utf8(content) else {
        return Err(Failure::EditBinary { path: spelled });
    };
    let count = match text.matches(old).count() {
        0 => return Err(Failure::NotFound { path: spelled }),
        count if count > 1 && input.replace_all != Some(true) => {
            return Err(Failure::NotUnique { path: spelled, count });
        }
        count => count,
    };
    let bytes = edited_bytes(text.len(), count, old.len(), input.new_string.len());
    if bytes > u128::from(limits.edited_bytes_max) {
        let limit = limits.edited_bytes_max;
        return Err(Failure::EditedTooLong { path: spelled, bytes, limit });
    }
    let edited = text.replace(old, &input.new_string);
    write::replace(roots, &place, &spelled, edited.as_bytes(), status.st_mode)?;
    Ok(answer(format!("edited {spelled} ({count} replacement(s))")))
}

/// How long the text will be: known before it is made, as it can be millions of times the input.
fn edited_bytes(text: usize, count: usize, old: usize, new: usize) -> u128 {
    let [text, count, old, new] = [text, count, old, new].map(|number| number as u128);
    text + count * new - count * old
}
