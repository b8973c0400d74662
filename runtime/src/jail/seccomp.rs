//! Compiles system call groups into one seccomp filter and attaches it.
//!
//! `compile` runs before the jail is made. `install` runs in the process that becomes the payload,
//! as the last layer: the filter refuses the calls that the other layers are put on with. What is
//! allowed and why stands in `policies/syscalls.toml`; nothing here knows a call by name. The only
//! file that names the seccompiler crate.
//!
//! The program, in this order, which matters:
//!
//! 1. The guard. A foreign architecture (i386 on x86_64) or the x32 bit kills the process: the
//!    same number would mean another call there.
//! 2. The dispatch: a binary tree of comparisons over ranges of numbers with the same answer.
//!    When a filter is attached, the kernel runs it once for every number to learn which are
//!    always allowed (`seccomp_cache_prepare`); a chain of one comparison per call, as
//!    seccompiler makes it, costs more there than all other layers of a jail. A number outside
//!    every range gets `ENOSYS`.
//! 3. One part for each call with a rule on its arguments, compiled by seccompiler. It decides on
//!    registers alone: what a pointer leads to may change after the decision.

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use sha2::{Digest, Sha256};

use crate::policy::syscalls::{Call, Condition, Refusal, Rule, Test, Width, catalogue};

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// The policy names a group that the catalogue does not have.
    #[error("cannot compile the system call filter: there is no group `{name}`")]
    UnknownGroup {
        /// As written in the policy.
        name: String,
    },
    /// The crate refused a rule. A defect of the catalogue.
    #[error("cannot compile the rule of system call {number}")]
    Rule {
        /// Number of the call.
        number: u16,
        /// What it says.
        source: seccompiler::BackendError,
    },
    /// The program does not fit. A defect of the catalogue.
    #[error("cannot compile the system call filter: {instructions} instructions are too many")]
    TooLarge {
        /// How many there are.
        instructions: usize,
    },
    /// `no_new_privs` is not set, or cannot be read.
    #[error("cannot attach the system call filter: no_new_privs is not set")]
    NoNewPrivs,
    /// The kernel refused it.
    #[error("cannot attach the system call filter")]
    Attach {
        /// What it says.
        source: seccompiler::Error,
    },
}

impl SeccompError {
    /// What the operator can do about it, if anything.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::UnknownGroup { .. } => Some("name groups of `policies/syscalls.toml`"),
            Self::Attach { .. } => Some("the kernel needs CONFIG_SECCOMP_FILTER"),
            Self::Rule { .. } | Self::TooLarge { .. } | Self::NoNewPrivs => None,
        }
    }
}

/// The machine a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The machine this binary runs on.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Arch = Arch::X86_64;
    /// The machine this binary runs on.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Arch = Arch::Aarch64;

    fn number(self, call: &Call) -> Option<u16> {
        match self {
            Arch::X86_64 => call.x86_64,
            Arch::Aarch64 => call.aarch64,
        }
    }

    /// `AUDIT_ARCH_*` of linux/audit.h: the ELF machine, 64-bit, little-endian.
    fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::Aarch64 => 0xc000_00b7,
        }
    }

    fn target(self) -> TargetArch {
        match self {
            Arch::X86_64 => TargetArch::x86_64,
            Arch::Aarch64 => TargetArch::aarch64,
        }
    }
}

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    code: Vec<sock_filter>,
}

impl Program {
    /// The instructions as `(code, jt, jf, k)`, for inspection.
    pub fn instructions(&self) -> impl ExactSizeIterator<Item = (u16, u8, u8, u32)> + '_ {
        self.code.iter().map(|i| (i.code, i.jt, i.jf, i.k))
    }
}

/// Compiles the filter that allows `groups` on this machine. Without groups nothing is allowed.
///
/// # Errors
/// [`SeccompError::UnknownGroup`]; the others only if the catalogue is defective.
pub fn compile<S: AsRef<str>>(groups: &[S]) -> Result<Program, SeccompError> {
    compile_for(Arch::NATIVE, groups)
}

