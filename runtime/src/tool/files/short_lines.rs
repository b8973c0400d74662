//! Passes a file on with its endless lines cut, so that a search never holds one.

use std::io::{self, Read};
use std::time::Instant;

/// Reads from `source`; of each line at most `line_bytes_max` bytes and its end are passed on. Fails
/// with [`io::ErrorKind::TimedOut`] once `deadline` has passed.
pub struct ShortLines<R> {
    pub source: R,
    pub deadline: Instant,
    line_bytes_max: usize,
    /// How much of the current line has been passed on.
    line_bytes: usize,
}

impl<R: Read> ShortLines<R> {
    /// `line_bytes_max` must not be 0.
    pub fn new(source: R, line_bytes_max: usize, deadline: Instant) -> Self {
        ShortLines { source, deadline, line_bytes_max, line_bytes: 0 }
    }

    /// Moves what is passed on to the front of `chunk` and tells how much it is.
    fn cut(&mut self, chunk: &mut [u8]) -> usize {
        let (mut from, mut to) = (0, 0);
        while from < chunk.len() {
            let room = self.line_bytes_max.saturating_sub(self.line_bytes);
            if room == 0 {
                // The end of the line, if it is here, is passed on as the start of the next.
                from = memchr::memchr(b'\n', &chunk[from..]).map_or(chunk.len(), |at| from + at);
                self.line_bytes = if from < chunk.len() { 0 } else { self.line_bytes };
                continue;
            }
            let window = from..chunk.len().min(from + room);
            // Short lines are not looked at one by one: the last end in the window will do.
            let passed = match memchr::memrchr(b'\n', &chunk[window.clone()]) {
                Some(at) => {
                    self.line_bytes = 0;
                    at + 1
                }
                None => {
                    self.line_bytes += window.len();
                    window.len()
                }
            };
            chunk.copy_within(from..from + passed, to);
            from += passed;
            to += passed;
        }
        to
    }
}

impl<R: Read> Read for ShortLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if Instant::now() >= self.deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let count = self.source.read(buffer)?;
            if count == 0 {
                return Ok(0);
            }
            match self.cut(&mut buffer[..count]) {
                0 => {}
                passed => return Ok(passed),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Gives at most `step` bytes at a time.
    struct Slow<'b>(&'b [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let step = self.1.min(buffer.len());
            (&mut self.0).take(step as u64).read(buffer)
        }
    }

    #[test]
    fn only_long_lines_lose_their_tail_however_the_file_is_read() {
        // TOOL-GREP-2, INV-11
        let cases = [
            ("", ""),
            ("\n\n\n", "\n\n\n"),
            ("ab\nabcd\nabcde\nabcdefghi\nx", "ab\nabcd\nabcd\nabcd\nx"),
            ("abcdefgh", "abcd"),
            ("abcdefgh\n", "abcd\n"),
            ("abcd\n\nabcd", "abcd\n\nabcd"),
        ];
        let deadline = Instant::now() + Duration::from_secs(60);
        for (text, want) in cases {
            for step in 1..12 {
                let mut got = String::new();
                let mut lines = ShortLines::new(Slow(text.as_bytes(), step), 4, deadline);
                lines.read_to_string(&mut got).expect("text");
                assert_eq!(got, want, "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn reading_ends_at_the_deadline() {
        let mut lines = ShortLines::new(io::repeat(b'x'), 4, Instant::now());
        let error = lines.read(&mut [0; 8]).expect_err("is late");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // A line without an end gives nothing to return, and still the deadline is seen.
        let soon = Instant::now() + Duration::from_millis(5);
        let mut lines = ShortLines::new(io::repeat(b'x'), 4, soon);
        let error = lines.read_to_end(&mut Vec::new()).expect_err("never ends");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
