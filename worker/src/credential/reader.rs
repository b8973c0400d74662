//! The key reader: a process that can read the key file after the worker no longer can.
//!
//! The worker gives up root before it serves. So that a new key can be dropped in place, this same
//! program is started before that, under another name, with an empty environment and two pipes. It
//! keeps its user id, gives up everything else ([`jail::confine_key_reader`]), and on each request
//! reads the one file that it was started for, with the checks of the first time. It is
//! single-threaded and ends with the worker, at the end of its input. (The signal at the parent's
//! death comes through without root only: it is sent with the rights that the parent has left.)
//!
//! An answer is one byte of kind, four of length, and as many more.

use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use secrecy::{ExposeSecret as _, SecretString};
use stockade_runtime::host::Level;
use stockade_runtime::jail::{self, ReaderDomain};
use zeroize::Zeroizing;

use super::error::{KeyError, Secret};
use super::file::{self, BYTES_MAX, Trust};
use super::hidden;

/// The name by which this program knows that it is to be the key reader.
const NAME: &str = "stockade-key-reader";
/// How long an answer may take: longer only for a file system that hangs.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);

const READY: u8 = b'r';
const VALUE: u8 = b'v';
const ERROR: u8 = b'e';

/// Turns this process into the key reader if it was started as one. Call early in `main`.
pub fn become_key_reader_if_asked() {
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != NAME) {
        return;
    }
    hidden::set_process_name("key-reader");
    let (level, trust) = (arguments.next(), arguments.next());
    let level = if level.is_some_and(|l| l == "root") { Level::Root } else { Level::Rootless };
    let service = trust.is_some_and(|trust| trust == "service-manager");
    let trust = if service { Trust::ServiceManager } else { Trust::Owner };
    let path = PathBuf::from(arguments.next().unwrap_or_default());
    // An error means that nobody listens any more.
    let ended = serve(&path, trust, level);
    std::process::exit(i32::from(ended.is_err()))
}

fn serve(path: &Path, trust: Trust, level: Level) -> io::Result<()> {
    let mut input = io::stdin().lock();
    let directory = path.parent().unwrap_or(Path::new("/"));
    match jail::confine_key_reader(level, directory) {
        Ok(domain) => answer(READY, &[u8::from(domain == ReaderDomain::Landlock)])?,
        Err(error) => {
            let reason = format!("{error}: {}", error.source);
            return refuse(&KeyError::ReaderStart { reason });
        }
    }
    let mut request = [0];
    while input.read(&mut request)? == 1 {
        match file::read(Secret::EnvironmentKey, path, trust) {
            Ok(key) => answer(VALUE, key.expose_secret().as_bytes())?,
            Err(error) => refuse(&error)?,
        }
    }
    Ok(())
}

fn refuse(error: &KeyError) -> io::Result<()> {
    answer(ERROR, &serde_json::to_vec(error)?)
}

