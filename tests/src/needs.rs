//! What a test needs of the machine, and what happens where it is missing.

use std::path::Path;

/// One thing that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The tests run as root, so that both levels can be tried.
    Root,
    /// A program on the path.
    Tool(&'static str),
    /// A file or directory of the host.
    File(&'static str),
}

impl Need {
    /// Why the machine does not have it; `None` if it does.
    pub fn missing(self) -> Option<String> {
        match self {
            Need::Root if crate::level::we_are_root() => None,
            Need::Root => Some("the tests do not run as root".to_owned()),
            Need::Tool(name) if crate::locate::tool(name).is_some() => None,
            Need::Tool(name) => Some(format!("there is no `{name}` on the path")),
            Need::File(path) if Path::new(path).exists() => None,
            Need::File(path) => Some(format!("there is no {path}")),
        }
    }
}

/// Tells the reader why a test did nothing, or fails it where skipping is not allowed.
///
/// # Panics
/// If the environment has `CI`: there, a skipped test is a hole that nobody sees.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run this test in CI: {reason}");
    eprintln!("skipped: {reason}");
}

/// Leaves the test with a printed reason if the machine lacks something; fails it when `CI` is set.
#[macro_export]
macro_rules! require {
    ($($need:expr),+ $(,)?) => {
        $(if let Some(reason) = $crate::Need::missing($need) {
            $crate::needs::skip(&reason);
            return;
        })+
    };
}