/// As [`compile`], for the machine given.
///
/// # Errors
/// As [`compile`].
pub fn compile_for<S: AsRef<str>>(arch: Arch, groups: &[S]) -> Result<Program, SeccompError> {
    assemble(arch, groups, None, &[])
}

/// The filter of one of our own processes: as [`compile`], and the calls that the denial `lifted`
/// names are allowed.
///
/// # Errors
/// As [`compile`].
pub(crate) fn compile_lifting(groups: &[&str], lifted: &str) -> Result<Program, SeccompError> {
    compile_own(groups, lifted, &[])
}

/// As [`compile_lifting`], and the calls named in `calls` as their groups would allow them.
///
/// # Errors
/// As [`compile`].
pub(crate) fn compile_own(
    groups: &[&str],
    lifted: &str,
    calls: &[&str],
) -> Result<Program, SeccompError> {
    assemble(Arch::NATIVE, groups, Some(lifted), calls)
}

fn assemble<S: AsRef<str>>(
    arch: Arch,
    groups: &[S],
    lifted: Option<&str>,
    calls: &[&str],
) -> Result<Program, SeccompError> {
    let ranges = ranges(&answers(arch, groups, lifted, calls)?);
    let (mut code, mut exits, mut asks) = (guard(arch), Vec::new(), Vec::new());
    dispatch(&ranges, &mut code, &mut exits, &mut asks)?;
    write_exits(&exits, &mut code)?;
    // Calls whose rules came out the same (chmod, fchmod, creat, mkdir) share one part.
    let mut parts: Vec<(usize, Vec<sock_filter>)> = Vec::new();
    for Ask { jump, number, rule } in asks {
        let part = compile_rule(arch, number, rule)?;
        let start = match parts.iter().find(|(_, other)| *other == part) {
            Some((start, _)) => *start,
            None => {
                parts.push((code.len(), part.clone()));
                code.extend(part);
                parts[parts.len() - 1].0
            }
        };
        code[jump].k = (start - jump - 1) as u32;
    }
    if code.len() > PROGRAM_MAX {
        return Err(SeccompError::TooLarge { instructions: code.len() });
    }
    Ok(Program { code })
}

/// SHA-256 of the program as the kernel reads it, little-endian.
pub fn digest(program: &Program) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(8 * program.code.len());
    for (code, jt, jf, k) in program.instructions() {
        bytes.extend_from_slice(&code.to_le_bytes());
        bytes.extend_from_slice(&[jt, jf]);
        bytes.extend_from_slice(&k.to_le_bytes());
    }
    Sha256::digest(&bytes).into()
}

/// Attaches the filter to the calling thread and what it starts, for good.
///
/// A second call adds a second filter; for each call the more severe answer counts.
///
/// # Errors
/// [`SeccompError::NoNewPrivs`] if that layer is not on yet; [`SeccompError::Attach`] if the kernel
/// refuses.
///
/// Source: seccomp(2), `SECCOMP_SET_MODE_FILTER`.
pub fn install(program: &Program) -> Result<(), SeccompError> {
    // The crate would set it by itself, and a forgotten layer would not be noticed.
    if !rustix::thread::no_new_privs().unwrap_or(false) {
        return Err(SeccompError::NoNewPrivs);
    }
    seccompiler::apply_filter(&program.code).map_err(|source| SeccompError::Attach { source })
}

