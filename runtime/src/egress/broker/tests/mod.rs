//! The broker between a jail's namespace and a world of servers, over real sockets.

mod content;
mod ends;
mod lab;
mod lookup;
mod order;
mod rules;
