//! The catalogue of system calls: the groups a policy may name, and what no policy may allow.
//!
//! Pure data, read from `policies/syscalls.toml` when the crate is built (`build.rs`), because
//! parsing it at every start would cost more than the filter itself. What the tables mean is
//! written there. Knows nothing of filters: `jail::seccomp` turns groups into one.

include!(concat!(env!("OUT_DIR"), "/syscalls.rs"));

/// All tables.
#[derive(Debug)]
pub struct Catalogue {
    /// What a policy may allow, in the order of the file.
    pub groups: &'static [Group],
    /// What is refused under every policy.
    pub denials: &'static [Denial],
}

/// Calls that a policy allows or leaves out together.
#[derive(Debug)]
pub struct Group {
    /// The name a policy uses.
    pub name: &'static str,
    /// What a program needs it for.
    pub why: &'static str,
    /// Its members. A name stands in one table only.
    pub calls: &'static [Call],
}

/// Calls that no policy allows.
#[derive(Debug)]
pub struct Denial {
    /// A name for reports.
    pub name: &'static str,
    /// What they would do.
    pub why: &'static str,
    /// What the program sees instead.
    pub refusal: Refusal,
    /// Its members, none of which has a rule.
    pub calls: &'static [Call],
}

/// A system call and its number on each architecture; `None` where it does not exist.
#[derive(Debug)]
pub struct Call {
    /// The kernel's name.
    pub name: &'static str,
    /// Number on x86_64.
    pub x86_64: Option<u16>,
    /// Number on aarch64.
    pub aarch64: Option<u16>,
    /// Restricts the arguments; `None` allows all.
    pub rule: Option<Rule>,
}

/// Which arguments of a call are allowed.
#[derive(Debug)]
pub struct Rule {
    /// Why not all.
    pub why: &'static str,
    /// What the program sees when no entry holds.
    pub otherwise: Refusal,
    /// The call is allowed if one entry holds; an entry holds if all its conditions do.
    pub allow: &'static [&'static [Condition]],
}

/// A test of one argument.
#[derive(Debug)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub arg: u8,
    /// How much of the register the kernel looks at, and so the test.
    pub width: Width,
    /// The test.
    pub test: Test,
}

/// The part of an argument register that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// The low half: the kernel takes an `int`.
    Bits32,
    /// All of it: the kernel takes a `long`.
    Bits64,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// Equal to the value.
    Equal(u64),
    /// Different from the value.
    NotEqual(u64),
    /// The bits of `mask` equal to `value`.
    Masked {
        /// Bits that count.
        mask: u64,
        /// What they must be.
        value: u64,
    },
}

/// How a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `EPERM`: known to be dangerous, and programs handle it.
    NotPermitted,
    /// `ENOSYS`: as a kernel without the call answers, so that libraries fall back.
    NoSuchCall,
    /// `EAFNOSUPPORT`: as a kernel without the socket family answers.
    NoSuchFamily,
    /// `EINVAL`: as a kernel without the option answers.
    NoSuchOption,
}

impl Refusal {
    /// The error number the program sees.
    pub fn errno(self) -> u16 {
        // The same on every architecture of ours; errno(3).
        match self {
            Self::NotPermitted => 1,
            Self::NoSuchOption => 22,
            Self::NoSuchCall => 38,
            Self::NoSuchFamily => 97,
        }
    }
}

/// The catalogue this binary was built with. Costs nothing.
pub fn catalogue() -> &'static Catalogue {
    &CATALOGUE
}

impl Catalogue {
    /// The names a policy may use, in the order of the file.
    pub fn group_names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.groups.iter().map(|group| group.name)
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&'static Group> {
        self.groups.iter().find(|group| group.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    include!(concat!(env!("OUT_DIR"), "/numbers_of_libc.rs"));

    fn calls() -> impl Iterator<Item = &'static Call> {
        let allowed = catalogue().groups.iter().flat_map(|group| group.calls);
        allowed.chain(catalogue().denials.iter().flat_map(|denial| denial.calls))
    }

    #[test]
    fn numbers_agree_with_the_libc_crate() {
        assert!(NUMBERS_OF_LIBC.len() > 250);
        for (name, number) in NUMBERS_OF_LIBC {
            let call = calls().find(|call| call.name == *name).expect(name);
            let own = if cfg!(target_arch = "x86_64") { call.x86_64 } else { call.aarch64 };
            assert_eq!(own.map(libc::c_long::from), Some(*number), "{name}");
        }
    }

    #[test]
    fn no_number_has_two_names() {
        let of = [|call: &Call| call.x86_64, |call: &Call| call.aarch64];
        for number in of {
            let mut numbers: Vec<u16> = calls().filter_map(number).collect();
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), all);
        }
    }

    #[test]
    fn every_table_has_a_name_of_its_own_and_a_reason() {
        let groups = catalogue().groups.iter().map(|group| (group.name, group.why));
        let tables: Vec<_> =
            groups.chain(catalogue().denials.iter().map(|deny| (deny.name, deny.why))).collect();
        for (at, (name, why)) in tables.iter().enumerate() {
            assert!(why.len() > 10, "{name} has no reason");
            assert!(tables[at + 1..].iter().all(|(other, _)| other != name), "{name} twice");
        }
        for call in calls() {
            let sound = call.rule.as_ref().is_none_or(|r| r.why.len() > 5 && !r.allow.is_empty());
            assert!(sound, "rule of {}", call.name);
        }
    }

    #[test]
    fn error_numbers_are_those_of_the_kernel() {
        let cases = [
            (Refusal::NotPermitted, libc::EPERM),
            (Refusal::NoSuchCall, libc::ENOSYS),
            (Refusal::NoSuchFamily, libc::EAFNOSUPPORT),
            (Refusal::NoSuchOption, libc::EINVAL),
        ];
        for (refusal, want) in cases {
            assert_eq!(i32::from(refusal.errno()), want);
        }
    }
}
