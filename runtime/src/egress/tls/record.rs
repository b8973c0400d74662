//! TLS records (RFC 8446, 5.1): a header of five bytes and what it counts.

/// Bytes of a header.
const HEADER: usize = 5;
/// Most bytes of a record's body: 2^14 and what encryption may add (RFC 5246, 6.2.3).
const BODY_MAX: usize = (1 << 14) + 2048;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ChangeCipherSpec,
    Alert,
    Handshake,
    Data,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub kind: Kind,
    pub body: &'a [u8],
    /// Bytes of header and body.
    pub length: usize,
}

/// The bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoRecord;

/// Whether `bytes` begin, as far as they go, as a record of any kind does.
pub(crate) fn begins_like_record(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [kind] => (20..=23).contains(kind),
        [kind, major, ..] => (20..=23).contains(kind) && *major == 3,
    }
}

/// The first record of `bytes`, `None` if it is not there as a whole.
///
/// # Errors
/// [`NoRecord`] as soon as the header shows it. An empty record of a kind other than data is none: it
/// could only hide where a message begins (RFC 8446, 5.1).
pub(crate) fn first(bytes: &[u8]) -> Result<Option<Record<'_>>, NoRecord> {
    if !begins_like_record(bytes) {
        return Err(NoRecord);
    }
    let Some((header, rest)) = bytes.split_at_checked(HEADER) else { return Ok(None) };
    let kind = match header[0] {
        20 => Kind::ChangeCipherSpec,
        21 => Kind::Alert,
        22 => Kind::Handshake,
        _ => Kind::Data,
    };
    let size = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if header[2] > 4 || size > BODY_MAX || (size == 0 && kind != Kind::Data) {
        return Err(NoRecord);
    }
    Ok(rest.get(..size).map(|body| Record { kind, body, length: HEADER + size }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_when_it_is_whole_and_refused_as_soon_as_it_cannot_be_one() {
        let whole = [22, 3, 1, 0, 2, 7, 8, 9];
        for end in 0..7 {
            assert_eq!(first(&whole[..end]), Ok(None), "{end}");
        }
        let record = Record { kind: Kind::Handshake, body: &[7, 8], length: 7 };
        assert_eq!(first(&whole), Ok(Some(record)));
        #[rustfmt::skip]
        let none: [&[u8]; 7] = [
            b"G", b"\x16G", &[0x80, 0x2e, 1, 3, 1], &[22, 3, 5, 0, 1, 1], &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0x48, 1], &[24, 3, 3, 0, 1, 1],
        ];
        for bytes in none {
            assert_eq!(first(bytes), Err(NoRecord), "{bytes:?}");
        }
        assert!(first(&[23, 3, 3, 0, 0]).is_ok_and(|record| record.is_some()));
    }
}
