//! What the shell is told: the only bash text of ours.
//!
//! A call is two lines on the shell's standard input. The first runs a file without a name that
//! holds the command; the second reports its status with a nonce. Both are of the project, so no
//! command can be cut open by a quote, and the second line is still in the pipe while the command
//! runs, where it cannot be overwritten, skipped by `return` or forged.
//!
//! The file is one line. It sets a trap on a signal nobody uses, and evaluates the command as one
//! quoted word with its descriptors redirected: standard input is empty, ours are closed, and
//! whatever the command does to them with `exec` ends with the command. When a call has to end, the
//! keeper sends that signal. The trap returns from the file, or from the function that runs in it,
//! and makes every command that would follow return too, until the first of our lines is over.
//! Our own words run with a standard error that cannot be written to, or `set -x` would show them.
//! `command` keeps a syntax error from ending a shell in POSIX mode. Directory, variables and
//! functions stay. A command that took the trap away costs the shell.

/// Where bash finds the command. It reads all of it at once; from its standard input it would read
/// byte by byte.
pub(super) const SCRIPT_FD: i32 = 58;
/// Where bash reports. Below 60, where it puts descriptors of its own choice from, and above those
/// that scripts use.
pub(super) const STATUS_FD: i32 = 59;
/// Ends a command and not the shell.
pub(super) const ABORT_SIGNAL: i32 = 60;

/// The status of a command that was ended by the signal.
pub(super) const ABORTED: i32 = 124;

/// Returns while a file is being sourced, which a command of a call always is. `[[` and `if` are
/// words of the language: no function or alias can stand in their place.
const ABORT: &str = r"if [[ ${BASH_SOURCE-} ]]; then \builtin return 124; fi";

/// The content of the file that runs `command`.
pub(super) fn script(command: &str) -> Vec<u8> {
    // bash drops null characters when it reads a script, and complains if there are many.
    let quoted = command.replace('\0', "").replace('\'', r"'\''");
    let abort = format!(r"\builtin set -T;\builtin trap '\''{ABORT}'\'' DEBUG;{ABORT}");
    let (script, status) = (SCRIPT_FD, STATUS_FD);
    format!(
        r"\builtin trap '{abort}' {ABORT_SIGNAL};\builtin command eval '{quoted}' </dev/null 2>&1 >&2 {script}<&- {status}>&-
"
    )
    .into_bytes()
}

/// The two lines of one call.
pub(super) fn lines(nonce: &str) -> String {
    format!("{{ \\builtin . /dev/fd/{SCRIPT_FD};}} 2<&0\n{}", report(nonce))
}

/// The lines after a call that was ended: take back what the trap did, and report.
pub(super) fn settle(nonce: &str) -> String {
    format!("{{ \\builtin trap - DEBUG;\\builtin set +T;}} 2<&0\n{}", report(nonce))
}

fn report(nonce: &str) -> String {
    format!("{{ \\builtin echo {nonce} \"$?\">&{STATUS_FD};}} 2<&0\n")
}

/// Finds the report of one call among whatever else is written to the descriptor. A report is one
/// write that others cannot cut open, but they can put bytes in front of it: it counts wherever it
/// ends a line, because nobody can guess its nonce.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The end of a line that is not complete.
    line: Vec<u8>,
}

impl Reports {
    /// Longest report.
    const BYTES_MAX: usize = 64;

    /// The status in the report with `nonce`, if `bytes` complete one.
    pub fn find(&mut self, bytes: &[u8], nonce: &str) -> Option<i32> {
        let mut found = None;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            self.line.extend_from_slice(&text[text.len().saturating_sub(Self::BYTES_MAX)..]);
            self.line.drain(..self.line.len().saturating_sub(Self::BYTES_MAX));
            if complete {
                let line = String::from_utf8_lossy(&self.line);
                let status = line.rsplit_once(nonce).and_then(|(_, rest)| rest.strip_prefix(' '));
                found = status.and_then(|status| status.parse().ok()).or(found);
                self.line.clear();
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_one_quoted_word_without_null_characters() {
        let text = String::from_utf8(script("echo 'a'\0 b\n")).expect("UTF-8");
        assert!(text.contains(r"\builtin command eval 'echo '\''a'\'' b"), "{text}");
        assert!(text.ends_with("\n' </dev/null 2>&1 >&2 58<&- 59>&-\n"), "{text}");
    }

    #[test]
    fn only_a_whole_report_with_the_nonce_of_the_call_counts() {
        let cases: [(&[&str], Option<i32>); 8] = [
            (&["n1 0\n"], Some(0)),
            (&["n", "1 1", "27\n"], Some(127)),
            (&["n0 0\n"], None), // an earlier call
            (&["n1 0"], None),
            (&["n1 x\n", "n1\n", "\n"], None),
            (&["garbage", "n1 0\n"], Some(0)),
            (&["n0 5\nn1 2\nn0 7\n"], Some(2)),
            (&["n1 0n1 x\n"], None),
        ];
        for (chunks, want) in cases {
            let mut reports = Reports::default();
            let got = chunks.iter().filter_map(|chunk| reports.find(chunk.as_bytes(), "n1")).last();
            assert_eq!(got, want, "{chunks:?}");
        }
    }

    #[test]
    fn a_flood_of_false_reports_takes_no_memory() {
        let mut reports = Reports::default();
        for _ in 0..1000 {
            assert_eq!(reports.find(&[b'x'; 4096], "n1"), None);
        }
        assert!(reports.line.capacity() <= 256, "{}", reports.line.capacity());
        assert_eq!(reports.find(b"n1 3\n", "n1"), Some(3));
    }
}
