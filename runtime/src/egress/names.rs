//! Which address of ours stands for which name, in one session.
//!
//! An address is given out once and stands for the same name until the session ends, so that what a
//! program remembers never leads elsewhere. Addresses are those of 198.18.0.0/15 (RFC 2544) and of a
//! random prefix of RFC 4193; nothing outside this session's namespace ever sees them. They need no
//! interface: inside, every address is local.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use crate::policy::network::HostName;

/// Most names of one session: what rules name, and what wildcards allow. Memory is at most
/// 8192 × 2 × 253 bytes, 4 MiB.
const NAMES_MAX: usize = 8192;
/// First address that stands for a name: 198.18.0.1 is the resolver.
const FIRST: u32 = 0xc612_0010;

/// The names of one session.
#[derive(Debug)]
pub struct Names {
    prefix: [u16; 4],
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_name: HashMap<HostName, u32>,
    by_number: Vec<HostName>,
}

impl Names {
    /// No name yet. `random` makes the prefix of this session's IPv6 addresses.
    pub fn new(random: [u8; 7]) -> Names {
        let [a, b, c, d, e, f, g] = random.map(u16::from);
        let prefix = [0xfd00 | a, b << 8 | c, d << 8 | e, f << 8 | g];
        Names { prefix, known: Mutex::default() }
    }

    /// The addresses of `name`; `None` if there is no room for another name.
    pub fn addresses(&self, name: &HostName) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.addresses_if(name, || true)
    }

    /// The addresses of `name`. One that has none yet is given them if there is room and `may_add`,
    /// which is asked once and only then, says so.
    pub fn addresses_if(
        &self,
        name: &HostName,
        may_add: impl FnOnce() -> bool,
    ) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match known.by_name.get(name) {
            Some(number) => *number,
            None if known.by_number.len() >= NAMES_MAX || !may_add() => return None,
            None => {
                let number = u32::try_from(known.by_number.len()).ok()?;
                known.by_number.push(name.clone());
                known.by_name.insert(name.clone(), number);
                number
            }
        };
        let v4 = Ipv4Addr::from(FIRST + number);
        Some((v4, self.v6(v4)))
    }

    /// The IPv6 address that ends in `v4`.
    fn v6(&self, v4: Ipv4Addr) -> Ipv6Addr {
        let [a, b, c, d] = self.prefix;
        let [e, f, g, h] = v4.octets();
        let [high, low] = [[e, f], [g, h]].map(u16::from_be_bytes);
        Ipv6Addr::new(a, b, c, d, 0, 0, high, low)
    }

    /// Whether `name` has addresses already.
    pub fn knows(&self, name: &HostName) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.by_name.contains_key(name)
    }

    /// The name an address of ours stands for.
    pub fn name(&self, address: IpAddr) -> Option<HostName> {
        let low = match address.to_canonical() {
            IpAddr::V4(address) => u32::from(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, 0, 0, high, low] = address.segments() else { return None };
                if [a, b, c, d] != self.prefix {
                    return None;
                }
                u32::from(high) << 16 | u32::from(low)
            }
        };
        let number = usize::try_from(low.checked_sub(FIRST)?).ok()?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.by_number.get(number).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).expect(text)
    }

    // INV-8, jail.md 1.5 rule 1: 198.18.0.0/15, a ULA /64, one session long.
    #[test]
    fn address_stands_for_one_name_until_the_session_ends() {
        let names = Names::new([1, 2, 3, 4, 5, 6, 7]);
        let first = names.addresses(&name("api.example.com")).expect("room");
        let second = names.addresses(&name("www.example.com")).expect("room");
        assert_eq!(first.0, Ipv4Addr::new(198, 18, 0, 16));
        assert_eq!(first.1, "fd01:203:405:607::c612:10".parse::<Ipv6Addr>().expect("an address"));
        assert_ne!(first, second);
        assert_eq!(names.addresses(&name("API.example.com.")), Some(first), "the same name");
        for (addresses, text) in [(first, "api.example.com"), (second, "www.example.com")] {
            let (v4, v6) = addresses;
            let mapped = IpAddr::V6(v4.to_ipv6_mapped());
            for address in [IpAddr::V4(v4), IpAddr::V6(v6), mapped] {
                assert_eq!(names.name(address), Some(name(text)), "{address}");
            }
        }
    }

    #[test]
    fn address_that_was_not_given_out_stands_for_nothing() {
        let names = Names::new([1, 2, 3, 4, 5, 6, 7]);
        let (_, v6) = names.addresses(&name("api.example.com")).expect("room");
        let other = Names::new([9, 2, 3, 4, 5, 6, 7]);
        other.addresses(&name("api.example.com")).expect("room");
        assert_eq!(other.name(IpAddr::V6(v6)), None, "of another session");
        #[rustfmt::skip]
        let nothing = [
            "198.18.0.1", "198.18.0.15", "198.18.0.17", "198.19.255.255", "10.0.0.1", "0.0.0.0",
            "255.255.255.255", "::1", "fd01:203:405:607::", "fd01:203:405:607::c612:11",
            "fd01:203:405:607:1::c612:10", "fd01:203:405:608::c612:10", "::198.18.0.16",
        ];
        for address in nothing {
            assert_eq!(names.name(address.parse().expect(address)), None, "{address}");
        }
    }

    // INV-11: the table is bounded, and what is in it stays.
    #[test]
    fn table_that_is_full_takes_no_name_and_keeps_those_it_has() {
        let names = Names::new([0; 7]);
        let numbered = |number: usize| name(&format!("n{number}.example.com"));
        for number in 0..NAMES_MAX {
            assert!(names.addresses(&numbered(number)).is_some(), "{number}");
        }
        assert_eq!(names.addresses(&numbered(NAMES_MAX)), None);
        assert!(!names.knows(&numbered(NAMES_MAX)));
        let asked = std::cell::Cell::new(false);
        let may_add = || asked.replace(true);
        assert_eq!(names.addresses_if(&numbered(NAMES_MAX), may_add), None);
        assert!(!asked.get(), "no budget is spent where there is no room");
        let (last, _) = names.addresses(&numbered(NAMES_MAX - 1)).expect("it is known");
        assert_eq!(names.name(IpAddr::V4(last)), Some(numbered(NAMES_MAX - 1)));
        assert_eq!(last.octets()[..2], [198, 18]);
    }

    #[test]
    fn name_that_may_not_be_added_is_not_known() {
        let names = Names::new([0; 7]);
        let host = name("a.example.com");
        assert_eq!(names.addresses_if(&host, || false), None);
        assert!(!names.knows(&host));
        assert!(names.addresses_if(&host, || true).is_some());
        assert!(names.addresses_if(&host, || false).is_some(), "it is known");
    }
}
