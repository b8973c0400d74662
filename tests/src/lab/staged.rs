//! A worker in the laboratory of staged input, and the rules and sessions that its tests have in common.

use serde_json::Value;

use super::inputs::Inputs;
use super::policy_text;
use super::relay::Relay;
use crate::play::{SOON, passed};
use crate::{Devserver, Level, Poll, Ran, Worker};

/// A rule for one file of the data host.
pub fn https(more: &str) -> String {
    format!(
        "[[stage]]\nname = \"case\"\nkind = \"https\"\nfrom = \"metadata:file\"\nto = \"in/case.csv\"\n\
         allow = [\"https://data.example.test/in/\", \"https://inner.example.test/in/\",\n\
         \"https://meta.example.test/in/\", \"https://loop.example.test/in/\",\n\
         \"https://mixed.example.test/in/\", \"https://turns.example.test/in/\"]\n{more}\n"
    )
}

/// For rules whose digest the test compares itself.
pub const RECORD: &str = "digest = \"record\"\nwhy = \"the test compares it\"\n";

/// The default policy and these rules.
pub fn with_rules(rules: &str) -> String {
    format!("{}\n{rules}", policy_text(""))
}

/// A worker in the laboratory, for sessions of a server outside.
#[derive(Debug)]
pub struct Site {
    pub inputs: Inputs,
    pub server: Devserver,
    _relay: Relay,
}

impl Default for Site {
    fn default() -> Self {
        Site::new()
    }
}

impl Site {
    /// With a server that has nothing yet.
    pub fn new() -> Site {
        Site::with("")
    }

    /// The server has this script.
    pub fn with(script: &str) -> Site {
        let inputs = Inputs::new();
        let server = Devserver::with(script, &["--keep-results"]);
        let relay = Relay::to(&inputs.lab, server.port());
        Site { inputs, server, _relay: relay }
    }

    /// Starts a worker with these rules and every credential.
    pub fn worker(&self, level: Level, rules: &str) -> Worker {
        let config = self.inputs.config(level.uid());
        self.poll(level, rules).path("--config", &config).serve(&self.server)
    }

    /// The same without a configuration, to be started.
    pub fn poll(&self, level: Level, rules: &str) -> Poll {
        let poll = Poll::at(level).wrapped_in(&self.inputs.lab.wrapper());
        poll.policy(&with_rules(rules))
    }

    /// After all sessions: the laboratory, the worker's run and the server's report, which passed.
    pub fn ended(self, worker: Worker) -> (Inputs, Ran, Value) {
        self.server.wait_done(2 * SOON);
        let ran = worker.stop().ended(0);
        let report = passed(self.server.end(), &ran.stderr);
        (self.inputs, ran, report)
    }
}

/// A session with metadata.
pub fn with_metadata(mut session: Value, metadata: Value) -> Value {
    session["metadata"] = metadata;
    session
}

/// What bash finds of credentials wherever it may look.
pub const LOOK: &str = r#"found=
look() { grep -aqsE 'planted-[0-9a-f]{4}|L[A]BKEY' "$@" && found="$found $*"; }
env | look
for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/self/mountinfo; do look "$file"; done
look -r /workspace /tmp /etc /dev/shm /mnt /home /run /var 2>/dev/null
for fd in /proc/[0-9]*/fd/*; do [[ -f $fd ]] && look "$fd"; done
echo "found:$found""#;
