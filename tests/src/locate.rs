//! Finds the worker and other programs, and builds the probe once for all test processes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::lock;

/// The path that every command of the tests runs with.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program of the host by its name.
pub fn tool(name: &str) -> Option<PathBuf> {
    SEARCH_PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// The worker under test, at a path that an ordinary user may execute.
///
/// `STOCKADE_WORKER` names it, or it lies where the build puts it, beside the tests.
///
/// # Panics
/// If there is none: the suite tests a built binary and never builds it.
pub fn worker() -> &'static Path {
    static WORKER: OnceLock<PathBuf> = OnceLock::new();
    WORKER.get_or_init(|| {
        let path = std::env::var_os("STOCKADE_WORKER").map_or_else(beside_us, PathBuf::from);
        assert!(path.is_file(), "no worker at {}: build it first", path.display());
        reachable(&path)
    })
}

/// The runtime's example program that runs one session, where the build puts it.
///
/// # Panics
/// If there is none: the suite tests built programs and never builds them.
pub fn session() -> &'static Path {
    static SESSION: OnceLock<PathBuf> = OnceLock::new();
    SESSION.get_or_init(|| {
        let path = match std::env::var_os("STOCKADE_SESSION") {
            Some(path) => PathBuf::from(path),
            None => beside_us().with_file_name("examples").join("session"),
        };
        let how = "cargo build -p stockade-runtime --example session";
        assert!(path.is_file(), "no example at {}: {how}", path.display());
        reachable(&path)
    })
}

/// An example program of the library, where the build puts it.
///
/// # Panics
/// If there is none: the suite tests built programs and never builds them.
pub fn example(name: &str) -> PathBuf {
    let path = beside_us().with_file_name("examples").join(name);
    let how = "cargo build -p stockade-worker --examples";
    assert!(path.is_file(), "no example at {}: {how}", path.display());
    reachable(&path)
}

/// The hostile payload, compiled by the C compiler of the host: one static program.
///
/// # Panics
/// If it does not compile.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("payload");
        let target = lock::directory().join("probe");
        let guard = lock::open("probe.lock");
        guard.lock().expect("cannot lock the build of the probe");
        if stale(&target, &sources) {
            compile(&sources, &target);
        }
        drop(guard);
        reachable(&target)
    })
}

fn beside_us() -> PathBuf {
    let exe = std::env::current_exe().expect("cannot name the test executable");
    let profile = exe.parent().and_then(Path::parent).expect("tests lie in PROFILE/deps");
    profile.join("worker")
}

fn stale(target: &Path, sources: &Path) -> bool {
    let Ok(built) = fs::metadata(target).and_then(|meta| meta.modified()) else { return true };
    let entries = fs::read_dir(sources).expect("cannot list the payload's sources");
    entries.flatten().any(|file| {
        file.metadata().and_then(|meta| meta.modified()).is_ok_and(|changed| changed > built)
    })
}

fn compile(sources: &Path, target: &Path) {
    let entries = fs::read_dir(sources).expect("cannot list the payload's sources");
    let files = entries.flatten().map(|entry| entry.path());
    let fresh = target.with_extension("new");
    let built = Command::new("gcc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"])
        .arg(&fresh)
        .args(files.filter(|path| path.extension().is_some_and(|suffix| suffix == "c")))
        .output()
        .expect("cannot run gcc, which builds the payload of these tests");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    fs::rename(&fresh, target).expect("cannot move the probe into place");
}

/// `path` itself if everybody may execute it, else a copy that everybody may.
fn reachable(path: &Path) -> PathBuf {
    let path = fs::canonicalize(path).expect("cannot resolve the program");
    let open = path.ancestors().all(|part| {
        fs::metadata(part).is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0o001)
    });
    if open {
        return path;
    }
    let meta = fs::metadata(&path).expect("cannot look at the program");
    let dir = std::env::temp_dir().join(format!("stockade-e2e-{}", crate::Level::Root.name()));
    fs::create_dir_all(&dir).expect("cannot create the shared directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("cannot open it to all");
    let name = path.file_name().expect("a program has a name").to_string_lossy().into_owned();
    let copy = dir.join(format!("{name}-{}-{}", meta.mtime(), meta.size()));
    if !copy.exists() {
        let fresh = dir.join(format!(".{name}-{}", std::process::id()));
        fs::copy(&path, &fresh).expect("cannot copy the program");
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("cannot open it");
        fs::rename(&fresh, &copy).expect("cannot move the program into place");
    }
    copy
}
