//! Input from git: one commit, fetched by the host's `git` into a repository of ours and written as an
//! archive, which the jail's porter unpacks.
//!
//! `git` runs as the control side, with an environment of five variables and a configuration that is
//! this file's: nobody's hooks, includes, helpers, filters, attributes or file system monitor take
//! effect, and the remote's configuration is never read. A repository of this host is not asked to
//! serve: only its objects are read. Credentials stand in that configuration, a file of the control
//! side's, and in no argument or variable. By way of the git starter (`git_starter.rs`) every git has
//! bounds of its own for memory, files and time, writes below its repository only, and ends with us.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use stockade_runtime::jail::GitBounds;
use stockade_runtime::policy::stage::{Scheme, StagePlace};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::Outside;
use super::dial;
use super::error::Fault;
use super::git_starter::{self, Ended};
use super::request::Wanted;
use super::sink::{Fetched, Room, Sink};
use crate::child::Group;

/// Where git is looked for.
const PLACES: [&str; 3] = ["/usr/bin/git", "/usr/local/bin/git", "/bin/git"];
/// The first that can be told which address a name has (`http.curloptResolve`). Without it the name
/// would be looked up a second time, and could then lead elsewhere.
const VERSION_MIN: (u32, u32) = (2, 37);
/// How long git may take to say its version, and how much of it is read.
const VERSION_TIME_MAX: Duration = Duration::from_secs(5);
const VERSION_BYTES_MAX: u64 = 256;
/// How often the size of what is being fetched is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Most files of a repository that are looked at.
const FILES_MAX: usize = 4096;
const CHUNK_BYTES: usize = 1 << 18;
/// Memory of each process of git: as much as may be fetched, within these.
const MEMORY_MIN: u64 = 192 << 20;
const MEMORY_MAX: u64 = 1 << 30;
/// What a file of git's may be larger than what it holds of the fetched bytes.
const FILE_ALLOWANCE: u64 = 1 << 20;

/// The host's git.
#[derive(Debug, Clone)]
pub struct Git {
    program: PathBuf,
}

/// Why there is none that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// Not found.
    #[error("cannot find git, which a staging rule needs")]
    Missing,
    /// It does not run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too old.
    #[error("cannot use {program}: it is older than 2.37, which pins the addresses of a name")]
    Old {
        /// Which.
        program: PathBuf,
    },
}

