//! Which members of an archive go where: all names are screened before anything is written
//! (SKILL-6), and a directory that wraps everything may be left out (SKILL-8).

use super::{Kind, Member};
use crate::porter::path::{NAME_BYTES_MAX, PATH_BYTES_MAX};
use crate::porter::{Refusal, Wrapper, shortened};

/// Directories inside directories.
const DEPTH_MAX: usize = 64;

/// Where each of `members` goes, relative and with plain slashes; `None` for those that are passed
/// over: special ones, and the directory that everything goes into.
///
/// # Errors
/// [`Refusal::Member`] for the first name that may not be unpacked, also of a member that would be
/// passed over: the archive as a whole is refused then.
pub(in crate::porter) fn plan(
    members: &[Member],
    wrapper: Wrapper,
) -> Result<Vec<Option<String>>, Refusal> {
    let mut ways = Vec::with_capacity(members.len());
    for member in members {
        let way = screen(&member.name).map_err(|reason| refused(member, reason))?;
        if way.is_empty() && matches!(member.kind, Kind::File { .. }) {
            return Err(refused(member, "is a file without a name"));
        }
        ways.push((member.kind != Kind::Other).then_some((way, member.kind)));
    }
    let kept = || ways.iter().flatten().filter(|(way, _)| !way.is_empty());
    let strip = wrapper == Wrapper::Strip && is_wrapped(kept());
    let name = |way: &[String]| {
        let way = if strip { way.get(1..).unwrap_or_default() } else { way };
        (!way.is_empty()).then(|| way.join("/"))
    };
    Ok(ways.iter().map(|found| found.as_ref().and_then(|(way, _)| name(way))).collect())
}

/// Whether all share their first component, and one is below it.
fn is_wrapped<'w>(mut members: impl Iterator<Item = &'w (Vec<String>, Kind)>) -> bool {
    let Some((first, kind)) = members.next() else { return false };
    let is_file_on_top = |way: &[String], kind: Kind| way.len() == 1 && kind != Kind::Directory;
    if is_file_on_top(first, *kind) {
        return false;
    }
    let mut nested = first.len() > 1;
    for (way, kind) in members {
        if way[0] != first[0] || is_file_on_top(way, *kind) {
            return false;
        }
        nested |= way.len() > 1;
    }
    nested
}

/// The components of a name, or what is wrong with it.
fn screen(name: &str) -> Result<Vec<String>, &'static str> {
    if name.is_empty() {
        return Err("has no name");
    }
    if name.chars().any(char::is_control) {
        return Err("has a control character in its name");
    }
    let name = name.replace('\\', "/");
    let drive = matches!(name.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    if name.starts_with('/') || drive {
        return Err("has an absolute name");
    }
    if name.len() > PATH_BYTES_MAX {
        return Err("has a name that is too long");
    }
    let mut way = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("has `..` in its name"),
            part if part.len() > NAME_BYTES_MAX => return Err("has a name that is too long"),
            part => way.push(part.to_owned()),
        }
    }
    if way.len() > DEPTH_MAX { Err("lies too deep") } else { Ok(way) }
}

fn refused(member: &Member, reason: &str) -> Refusal {
    Refusal::Member { member: shortened(&member.name), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> Member {
        Member { name: name.to_owned(), kind: Kind::File { executable: false } }
    }

    fn directory(name: &str) -> Member {
        Member { name: name.to_owned(), kind: Kind::Directory }
    }

    fn link(name: &str) -> Member {
        Member { name: name.to_owned(), kind: Kind::Other }
    }

    #[test]
    fn a_name_that_leads_elsewhere_refuses_the_whole_archive() {
        // SKILL-6.
        #[rustfmt::skip]
        let cases = [
            ("/etc/passwd",        "absolute"),
            ("\\etc\\passwd",      "absolute"),
            ("\\\\host\\share\\x", "absolute"),
            ("C:\\x",              "absolute"),
            ("c:x",                "absolute"),
            ("../x",               "`..`"),
            ("a/../b",             "`..`"),
            ("a\\..\\..\\b",       "`..`"),
            ("a/..",               "`..`"),
            ("..",                 "`..`"),
            ("",                   "no name"),
            ("a\0b",               "control"),
            ("a\nb",               "control"),
            ("./",                 "without a name"),
        ];
        for (name, want) in cases {
            let members = [file("good"), file(name), file("also-good")];
            let refusal = plan(&members, Wrapper::Strip).expect_err(name).to_string();
            assert!(refusal.contains(want), "{name:?}: {refusal}");
            // A member that would not be unpacked counts as well.
            if want != "without a name" {
                plan(&[file("good"), link(name)], Wrapper::Strip).expect_err(name);
            }
        }
        for long in ["a".repeat(256), "a/".repeat(65) + "b", "abcdefg/".repeat(129)] {
            plan(&[file(&long)], Wrapper::Keep).expect_err("too long");
        }
    }

    #[test]
    fn harmless_spellings_are_made_plain() {
        let members = [file("./a//b"), file("c\\d"), directory("./"), file("..x"), file("e..")];
        let got = plan(&members, Wrapper::Keep).expect("accepted");
        let want = [Some("a/b"), Some("c/d"), None, Some("..x"), Some("e..")];
        assert_eq!(got.iter().map(|name| name.as_deref()).collect::<Vec<_>>(), want);
    }

    #[test]
    fn a_directory_around_everything_is_left_out() {
        // SKILL-8.
        #[rustfmt::skip]
        let cases: &[(&[Member], &[Option<&str>])] = &[
            // one directory around all
            (&[directory("s/"), file("s/SKILL.md"), file("s/x/y")], &[None, Some("SKILL.md"), Some("x/y")]),
            (&[file("s/SKILL.md")],                                 &[Some("SKILL.md")]),
            (&[file("./s/a"), file("s\\b")],                        &[Some("a"), Some("b")]),
            // members that are passed over do not count
            (&[link("other"), file("s/a")],                         &[None, Some("a")]),
            (&[directory("./"), file("s/a")],                       &[None, Some("a")]),
            // flat, several roots, one file, nothing nested
            (&[file("a"), file("b")],                               &[Some("a"), Some("b")]),
            (&[file("s/a"), file("t/a")],                           &[Some("s/a"), Some("t/a")]),
            (&[file("s/a"), file("b")],                             &[Some("s/a"), Some("b")]),
            (&[file("s")],                                          &[Some("s")]),
            (&[directory("s/")],                                    &[Some("s")]),
            // a file of the same name cannot wrap
            (&[file("s"), file("s/a")],                             &[Some("s"), Some("s/a")]),
        ];
        for (members, want) in cases {
            let got = plan(members, Wrapper::Strip).expect("accepted");
            let got: Vec<_> = got.iter().map(|name| name.as_deref()).collect();
            assert_eq!(&got, want, "{members:?}");
        }
        let kept = plan(&[file("s/a")], Wrapper::Keep).expect("accepted");
        assert_eq!(kept, [Some("s/a".to_owned())]);
    }
}
