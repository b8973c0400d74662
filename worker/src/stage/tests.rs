//! Staging as a whole, with a directory in place of a session's workspace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use stockade_runtime::policy::stage::{StageDigest, ValueError};
use stockade_runtime::policy::{Policy, Resolver};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::*;
use crate::config::stage::{StageConfig, open_now};

/// A workspace that is a directory, and remembers what was unpacked where.
struct Fake {
    place: TempDir,
    unpacked: Mutex<Vec<(String, Vec<u8>)>>,
}

impl Fake {
    fn new() -> Fake {
        Fake { place: TempDir::new().expect("a directory"), unpacked: Mutex::default() }
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.place.path().join(path)).ok()
    }
}

fn content(file: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).expect("readable");
    bytes
}

impl Destination for Fake {
    async fn put(
        &self,
        file: OwnedFd,
        path: &str,
        _mode: u32,
        bytes_max: u64,
    ) -> Result<(), LayError> {
        let bytes = content(file);
        assert!(bytes.len() as u64 <= bytes_max, "more than was allowed");
        let path = self.place.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, bytes).map_err(|error| LayError { reason: error.to_string() })
    }

    async fn unpack(
        &self,
        archive: OwnedFd,
        path: &str,
        _entries_max: u64,
        _bytes_max: u64,
    ) -> Result<(), LayError> {
        self.unpacked.lock().expect("unlocked").push((path.to_owned(), content(archive)));
        Ok(())
    }
}

