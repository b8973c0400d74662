//! The laboratory of the real clients: what they fetch (`lab/fixtures.py`), and who serves it.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::world::server;
use super::{Lab, policy_text, programs};
use crate::policy::PolicyFile;

/// Every destination of the clients, and nothing else.
const RULES: &str = r#"allow = [
    "pypi.example.test", "npm.example.test", "crates.example.test", "git.example.test",
    "deb.example.test:80", "ssh.example.test:22", "db.example.test:5432", "grpc.example.test",
    "ws.example.test", "ws.example.test:80", "api.example.test", "api.example.test:80",
]"#;

impl Lab {
    /// A laboratory with package indexes, git, ssh, a database, gRPC and websockets.
    pub fn of_clients() -> Lab {
        let tls = |kind: &str, address: &str| {
            let mut server = server(kind, address, 443);
            server["tls"] = json!(true);
            server
        };
        let servers = [
            server("dns", "203.0.113.53", 53),
            tls("http", "203.0.113.20"),
            server("http", "203.0.113.20", 80),
            server("ssh", "203.0.113.21", 22),
            server("grpc", "203.0.113.22", 443),
            tls("websocket", "203.0.113.23"),
            server("websocket", "203.0.113.23", 80),
            server("psql", "198.51.100.5", 5432),
        ];
        let at = |address: &str| json!({"A": [address]});
        let zone = json!({
            "pypi.example.test": at("203.0.113.20"), "npm.example.test": at("203.0.113.20"),
            "crates.example.test": at("203.0.113.20"), "git.example.test": at("203.0.113.20"),
            "deb.example.test": at("203.0.113.20"), "api.example.test": at("203.0.113.20"),
            "other.example.test": at("203.0.113.20"), "ssh.example.test": at("203.0.113.21"),
            "grpc.example.test": at("203.0.113.22"), "ws.example.test": at("203.0.113.23"),
            "db.example.test": at("198.51.100.5"),
        });
        Lab::prepared(&servers, &zone, make)
    }

    /// A file that [`Lab::of_clients`] made, for a script in the jail.
    ///
    /// # Panics
    /// If it is not there.
    pub fn text_of(&self, name: &str) -> String {
        let path = self.directory().join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Requests that web servers heard, as `HOST/PATH`.
    pub fn requested(&self) -> Vec<String> {
        let all = self.heard().into_iter().filter(|line| line["what"] == "request");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        all.map(|line| text(&line["hosts"][0]) + &text(&line["target"])).collect()
    }
}

/// The policy of the clients, which also shows the Rust installation of these tests at `/mnt/rust`.
pub fn clients_policy() -> PolicyFile {
    let text = policy_text(RULES);
    let rust = "root = \"host\"\nread_only = [\"/mnt/rust\"]";
    PolicyFile::from_text(&text.replacen("root = \"host\"", rust, 1))
}

fn make(directory: &Path) {
    let mut command = Command::new("python3");
    command.env("PATH", crate::locate::SEARCH_PATH);
    let made = command.arg(programs().join("fixtures.py")).arg(directory).output();
    let made = made.expect("cannot run python3");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