impl Git {
    /// Finds git, `program` if one was named.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn find(program: Option<&Path>) -> Result<Git, GitError> {
        let usual = || PLACES.iter().map(PathBuf::from).find(|path| path.is_file());
        let program = program.map(Path::to_owned).or_else(usual).ok_or(GitError::Missing)?;
        let said = ask_version(&program)
            .map_err(|source| GitError::Run { program: program.clone(), source })?;
        match version(&said) {
            Some(version) if version >= VERSION_MIN => Ok(Git { program }),
            _ => Err(GitError::Old { program }),
        }
    }

    /// Fetches the commit that `wanted` names, as an archive.
    pub(super) async fn fetch(
        &self,
        outside: &Outside,
        room: &Room,
        wanted: &Wanted,
        sink: Sink,
    ) -> Result<Fetched, Fault> {
        let commit = wanted.commit.as_deref().ok_or(Fault::Git { doing: "know the commit" })?;
        let kept = |source| Fault::Room { source };
        let bounds = bounds(sink.max(), wanted.rule.time_max);
        let repository = Repository::make(room.scratch(), bounds).map_err(kept)?;
        let mut config = configuration(commit.len(), &room.authorities());
        match wanted.place.scheme() {
            Scheme::File => {
                let objects = objects_of(&wanted.place)?;
                repository.borrow_objects(&objects).map_err(kept)?;
                repository.configure(&config).map_err(kept)?;
            }
            _ => {
                config.push_str(&connection(outside, wanted).await?);
                repository.configure(&config).map_err(kept)?;
                let url = wanted.place.to_string();
                let refspec = format!("{commit}:refs/heads/staged");
                let fetch = [
                    "fetch",
                    "--quiet",
                    "--depth=1",
                    "--no-tags",
                    "--no-write-fetch-head",
                    "--no-recurse-submodules",
                    "--no-auto-maintenance",
                    "--",
                    &url,
                    &refspec,
                ];
                self.watched(&repository, &fetch, sink.max()).await?;
            }
        }
        self.verify(&repository, commit, sink.max()).await?;
        self.archive(&repository, commit, sink).await
    }

    /// Runs git until it ends or what it writes is too large.
    async fn watched(
        &self,
        repository: &Repository,
        words: &[&str],
        max: u64,
    ) -> Result<(), Fault> {
        let mut command = self.command(repository, words);
        let mut group = Group::start(command.stdout(Stdio::null())).map_err(not_run)?;
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut ended = std::pin::pin!(group.wait());
        loop {
            tokio::select! {
                ended = &mut ended => {
                    let ended = Ended::of(ended.map_err(not_run)?);
                    return judged(ended, max, repository, "fetch the commit");
                }
                _ = look.tick() => {
                    let size = size_of(&repository.path, &mut 0);
                    if size > max {
                        return Err(Fault::TooLarge { max });
                    }
                }
            }
        }
    }

    /// Whether what was fetched is that commit, and not a tag or something that is not there.
    async fn verify(&self, repository: &Repository, commit: &str, max: u64) -> Result<(), Fault> {
        let name = format!("{commit}^{{commit}}");
        let words = ["rev-parse", "--quiet", "--verify", "--end-of-options", &name];
        let mut said = Vec::new();
        let mut running = self.start(repository, &words)?;
        while let Some(chunk) = running.chunk().await? {
            said.extend_from_slice(chunk);
            if said.len() > 256 {
                return Err(Fault::Git { doing: "tell the commit" });
            }
        }
        let doing = "find the commit";
        judged(running.ended().await?, max, repository, doing)?;
        match said.trim_ascii() == commit.as_bytes() {
            true => Ok(()),
            false => Err(Fault::Git { doing }),
        }
    }

    async fn archive(
        &self,
        repository: &Repository,
        commit: &str,
        mut sink: Sink,
    ) -> Result<Fetched, Fault> {
        let mut running = self.start(repository, &["archive", "--format=tar", commit])?;
        while let Some(chunk) = running.chunk().await? {
            sink.push(chunk).await?;
        }
        let doing = "write the commit as an archive";
        judged(running.ended().await?, sink.max(), repository, doing)?;
        sink.finish().await
    }

    /// Runs git; what it prints is to be read.
    fn start(&self, repository: &Repository, words: &[&str]) -> Result<Running, Fault> {
        let mut command = self.command(repository, words);
        let mut group = Group::start(command.stdout(Stdio::piped())).map_err(not_run)?;
        let stdout = group.stdout().ok_or(Fault::Git { doing: "run" })?;
        let stdout = pipe::Receiver::from_owned_fd(OwnedFd::from(stdout)).map_err(not_run)?;
        Ok(Running { group, stdout, chunk: vec![0; CHUNK_BYTES] })
    }

    fn command(&self, repository: &Repository, words: &[&str]) -> Command {
        let mut command =
            git_starter::command(&self.program, &repository.bounds, &repository.path, words);
        // What a server says on standard error is not ours to repeat.
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/local/bin")
            .env("HOME", &repository.path)
            .env("LC_ALL", "C")
            .env("GIT_DIR", &repository.path)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ALLOW_PROTOCOL", "https")
            .current_dir(&repository.path)
            .stderr(Stdio::null());
        command
    }
}

/// A git that prints something.
#[derive(Debug)]
struct Running {
    group: Group,
    stdout: pipe::Receiver,
    chunk: Vec<u8>,
}

impl Running {
    /// The next piece; none at the end.
    async fn chunk(&mut self) -> Result<Option<&[u8]>, Fault> {
        let read = self.stdout.read(&mut self.chunk).await.map_err(not_run)?;
        Ok((read > 0).then(|| &self.chunk[..read]))
    }

    async fn ended(mut self) -> Result<Ended, Fault> {
        Ok(Ended::of(self.group.wait().await.map_err(not_run)?))
    }
}