fn policy(text: &str) -> Policy {
    let load = |_: &Path| Ok(format!("schema = 1\n{text}"));
    let resolver = Resolver { groups: &["base"], directories: &[], load: &load };
    resolver.resolve("./p.toml").unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn stager(policy: &Policy, scratch: &TempDir) -> Stager {
    with_room_for(FetchSize::default(), policy, scratch)
}

fn with_room_for(size: FetchSize, policy: &Policy, scratch: &TempDir) -> Stager {
    let room = Room::open(scratch.path(), scratch.path()).expect("a room");
    let roots = Roots::open(policy).expect("roots");
    let budget = Budget::new(size, policy).expect("room");
    let keys = StageConfig::default().load(&|_| None, &open_now).expect("no keys");
    Stager::new(policy, Prepared { room, roots, git: None, keys, budget }, None).expect("a stager")
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A directory that a policy may name: not below `/tmp` by the rules of paths, so beside the tests.
fn root() -> TempDir {
    tempfile::Builder::new().prefix("stage-").tempdir_in("/var/tmp").expect("a directory")
}

const HTTPS: &str = "[[stage]]\nname = \"case\"\nkind = \"https\"\nfrom = \"metadata:file\"\n\
    allow = [\"https://data.example.com/in/\"]\nto = \"in/case.csv\"\nsha256 = \"metadata:sum\"\n";

#[test]
fn metadata_leads_nowhere_but_into_the_allow_list() {
    let rule = policy(HTTPS).stage.rules.remove(0);
    let sum = "a".repeat(64);
    let long = format!("https://data.example.com/in/{}", "x".repeat(2048));
    #[rustfmt::skip]
    let cases = [
        ("https://data.example.com/in/a.csv",            ""),
        ("https://data.example.com:443/in/sub/a%20b",    ""),
        ("https://data.example.com/out/a.csv",           "outside"),
        ("https://data.example.com/inner/a.csv",         "outside"),
        ("https://data.example.com/in/",                 "no single thing"),
        ("https://data.example.com/in",                  "outside"),
        ("https://evil.test/in/a.csv",                   "outside"),
        ("https://data.example.com.evil.test/in/a",      "outside"),
        ("https://data.example.com:8443/in/a",           "outside"),
        ("https://data.example.com/in/../out/a",         "`..`"),
        ("https://data.example.com/in/%2e%2e/out/a",     "`..`"),
        ("https://data.example.com/in/..%2fout/a",       "encoded slash"),
        ("https://data.example.com@evil.test/in/a",      "user name"),
        ("https://evil.test#@data.example.com/in/a",     "user name"),
        ("http://data.example.com/in/a",                 "scheme"),
        ("file:///etc/shadow",                           "scheme"),
        ("https://data.example.com/in/a\r\nX-Y: z",      "control characters"),
        ("https://data.example.com/in/a?sign=x",         "query"),
        (&long,                                          "2048"),
        ("",                                             "no `file`"),
    ];
    for (value, want) in cases {
        let got = request::wanted(&rule, &pairs(&[("file", value), ("sum", &sum)]));
        match got {
            Ok(_) => assert_eq!(want, "", "`{value}` was accepted"),
            Err(error) => {
                let text = error.to_string();
                assert!(!want.is_empty() && text.contains(want), "`{value}`: {text}");
                // INV-12: no part of the value is repeated.
                assert!(!text.contains("evil") && !text.contains("shadow"), "{text}");
            }
        }
    }
    for sum in ["", "abc", &"g".repeat(64), &"a".repeat(63)] {
        let metadata = pairs(&[("file", "https://data.example.com/in/a"), ("sum", sum)]);
        assert!(request::wanted(&rule, &metadata).is_err(), "`{sum}`");
    }
}

#[test]
fn the_metadata_of_the_session_wins_over_that_of_the_work_item() {
    // AUTH-13, UNK-14.
    let both =
        request::metadata(&pairs(&[("a", "session")]), &pairs(&[("a", "work"), ("b", "work")]));
    assert_eq!(both, pairs(&[("a", "session"), ("b", "work")]));
}

#[tokio::test]
async fn a_file_of_this_host_is_laid_and_links_lead_nowhere() {
    let (root, scratch, to) = (root(), TempDir::new().expect("a directory"), Fake::new());
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("sub")).expect("made");
    fs::write(at("sub/good"), "content").expect("written");
    fs::write("/var/tmp/stage-outside", "outside").expect("written");
    symlink("/var/tmp/stage-outside", at("link")).expect("linked");
    symlink("/var/tmp", at("up")).expect("linked");
    symlink("good", at("sub/inner")).expect("linked");
    let made = Command::new("mkfifo").arg(at("fifo")).status();
    assert!(made.is_ok_and(|status| status.success()));
    let policy = policy(&format!(
        "[[stage]]\nname = \"a\"\nkind = \"local\"\nfrom = \"metadata:file\"\nallow = [{:?}]\n\
         to = \"in/a\"\nsize_max = 64\n",
        root.path()
    ));
    assert!(matches!(policy.stage.rules[0].kind.digest(), Some(StageDigest::Record(_))));
    let stager = stager(&policy, &scratch);
    let lay = async |name: &str| {
        let value = at(name).display().to_string();
        stager.lay("s", &pairs(&[("file", &value)]), &to, &|_| true).await
    };
    lay("sub/good").await.expect("laid");
    assert_eq!(to.text("in/a").as_deref(), Some("content"));
    // The control: as a path, each of these can be read or at least opened.
    assert_eq!(fs::read_to_string(at("link")).expect("followed"), "outside");
    for name in ["link", "up/stage-outside", "sub/inner", "fifo", "sub", "none"] {
        let error = lay(name).await.expect_err(name);
        assert!(matches!(error.source, Fault::Local { .. }), "{name}: {error:?}");
    }
    fs::write(at("large"), "x".repeat(65)).expect("written");
    let error = lay("large").await.expect_err("too large");
    assert!(matches!(error.source, Fault::TooLarge { max: 64 }), "{error:?}");
    fs::remove_file("/var/tmp/stage-outside").expect("removed");
    assert_eq!(fs::read_dir(scratch.path()).expect("listed").count(), 0, "INV-10");
}

#[tokio::test]
async fn what_is_not_required_is_left_out_and_what_is_not_recorded_is_not_laid() {
    let (root, scratch, to) = (root(), TempDir::new().expect("a directory"), Fake::new());
    fs::write(root.path().join("b"), "b").expect("written");
    let table = |name: &str, more: &str| {
        let from = root.path().join(name);
        format!(
            "[[stage]]\nname = {name:?}\nkind = \"local\"\nfrom = {from:?}\nto = {name:?}\n{more}\n"
        )
    };
    let text = table("a", "required = false") + &table("b", "");
    let stager = stager(&policy(&text), &scratch);
    let told = Mutex::new(Vec::new());
    let tell = |what: Told<'_>| {
        told.lock().expect("unlocked").push(match what {
            Told::Laying { wanted, fetched } => format!("{} {}", wanted.rule.name, fetched.bytes),
            Told::Failed { rule, fault } => format!("{} {}", rule.name, fault.class()),
        });
        true
    };
    stager.lay("s", &pairs(&[]), &to, &tell).await.expect("laid");
    assert_eq!(*told.lock().expect("unlocked"), ["a file", "b 1"]);
    assert_eq!(to.text("b").as_deref(), Some("b"));
    let again = Fake::new();
    let error = stager.lay("s", &pairs(&[]), &again, &|_| false).await.expect_err("no record");
    assert_eq!(error.rule, "a");
    assert_eq!(again.text("b"), None);
}

/// A workspace that takes as long as it is told to.
struct Slow(Semaphore);

impl Destination for Slow {
    async fn put(&self, _: OwnedFd, _: &str, _: u32, _: u64) -> Result<(), LayError> {
        self.0.acquire().await.expect("open").forget();
        Ok(())
    }

    async fn unpack(&self, _: OwnedFd, _: &str, _: u64, _: u64) -> Result<(), LayError> {
        Ok(())
    }
}

