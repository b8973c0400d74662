//! Server-sent events, from bytes to frames (SSE-1, SSE-2). Pure.
//!
//! Own code, because every published parser keeps a line of any length; here a frame has a limit.

use std::collections::VecDeque;

/// One dispatched frame: it has a name and data.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub event: String,
    pub data: Vec<u8>,
}

/// A stream that cannot be read on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SseError {
    #[error("an event is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
}

/// Above the 32 MiB that one line may have (SSE-5).
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// Turns pieces of a stream into frames.
#[derive(Debug)]
pub struct SseParser {
    line: Vec<u8>,
    event: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
    first_line: bool,
    bytes_max: usize,
}

impl SseParser {
    /// At the beginning of a stream.
    pub fn new(bytes_max: usize) -> SseParser {
        SseParser {
            line: Vec::new(),
            event: Vec::new(),
            data: Vec::new(),
            has_data: false,
            after_cr: false,
            first_line: true,
            bytes_max,
        }
    }

    /// Reads one piece; complete frames are added to `frames`.
    ///
    /// # Errors
    /// [`SseError::TooLarge`]; the parser is of no use after that.
    pub fn push(&mut self, mut piece: &[u8], frames: &mut VecDeque<Frame>) -> Result<(), SseError> {
        while !piece.is_empty() {
            if self.after_cr && piece[0] == b'\n' {
                piece = &piece[1..];
                self.after_cr = false;
                continue;
            }
            self.after_cr = false;
            let end = piece.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &piece[..end.unwrap_or(piece.len())];
            if self.line.len() + self.data.len() + self.event.len() + part.len() > self.bytes_max {
                return Err(SseError::TooLarge { bytes_max: self.bytes_max });
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { break };
            self.after_cr = piece[end] == b'\r';
            piece = &piece[end + 1..];
            self.end_line(frames);
        }
        Ok(())
    }

    fn end_line(&mut self, frames: &mut VecDeque<Frame>) {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.first_line) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            return self.dispatch(frames);
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line.as_slice(), &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"event" => self.event = value.to_vec(),
            b"data" if !self.has_data => {
                self.has_data = true;
                let from = line.len() - value.len();
                line.drain(..from);
                self.data = line;
            }
            b"data" => {
                self.data.push(b'\n');
                self.data.extend_from_slice(value);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, frames: &mut VecDeque<Frame>) {
        let (event, data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
        self.has_data = false;
        // SSE-2: without a name or without data it is ignored.
        if !event.is_empty() && !data.is_empty() {
            let event = String::from_utf8_lossy(&event).into_owned();
            frames.push_back(Frame { event, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut parser = SseParser::new(FRAME_BYTES_MAX);
        let mut frames = VecDeque::new();
        for piece in pieces {
            parser.push(piece, &mut frames).expect("small");
        }
        let text = |frame: Frame| (frame.event, String::from_utf8(frame.data).expect("text"));
        frames.into_iter().map(text).collect()
    }

    fn one(event: &str, data: &str) -> Vec<(String, String)> {
        vec![(event.to_owned(), data.to_owned())]
    }

    #[test]
    fn lines_end_in_three_ways_wherever_the_stream_is_cut() {
        // SSE-1.
        for end in ["\n", "\r", "\r\n"] {
            let text = [": note", "event: a", "data: x", "data:  y", "id: 7", "retry: 1", "", ""];
            let text = text.join(end);
            for cut in 0..=text.len() {
                let (head, tail) = text.as_bytes().split_at(cut);
                assert_eq!(parse(&[head, tail]), one("a", "x\n y"), "{end:?} cut at {cut}");
            }
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(parse(&bytes), one("a", "x\n y"), "{end:?} byte by byte");
        }
    }

    #[test]
    fn frames_without_a_name_or_without_data_are_ignored() {
        // SSE-2.
        assert_eq!(
            parse(&[b"data: x\n\nevent: a\n\nevent: b\ndata:\n\nevent: c\ndata: y\n\n"]),
            one("c", "y")
        );
        assert_eq!(parse(&[b"\xef\xbb\xbfevent: a\ndata: x\n\n"]), one("a", "x"));
        assert_eq!(parse(&[b"event: a\ndata: cut off\n"]), []);
    }

    #[test]
    fn a_line_of_32_mib_passes_and_a_frame_over_the_limit_does_not() {
        // SSE-5, INV-11.
        let mut parser = SseParser::new(FRAME_BYTES_MAX);
        let mut frames = VecDeque::new();
        parser.push(b"event: a\ndata: ", &mut frames).expect("small");
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..32 {
            parser.push(&piece, &mut frames).expect("within the limit");
        }
        parser.push(b"\n\n", &mut frames).expect("within the limit");
        assert_eq!(frames.pop_front().map(|frame| frame.data.len()), Some(32 << 20));
        let mut parser = SseParser::new(100);
        let line = [&b"data: "[..], &[b'x'; 60], b"\n"].concat();
        parser.push(&line, &mut frames).expect("within the limit");
        let error = parser.push(&line, &mut frames);
        assert_eq!(error, Err(SseError::TooLarge { bytes_max: 100 }));
    }
}