fn not_run(_: io::Error) -> Fault {
    Fault::Git { doing: "run" }
}

/// Memory that git may use to fetch `bytes_max` bytes.
pub(super) fn memory_max(bytes_max: u64) -> u64 {
    bytes_max.clamp(MEMORY_MIN, MEMORY_MAX)
}

/// What each process of git may use to fetch `bytes_max` bytes within `time_max`: the largest commit,
/// tree or changed file has to fit into memory.
fn bounds(bytes_max: u64, time_max: Duration) -> GitBounds {
    GitBounds {
        memory_bytes_max: memory_max(bytes_max),
        file_bytes_max: bytes_max.saturating_add(FILE_ALLOWANCE),
        cpu_seconds_max: time_max.as_secs() + 1,
    }
}

/// What the end of git means that was to do this.
fn judged(
    ended: Ended,
    max: u64,
    repository: &Repository,
    doing: &'static str,
) -> Result<(), Fault> {
    match ended {
        Ended::Done => Ok(()),
        Ended::Failed => Err(Fault::Git { doing }),
        Ended::NotStarted => Err(Fault::Git { doing: "run within its bounds" }),
        Ended::Memory => Err(Fault::GitMemory { max: repository.bounds.memory_bytes_max }),
        Ended::FileSize => Err(Fault::TooLarge { max }),
        Ended::Time => {
            let max = Duration::from_secs(repository.bounds.cpu_seconds_max);
            Err(Fault::TimedOut { max })
        }
    }
}

/// Everything of the configuration that does not depend on the server.
fn configuration(commit_digits: usize, authorities: &Path) -> String {
    let format = match commit_digits {
        64 => "[core]\nrepositoryformatversion = 1\n[extensions]\nobjectformat = sha256\n",
        _ => "[core]\nrepositoryformatversion = 0\n",
    };
    format!(
        "{format}\
[core]\nbare = true\nhooksPath = /dev/null\nfsmonitor = false\nattributesFile = /dev/null\n\
askPass =\nsshCommand = false\ngitProxy =\nbigFileThreshold = 1m\n\
[protocol]\nallow = never\nversion = 2\n[protocol \"https\"]\nallow = always\n\
[credential]\nhelper =\n\
[gc]\nauto = 0\n[maintenance]\nauto = false\n\
[fetch]\nfsckObjects = true\nunpackLimit = 1\nrecurseSubmodules = false\nwriteCommitGraph = false\n\
[transfer]\nfsckObjects = true\nbundleURI = false\ncredentialsInUrl = die\n\
[submodule]\nrecurse = false\n[pack]\nthreads = 1\n[tar]\numask = 0022\n\
[http]\nproxy =\nsslVerify = true\nsslCAInfo = {}\nfollowRedirects = false\nsaveCookies = false\n\
lowSpeedLimit = 1\nlowSpeedTime = 30\n",
        quoted(&authorities.display().to_string())
    )
}

/// The part that does: the checked addresses of the name, and the credential of the host.
async fn connection(outside: &Outside, wanted: &Wanted) -> Result<String, Fault> {
    let place = &wanted.place;
    let Some(host) = place.host() else { return Err(Fault::Git { doing: "tell the host" }) };
    let private = wanted.rule.kind.private();
    let addresses = dial::addresses(&outside.outbound, host, place.port(), private).await?;
    let addresses: Vec<String> = addresses
        .iter()
        .map(|address| match address.ip() {
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            ip => ip.to_string(),
        })
        .collect();
    let pinned = format!("{host}:{}:{}", place.port(), addresses.join(","));
    let mut text = format!("curloptResolve = {}\n", quoted(&pinned));
    if let Some(header) = outside.keys().git_header(place) {
        let url = format!("https://{host}:{}/", place.port());
        text.push_str(&format!(
            "[http {}]\nextraHeader = {}\n",
            quoted(&url),
            quoted(header.expose_secret())
        ));
    }
    Ok(text)
}

