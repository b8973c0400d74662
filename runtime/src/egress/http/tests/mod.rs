//! Connections from end to end, byte by byte.
