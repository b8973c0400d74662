//! What the porter says of something it refused, for logs: without names and texts of files.
//!
//! Those are content, of a skill's author, of whoever filled a bucket, or of a store (INV-12), and may
//! hold marks that turn or hide what stands around them. What remains is the porter's own wording, which a
//! process that unpacks may have sent after it was taken over: hence plain and short.

use stockade_runtime::session::Refusal;

/// Longest piece of the porter's wording, in bytes.
const WORDING_BYTES_MAX: usize = 100;

/// `refusal` in a few words of our own.
pub fn without_names(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Member { reason, .. } => format!("a member of the archive {}", plain(reason)),
        Refusal::Archive { .. } => "it is no archive that can be read".to_owned(),
        Refusal::Path { reason, .. } => format!("its path cannot be used: {}", plain(reason)),
        Refusal::System { errno, .. } => std::io::Error::from_raw_os_error(*errno).to_string(),
        Refusal::Exists { .. } => "something is there".to_owned(),
        Refusal::TooMuch { limit, unit, .. } => {
            format!("there are more than {limit} {}", plain(unit))
        }
        Refusal::TooLong { seconds } => format!("not done within {seconds} s"),
        Refusal::Died { how } => format!("the process that unpacked it ended ({})", plain(how)),
        Refusal::Cancelled => "it was cancelled".to_owned(),
        Refusal::Place { .. } => "this session has no place for it".to_owned(),
        _ => "the porter refuses".to_owned(),
    }
}

fn plain(wording: &str) -> String {
    let plain = |c: &char| c.is_ascii_graphic() || *c == ' ';
    wording.chars().filter(plain).take(WORDING_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_file_is_in_what_is_said_of_a_refusal() {
        // INV-12.
        let name = || "planted\u{202e}gnp.exe".to_owned();
        let reason = || "has `..`".to_owned();
        for (refusal, want) in [
            (
                Refusal::Member { member: name(), reason: reason() },
                "member of the archive has `..`",
            ),
            (Refusal::Archive { reason: name() }, "no archive"),
            (Refusal::Path { path: name(), reason: reason() }, "cannot be used: has `..`"),
            (Refusal::System { act: name(), errno: 28 }, "No space left"),
            (Refusal::Exists { path: name() }, "something is there"),
            (
                Refusal::TooMuch { what: name(), limit: 7, unit: "entries".to_owned() },
                "more than 7 entries",
            ),
            (Refusal::TooLong { seconds: 120 }, "within 120 s"),
            (Refusal::Died { how: "SIGKILL".to_owned() }, "SIGKILL"),
            (Refusal::Cancelled, "cancelled"),
            (Refusal::Place { place: name() }, "no place"),
        ] {
            let said = without_names(&refusal);
            assert!(said.contains(want), "{refusal:?}: {said}");
            assert!(said.is_ascii() && !said.contains("planted"), "{refusal:?}: {said}");
        }
        let how = format!("\u{202e}\u{1b}[31m{}", "x".repeat(9000));
        let said = without_names(&Refusal::Died { how });
        assert!(said.is_ascii() && !said.contains('\u{1b}') && said.len() < 200, "{said}");
    }
}
