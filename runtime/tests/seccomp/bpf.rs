//! A classic BPF machine for seccomp filters, written from the kernel's description of it
//! (Documentation/networking/filter.rst), so that a filter can be asked without a kernel.

use stockade_runtime::jail::seccomp::{Arch, Program};
use stockade_runtime::policy::syscalls::{Call, catalogue};

/// What a filter answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Errno(u16),
    KillProcess,
}

/// AUDIT_ARCH_* of linux/audit.h.
pub const AUDIT_X86_64: u32 = 0xc000_003e;
pub const AUDIT_AARCH64: u32 = 0xc000_00b7;
pub const AUDIT_I386: u32 = 0x4000_0003;
pub const AUDIT_ARM: u32 = 0x4000_0028;

/// A filter that can be asked.
pub struct Machine(Vec<(u16, u8, u8, u32)>);

impl Machine {
    pub fn new(program: &Program) -> Machine {
        Machine(program.instructions().collect())
    }

    /// Runs the filter on a call as the kernel would present it.
    pub fn ask(&self, audit: u32, number: u32, args: [u64; 6]) -> Verdict {
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let (op, jt, jf, k) = self.0[at];
            at += 1;
            let jump = |taken| usize::from(if taken { jt } else { jf });
            match op {
                0x20 => accumulator = load(audit, number, &args, k),
                0x54 => accumulator &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(accumulator == k),
                0x25 => at += jump(accumulator > k),
                0x35 => at += jump(accumulator >= k),
                0x06 => return verdict(k),
                other => panic!("instruction {other:#x} is not one we make"),
            }
        }
    }
}

fn load(audit: u32, number: u32, args: &[u64; 6], offset: u32) -> u32 {
    match offset {
        0 => number,
        4 => audit,
        16..64 if offset.is_multiple_of(4) => {
            let arg = args[(offset as usize - 16) / 8];
            if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
        }
        other => panic!("load from {other}"),
    }
}

fn verdict(k: u32) -> Verdict {
    match (k & 0xffff_0000, k as u16) {
        (0x7fff_0000, 0) => Verdict::Allow,
        (0x0005_0000, errno) => Verdict::Errno(errno),
        (0x8000_0000, 0) => Verdict::KillProcess,
        _ => panic!("verdict {k:#x} is not one we use"),
    }
}

/// Every call of the catalogue.
pub fn calls() -> impl Iterator<Item = &'static Call> {
    let groups = catalogue().groups.iter().flat_map(|group| group.calls);
    groups.chain(catalogue().denials.iter().flat_map(|denial| denial.calls))
}

/// The number of the call of that name.
pub fn number(arch: Arch, name: &str) -> u32 {
    let call = calls().find(|call| call.name == name).unwrap_or_else(|| panic!("no call {name}"));
    let number = match arch {
        Arch::X86_64 => call.x86_64,
        Arch::Aarch64 => call.aarch64,
    };
    number.unwrap_or_else(|| panic!("{name} does not exist on {arch:?}")).into()
}

/// The names of all groups: what the shipped `default` policy allows.
pub fn every_group() -> Vec<&'static str> {
    catalogue().group_names().collect()
}
