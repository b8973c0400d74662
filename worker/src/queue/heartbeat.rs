//! The thread that beats for every lease of the worker (LEASE-17).
//!
//! A runtime of its own: a tool, a disk or a busy session on the main one cannot delay a beat.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Runs until it is dropped.
#[derive(Debug)]
pub struct HeartbeatThread {
    handle: Handle,
    // Dropping it ends the thread.
    _end: oneshot::Sender<()>,
}

impl HeartbeatThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or no event queue to be had.
    pub fn start() -> io::Result<HeartbeatThread> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            // An error means that the other end was dropped, which is the signal.
            let _dropped = runtime.block_on(ended);
        })?;
        Ok(HeartbeatThread { handle, _end: end })
    }

    /// Where leases are kept.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn beats_go_on_while_the_main_runtime_is_blocked() {
        // LEASE-17.
        let thread = HeartbeatThread::start().expect("a thread");
        let (sender, receiver) = std::sync::mpsc::channel();
        thread.handle().spawn(async move {
            for beat in 0..3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                sender.send(beat).expect("heard");
            }
        });
        let main = Builder::new_current_thread().build().expect("a runtime");
        // The only thread of the main runtime waits, as a tool that blocks would make it.
        main.block_on(async {
            for beat in 0..3 {
                assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(beat));
            }
        });
    }
}
