//! The key reader: a process that can read files with secrets after the worker no longer can.
//!
//! The worker gives up root before it serves. So that a new key can be dropped in place, this same
//! program is started before that, under another name, with an empty environment and two pipes. It
//! keeps its user id, gives up everything else ([`jail::confine_key_reader`]), and on each request
//! reads one of the files that it was started for, with the checks of the first time. What is in them is
//! for whoever asks. It is single-threaded and ends with the worker, at the end of its input. (The signal
//! at the parent's death comes through without root only: it is sent with the rights that the parent
//! has left.)
//!
//! A request is one byte, the number of a file. An answer is one byte of kind, four of length, and as
//! many more.

use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use stockade_runtime::host::Level;
use stockade_runtime::jail::{self, ReaderDomain};
use zeroize::Zeroizing;

use super::error::{KeyError, Secret};
use super::file::{self, Trust};
use super::hidden;

/// The name by which this program knows that it is to be the key reader.
const NAME: &str = "stockade-key-reader";
/// How long an answer may take: longer only for a file system that hangs.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Longest file.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most files: their numbers are bytes.
const FILES_MAX: usize = 255;

const READY: u8 = b'r';
const VALUE: u8 = b'v';
const ERROR: u8 = b'e';

/// A file that is to be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it holds.
    pub what: Secret,
    /// Who vouches for it.
    pub trust: Trust,
    /// As it was named; relative paths are of the directory that the worker was started in.
    pub path: PathBuf,
}

/// The files that can be read again. Cheap to clone: one process reads for all.
#[derive(Debug, Clone)]
pub struct Again {
    files: Arc<[PathBuf]>,
    reader: Arc<Mutex<KeyReader>>,
}

impl Again {
    /// Starts the key reader for `files`, or nothing if there are none. Files whose directory is not
    /// there are left out. Call from the main thread, before the rights are given up: the reader dies
    /// with the thread that started it.
    ///
    /// # Errors
    /// If it cannot be started or confined, or there are too many files.
    pub fn start(files: &[Kept], level: Level) -> Result<Option<Again>, KeyError> {
        let absolute = |kept: &Kept| {
            let path = std::path::absolute(&kept.path).unwrap_or_else(|_| kept.path.clone());
            Kept { path, ..kept.clone() }
        };
        let (mut names, mut kept) = (Vec::new(), Vec::new());
        for (file, found) in files.iter().map(|file| (file, absolute(file))) {
            if directory(&found.path).is_dir() && !names.contains(&file.path) {
                names.push(file.path.clone());
                kept.push(found);
            }
        }
        if kept.is_empty() {
            return Ok(None);
        }
        let reader = Arc::new(Mutex::new(KeyReader::start(&kept, level)?));
        Ok(Some(Again { files: names.into(), reader }))
    }

    /// Whether the key reader was started for this file.
    pub fn has(&self, path: &Path) -> bool {
        self.files.iter().any(|file| file == path)
    }

    /// The bytes that are in a file now, checked as at the start. Waits for at most [`ANSWER_MAX`]: in
    /// async code call it where blocking is allowed.
    ///
    /// # Errors
    /// As [`file::read_bytes`]; a file that is too long; [`KeyError::ReaderGone`] also for a file that
    /// was not named at the start.
    pub fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let number = self.files.iter().position(|file| file == path);
        let number = number.and_then(|number| u8::try_from(number).ok());
        let number = number.ok_or(KeyError::ReaderGone)?;
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).ask(number)
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Turns this process into the key reader if it was started as one. Call early in `main`.
pub fn become_key_reader_if_asked() {
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != NAME) {
        return;
    }
    hidden::set_process_name("key-reader");
    let level = arguments.next().is_some_and(|level| level == "root");
    let level = if level { Level::Root } else { Level::Rootless };
    let mut files = Vec::new();
    while let (Some(about), Some(path)) = (arguments.next(), arguments.next()) {
        let about = about.to_str().and_then(|about| serde_json::from_str(about).ok());
        let Some((what, trust)) = about else { std::process::exit(1) };
        files.push(Kept { what, trust, path: path.into() });
    }
    // An error means that nobody listens any more.
    let ended = serve(&files, level);
    std::process::exit(i32::from(ended.is_err()))
}

fn serve(files: &[Kept], level: Level) -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut directories: Vec<&Path> = files.iter().map(|file| directory(&file.path)).collect();
    directories.sort_unstable();
    directories.dedup();
    match jail::confine_key_reader(level, &directories) {
        Ok(domain) => answer(READY, &[u8::from(domain == ReaderDomain::Landlock)])?,
        Err(error) => {
            let reason = format!("{error}: {}", error.source);
            return refuse(&KeyError::ReaderStart { reason });
        }
    }
    let mut request = [0];
    while input.read(&mut request)? == 1 {
        match files.get(usize::from(request[0])).map(read) {
            Some(Ok(bytes)) => answer(VALUE, &bytes)?,
            Some(Err(error)) => refuse(&error)?,
            None => refuse(&KeyError::ReaderGone)?,
        }
    }
    Ok(())
}

fn read(file: &Kept) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let (what, max) = (file.what, FILE_BYTES_MAX);
    let bytes = file::read_bytes(what, &file.path, file.trust, max)?;
    if bytes.len() as u64 > max {
        let from = file.path.display().to_string();
        return Err(KeyError::TooLong { what, from, max });
    }
    Ok(bytes)
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
struct KeyReader {
    /// Not waited for: it ends when `to` is closed.
    _child: Child,
    to: Option<ChildStdin>,
    from: ChildStdout,
    answer_max: Duration,
}

impl KeyReader {
    /// Starts it and waits until it is confined.
    fn start(files: &[Kept], level: Level) -> Result<KeyReader, KeyError> {
        let started = |error: io::Error| KeyError::ReaderStart { reason: error.to_string() };
        if files.len() > FILES_MAX {
            let reason = format!("more than {FILES_MAX} files are named");
            return Err(KeyError::ReaderStart { reason });
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg0(NAME).arg(level.to_string());
        for file in files {
            let about = serde_json::to_string(&(file.what, file.trust));
            command.arg(about.map_err(|error| started(error.into()))?).arg(&file.path);
        }
        let mut child = command
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

    /// What is in a file now.
    fn ask(&mut self, number: u8) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let to = self.to.as_mut().ok_or(KeyError::ReaderGone)?;
        let asked = to.write_all(&[number]).map_err(|_| KeyError::ReaderGone);
        let answer = asked.and_then(|()| self.receive());
        match answer {
            Ok((VALUE, bytes)) => Ok(bytes),
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
        if u64::from(length) > FILE_BYTES_MAX {
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
            assert_eq!(reader.ask(0).expect_err(script), KeyError::ReaderGone, "{script}");
            assert!(start.elapsed() < Duration::from_secs(2), "{script}");
            assert_eq!(
                reader.ask(0).expect_err(script),
                KeyError::ReaderGone,
                "for good: {script}"
            );
        }
        let mut good = instead("head -c 1 >/dev/null; printf 'v\\003\\000\\000\\000abc'");
        assert_eq!(good.ask(0).expect("an answer").as_slice(), b"abc");
    }
}