fn answer(kind: u8, bytes: &[u8]) -> io::Result<()> {
    // Past the standard library's buffer, which would keep it.
    let mut message = Zeroizing::new(Vec::with_capacity(5 + bytes.len()));
    message.push(kind);
    message.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    message.extend_from_slice(bytes);
    let mut rest = message.as_slice();
    while !rest.is_empty() {
        let written = match rustix::io::write(rustix::stdio::stdout(), rest) {
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        rest = &rest[written..];
    }
    Ok(())
}

/// A key reader that this process started.
#[derive(Debug)]
pub struct KeyReader {
    /// Not waited for: it ends when `to` is closed.
    _child: Child,
    to: Option<ChildStdin>,
    from: ChildStdout,
    answer_max: Duration,
}

impl KeyReader {
    /// Starts it and waits until it is confined.
    pub fn start(path: &Path, trust: Trust, level: Level) -> Result<KeyReader, KeyError> {
        let started = |error: io::Error| KeyError::ReaderStart { reason: error.to_string() };
        let trust = match trust {
            Trust::Owner => "owner",
            Trust::ServiceManager => "service-manager",
        };
        let mut child = Command::new("/proc/self/exe")
            .arg0(NAME)
            .args([level.to_string().as_str(), trust])
            .arg(path)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(started)?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let from = from.ok_or_else(|| started(io::ErrorKind::BrokenPipe.into()))?;
        let mut reader = KeyReader { _child: child, to, from, answer_max: ANSWER_MAX };
        match reader.receive()? {
            (READY, detail) => {
                let landlock = detail.first() == Some(&1);
                tracing::debug!(event = "key_reader.ready", landlock, "key reader started");
                Ok(reader)
            }
            _ => Err(KeyError::ReaderGone),
        }
    }

    /// The key as it is in the file now.
    pub fn ask(&mut self) -> Result<SecretString, KeyError> {
        let to = self.to.as_mut().ok_or(KeyError::ReaderGone)?;
        let asked = to.write_all(b"\n").map_err(|_| KeyError::ReaderGone);
        let answer = asked.and_then(|()| self.receive());
        match answer {
            Ok((VALUE, bytes)) => file::parse(Secret::EnvironmentKey, &bytes, "the key reader"),
            Ok(_) | Err(KeyError::ReaderGone) => {
                // Late answers must not be taken for those to later questions.
                self.to = None;
                Err(KeyError::ReaderGone)
            }
            Err(error) => Err(error),
        }
    }

    /// One answer; an error that it reports is returned as such.
    fn receive(&mut self) -> Result<(u8, Zeroizing<Vec<u8>>), KeyError> {
        let deadline = Instant::now() + self.answer_max;
        let header = self.bytes(5, deadline)?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        if u64::from(length) > BYTES_MAX {
            return Err(KeyError::ReaderGone);
        }
        let bytes = self.bytes(length as usize, deadline)?;
        if header[0] == ERROR {
            let error = serde_json::from_slice(&bytes);
            return Err(error.unwrap_or(KeyError::ReaderGone));
        }
        Ok((header[0], bytes))
    }

    fn bytes(&mut self, count: usize, deadline: Instant) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let mut bytes = Zeroizing::new(vec![0; count]);
        let mut read = 0;
        while read < count {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = Timespec::try_from(left).map_err(|_| KeyError::ReaderGone)?;
            let mut waiting = [PollFd::new(&self.from, PollFlags::IN)];
            match poll(&mut waiting, Some(&limit)) {
                Ok(0) => return Err(KeyError::ReaderGone),
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Err(KeyError::ReaderGone),
                Ok(_) => {}
            }
            match self.from.read(&mut bytes[read..]) {
                Ok(0) | Err(_) => return Err(KeyError::ReaderGone),
                Ok(more) => read += more,
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that was started in the key reader's place.
    fn instead(script: &str) -> KeyReader {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let (to, from) = (child.stdin.take(), child.stdout.take().expect("piped"));
        KeyReader { _child: child, to, from, answer_max: Duration::from_millis(300) }
    }

    /// INV-11
    #[test]
    fn a_reader_that_is_silent_slow_dead_or_talks_nonsense_is_given_up_in_time() {
        for script in [
            "exec sleep 3",
            "printf 'v\\003\\000\\000\\000ab'; exec sleep 3",
            "exit 0",
            "printf 'v\\377\\377\\377\\377'; exec sleep 3",
            "printf 'e\\002\\000\\000\\000{}'; exec sleep 3",
        ] {
            let mut reader = instead(script);
            let start = Instant::now();
            assert_eq!(reader.ask().expect_err(script), KeyError::ReaderGone, "{script}");
            assert!(start.elapsed() < Duration::from_secs(2), "{script}");
            assert_eq!(reader.ask().expect_err(script), KeyError::ReaderGone, "for good: {script}");
        }
        let mut good = instead("read a; printf 'v\\003\\000\\000\\000abc'");
        use secrecy::ExposeSecret as _;
        assert_eq!(good.ask().expect("an answer").expose_secret(), "abc");
    }
}
