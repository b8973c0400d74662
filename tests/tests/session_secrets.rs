//! Credentials stay in the control process: not in logs, not in records, not in any other process of
//! the run, not within sight of a session (INV-1, INV-6, AUTH-8 to AUTH-10).

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;

use e2e::exec::{give, status_field};
use e2e::play::{SOON, bash, passed, session};
use e2e::{Devserver, Level, Need, Poll, Worker, require};
use serde_json::json;

/// Planted; nothing in the program looks like it.
const KEY: &str = "sk-ant-oat01-e2e-planted-7d3f9a1c55";
/// How session tokens and work secrets of the server begin. A program has the former as text.
const TOKEN: &str = "sk-ant-req-dev-";
const WORK_SECRET: &str = "eyJhcGlfYmFzZV91cmwi";
/// Reads of memory; a mapping is larger at times.
const CHUNK: usize = 1 << 20;
/// Longer than any of the secrets.
const OVERLAP: usize = 64;

/// Where the secrets are written in what a process can write to; `None` if it is gone.
fn secrets_in(pid: u32) -> Option<Vec<String>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let mut at = from;
        let mut before = Vec::new();
        while at < to {
            let length = CHUNK.min(usize::try_from(to - at).ok()?);
            let mut chunk = vec![0; length];
            if memory.seek(SeekFrom::Start(at)).is_err() || memory.read_exact(&mut chunk).is_err() {
                break;
            }
            let joined = [before.as_slice(), &chunk].concat();
            for secret in [KEY, TOKEN, WORK_SECRET] {
                if pages(&joined).any(|page| holds(page, secret)) {
                    found.push(format!("{} in {line}", &secret[..12]));
                }
            }
            before = chunk[chunk.len().saturating_sub(OVERLAP)..].to_vec();
            at += length as u64;
        }
    }
    Some(found)
}

/// Pieces that are not empty, each with the end of the one before. Most memory is empty.
fn pages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const PAGE: usize = 4096;
    let written = |at: &usize| {
        let page = &bytes[*at..bytes.len().min(at + PAGE)];
        page != &[0; PAGE][..page.len()]
    };
    let piece = |at: usize| &bytes[at.saturating_sub(OVERLAP)..bytes.len().min(at + PAGE)];
    (0..bytes.len()).step_by(PAGE).filter(written).map(piece)
}

/// Finds a secret; of a token its beginning only with what comes behind it.
fn holds(bytes: &[u8], secret: &str) -> bool {
    let more = usize::from(secret == TOKEN);
    bytes.windows(secret.len() + more).any(|window| {
        window.starts_with(secret.as_bytes())
            && window[secret.len()..].iter().all(u8::is_ascii_alphanumeric)
    })
}

fn file_holds(path: &str) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    [KEY, TOKEN, WORK_SECRET].iter().any(|secret| holds(&bytes, secret))
}

