//! The broker between a jail's namespace and a world of servers, over real sockets.

mod lab;
mod order;
