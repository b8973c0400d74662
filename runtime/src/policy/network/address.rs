//! What kind of address something is. Only public ones may be dialled unless a rule says more.
//!
//! One table of ranges answers for single addresses and for the networks of rules.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// What an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressClass {
    /// The internet, as far as the address says. Documentation ranges (192.0.2.0/24,
    /// 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32, 3fff::/20) count as public: they lead nowhere,
    /// and examples in policies mean public addresses.
    Public,
    /// RFC 1918, RFC 4193, RFC 6598: somebody's own network. NAT64 too.
    Private,
    /// The host itself.
    Loopback,
    /// One link.
    LinkLocal,
    /// A cloud's metadata service.
    Metadata,
    /// Many hosts.
    Multicast,
    /// Nothing that could be dialled in earnest: 0.0.0.0/8, 240.0.0.0/4, 198.18.0.0/15, tunnels
    /// whose end the address chooses (6to4, Teredo) and the like.
    Reserved,
}

use AddressClass::{LinkLocal, Loopback, Metadata, Multicast, Private, Reserved};

/// Ranges that are not public; the first that fits decides, so the narrower stand first.
#[rustfmt::skip]
const V4: [([u8; 4], u8, AddressClass); 21] = [
    ([169, 254, 169, 254], 32, Metadata),  // most clouds
    ([169, 254, 169, 253], 32, Metadata),  // Amazon's resolver
    ([169, 254, 170, 2],   32, Metadata),  // Amazon ECS
    ([169, 254, 170, 23],  32, Metadata),  // Amazon EKS
    ([169, 254, 0, 23],    32, Metadata),  // Tencent
    ([169, 254, 42, 42],   32, Metadata),  // Scaleway
    ([100, 100, 100, 200], 32, Metadata),  // Alibaba
    ([168, 63, 129, 16],   32, Metadata),  // Azure
    ([192, 0, 0, 192],     32, Metadata),  // Oracle
    ([127, 0, 0, 0],        8, Loopback),
    ([169, 254, 0, 0],     16, LinkLocal),
    ([10, 0, 0, 0],         8, Private),
    ([172, 16, 0, 0],      12, Private),
    ([192, 168, 0, 0],     16, Private),
    ([100, 64, 0, 0],      10, Private),
    ([224, 0, 0, 0],        4, Multicast),
    ([0, 0, 0, 0],          8, Reserved),  // Linux takes 0.0.0.0 for the host itself
    ([192, 0, 0, 0],       24, Reserved),
    ([192, 88, 99, 0],     24, Reserved),  // 6to4 relays
    ([198, 18, 0, 0],      15, Reserved),  // ours, inside jails
    ([240, 0, 0, 0],        4, Reserved),
];

/// As above. Only 2000::/3 is given to the internet.
#[rustfmt::skip]
const V6: [([u16; 8], u8, AddressClass); 18] = [
    ([0, 0, 0, 0, 0, 0, 0, 1],                 128, Loopback),
    ([0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0],        32, Metadata),  // Amazon
    ([0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254],   128, Metadata),  // Google
    ([0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128, Metadata), // Oracle
    ([0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x42],    128, Metadata),  // Scaleway
    ([0xff00, 0, 0, 0, 0, 0, 0, 0],              8, Multicast),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0],             10, LinkLocal),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0],             10, Private),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0],              7, Private),
    ([0x0064, 0xff9b, 0, 0, 0, 0, 0, 0],        96, Private),   // NAT64
    ([0x2001, 0, 0, 0, 0, 0, 0, 0],             32, Reserved),  // Teredo
    ([0x2001, 0x0002, 0, 0, 0, 0, 0, 0],        48, Reserved),
    ([0x2001, 0x0010, 0, 0, 0, 0, 0, 0],        28, Reserved),
    ([0x2001, 0x0020, 0, 0, 0, 0, 0, 0],        28, Reserved),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0],             16, Reserved),  // 6to4
    ([0, 0, 0, 0, 0, 0, 0, 0],                   3, Reserved),
    ([0x4000, 0, 0, 0, 0, 0, 0, 0],              2, Reserved),
    ([0x8000, 0, 0, 0, 0, 0, 0, 0],              1, Reserved),
];

impl AddressClass {
    /// The class of an address. One of IPv4 mapped into IPv6 has the class of the IPv4 address; a
    /// NAT64 one too, unless that is public: it is then private, because a network of the host's
    /// operator translates it.
    pub fn of(address: IpAddr) -> AddressClass {
        match address.to_canonical() {
            IpAddr::V4(address) => of_v4(Ipv4Net::from(address)),
            IpAddr::V6(address) => match nat64(address).map(|inner| of_v4(inner.into())) {
                Some(inner) if inner != AddressClass::Public => inner,
                _ => of_v6(Ipv6Net::from(address)),
            },
        }
    }

    /// The class of the range in which the whole of `network` lies; public if it is in none.
    pub fn of_network(network: &IpNet) -> AddressClass {
        match network {
            IpNet::V4(network) => of_v4(*network),
            IpNet::V6(network) => of_v6(*network),
        }
    }
}

