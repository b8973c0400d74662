//! Which directory a skill gets (SKILL-2). Pure; the porter opens nothing but single names below its
//! place, so this is about names that would surprise, not about the last line of defence.

use super::error::{BadName, SkillError};

/// NAME_MAX of every file system that could hold it.
const BYTES_MAX: usize = 255;
/// How the porter's own directories begin, while it works (SKILL-4).
const RESERVED: &str = ".skill-";

/// The directory of a skill whose author calls it `name`: the name, without blanks around it; the
/// skill's id if it is empty, `.` or `..`.
///
/// # Errors
/// [`SkillError::Name`] for a name, or id, that is no single component, or that would not be read as
/// what it is.
pub fn directory(name: &str, skill_id: &str) -> Result<String, SkillError> {
    let name = match name.trim() {
        "" | "." | ".." => skill_id.trim(),
        name => name,
    };
    let reason = if matches!(name, "" | "." | "..") {
        BadName::Empty
    } else if name.len() > BYTES_MAX {
        BadName::Long
    } else if name.contains(['/', '\\']) {
        BadName::Separator
    } else if name.chars().any(is_invisible) {
        BadName::Control
    } else if name.starts_with(RESERVED) {
        BadName::Reserved
    } else {
        return Ok(name.to_owned());
    };
    Err(SkillError::Name { reason })
}

/// Control characters, line and paragraph separators, and what changes the direction or is not
/// shown: a name in a log must be the name on the disk.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skill_is_laid_under_its_name_or_else_under_its_id() {
        // SKILL-2.
        let long = "x".repeat(256);
        #[rustfmt::skip]
        let cases: &[(&str, Result<&str, BadName>)] = &[
            ("greet",            Ok("greet")),
            ("  greet\n",        Ok("greet")),
            ("Größe 2",          Ok("Größe 2")),
            (".hidden",          Ok(".hidden")),
            ("...",              Ok("...")),
            ("",                 Ok("skill_1")),
            (" \t",              Ok("skill_1")),
            (".",                Ok("skill_1")),
            (" .. ",             Ok("skill_1")),
            ("a/b",              Err(BadName::Separator)),
            ("../etc",           Err(BadName::Separator)),
            ("/etc",             Err(BadName::Separator)),
            ("a/",               Err(BadName::Separator)),
            ("a\\b",             Err(BadName::Separator)),
            ("a\nb",             Err(BadName::Control)),
            ("a\0b",             Err(BadName::Control)),
            ("a\u{7f}b",         Err(BadName::Control)),
            ("a\u{202e}b",       Err(BadName::Control)),
            ("a\u{200b}",        Err(BadName::Control)),
            (".skill-x",         Err(BadName::Reserved)),
            (&long,              Err(BadName::Long)),
        ];
        for (name, want) in cases {
            let got = directory(name, "skill_1");
            match (got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, *want, "{name:?}"),
                (Err(SkillError::Name { reason }), Err(want)) => {
                    assert_eq!(reason, *want, "{name:?}");
                }
                (got, want) => panic!("{name:?}: {got:?}, not {want:?}"),
            }
        }
        // The id is checked like a name.
        for id in ["", "..", "a/b", "a\nb"] {
            assert!(directory("", id).is_err(), "{id:?}");
        }
    }
}
