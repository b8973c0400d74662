//! For operators of a queue rather than of a host: which key they have, and how answers are shown.
//! Used by `worker queue`; no part of a running worker.

pub mod key;
pub mod show;
