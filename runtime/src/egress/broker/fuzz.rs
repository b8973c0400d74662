//! What must hold of a gate for any bytes, for the fuzz harness.

use super::gate::{Act, Carried, Gate};
use crate::egress::tls::HelloReader;
use crate::policy::network::{Content, Host};

/// The host of the corpus.
const NAME: &str = "api.example.com";

/// Reads the first ClientHello in `input`, and has it pass a gate: its first byte says in what parts.
/// What passes is the input, in order, and only if its hello has the name; the parts make no difference.
///
/// # Errors
/// What does not hold.
pub(in crate::egress) fn client_hello(input: &[u8]) -> Result<(), String> {
    let Some((size, bytes)) = input.split_first() else { return Ok(()) };
    let size = usize::from(*size).max(1);
    let whole = HelloReader::default().push(bytes);
    let mut reader = HelloReader::default();
    let parts = bytes.chunks(size).map(|part| reader.push(part));
    let parts = parts.into_iter().find(|it| *it != Ok(None)).unwrap_or(Ok(None));
    if whole != parts {
        return Err(format!("{whole:?} as a whole, {parts:?} in parts"));
    }
    let has_name = matches!(&whole, Ok(Some(hello)) if hello.name.as_deref() == Some(NAME));
    let only_tls = Content { tls: true, http: false, other: false, unchecked: false };
    let passed = passed(bytes, size, only_tls)?;
    if !bytes.starts_with(&passed) {
        return Err("what passed is not what came".to_owned());
    }
    let trailing_dot = matches!(&whole, Ok(Some(hello)) if hello.name == Some(format!("{NAME}.")));
    if !passed.is_empty() && !has_name && !trailing_dot {
        return Err("something passed without the name".to_owned());
    }
    let anything = Content { tls: true, http: true, other: true, unchecked: false };
    passed_of_any(bytes, size, anything)
}

/// What passes a gate, however it ends.
fn passed(bytes: &[u8], size: usize, content: Content) -> Result<Vec<u8>, String> {
    let host = Host::parse(NAME).map_err(|it| it.to_string())?;
    let mut gate = Gate::new(host, content);
    let mut passed = Vec::new();
    for part in bytes.chunks(size) {
        match gate.client(part) {
            Ok(Act::Hold) => {}
            Ok(Act::Pass(more) | Act::Free(more) | Act::Http(more)) => passed.extend(more),
            Err(_) => return Ok(passed),
        }
    }
    if let Ok(Act::Pass(more) | Act::Free(more)) = gate.end() {
        passed.extend(more);
    }
    Ok(passed)
}

/// Where anything may be carried, what is neither TLS nor HTTP passes as a whole.
fn passed_of_any(bytes: &[u8], size: usize, content: Content) -> Result<(), String> {
    let host = Host::parse(NAME).map_err(|it| it.to_string())?;
    let mut gate = Gate::new(host, content);
    let mut last = Ok(Act::Hold);
    for part in bytes.chunks(size) {
        last = gate.client(part);
        if last.is_err() || gate.is_free() {
            break;
        }
    }
    let all = passed(bytes, size, content)?;
    match gate.carried() {
        Carried::Other | Carried::Unchecked if last.is_ok() && all != bytes => {
            Err("something was held back for good".to_owned())
        }
        _ if bytes.starts_with(&all) => Ok(()),
        _ => Err("what passed is not what came".to_owned()),
    }
}