/// What the filter says to one number.
#[derive(Clone, Copy)]
enum Answer {
    Allow,
    Refuse(Refusal),
    Ask(&'static Rule),
}

impl Answer {
    fn same(self, other: Answer) -> bool {
        match (self, other) {
            (Answer::Allow, Answer::Allow) => true,
            (Answer::Refuse(a), Answer::Refuse(b)) => a == b,
            _ => false, // a rule is compiled for one number
        }
    }
}

/// The answer to each number from 0; above the last one the answer is that to an unknown call.
fn answers<S: AsRef<str>>(
    arch: Arch,
    groups: &[S],
    lifted: Option<&str>,
    calls: &[&str],
) -> Result<Vec<Answer>, SeccompError> {
    let mut answers = Vec::with_capacity(512);
    let mut set = |call: &Call, answer| {
        if let Some(number) = arch.number(call).map(usize::from) {
            if answers.len() <= number {
                answers.resize(number + 1, Answer::Refuse(Refusal::NoSuchCall));
            }
            answers[number] = answer;
        }
    };
    for name in groups.iter().map(S::as_ref) {
        let Some(group) = catalogue().group(name) else {
            return Err(SeccompError::UnknownGroup { name: name.into() });
        };
        for call in group.calls {
            set(call, call.rule.as_ref().map_or(Answer::Allow, Answer::Ask));
        }
    }
    for name in calls {
        let known = catalogue().groups.iter().flat_map(|group| group.calls);
        let Some(call) = known.into_iter().find(|call| call.name == *name) else {
            return Err(SeccompError::UnknownGroup { name: (*name).into() });
        };
        set(call, call.rule.as_ref().map_or(Answer::Allow, Answer::Ask));
    }
    // Last, so that no group can win over a denial.
    for denial in catalogue().denials {
        let lifted = lifted == Some(denial.name);
        for call in denial.calls {
            set(call, if lifted { Answer::Allow } else { Answer::Refuse(denial.refusal) });
        }
    }
    // There is at least one denial, so there are at least two ranges.
    answers.push(Answer::Refuse(Refusal::NoSuchCall));
    Ok(answers)
}

/// Joins neighbours with the same answer: (first number, answer). The last range has no end.
fn ranges(answers: &[Answer]) -> Vec<(u16, Answer)> {
    let mut ranges: Vec<(u16, Answer)> = Vec::new();
    for (number, &answer) in (0..).zip(answers) {
        if !ranges.last().is_some_and(|(_, last)| last.same(answer)) {
            ranges.push((number, answer));
        }
    }
    ranges
}

/// An unconditional jump that waits for the part of a rule.
struct Ask {
    jump: usize,
    number: u16,
    rule: &'static Rule,
}

/// One side of a comparison that waits for the place of a verdict.
struct Exit {
    branch: usize,
    above: bool,
    verdict: u32,
}

/// Writes the tree over `ranges`, at least two; the call's number is in the accumulator.
fn dispatch(
    ranges: &[(u16, Answer)],
    code: &mut Vec<sock_filter>,
    exits: &mut Vec<Exit>,
    asks: &mut Vec<Ask>,
) -> Result<(), SeccompError> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let branch = code.len();
    code.push(instruction(JUMP_IF_AT_LEAST, above[0].0.into()));
    for (side, is_above) in [(below, false), (above, true)] {
        let mut exit = |verdict| exits.push(Exit { branch, above: is_above, verdict });
        match *side {
            [(_, Answer::Allow)] => exit(libc::SECCOMP_RET_ALLOW),
            [(_, Answer::Refuse(refusal))] => exit(refuse(refusal)),
            [(number, Answer::Ask(rule))] => {
                aim(code, branch, is_above)?;
                asks.push(Ask { jump: code.len(), number, rule });
                code.push(instruction(JUMP, 0));
            }
            _ => {
                aim(code, branch, is_above)?;
                dispatch(side, code, exits, asks)?;
            }
        }
    }
    Ok(())
}

