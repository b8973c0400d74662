//! The laboratory of staged input: what there is to fetch (`lab/inputs.py`), and who serves it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Lab;
use super::world::server;

/// What is in `https://data.example.test/in/case.csv`.
pub const CASE: &str = "id,value\n1,from the data host\n";
/// A credential that only the host named in the configuration may see.
pub const TOKEN: &str = "Bearer planted-5f1c7e90d2";
/// The password of the git host.
pub const PASSWORD: &str = "planted-0b44a61c7e";
/// What signs requests to the store.
pub const SECRET: &str = "planted-9d3e8f2a15";

/// A laboratory with input in it, and a directory of its host with more.
#[derive(Debug)]
pub struct Inputs {
    pub lab: Lab,
    /// A directory that rules of kind `local` name.
    pub local: TempDir,
    /// Commit of the repository.
    pub commit: String,
    credentials: TempDir,
}

impl Inputs {
    /// Makes all of it.
    ///
    /// # Panics
    /// If anything cannot be made.
    pub fn new() -> Inputs {
        let tls = |address: &str| {
            let mut server = server("inputs", address, 443);
            server["tls"] = json!(true);
            server
        };
        let servers = [
            server("dns", "203.0.113.53", 53),
            tls("203.0.113.20"),
            tls("203.0.113.21"),
            tls("203.0.113.22"),
            tls("10.0.0.5"),
            server("record", "169.254.169.254", 443),
        ];
        let at = |address: &str| json!({"A": [address]});
        let zone = json!({
            "data.example.test": at("203.0.113.20"), "other.example.test": at("203.0.113.21"),
            "git.example.test": at("203.0.113.22"), "store.example.test": at("203.0.113.22"),
            "inner.example.test": at("10.0.0.5"), "meta.example.test": at("169.254.169.254"),
            "loop.example.test": at("127.0.0.1"),
            "mixed.example.test": {"A": ["203.0.113.20", "10.0.0.5"]},
            "turns.example.test": {"A": [["203.0.113.20"], ["10.0.0.5"]]},
        });
        let mut commit = String::new();
        let lab = Lab::prepared(&servers, &zone, |directory| commit = make(directory));
        let local = tempfile::Builder::new().prefix("e2e-inputs-").tempdir_in("/var/tmp");
        let local = local.expect("a directory");
        fs::set_permissions(local.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::write(local.path().join("file.txt"), "from this host\n").expect("written");
        let credentials = TempDir::new().expect("a directory");
        Inputs { lab, local, commit, credentials }
    }

    /// A configuration with every credential, for a worker that is started by `uid`.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn config(&self, uid: u32) -> PathBuf {
        let secret = self.credential(uid, "secret", SECRET, 0o600);
        self.config_with(
            uid,
            &format!("access_key_id = \"LABKEY\"\nsecret_access_key_file = {secret:?}"),
        )
    }

    /// The same with these lines about the store.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn config_with(&self, uid: u32, store: &str) -> PathBuf {
        let path = self.credentials.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o711)).expect("chmod");
        let token = self.credential(uid, "token", TOKEN, 0o600);
        let password = self.credential(uid, "password", PASSWORD, 0o600);
        let text = format!(
            "[[stage.credential]]\nhost = \"data.example.test\"\nfile = {token:?}\n\
             [[stage.credential]]\nhost = \"git.example.test\"\nusername = \"lab\"\nfile = {password:?}\n\
             [[stage.s3]]\nendpoint = \"https://store.example.test\"\n{store}\n"
        );
        self.credential(uid, "config.toml", &text, 0o600)
    }

    /// Puts a file of this name in the place of the one before.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn credential(&self, uid: u32, name: &str, text: &str, mode: u32) -> PathBuf {
        let (file, fresh) =
            (self.credentials.path().join(name), self.credentials.path().join("fresh"));
        fs::write(&fresh, text).expect("written");
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).expect("chmod");
        std::os::unix::fs::chown(&fresh, Some(uid), Some(uid)).expect("chown");
        fs::rename(&fresh, &file).expect("renamed");
        file
    }

    /// The requests that servers heard, each with its headers in one text.
    pub fn requests(&self) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = self.lab.heard().into_iter().filter(|line| line["what"] == "request");
        all.map(|line| (text(&line["on"]), text(&line["target"]), line["headers"].to_string()))
            .collect()
    }
}

impl Default for Inputs {
    fn default() -> Self {
        Inputs::new()
    }
}

/// Files of the hosts; returns the commit of the repository.
fn make(directory: &Path) -> String {
    let www = directory.join("www");
    let write = |name: &str, text: &str| {
        let file = www.join(name);
        fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        fs::write(file, text).expect("written");
    };
    for host in ["data", "other", "inner", "mixed", "turns"] {
        write(&format!("{host}.example.test/in/case.csv"), CASE);
    }
    write("data.example.test/out/secret.csv", "not for sessions\n");
    write("store/bucket/in/object.bin", "from the store\n");
    write("store/bucket/out/object.bin", "not for sessions\n");
    let script = r#"set -e
cd "$1"
export HOME="$1" GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=lab GIT_AUTHOR_EMAIL=lab@example.test \
    GIT_COMMITTER_NAME=lab GIT_COMMITTER_EMAIL=lab@example.test
mkdir set && echo one >set/a && echo two >set/b && chmod +x set/b
tar -czf www/data.example.test/in/set.tar.gz -C set .
head -c 8388608 /dev/zero | gzip -9 >www/data.example.test/in/bomb.gz
mkdir bomb && head -c 67108864 /dev/zero >bomb/zeros && tar -czf www/data.example.test/in/bomb.tar.gz -C bomb .
git init -q -b main tree
echo "from git" >tree/word
printf '#!/bin/sh\necho ran\n' >tree/run && chmod +x tree/run && ln -s /etc/passwd tree/link
git -C tree add . && git -C tree commit -q -m first
mkdir -p www/git.example.test/git www/data.example.test/git
git clone -q --bare tree www/git.example.test/git/lab.git
head -c 4194304 /dev/urandom >tree/large
git -C tree add . && git -C tree commit -q -m second
git clone -q --bare tree www/git.example.test/git/large.git
git -C tree rev-parse HEAD^ HEAD
"#;
    let made = Command::new("sh")
        .args(["-c", script, "inputs"])
        .arg(directory)
        .env("PATH", crate::locate::SEARCH_PATH)
        .output()
        .expect("cannot run sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    fs::write(directory.join("large"), said.lines().nth(1).expect("a commit")).expect("written");
    said.lines().next().expect("a commit").to_owned()
}
