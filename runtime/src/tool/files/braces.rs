//! Writes a pattern with braces out as the patterns that it stands for.
//!
//! globset knows braces too, but an alternative may hold a `/`, and glob goes through a pattern name by
//! name.

/// Appends the patterns that `pattern` stands for, `a{b,c}` being `ab` and `ac`; false if there are
/// more than `patterns_max`. A brace without its partner stays, for globset to complain about.
pub fn expand(pattern: &str, patterns_max: usize, patterns: &mut Vec<String>) -> bool {
    let Some(group) = first_group(pattern) else {
        patterns.push(pattern.to_owned());
        return patterns.len() <= patterns_max;
    };
    let (before, after) = (&pattern[..group.open], &pattern[group.close + 1..]);
    let mut from = group.open + 1;
    for end in group.commas.into_iter().chain([group.close]) {
        let written_out = format!("{before}{}{after}", &pattern[from..end]);
        if !expand(&written_out, patterns_max, patterns) {
            return false;
        }
        from = end + 1;
    }
    true
}

/// Where the first outermost pair of braces is, and the commas directly in it.
struct Group {
    open: usize,
    commas: Vec<usize>,
    close: usize,
}

fn first_group(pattern: &str) -> Option<Group> {
    let bytes = pattern.as_bytes();
    let (mut open, mut commas, mut depth, mut at) = (0, Vec::new(), 0_usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'[' => at = class_end(bytes, at).unwrap_or(at),
            b'{' => {
                if depth == 0 {
                    open = at;
                }
                depth += 1;
            }
            b',' if depth == 1 => commas.push(at),
            b'}' if depth == 1 => return Some(Group { open, commas, close: at }),
            b'}' if depth > 1 => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the class that opens at `open` is closed. A `]` that comes first belongs to it.
fn class_end(bytes: &[u8], open: usize) -> Option<usize> {
    let negated = matches!(bytes.get(open + 1), Some(b'!' | b'^'));
    let first = open + 1 + usize::from(negated);
    let close = bytes.iter().skip(first + 1).position(|byte| *byte == b']')?;
    Some(first + 1 + close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_written_out() {
        // TOOL-GLOB-5
        let cases: &[(&str, &[&str])] = &[
            ("a", &["a"]),
            ("", &[""]),
            ("a{b,c}d", &["abd", "acd"]),
            ("{a,b}{c,d}", &["ac", "ad", "bc", "bd"]),
            ("{a,{b,c}}", &["a", "b", "c"]),
            ("{,x}y", &["y", "xy"]),
            ("{a}", &["a"]),
            ("{}", &[""]),
            ("{a/b,c}/*", &["a/b/*", "c/*"]),
            ("a{b", &["a{b"]),
            ("a}b", &["a}b"]),
            (r"\{a,b\}", &[r"\{a,b\}"]),
            ("[{]a,b[}]", &["[{]a,b[}]"]),
            ("{[,],b}", &["[,]", "b"]),
            ("{[]}],b}", &["[]}]", "b"]),
            ("[{a,b}", &["[a", "[b"]),
            ("é{ü,ß}", &["éü", "éß"]),
        ];
        for (pattern, want) in cases {
            let mut got = Vec::new();
            assert!(expand(pattern, 16, &mut got), "{pattern}");
            assert_eq!(got, *want, "{pattern}");
        }
    }

    #[test]
    fn a_pattern_of_too_many_alternatives_is_given_up_early() {
        // INV-11
        let mut patterns = Vec::new();
        assert!(expand(&"{a,b}".repeat(4), 16, &mut patterns));
        assert_eq!(patterns.len(), 16);
        patterns.clear();
        assert!(!expand(&"{a,b}".repeat(500), 16, &mut patterns));
        assert!(patterns.len() <= 17);
    }
}
