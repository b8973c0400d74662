//! One process of ours with everything it starts, ended as a whole.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, ExitStatus};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// A process in a group of its own. When this is dropped, the whole group is killed.
#[derive(Debug)]
pub struct Group {
    child: Child,
    number: Pid,
    ended: bool,
}

impl Group {
    /// Starts `command`.
    ///
    /// # Errors
    /// It cannot be started; nothing is left running then.
    pub fn start(command: &mut Command) -> io::Result<Group> {
        let mut child = command.process_group(0).spawn()?;
        match Pid::from_raw(child.id().cast_signed()) {
            Some(number) => Ok(Group { child, number, ended: false }),
            None => {
                child.kill()?;
                child.wait()?;
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }

    /// Its standard output, once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for its end. May be dropped and asked again.
    ///
    /// # Errors
    /// The kernel does not know it.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let number = self.number;
        // Not reaped there: until we do it here, the number is nobody else's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let waiting = tokio::task::spawn_blocking(move || {
            rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::Pid(number), options))
        });
        waiting.await.map_err(io::Error::other)??;
        let status = self.child.wait()?;
        self.ended = true;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let _gone = rustix::process::kill_process_group(self.number, Signal::KILL);
        // Killed, so it does not take long.
        let _reaped = self.child.wait();
    }
}
