//! Addresses for connections that the control side makes by itself, on behalf of a policy: the same
//! resolver and the same classes of addresses as for connections out of jails (INV-8).
//!
//! Who asks dials what was returned here, and asks nobody in between: a name that leads elsewhere the
//! second time is then of no use.

use std::net::IpAddr;

use super::broker::{HostResolver, Interfaces};
use crate::policy::network::{AddressClass, Host};

/// Most addresses of a name that are looked at.
const ADDRESSES_MAX: usize = 16;

/// The host's resolver, and what this host's own addresses are.
#[derive(Debug)]
pub struct Outbound {
    resolver: HostResolver,
    interfaces: Interfaces,
}

/// Why a host has no address that may be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutboundError {
    /// The name has no address, or nobody answers.
    #[error("the name has no address")]
    NoAddress,
    /// One of its addresses is of a class that is not allowed; none of the others is used then.
    #[error("it leads to a {class} address")]
    Class {
        /// Which.
        class: AddressClass,
    },
}

impl Outbound {
    /// With the files of this host.
    pub fn of_host() -> Outbound {
        Outbound { resolver: HostResolver::of_host(), interfaces: Interfaces::default() }
    }

    /// All addresses of `host`, each of which may be dialled: public ones, and with `private` those of
    /// private networks and of this host; never link-local, metadata, multicast or reserved ones.
    /// Takes at most five seconds.
    ///
    /// # Errors
    /// [`OutboundError`].
    pub async fn addresses(
        &self,
        host: &Host,
        private: bool,
    ) -> Result<Vec<IpAddr>, OutboundError> {
        let addresses = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let found = self.resolver.addresses(name).await;
                found.map_err(|_| OutboundError::NoAddress)?
            }
        };
        for address in &addresses {
            // A host that does not tell its own addresses is taken to be at each of them.
            let class = self.interfaces.class(*address).unwrap_or(AddressClass::Loopback);
            let allowed = match class {
                AddressClass::Public => true,
                AddressClass::Private | AddressClass::Loopback => private,
                _ => false,
            };
            if !allowed {
                return Err(OutboundError::Class { class });
            }
        }
        Ok(addresses.into_iter().take(ADDRESSES_MAX).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_public_addresses_may_be_dialled_unless_a_rule_says_more() {
        // INV-8.
        let outbound = Outbound::of_host();
        #[rustfmt::skip]
        let cases = [
            ("203.0.113.9",     true,  true),
            ("10.0.0.1",        false, true),
            ("127.0.0.1",       false, true),
            ("0x7f.1",          false, true),
            ("::ffff:10.0.0.1", false, true),
            ("169.254.1.1",     false, false),
            ("169.254.169.254", false, false),
            ("fd00:ec2::254",   false, false),
            ("0.0.0.0",         false, false),
            ("224.0.0.1",       false, false),
        ];
        for (text, public, private) in cases {
            let host: Host = text.parse().expect(text);
            assert_eq!(outbound.addresses(&host, false).await.is_ok(), public, "{text}");
            assert_eq!(outbound.addresses(&host, true).await.is_ok(), private, "{text} as private");
        }
    }
}