fn of_v4(network: Ipv4Net) -> AddressClass {
    let inside = |(base, length, _): &&([u8; 4], u8, AddressClass)| {
        Ipv4Net::new(Ipv4Addr::from(*base), *length).is_ok_and(|range| range.contains(&network))
    };
    V4.iter().find(inside).map_or(AddressClass::Public, |(_, _, class)| *class)
}

fn of_v6(network: Ipv6Net) -> AddressClass {
    let inside = |(base, length, _): &&([u16; 8], u8, AddressClass)| {
        Ipv6Net::new(Ipv6Addr::from(*base), *length).is_ok_and(|range| range.contains(&network))
    };
    V6.iter().find(inside).map_or(AddressClass::Public, |(_, _, class)| *class)
}

/// The IPv4 address inside one of the well-known NAT64 prefix (RFC 6052).
fn nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        _ => None,
    }
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressClass::Public => "public",
            AddressClass::Private => "private",
            AddressClass::Loopback => "loopback",
            AddressClass::LinkLocal => "link-local",
            AddressClass::Metadata => "metadata",
            AddressClass::Multicast => "multicast",
            AddressClass::Reserved => "reserved",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_recognised_in_every_disguise() {
        // INV-8: private, link-local and metadata ranges.
        #[rustfmt::skip]
        let cases = [
            ("8.8.8.8", AddressClass::Public), ("192.0.2.1", AddressClass::Public),
            ("198.51.100.7", AddressClass::Public), ("203.0.113.9", AddressClass::Public),
            ("2001:db8::1", AddressClass::Public), ("2606:4700::1111", AddressClass::Public),
            ("172.15.255.255", AddressClass::Public), ("172.32.0.0", AddressClass::Public),
            ("100.63.255.255", AddressClass::Public), ("100.128.0.0", AddressClass::Public),
            ("11.0.0.0", AddressClass::Public), ("169.253.0.1", AddressClass::Public),
            ("10.0.0.1", Private), ("172.16.0.1", Private), ("172.31.255.255", Private),
            ("192.168.1.1", Private), ("100.64.0.1", Private), ("fd12::1", Private),
            ("fc00::1", Private), ("fec0::1", Private), ("::ffff:10.0.0.1", Private),
            ("64:ff9b::10.0.0.1", Private), ("64:ff9b::8.8.8.8", Private),
            ("127.0.0.1", Loopback), ("127.255.0.1", Loopback), ("::1", Loopback),
            ("::ffff:127.0.0.1", Loopback), ("64:ff9b::127.0.0.1", Loopback),
            ("169.254.1.1", LinkLocal), ("fe80::1", LinkLocal), ("febf::1", LinkLocal),
            ("169.254.169.254", Metadata), ("::ffff:169.254.169.254", Metadata),
            ("64:ff9b::169.254.169.254", Metadata), ("fd00:ec2::254", Metadata),
            ("fd00:ec2::23", Metadata), ("fd20:ce::254", Metadata), ("168.63.129.16", Metadata),
            ("100.100.100.200", Metadata), ("169.254.170.2", Metadata), ("192.0.0.192", Metadata),
            ("224.0.0.1", Multicast), ("239.1.1.1", Multicast), ("ff02::1", Multicast),
            ("0.0.0.0", Reserved), ("0.1.2.3", Reserved), ("::", Reserved), ("240.0.0.1", Reserved),
            ("255.255.255.255", Reserved), ("198.18.0.1", Reserved), ("198.19.255.255", Reserved),
            ("::127.0.0.1", Reserved), ("2002:7f00:1::1", Reserved), ("2002:808:808::1", Reserved),
            ("2001:0:1:2:3:4:5:6", Reserved), ("::ffff:0:127.0.0.1", Reserved),
            ("64:ff9b:1::a9fe:a9fe", Reserved), ("100::1", Reserved), ("4000::1", Reserved),
            ("::ffff:8.8.8.8", AddressClass::Public),
        ];
        for (text, class) in cases {
            assert_eq!(AddressClass::of(text.parse().expect(text)), class, "{text}");
        }
    }

    #[test]
    fn a_network_has_the_class_of_the_range_that_holds_all_of_it() {
        #[rustfmt::skip]
        let cases = [
            ("10.1.0.0/16", Private), ("10.0.0.0/8", Private), ("10.0.0.0/7", AddressClass::Public),
            ("0.0.0.0/0", AddressClass::Public), ("::/0", AddressClass::Public),
            ("169.254.0.0/16", LinkLocal), ("169.254.169.254/32", Metadata),
            ("224.0.0.0/8", Multicast), ("198.18.4.0/24", Reserved), ("fd00::/8", Private),
            ("2001:db8::/32", AddressClass::Public), ("ff00::/16", Multicast),
        ];
        for (text, class) in cases {
            assert_eq!(AddressClass::of_network(&text.parse().expect(text)), class, "{text}");
        }
    }
}
