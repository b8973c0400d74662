//! Which line comes next, and what to do after half a line.
//!
//! A write can be cut off: the worker is killed, the host loses power, the disk is full. What was
//! written stays where it is (the file may be append-only for root as well, chattr(1)). The next
//! write ends that half line and continues with a `log.repaired` record, which holds size and digest
//! of the torn bytes, so that nothing is lost and nothing else can hide there.

use std::io::{self, Write};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::event::{Event, Ids};
use super::line::{self, LINE_BYTES_MAX, Place, RECORD_BYTES_MAX};
use super::log::AuditError;
use super::value::{Digest, Fingerprint};

/// The end of a log that is being written.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    /// The next line's number and the digest of the last good one.
    place: Place,
    /// What stands behind the last good line.
    tail: Tail,
    /// Reused from line to line.
    buffer: Vec<u8>,
}

/// What stands behind the last good line.
#[derive(Debug, Clone)]
enum Tail {
    /// Its line break, and nothing more.
    Clean,
    /// Not even its line break.
    NoBreak,
    /// Its line break and these bytes.
    Torn { bytes: u64, hasher: Sha256 },
}

/// How one write went.
enum Written {
    Whole,
    Part(usize),
}

impl Chain {
    /// A log without a line, in which `torn` may stand.
    pub fn new(torn: &[u8]) -> Self {
        Chain::after(Place { seq: 1, previous: Digest::NONE }, Tail::of(torn))
    }

    /// A log whose last good line has this number and digest, with `torn` behind it.
    pub fn resumed(last: u64, digest: Digest, torn: &[u8]) -> Self {
        Chain::after(Place { seq: last + 1, previous: digest }, Tail::of(torn))
    }

    /// A log whose last good line lacks its line break.
    pub fn resumed_without_break(last: u64, digest: Digest) -> Self {
        Chain::after(Place { seq: last + 1, previous: digest }, Tail::NoBreak)
    }

    fn after(place: Place, tail: Tail) -> Self {
        Chain { place, tail, buffer: Vec::with_capacity(1 << 12) }
    }

    /// Number of the last good line (0 for none) and its digest.
    pub fn head(&self) -> (u64, Digest) {
        (self.place.seq - 1, self.place.previous)
    }

    /// Whether the next line will be a `log.repaired`.
    pub fn is_torn(&self) -> bool {
        !matches!(self.tail, Tail::Clean)
    }

    /// Writes one line, in one write, and before it a repair if the last write was cut off.
    ///
    /// # Errors
    /// As [`AuditError`] says. The event is then not in the log.
    pub fn append(
        &mut self,
        out: &mut impl Write,
        now: SystemTime,
        ids: &Ids,
        event: &Event,
    ) -> Result<(), AuditError> {
        let torn = match &self.tail {
            Tail::Clean => None,
            Tail::NoBreak => Some(Fingerprint::of(b"")),
            Tail::Torn { bytes, .. } if *bytes > LINE_BYTES_MAX as u64 => {
                return Err(AuditError::TooMuchTorn { bytes: *bytes });
            }
            Tail::Torn { bytes, hasher } => {
                Some(Fingerprint { bytes: *bytes, sha256: Digest::finish(hasher.clone()) })
            }
        };
        if let Some(torn) = torn {
            self.line(out, now, &Ids::default(), &Event::LogRepaired { torn })?;
        }
        self.line(out, now, ids, event)
    }

    fn line(
        &mut self,
        out: &mut impl Write,
        now: SystemTime,
        ids: &Ids,
        event: &Event,
    ) -> Result<(), AuditError> {
        self.buffer.clear();
        if self.is_torn() {
            self.buffer.push(b'\n');
        }
        let digest = line::encode(&mut self.buffer, &self.place, now, ids, event)
            .map_err(|source| AuditError::Encode { source })?;
        if self.buffer.len() > RECORD_BYTES_MAX {
            return Err(AuditError::TooLong { bytes: self.buffer.len() });
        }
        self.buffer.push(b'\n');
        let written =
            write_once(out, &self.buffer).map_err(|source| AuditError::Write { source })?;
        let whole = self.buffer.len();
        match written {
            Written::Part(bytes) if bytes + 1 < whole => {
                self.cut_off(bytes);
                let source = io::Error::from_raw_os_error(libc::ENOSPC);
                return Err(AuditError::Write { source });
            }
            Written::Whole => self.tail = Tail::Clean,
            // The record itself is whole; the next write brings its line break.
            Written::Part(_) => self.tail = Tail::NoBreak,
        }
        self.place = Place { seq: self.place.seq + 1, previous: digest };
        Ok(())
    }

