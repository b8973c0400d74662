//! The audit log: what the worker is about to do and what came of it, as hash-chained JSON lines.
//!
//! Written by the control side, synchronously and before the effect that a record describes: an
//! error of [`AuditLog::append`] means that the effect must not happen. No jail can see the file.
//! Records hold names, sizes and digests; the types of [`Event`] have no place for what a tool was
//! given or printed (INV-12). `docs/audit.md` is the format's reference.
//!
//! Files: `event` what is recorded, `value` the bounded values in it, `line` one line as bytes,
//! `chain` which line comes next and what to do after half a line, `log` the file, `verify` reading
//! it again.

mod chain;
mod ending;
mod event;
mod line;
mod log;
mod value;
mod verify;

pub use ending::{CallStatus, ItemEnd, LeaseLoss, NotPosted, StopReason};
pub use event::{Event, Ids, Kept};
pub use line::{LINE_BYTES_MAX, RECORD_BYTES_MAX};
pub use log::{AuditError, AuditLog, Receipt};
pub use value::{Digest, Fingerprint, List, Name, Text};
pub use verify::{Expectation, Problem, Repair, Verification, verify, verify_each};