/// A value of git's configuration. Hosts and keys have no control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Where the objects of a repository of this host are.
fn objects_of(place: &StagePlace) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(format!("/{}", place.path()));
    let found = [path.join("objects"), path.join(".git/objects")];
    let found = found.into_iter().find(|path| path.is_dir());
    // A link could lead out of the places that the rule allows.
    let straight = |path: &PathBuf| fs::canonicalize(path).is_ok_and(|real| real == *path);
    found.filter(straight).ok_or(Fault::Git { doing: "read a repository there" })
}

/// A bare repository that is gone when this is dropped.
#[derive(Debug)]
struct Repository {
    path: PathBuf,
    /// Of every git that uses it.
    bounds: GitBounds,
}

impl Repository {
    fn make(scratch: &Path, bounds: GitBounds) -> io::Result<Repository> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = scratch.join(format!("git-{}-{number}", std::process::id()));
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700).create(&path)?;
        let repository = Repository { path, bounds };
        builder.recursive(true).create(repository.path.join("refs/heads"))?;
        builder.create(repository.path.join("objects/info"))?;
        fs::write(repository.path.join("HEAD"), "ref: refs/heads/staged\n")?;
        Ok(repository)
    }

    fn configure(&self, text: &str) -> io::Result<()> {
        use std::io::Write as _;
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(self.path.join("config"))?.write_all(text.as_bytes())
    }

    /// Lets git read the objects at `path`, and nothing else of that repository.
    fn borrow_objects(&self, path: &Path) -> io::Result<()> {
        fs::write(self.path.join("objects/info/alternates"), format!("{}\n", path.display()))
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(event = "stage.not_removed", error = %error, "a repository is left over");
        }
    }
}

/// Bytes of all files below; more than any bound if there are too many files.
fn size_of(directory: &Path, seen: &mut usize) -> u64 {
    let mut size = 0_u64;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        *seen += 1;
        if *seen > FILES_MAX {
            return u64::MAX;
        }
        let Ok(about) = entry.metadata() else { continue };
        let more = if about.is_dir() { size_of(&entry.path(), seen) } else { about.len() };
        size = size.saturating_add(more);
    }
    size
}

/// What `git version` prints, within a bounded time.
fn ask_version(program: &Path) -> io::Result<String> {
    let mut command = Command::new(program);
    command.env_clear().arg("version").stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let began = std::time::Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > VERSION_TIME_MAX {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(VERSION_BYTES_MAX).read_to_string(&mut said)?;
    }
    Ok(said)
}

/// `git version 2.47.3 …`
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("git version ")?.split(['.', ' ', '\n', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_git_writes_them() {
        for (text, want) in [
            ("git version 2.47.3\n", Some((2, 47))),
            ("git version 2.39.5 (Apple Git-154)\n", Some((2, 39))),
            ("git version 2.45.0-rc1", Some((2, 45))),
            ("git version 3.0", Some((3, 0))),
            ("hub version 2.1", None),
            ("", None),
        ] {
            assert_eq!(version(text), want, "{text}");
        }
    }

    #[test]
    fn memory_is_bounded_by_what_may_be_fetched_from_both_sides() {
        // INV-11.
        let memory = |bytes| bounds(bytes, Duration::from_secs(5)).memory_bytes_max >> 20;
        assert_eq!([1, 256 << 20, 64 << 30].map(memory), [192, 256, 1024]);
        let bounds = bounds(1 << 30, Duration::from_millis(1_500));
        assert_eq!((bounds.file_bytes_max, bounds.cpu_seconds_max), ((1 << 30) + (1 << 20), 2));
    }

    #[test]
    fn nothing_of_anybody_elses_can_be_run_by_our_configuration() {
        let text = configuration(40, Path::new("/a \"b\"/c.pem"));
        for line in [
            "hooksPath = /dev/null",
            "fsmonitor = false",
            "allow = never",
            "helper =",
            "followRedirects = false",
            "sslCAInfo = \"/a \\\"b\\\"/c.pem\"",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        assert!(!text.contains("include") && !text.contains("objectformat"), "{text}");
        assert!(configuration(64, Path::new("/x")).contains("objectformat = sha256"));
    }
}