/// Writes each verdict once, after the tree, and aims the comparisons that wait for it.
fn write_exits(exits: &[Exit], code: &mut Vec<sock_filter>) -> Result<(), SeccompError> {
    let mut verdicts: Vec<u32> = exits.iter().map(|exit| exit.verdict).collect();
    verdicts.sort_unstable();
    verdicts.dedup();
    for verdict in verdicts {
        for exit in exits.iter().filter(|exit| exit.verdict == verdict) {
            aim(code, exit.branch, exit.above)?;
        }
        code.push(instruction(RETURN, verdict));
    }
    Ok(())
}

/// Makes one side of the comparison at `branch` lead to the next instruction written.
fn aim(code: &mut [sock_filter], branch: usize, above: bool) -> Result<(), SeccompError> {
    let instructions = code.len();
    let offset = u8::try_from(instructions - branch - 1)
        .map_err(|_| SeccompError::TooLarge { instructions })?;
    let side = if above { &mut code[branch].jt } else { &mut code[branch].jf };
    *side = offset;
    Ok(())
}

/// Kills what is not a call of `arch`, and leaves the call's number in the accumulator.
fn guard(arch: Arch) -> Vec<sock_filter> {
    let mut code = vec![
        instruction(LOAD, DATA_ARCH),
        sock_filter { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: arch.audit() },
        instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, DATA_NUMBER),
    ];
    if arch == Arch::X86_64 {
        // -1 has the x32 bit but is no call: a tracer writes it to skip one (strace --inject).
        code.extend([
            sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 3, k: X32_BIT },
            sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: u32::MAX },
            instruction(RETURN, refuse(Refusal::NoSuchCall)),
            instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        ]);
    }
    code
}

/// The part that decides on the arguments of one call. It ends in a verdict on every path.
fn compile_rule(arch: Arch, number: u16, rule: &Rule) -> Result<Vec<sock_filter>, SeccompError> {
    let build = || -> Result<seccompiler::BpfProgram, seccompiler::BackendError> {
        let entry = |entry: &&[Condition]| {
            SeccompRule::new(entry.iter().map(condition).collect::<Result<_, _>>()?)
        };
        let entries = rule.allow.iter().map(entry).collect::<Result<_, _>>()?;
        SeccompFilter::new(
            [(i64::from(number), entries)].into(),
            SeccompAction::Errno(rule.otherwise.errno().into()),
            SeccompAction::Allow,
            arch.target(),
        )?
        .try_into()
    };
    let mut code = build().map_err(|source| SeccompError::Rule { number, source })?;
    // It starts with checks of its own for what the guard and the dispatch have made sure of.
    let prologue = &code[..PART_PROLOGUE];
    assert_eq!(prologue[..4], guard(arch)[..4], "seccompiler checks the architecture first");
    assert_eq!(prologue[4], sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: number.into() });
    Ok(code.split_off(PART_PROLOGUE))
}

fn condition(condition: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let width = match condition.width {
        Width::Bits32 => SeccompCmpArgLen::Dword,
        Width::Bits64 => SeccompCmpArgLen::Qword,
    };
    let (operator, value) = match condition.test {
        Test::Equal(value) => (SeccompCmpOp::Eq, value),
        Test::NotEqual(value) => (SeccompCmpOp::Ne, value),
        Test::Masked { mask, value } => (SeccompCmpOp::MaskedEq(mask), value),
    };
    SeccompCondition::new(condition.arg, width, operator, value)
}

fn refuse(refusal: Refusal) -> u32 {
    libc::SECCOMP_RET_ERRNO | u32::from(refusal.errno())
}

fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// `BPF_MAXINSNS` of linux/bpf_common.h.
const PROGRAM_MAX: usize = 4096;
/// What seccompiler puts before the rules of the one call of a part.
const PART_PROLOGUE: usize = 5;
/// `__X32_SYSCALL_BIT` of asm/unistd.h.
const X32_BIT: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`, linux/seccomp.h.
const DATA_NUMBER: u32 = 0;
const DATA_ARCH: u32 = 4;
/// Instruction codes of linux/bpf_common.h: the classes, sizes and sources we use.
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
