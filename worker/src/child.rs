//! One process of ours with everything it starts, ended as a whole: with us, and before that at our
//! wish.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// A process in a group of its own. When this is dropped, the whole group is killed.
#[derive(Debug)]
pub struct Group {
    child: Child,
    /// Its standard input, if that is a pipe: the end of it is the end of us.
    _line: Option<ChildStdin>,
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
            Some(number) => {
                // Kept from `wait` of the standard library, which would close it.
                let _line = child.stdin.take();
                Ok(Group { child, _line, number, ended: false })
            }
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

    /// Waits for its end, and kills what it left in its group. May be dropped and asked again.
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
        // So is the number of the group.
        self.kill();
        let status = self.child.wait()?;
        self.ended = true;
        Ok(status)
    }

    /// To be called only before the process is reaped.
    fn kill(&self) {
        // Nobody may be left in it.
        let _gone = rustix::process::kill_process_group(self.number, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.kill();
        // Killed, so it does not take long.
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_a_process_leaves_in_its_group_ends_with_it() {
        // INV-10: its own end is no reason to let it go on.
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 7304 & echo $! >\"$0\"; exit 3"]).arg(file.path());
        let mut group = Group::start(&mut command).expect("started");
        let status = group.wait().await.expect("waited");
        assert_eq!(status.code(), Some(3));
        let left = std::fs::read_to_string(file.path()).expect("read");
        let left = left.trim();
        let line = format!("/proc/{left}/cmdline");
        let runs = || std::fs::read(&line).is_ok_and(|line| line.starts_with(b"sleep\0"));
        for _ in 0..200 {
            if !runs() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let _killed = Command::new("kill").args(["-9", left]).status();
        panic!("{left} outlived its group");
    }
}