#[tokio::test]
async fn what_all_sessions_fetch_at_a_time_is_bounded() {
    // INV-11.
    let (root, scratch) = (root(), TempDir::new().expect("a directory"));
    fs::write(root.path().join("a"), "a").expect("written");
    let space = "[filesystem]\nworkspace_size = \"1GiB\"\n";
    let policy = policy(&format!(
        "{space}[[stage]]\nname = \"a\"\nkind = \"local\"\nfrom = {:?}\nto = \"a\"\n\
         size_max = \"40MiB\"\n",
        root.path().join("a")
    ));
    let size = |text: &str| FetchSize::try_from(text.to_owned()).expect("a size");
    for (room, at_once) in [("64MiB", 1), ("80MiB", 2)] {
        let stager = Arc::new(with_room_for(size(room), &policy, &scratch));
        let to = Arc::new(Slow(Semaphore::new(0)));
        let fetched = Arc::new(AtomicUsize::new(0));
        let lay = || {
            let (stager, to) = (Arc::clone(&stager), Arc::clone(&to));
            let fetched = Arc::clone(&fetched);
            tokio::spawn(async move {
                let tell = |_: Told<'_>| fetched.fetch_add(1, Ordering::SeqCst) < usize::MAX;
                stager.lay("s", &BTreeMap::new(), &*to, &tell).await
            })
        };
        let mut all: Vec<_> = (0..3).map(|_| lay()).collect();
        let enough = async {
            while fetched.load(Ordering::SeqCst) < at_once {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), enough).await.expect("as many as have room are fetched");
        // Without the bound the third would have come by now.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(fetched.load(Ordering::SeqCst), at_once, "{room}");
        // A session that ends while it waits leaves nothing behind.
        let last = all.pop().expect("three");
        last.abort();
        assert!(last.await.is_err_and(|error| error.is_cancelled()));
        to.0.add_permits(9);
        all.extend([lay(), lay()]);
        for one in all {
            let laid = timeout(Duration::from_secs(10), one).await.expect("the room comes back");
            laid.expect("no panic").expect("laid");
        }
    }
    let error = Budget::new(size("64MiB"), &super::tests::policy(&format!("{space}{HTTPS}")))
        .expect_err("too little");
    let text = error.to_string();
    assert!(text.contains("`case`") && text.contains("256MiB"), "{text}");
    assert!(error.hint().contains("stage.fetch_size"));
}

#[tokio::test]
async fn a_digest_that_differs_is_refused() {
    let (root, scratch, to) = (root(), TempDir::new().expect("a directory"), Fake::new());
    fs::write(root.path().join("a"), "abc").expect("written");
    let from = root.path().join("a");
    let good = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (sum, fits) in
        [(good.to_owned(), true), (good.to_uppercase(), true), ("0".repeat(64), false)]
    {
        let text = format!(
            "[[stage]]\nname = \"a\"\nkind = \"local\"\nfrom = {from:?}\nto = \"a\"\nsha256 = \"{sum}\"\n"
        );
        let laid = stager(&policy(&text), &scratch).lay("s", &pairs(&[]), &to, &|_| true).await;
        match laid {
            Ok(()) => assert!(fits, "{sum}"),
            Err(error) => assert!(!fits && matches!(error.source, Fault::Digest), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn addresses_that_are_not_public_are_refused_before_anything_is_sent() {
    // INV-8. Nobody listens there; without the check the fault would be another.
    let (scratch, to) = (TempDir::new().expect("a directory"), Fake::new());
    for (host, private, want) in [
        ("127.0.0.1:9", false, "address-refused"),
        ("0x7f.1:9", false, "address-refused"),
        ("[::ffff:127.0.0.1]:9", false, "address-refused"),
        ("localhost:9", false, "address-refused"),
        ("169.254.169.254", true, "address-refused"),
        ("127.0.0.1:9", true, "unreachable"),
    ] {
        let host = host.replace("[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]");
        let text = format!(
            "[[stage]]\nname = \"a\"\nkind = \"https\"\nfrom = \"https://{host}/x\"\nto = \"a\"\n\
             digest = \"record\"\nwhy = \"test\"\nprivate = {private}\n"
        );
        let laid = stager(&policy(&text), &scratch).lay("s", &pairs(&[]), &to, &|_| true).await;
        let error = laid.expect_err(&host);
        assert_eq!(error.source.class(), want, "{host}: {error:?}");
    }
}

#[test]
fn what_a_session_is_told_names_neither_hosts_nor_paths() {
    let faults = [
        Fault::Unreachable { host: "inner.example".to_owned(), doing: "no answer", source: None },
        Fault::Status { host: "inner.example".to_owned(), status: 403 },
        Fault::Redirect { host: "inner.example".to_owned(), to: "elsewhere" },
        Fault::Credential { host: "inner.example".to_owned() },
        Fault::Laying { source: LayError { reason: "/srv/x".to_owned() } },
        Fault::Value { source: ValueError::Outside { key: "file".to_owned() } },
    ];
    for fault in faults {
        let text = fault.for_model();
        assert!(!text.contains("inner.example") && !text.contains("/srv"), "{text}");
    }
}
