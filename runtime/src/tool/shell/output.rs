//! The output of a call: kept in bounded memory while it is read, then made into text
//! (protocol TOOL-BASH-7, TOOL-BASH-8, RUN-22).

/// The last bytes of a stream.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    /// How many are kept at most. Twice as many are held, so that moving them is rare.
    bytes_max: usize,
    total: u64,
}

impl Tail {
    pub fn new(bytes_max: usize) -> Tail {
        Tail { bytes: Vec::new(), bytes_max, total: 0 }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let last = &bytes[bytes.len().saturating_sub(self.bytes_max)..];
        if self.bytes.len() + last.len() > 2 * self.bytes_max {
            let keep = self.bytes_max - last.len();
            let from = self.bytes.len().saturating_sub(keep);
            self.bytes.drain(..from);
        }
        self.bytes.extend_from_slice(last);
    }

    /// All bytes that were pushed.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What is kept, as it is; whether that is all.
    pub fn verbatim(&self) -> (&[u8], bool) {
        let over = self.bytes.len().saturating_sub(self.bytes_max);
        (&self.bytes[over..], self.total <= self.bytes_max as u64)
    }

    /// This and then `other`, on a line of its own, within the bound of this.
    pub fn followed_by(&self, other: &Tail) -> Tail {
        let mut both = Tail::new(self.bytes_max);
        both.push(self.verbatim().0);
        if other.total > 0 && self.bytes.last().is_some_and(|last| *last != b'\n') {
            both.push(b"\n");
        }
        both.push(other.verbatim().0);
        both.total = self.total + other.total;
        both
    }

    /// The text for the model, and whether something was dropped from its beginning.
    pub fn text(&self) -> (String, bool) {
        let over = self.bytes.len().saturating_sub(self.bytes_max);
        let mut truncated = self.total > self.bytes_max as u64;
        let mut kept = &self.bytes[over..];
        if truncated {
            // The rest of a character whose beginning was dropped.
            let rest = kept.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
            kept = &kept[rest..];
        }
        let text = String::from_utf8_lossy(kept);
        let text = without_control_sequences(&text);
        let text = text.trim_end_matches('\n');
        // A replaced byte takes three: the bound holds for what is sent, too.
        let mut from = text.len().saturating_sub(self.bytes_max);
        truncated |= from > 0;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        let text = &text[from..];
        let text = if truncated { format!("[output truncated]\n{text}") } else { text.to_owned() };
        (text, truncated)
    }
}

/// Drops `ESC [ [0-9;?]* [ -/]* [@-~]`.
fn without_control_sequences(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        let (before, sequence) = rest.split_at(at);
        out.push_str(before);
        let bytes = sequence.as_bytes();
        let count = |from: usize, is: fn(u8) -> bool| {
            from + bytes[from..].iter().take_while(|byte| is(**byte)).count()
        };
        let parameters = count(2, |byte| byte.is_ascii_digit() || byte == b';' || byte == b'?');
        let end = count(parameters, |byte| (b' '..=b'/').contains(&byte));
        let whole = bytes.get(end).is_some_and(|last| (b'@'..=b'~').contains(last));
        let skipped = if whole { end + 1 } else { 1 };
        if !whole {
            out.push('\x1b');
        }
        rest = &sequence[skipped..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(bytes_max: usize, chunks: &[&[u8]]) -> String {
        let mut tail = Tail::new(bytes_max);
        chunks.iter().for_each(|chunk| tail.push(chunk));
        tail.text().0
    }

    #[test]
    fn output_becomes_clean_text() {
        // TOOL-BASH-7
        let cases: [(&[u8], &str); 8] = [
            (b"\n\nhi\n\n\n", "\n\nhi"),
            (b"\x1b[1;31mred\x1b[0m \x1b[?25lx\x1b[2 qy\x1b[K", "red xy"),
            (b"\x1b]0;title\x07", "\x1b]0;title\x07"), // not a CSI
            (b"\x1b[\x1b[0mx", "\x1b[x"),
            (b"a\x1b[12", "a\x1b[12"),
            (b"a\xffb\xc3", "a\u{fffd}b\u{fffd}"),
            (b"a\0b", "a\0b"),
            (b"", ""),
        ];
        for (bytes, text) in cases {
            assert_eq!(text_of(1000, &[bytes]), text, "{bytes:?}");
        }
    }

    #[test]
    fn only_the_last_bytes_are_kept_whole_characters_of_them() {
        // TOOL-BASH-8
        assert_eq!(text_of(4, &[b"abcd"]), "abcd");
        assert_eq!(text_of(4, &[b"abcde"]), "[output truncated]\nbcde");
        assert_eq!(
            text_of(4, &[b"ab", b"cd", b"e", b"f", b"ghi", b"j"]),
            "[output truncated]\nghij"
        );
        assert_eq!(text_of(4, &["xäöü".as_bytes()]), "[output truncated]\nöü");
        assert_eq!(text_of(3, &["xäöü".as_bytes()]), "[output truncated]\nü");
        assert_eq!(text_of(6, &[b"\xff\xff\xff"]), "[output truncated]\n\u{fffd}\u{fffd}");
    }

    #[test]
    fn errors_follow_output_on_a_line_of_their_own() {
        let tail = |text: &str| {
            let mut tail = Tail::new(6);
            tail.push(text.as_bytes());
            tail
        };
        #[rustfmt::skip]
        let cases = [
            ("a",      "b",    "a\nb",                      false),
            ("a\n",    "b",    "a\nb",                      false),
            ("",       "b",    "b",                         false),
            ("a",      "",     "a",                         false),
            ("abcdef", "gh",   "[output truncated]\ndef\ngh", true),
            ("abcdefg", "",    "[output truncated]\nbcdefg", true),
        ];
        for (first, second, text, truncated) in cases {
            let both = tail(first).followed_by(&tail(second));
            assert_eq!(both.text(), (text.to_owned(), truncated), "{first} {second}");
            assert_eq!(both.total(), (first.len() + second.len()) as u64);
        }
    }

    #[test]
    fn memory_stays_bounded_however_much_is_pushed() {
        let mut tail = Tail::new(1000);
        for length in (0..3000).chain([5, 999, 1000, 1001]) {
            tail.push(&vec![b'x'; length]);
            assert!(tail.bytes.capacity() <= 4000, "{length}: {}", tail.bytes.capacity());
        }
        let (text, truncated) = tail.text();
        assert_eq!((text.len(), truncated), (1000 + "[output truncated]\n".len(), true));
    }
}
