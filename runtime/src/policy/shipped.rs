//! The policies that are part of the binary.
//!
//! Pure. Their texts are in `policies/` at the root of the repository; they go through the same
//! parser as an operator's.

use super::parse::Source;

/// A policy that is part of the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shipped {
    /// The name by which it is used and extended.
    pub name: &'static str,
    /// One sentence: what it is for.
    pub purpose: &'static str,
    /// Its text, comments included.
    pub text: &'static str,
}

/// Every shipped policy, the strictest first.
pub const SHIPPED: [Shipped; 4] = [
    Shipped {
        name: "base",
        purpose: "the deny-everything floor: what a key means when a policy does not write it",
        text: include_str!("../../../policies/base.toml"),
    },
    Shipped {
        name: "offline",
        purpose: "computation without network on a small budget",
        text: include_str!("../../../policies/offline.toml"),
    },
    Shipped {
        name: "default",
        purpose: "everyday agent work, with or without root",
        text: include_str!("../../../policies/default.toml"),
    },
    Shipped {
        name: "build",
        purpose: "compilers and large trees, on disk, as root",
        text: include_str!("../../../policies/build.toml"),
    },
];

impl Shipped {
    /// The shipped policy of that name.
    pub fn find(name: &str) -> Option<Shipped> {
        SHIPPED.into_iter().find(|policy| policy.name == name)
    }

    /// Its text as a source; the file is shown as `policies/NAME.toml`.
    pub fn source(self) -> Source {
        Source { file: format!("policies/{}.toml", self.name), text: self.text.to_owned() }
    }

    /// Names of all shipped policies, for error texts.
    pub(super) fn names() -> String {
        SHIPPED.map(|policy| policy.name).join(", ")
    }
}
