//! Which address of ours stands for which name, in one session.
//!
//! An address is given out once and stands for the same name until the session ends, so that what a
//! program remembers never leads elsewhere. Addresses are those of 198.18.0.0/15 (RFC 2544) and of a
//! random prefix of RFC 4193; nothing outside this session's namespace ever sees them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use crate::policy::network::HostName;

/// Most names of one session. Enough for every rule of a policy, and for what wildcards allow.
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
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match known.by_name.get(name) {
            Some(number) => *number,
            None if known.by_number.len() >= NAMES_MAX => return None,
            None => {
                let number = u32::try_from(known.by_number.len()).ok()?;
                known.by_number.push(name.clone());
                known.by_name.insert(name.clone(), number);
                number
            }
        };
        let [a, b, c, d] = self.prefix;
        let low = FIRST + number;
        let v6 = Ipv6Addr::new(a, b, c, d, 0, 0, (low >> 16) as u16, low as u16);
        Some((Ipv4Addr::from(low), v6))
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