    /// Remembers that the first `bytes` of the buffer are behind the last good line.
    fn cut_off(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let new = &self.buffer[..bytes];
        self.tail = match std::mem::replace(&mut self.tail, Tail::Clean) {
            Tail::Clean => Tail::of(new),
            Tail::NoBreak => Tail::of(&new[1..]),
            Tail::Torn { bytes: before, mut hasher } => {
                hasher.update(new);
                Tail::Torn { bytes: before + new.len() as u64, hasher }
            }
        };
    }
}

impl Tail {
    fn of(torn: &[u8]) -> Self {
        if torn.is_empty() {
            return Tail::Clean;
        }
        let mut hasher = Sha256::new();
        hasher.update(torn);
        Tail::Torn { bytes: torn.len() as u64, hasher }
    }
}

fn write_once(out: &mut impl Write, bytes: &[u8]) -> io::Result<Written> {
    // A signal may come first; a regular file is not interrupted in the middle.
    for _ in 0..16 {
        match out.write(bytes) {
            Ok(written) if written >= bytes.len() => return Ok(Written::Whole),
            Ok(written) => return Ok(Written::Part(written)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

#[cfg(test)]
mod tests {
    use super::super::verify::verify;
    use super::*;

    /// A disk on which so many more bytes fit.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let fits = data.len().min(self.room);
            if fits == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            self.bytes.extend_from_slice(&data[..fits]);
            self.room -= fits;
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn posted(chain: &mut Chain, disk: &mut Disk) -> Result<(), AuditError> {
        chain.append(disk, SystemTime::now(), &Ids::default(), &Event::CallPosted {})
    }

    /// INV-11: the disk may become full at any byte, and free again, and full again in the repair.
    #[test]
    fn a_full_disk_is_an_error_and_the_log_goes_on_when_there_is_room_again() {
        let mut probe = (Chain::new(b""), Disk { bytes: Vec::new(), room: 1 << 20 });
        posted(&mut probe.0, &mut probe.1).expect("room");
        let line = probe.1.bytes.len();
        for first in 0..line + 2 {
            let second = first * 7 % (2 * line);
            let (mut chain, mut disk) = (Chain::new(b""), Disk { bytes: Vec::new(), room: line });
            posted(&mut chain, &mut disk).expect("room for one");
            let mut good = 1;
            for room in [first, second, 1 << 20] {
                disk.room = room;
                good += u64::from(posted(&mut chain, &mut disk).is_ok());
            }
            let read = verify(&mut disk.bytes.as_slice(), None).expect("readable");
            assert!(read.problem.is_none(), "{first}, {second}: {:?}", read.problem);
            let own: u64 = read.records - read.repairs_count;
            assert_eq!(own, good, "{first}, {second}: what was said to be written is there");
            assert!(first == 0 || first >= line - 1 || read.repairs_count > 0, "{first}");
        }
    }

    #[test]
    fn a_record_that_is_too_long_is_refused_and_nothing_is_written() {
        let mut disk = Disk { bytes: Vec::new(), room: 1 << 30 };
        let mut chain = Chain::new(b"");
        let event = Event::JailLaunched {
            jail: "j".into(),
            policy: "p".into(),
            policy_sha256: Digest::NONE,
            spec_sha256: Digest::NONE,
            report: Box::new("x".repeat(RECORD_BYTES_MAX).into()),
        };
        let error = chain.append(&mut disk, SystemTime::now(), &Ids::default(), &event);
        assert!(matches!(error, Err(AuditError::TooLong { .. })), "{error:?}");
        assert!(disk.bytes.is_empty());
        posted(&mut chain, &mut disk).expect("the next one is written");
        assert_eq!(chain.head().0, 1);
    }

    #[test]
    fn a_tail_that_grows_with_every_failure_is_given_up() {
        let mut disk = Disk { bytes: Vec::new(), room: 1 << 30 };
        let mut chain = Chain::new(&vec![b'x'; LINE_BYTES_MAX + 1]);
        let error = posted(&mut chain, &mut disk).expect_err("refused");
        assert!(matches!(error, AuditError::TooMuchTorn { .. }), "{error}");
    }
}
