//! Tests of the queue as a whole: a scripted control plane instead of a network, the test clock
//! instead of time. `http` is the exception: it speaks over loopback.

mod apart;
mod client;
mod faults;
mod gate;
mod http;
mod journal;
mod lease;
mod log;
mod memory;
mod modes;
mod operate;
mod platform;
mod poll;
mod races;
mod requests;
mod runner;
mod secrets;
mod shutdown;
mod skills;
mod world;
