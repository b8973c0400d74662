//! A skill version (protocol §2.6), in the shape of today and in the one before it (HDR-3).

use serde_json::Value;

use super::text;

/// What is read of a skill version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillVersion {
    /// What the archive is asked for by: a version id, in the older shape an epoch version.
    pub id: String,
    /// As the author wrote it; may be empty. Not a directory name yet (SKILL-2).
    pub name: String,
}

/// How versions are addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// By version id, without a beta header (HDR-2).
    Current,
    /// By epoch microseconds, with the beta header of that time (HDR-3).
    Epoch,
}

/// Reads a skill version; `None` if it does not say what its archive is asked for by.
pub fn parse_skill_version(shape: Shape, body: &[u8]) -> Option<SkillVersion> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let id = match shape {
        Shape::Current => text(&value, "id")?,
        Shape::Epoch => text(&value, "version")?,
    };
    Some(SkillVersion { id, name: text(&value, "name").unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_has_its_own_address() {
        // HDR-3.
        let body = br#"{"type":"skill_version","id":"skillver_1","version":"1759178010641129",
            "directory":"greet","name":"greet","new":1}"#;
        let read = |shape| parse_skill_version(shape, body).expect("a version");
        assert_eq!(read(Shape::Current).id, "skillver_1");
        assert_eq!(read(Shape::Epoch).id, "1759178010641129");
        assert_eq!(read(Shape::Epoch).name, "greet");
    }

    #[test]
    fn a_version_without_an_address_is_none() {
        // API-5: a name of the wrong type counts as absent.
        let nameless = parse_skill_version(Shape::Current, br#"{"id":"v","name":7}"#);
        assert_eq!(nameless, Some(SkillVersion { id: "v".into(), name: String::new() }));
        for body in ["{}", "[]", "null", "<html>", r#"{"id":""}"#, r#"{"version":"1"}"#] {
            assert_eq!(parse_skill_version(Shape::Current, body.as_bytes()), None, "{body}");
        }
    }
}
