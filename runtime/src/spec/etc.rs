//! The synthesized `/etc` of a jail: a few files written by us, a few of the host's shown
//! read-only. An allow-list: what is not named here (shadow, ssh keys, mail, cron, the host's
//! accounts) does not exist in a jail.

use std::path::{Path, PathBuf};

use crate::host::{EntryKind, HostEntry};

use super::plan::{Node, ReadOnlyBind};

/// Files and directories of the host's `/etc` that programs need to run and that hold nothing of
/// the host's own: library and program selection, certificates, time zone, tables of names.
const SHARED: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "crypto-policies",
    "fonts",
    "inputrc",
    "java",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "lsb-release",
    "mime.types",
    "os-release",
    "perl",
    "profile",
    "protocols",
    "redhat-release",
    "services",
    "terminfo",
];

/// Names shared whatever follows: versioned run-time configuration.
const SHARED_PREFIXES: &[&str] = &["java-", "python3"];

/// Parts of directories that also hold private keys.
const SHARED_BELOW: &[(&str, &[&str])] = &[
    ("ssl", &["certs", "openssl.cnf"]),
    ("pki", &["ca-trust", "tls/certs", "tls/cert.pem", "tls/openssl.cnf"]),
];

/// Where programs in a jail find the resolver. Any address would lead there.
const RESOLVER: std::net::Ipv4Addr = super::egress::EgressPlan::RESOLVER;

/// Who the payload is, in the files that name users.
pub(super) struct Account<'a> {
    pub id: u32,
    pub home: &'a str,
    pub hostname: &'a str,
    /// Whether there is a resolver to ask.
    pub resolver: bool,
}

/// Entries of `/etc` made by us.
pub(super) fn written(account: &Account<'_>) -> Vec<Node> {
    let Account { id, home, hostname, resolver } = account;
    // Without one, a name that is not in `hosts` fails at once instead of after a timeout.
    let (resolv_conf, hosts) = match resolver {
        true => (format!("nameserver {RESOLVER}\noptions timeout:2 attempts:2\n"), "files dns"),
        false => ("# no network\n".to_owned(), "files"),
    };
    let file = |name: &str, text: String| Node::File {
        path: Path::new("etc").join(name),
        content: text.into_bytes(),
    };
    vec![
        file(
            "passwd",
            format!(
                "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                 session:x:{id}:{id}:session:{home}:/bin/bash\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        file("group", format!("root:x:0:\ntty:x:5:\nsession:x:{id}:\nnogroup:x:65534:\n")),
        file(
            "hosts",
            format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost {hostname}\n"),
        ),
        file("resolv.conf", resolv_conf),
        file(
            "nsswitch.conf",
            format!(
                "passwd: files\ngroup: files\nshadow: files\nhosts: {hosts}\nnetworks: files\n\
                 protocols: files\nservices: files\nethers: files\nrpc: files\n"
            ),
        ),
        file("hostname", format!("{hostname}\n")),
        file("machine-id", "uninitialized\n".to_owned()),
        file("shells", "/bin/sh\n/bin/bash\n".to_owned()),
    ]
}

/// Entries of `/etc` taken from the host: links are made anew, files and directories are bound.
pub(super) fn shared(host: &[HostEntry]) -> (Vec<Node>, Vec<ReadOnlyBind>) {
    let (mut nodes, mut binds) = (Vec::new(), Vec::new());
    for entry in host {
        let name = entry.name.as_str();
        if let Some((_, parts)) = SHARED_BELOW.iter().find(|(directory, _)| *directory == name) {
            for part in *parts {
                binds.push(bind(Path::new(name).join(part), !part.contains('.')));
            }
            continue;
        }
        let prefixed = SHARED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if !prefixed && !SHARED.contains(&name) {
            continue;
        }
        match &entry.kind {
            EntryKind::Link(target) => {
                nodes.push(Node::Link { path: Path::new("etc").join(name), target: target.clone() })
            }
            EntryKind::Directory => binds.push(bind(PathBuf::from(name), true)),
            EntryKind::File => binds.push(bind(PathBuf::from(name), false)),
        }
    }
    (nodes, binds)
}

fn bind(below_etc: PathBuf, directory: bool) -> ReadOnlyBind {
    ReadOnlyBind {
        source: Path::new("/etc").join(&below_etc),
        target: Path::new("etc").join(below_etc),
        directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_host_s_own_is_shared() {
        let names =
            ["shadow", "passwd", "gshadow", "ssh", "sudoers", "krb5.keytab", "ssl", "hosts"];
        let host: Vec<_> = names
            .iter()
            .map(|name| HostEntry { name: (*name).to_owned(), kind: EntryKind::Directory })
            .collect();
        let (nodes, binds) = shared(&host);
        assert!(nodes.is_empty());
        let targets: Vec<_> = binds.iter().map(|bind| bind.target.display().to_string()).collect();
        assert_eq!(targets, ["etc/ssl/certs", "etc/ssl/openssl.cnf"], "only certificates");
    }

    #[test]
    fn links_are_made_anew_and_not_followed() {
        let target = PathBuf::from("/usr/share/zoneinfo/UTC");
        let host = [HostEntry { name: "localtime".into(), kind: EntryKind::Link(target.clone()) }];
        let (nodes, binds) = shared(&host);
        assert_eq!(nodes, [Node::Link { path: "etc/localtime".into(), target }]);
        assert!(binds.is_empty());
    }
}