/// What bash finds of secrets wherever it may look.
const LOOK: &str = r#"found=
look() { grep -aqsE 'oat01-e2e-[p]lanted|sk-ant-[r]eq-dev-|[e]yJhcGlfYmFzZV91' "$@" && found="$found $*"; }
env | look
for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/self/mountinfo /proc/keys; do look "$file"; done
look -r /workspace /tmp /etc /dev/shm /mnt /home /run /var 2>/dev/null
for fd in /proc/[0-9]*/fd/*; do [[ -f $fd ]] && look "$fd"; done
echo "found:$found""#;

fn serve(level: Level, format: &str, by_file: bool) {
    let server = Devserver::with("", &["--environment-key", KEY]);
    let mut play = session("looks", [bash(LOOK), json!({"bash": "sleep 44", "wait": false})]);
    play["end"] = json!("open");
    play["calls"][0]["expect"] = json!({"text": "found:"});
    server.push(&play);
    let mut poll = Poll::at(level).options(["--log-level", "trace", "--log-format", format]);
    if by_file {
        let file = poll.home().join("key");
        fs::write(&file, KEY).expect("cannot write a key");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("cannot chmod");
        give(&file, level);
        poll = poll.path("--environment-key-file", &file);
    }
    let worker = poll.serve(&server);
    assert!(e2e::poll::wait_for(SOON, || server.state()["sessions"][0]["answered"] == 1));
    let began = || worker.audited().iter().filter(|one| one["event"] == "call.started").count();
    assert!(e2e::poll::wait_for(SOON, || began() == 2));
    look_at_processes(&worker, by_file);
    server.dev("POST", "sessions/looks/steps", &json!([{"terminate": true}]));
    server.wait_done(SOON);
    let ran = worker.stop().ended(0);
    passed(server.end(), &ran.stderr);
    assert!(ran.stderr.len() > 1000, "nothing was logged: {}", ran.stderr);
    for (what, text) in [
        ("the log", ran.stderr.as_bytes().to_vec()),
        ("standard output", ran.stdout.as_bytes().to_vec()),
        ("the audit log", fs::read(ran.audit_file()).expect("a log")),
    ] {
        for secret in [KEY, TOKEN, WORK_SECRET] {
            assert!(!holds(&text, secret), "AUTH-8: {what} holds {secret}");
        }
    }
}

fn look_at_processes(worker: &Worker, by_file: bool) {
    let control = worker.pid();
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // The second call has begun, so bash and its child will be there.
    let sleeps = || worker.processes().iter().any(|pid| name(*pid).trim() == "sleep");
    assert!(e2e::poll::wait_for(SOON, sleeps), "{}", worker.said());
    let processes = worker.processes();
    let names: Vec<String> = processes.iter().map(|pid| name(*pid).trim().to_owned()).collect();
    assert!(names.contains(&"bash".to_owned()) && names.contains(&"sleep".to_owned()), "{names:?}");
    for pid in &processes {
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{file}");
            assert!(!file_holds(&path), "INV-1: {path} of {}", name(*pid));
        }
    }
    // The control: the same search finds the key and the token where they must be.
    let found = secrets_in(control).expect("it runs").join("\n");
    assert!(
        found.contains("sk-ant-oat01") && found.contains("sk-ant-req-d"),
        "no control: {found}"
    );
    let mut searched = 0;
    for (pid, name) in processes.iter().zip(&names).filter(|(pid, _)| **pid != control) {
        let reads_keys = by_file && status_field(*pid, "PPid:") == Some(control.to_string());
        let Some(found) = secrets_in(*pid) else { continue };
        searched += 1;
        // The key reader has been started to read the key; it makes no jail and is in none.
        let tolerated = reads_keys && name.contains("key");
        assert!(found.is_empty() || tolerated, "INV-1: {name} ({pid}) holds {found:#?}");
    }
    assert!(searched >= 5, "only {searched} of {names:?} could be searched");
}

#[test]
fn no_credential_leaves_the_control_process() {
    require!(Need::Root);
    for level in Level::here() {
        serve(level, "json", false);
    }
}

#[test]
fn no_credential_of_a_file_leaves_the_control_process() {
    require!(Need::Root);
    for level in Level::here() {
        serve(level, "text", true);
    }
}

#[test]
fn a_session_cannot_read_what_belongs_to_the_worker() {
    // INV-6, AUTH-10: neither memory nor descriptors, nor the worker's files by their names.
    for level in Level::here() {
        let server = Devserver::with("", &[]);
        let poll = Poll::at(level);
        let (audit, state) = (poll.audit_file(), poll.state());
        let command = format!(
            "ls {} {} /proc/1/fd /proc/1/mem 2>&1 | grep -vc 'No such file\\|ermission denied'; \
             cat /proc/1/environ 2>&1 | tr -d '\\0' | grep -c ANTHROPIC",
            audit.display(),
            state.display()
        );
        let mut play = session("looks", [bash(&command)]);
        play["calls"][0]["expect"] = json!({"matches": "^[0-9]+\n0\nexit code: 1$"});
        server.push(&play);
        let worker = poll.serve(&server);
        server.wait_done(SOON);
        let ran = worker.stop().ended(0);
        passed(server.end(), &ran.stderr);
    }
}
