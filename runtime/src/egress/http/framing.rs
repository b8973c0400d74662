//! Where the body of a request ends, followed byte by byte. Pure.
//!
//! Changes nothing and decodes nothing: it only has to know where the next head begins, and to refuse
//! chunks that two programs could read in two ways.

use super::head::{self, Ambiguous};

/// Most digits of a chunk's size: always less than 2^60.
const SIZE_DIGITS_MAX: u8 = 15;
/// Most bytes of one chunk's extensions.
const EXTENSION_BYTES_MAX: u16 = 256;
/// Most bytes of all trailers.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

/// How far a body has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
}

/// Where in a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Chunk {
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        bytes: u16,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// One line of the trailers, so far, and the bytes of the lines before it.
    Trailer {
        line: Vec<u8>,
        before: usize,
    },
    End,
}

impl Framing {
    pub fn length(bytes: u64) -> Framing {
        Framing::Length(bytes)
    }

    pub fn chunked() -> Framing {
        Framing::Chunked(Chunk::Size { size: 0, digits: 0 })
    }

    /// Whether the body is over.
    pub fn is_over(&self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunked(Chunk::End))
    }

    /// Follows `bytes`; returns how many of them belong to the body.
    ///
    /// # Errors
    /// [`Ambiguous`]: none of `bytes` should be used.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<usize, Ambiguous> {
        match self {
            Framing::Length(left) => {
                let used = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= used as u64;
                Ok(used)
            }
            Framing::Chunked(chunk) => chunk.follow(bytes),
        }
    }
}

impl Chunk {
    fn follow(&mut self, bytes: &[u8]) -> Result<usize, Ambiguous> {
        let mut at = 0;
        while at < bytes.len() {
            if let Chunk::Data { left } = self {
                let rest = bytes.len() - at;
                let used = usize::try_from(*left).map_or(rest, |left| left.min(rest));
                *left -= used as u64;
                at += used;
                if *left == 0 {
                    *self = Chunk::DataCr;
                }
                continue;
            }
            if *self == Chunk::End {
                break;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// One byte that is not data.
    fn step(&mut self, byte: u8) -> Result<(), Ambiguous> {
        let next = match (&mut *self, byte) {
            (Chunk::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F')
                if *digits < SIZE_DIGITS_MAX =>
            {
                let digit = (byte as char).to_digit(16).ok_or(Ambiguous)?;
                Chunk::Size { size: *size << 4 | u64::from(digit), digits: *digits + 1 }
            }
            (Chunk::Size { size, digits: 1.. }, b'\r') => Chunk::SizeEnd { size: *size },
            (Chunk::Size { size, digits: 1.. }, b';') => Chunk::Extension { size: *size, bytes: 0 },
            (Chunk::Extension { size, .. }, b'\r') => Chunk::SizeEnd { size: *size },
            (Chunk::Extension { size, bytes }, b'\t' | b' '..=b'~')
                if *bytes < EXTENSION_BYTES_MAX =>
            {
                Chunk::Extension { size: *size, bytes: *bytes + 1 }
            }
            (Chunk::SizeEnd { size: 0 }, b'\n') => Chunk::Trailer { line: Vec::new(), before: 0 },
            (Chunk::SizeEnd { size }, b'\n') => Chunk::Data { left: *size },
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::Size { size: 0, digits: 0 },
            (Chunk::Trailer { line, before }, _) => {
                if *before + line.len() >= TRAILER_BYTES_MAX {
                    return Err(Ambiguous);
                }
                line.push(byte);
                if byte != b'\n' {
                    return Ok(());
                }
                match line.strip_suffix(b"\r\n") {
                    Some([]) => Chunk::End,
                    Some(text) => {
                        head::field(text)?;
                        Chunk::Trailer { before: *before + line.len(), line: Vec::new() }
                    }
                    None => return Err(Ambiguous),
                }
            }
            _ => return Err(Ambiguous),
        };
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_ends_where_it_says_however_it_is_cut() {
        let cases: [&[u8]; 7] = [
            b"0\r\n\r\n",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"00a\r\n0123456789\r\nA\r\n0\r\n\r\n01234\r\n0\r\n\r\n",
            b"5;name=value;other=\"quoted \\\" text\"\r\nhello\r\n0\r\n\r\n",
            b"5;\r\nhello\r\n000;last\r\n\r\n",
            b"1\r\nx\r\n0\r\nDigest: abc\r\nX-More:\r\n\r\n",
            b"2\r\n\r\n\r\n0\r\n\r\n",
        ];
        for body in cases {
            let text = [body, b"GET / HTTP/1.1\r\n"].concat();
            for cut in 0..=body.len() {
                let mut framing = Framing::chunked();
                let first = framing.follow(&text[..cut]).expect("first part");
                assert_eq!((first, framing.is_over()), (cut, cut == body.len()));
                let second = framing.follow(&text[cut..]).expect("second part");
                assert_eq!((first + second, framing.is_over()), (body.len(), true));
            }
        }
    }

    // INV-8: a chunk with two readings would let a second request hide in the first.
    #[test]
    fn chunks_with_two_readings_are_refused() {
        let long_extension = format!("5;{}\r\nhello\r\n", "e".repeat(257));
        let long_trailer = format!("0\r\nX: {}\r\n\r\n", "t".repeat(TRAILER_BYTES_MAX));
        #[rustfmt::skip]
        let cases: [&[u8]; 26] = [
            b"\r\n", b"\n", b" 5\r\n", b"+5\r\n", b"-5\r\n", b"0x5\r\n", b";a=b\r\n", b"g\r\n",
            b"5 \r\n", b"5 ;a=b\r\n", b"5\n", b"5\rh", b"5\r\r\n", b"5;a=b\nhello", b"5;a\x00\r\n",
            b"5\r\nhello0\r\n", b"5\r\nhello\n0\r\n", b"5\r\nhello\rX", b"5\r\nhello!\r\n",
            b"0000000000000005\r\n", b"ffffffffffffffff\r\n",
            b"0\r\nX: y\n\r\n", b"0\r\n folded\r\n\r\n", b"0\r\nGET / HTTP/1.1\r\n\r\n",
            long_extension.as_bytes(), long_trailer.as_bytes(),
        ];
        for body in cases {
            let mut framing = Framing::chunked();
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]);
            assert_eq!(framing.follow(body), Err(Ambiguous), "{shown:?}");
        }
    }

    #[test]
    fn a_body_with_a_length_ends_after_it() {
        let mut framing = Framing::length(5);
        assert_eq!(framing.follow(b"hel"), Ok(3));
        assert!(!framing.is_over());
        assert_eq!(framing.follow(b"loGET"), Ok(2));
        assert!(framing.is_over());
        assert_eq!(framing.follow(b"GET"), Ok(0));
    }
}
