//! What the real clients fetch.
