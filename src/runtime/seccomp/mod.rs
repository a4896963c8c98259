//! The seccomp filter of a container, as a binary search over system call numbers.
//!
//! The kernel runs the filter once for each number when it is loaded, so depth matters: the search takes 0.13 ms to load
//! where one comparison after the other takes 0.4 (reference: runtime.md, 2).
//!
//! What is not allowed fails with EPERM; numbers that we do not know with ENOSYS, so that libc falls back to older calls.
//! Other instruction sets of the same processor (i386) fail with ENOSYS altogether; x32 numbers are just unknown ones.

mod calls;

use std::collections::BTreeMap;

use libc::{c_long, sock_filter};

use crate::sys::confine::Instruction;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// The newest call that the list takes a stand on (`open_tree_attr`).
const LAST_KNOWN: u32 = 467;

/// Offsets in `struct seccomp_data`; of the first argument the low half, as both architectures are little-endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// The flags of clone(2) that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACE: u32 = 0x7e02_0000;

/// What becomes of a range of numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Errno(i32),
    Clone,
    Socket,
    Personality,
}

fn statement(code: u32, k: u32) -> sock_filter {
    // The codes are below 256.
    sock_filter { code: (code & 0xffff) as u16, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { jt, jf, ..statement(libc::BPF_JMP | condition | libc::BPF_K, k) }
}

fn give(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn errno(number: i32) -> sock_filter {
    give(libc::SECCOMP_RET_ERRNO | number.cast_unsigned())
}

fn allow() -> sock_filter {
    give(libc::SECCOMP_RET_ALLOW)
}

impl Verdict {
    fn instructions(self) -> Vec<sock_filter> {
        match self {
            Self::Allow => vec![allow()],
            Self::Errno(number) => vec![errno(number)],
            Self::Clone => {
                vec![load(FIRST_ARGUMENT), jump(libc::BPF_JSET, NEW_NAMESPACE, 0, 1), errno(libc::EPERM), allow()]
            }
            // Neither has namespaces: AF_ALG reaches the kernel's crypto code, AF_VSOCK the hypervisor.
            Self::Socket => [libc::AF_ALG, libc::AF_VSOCK]
                .into_iter()
                .fold(vec![load(FIRST_ARGUMENT)], |mut program, family| {
                    program.extend([jump(libc::BPF_JEQ, family.cast_unsigned(), 0, 1), errno(libc::EPERM)]);
                    program
                })
                .into_iter()
                .chain([allow()])
                .collect(),
            // PER_LINUX, PER_LINUX32, UNAME26, both, and the question which one is set.
            Self::Personality => [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff]
                .into_iter()
                .fold(vec![load(FIRST_ARGUMENT)], |mut program, persona| {
                    program.extend([jump(libc::BPF_JEQ, persona, 0, 1), allow()]);
                    program
                })
                .into_iter()
                .chain([errno(libc::EPERM)])
                .collect(),
        }
    }
}

/// The default profile (reference: security.md, 3.4) as a program for seccomp(2).
pub(super) fn default_filter() -> Vec<Instruction> {
    let mut program = vec![load(ARCH), jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0), errno(libc::ENOSYS), load(NUMBER)];
    program.extend(search(&ranges()));
    program
}

/// The first number of each run of numbers with the same verdict.
fn ranges() -> Vec<(u32, Verdict)> {
    let number = |call: &c_long| u32::try_from(*call).ok();
    let allowed = [calls::COMMON, calls::COMMON_NEW, calls::ARCHITECTURE].into_iter().flatten();
    let mut verdicts: BTreeMap<u32, Verdict> = allowed.filter_map(number).map(|n| (n, Verdict::Allow)).collect();
    let special = [
        (libc::SYS_clone, Verdict::Clone),
        // Its flags are behind a pointer; libc falls back to clone.
        (libc::SYS_clone3, Verdict::Errno(libc::ENOSYS)),
        (libc::SYS_socket, Verdict::Socket),
        (libc::SYS_personality, Verdict::Personality),
    ];
    verdicts.extend(special.iter().filter_map(|(call, verdict)| Some((number(call)?, *verdict))));

    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for n in 0..=LAST_KNOWN {
        let verdict = verdicts.get(&n).copied().unwrap_or(Verdict::Errno(libc::EPERM));
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((n, verdict));
        }
    }
    ranges.push((LAST_KNOWN + 1, Verdict::Errno(libc::ENOSYS)));
    ranges
}

/// A program that finds the range which the accumulator falls into. Every path through it ends in a return.
fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    match ranges {
        [] => vec![errno(libc::EPERM)],
        [(_, verdict)] => verdict.instructions(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let (low, high) = (search(low), search(high));
            // A conditional jump reaches 255 instructions, an unconditional one any.
            let over_low = u32::try_from(low.len()).unwrap_or(u32::MAX);
            let split = ranges[ranges.len() / 2].0;
            let mut program = vec![jump(libc::BPF_JGE, split, 0, 1), statement(libc::BPF_JMP | libc::BPF_JA, over_low)];
            program.extend(low);
            program.extend(high);
            program
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    /// Runs the program as the kernel would. Returns the action and how many instructions it took.
    fn run(program: &[sock_filter], arch: u32, number: u32, argument: u32) -> (u32, usize) {
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let i = program[at];
            at += 1;
            steps += 1;
            let taken = |condition: bool| usize::from(if condition { i.jt } else { i.jf });
            match u32::from(i.code) {
                0x20 => {
                    accumulator = match i.k {
                        NUMBER => number,
                        ARCH => arch,
                        FIRST_ARGUMENT => argument,
                        other => panic!("load from {other}"),
                    }
                }
                0x15 => at += taken(accumulator == i.k),
                0x35 => at += taken(accumulator >= i.k),
                0x45 => at += taken(accumulator & i.k != 0),
                0x05 => at += i.k as usize,
                0x06 => return (i.k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn every_number_gets_its_verdict() {
        let program = default_filter();
        assert!(program.len() < 4096, "the kernel's limit");
        let allowed: std::collections::BTreeSet<u32> =
            [calls::COMMON, calls::COMMON_NEW, calls::ARCHITECTURE].into_iter().flatten().map(|&n| n as u32).collect();
        let special = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_socket, libc::SYS_personality];
        for number in 0..600_u32 {
            if special.contains(&i64::from(number)) {
                continue;
            }
            let expected = match number {
                n if allowed.contains(&n) => libc::SECCOMP_RET_ALLOW,
                0..=LAST_KNOWN => EPERM,
                _ => ENOSYS,
            };
            let (action, steps) = run(&program, AUDIT_ARCH, number, 0);
            assert_eq!(action, expected, "call {number}");
            assert!(steps < 32, "call {number} takes {steps} instructions");
        }
    }

    #[test]
    fn arguments_decide_where_they_must() {
        let program = default_filter();
        for (call, argument, expected) in [
            (libc::SYS_clone, libc::SIGCHLD as u32, libc::SECCOMP_RET_ALLOW),
            (libc::SYS_clone, libc::CLONE_NEWUSER as u32, EPERM),
            (libc::SYS_clone, libc::CLONE_NEWNS as u32 | libc::SIGCHLD as u32, EPERM),
            (libc::SYS_clone, libc::CLONE_NEWCGROUP as u32, EPERM),
            (libc::SYS_clone3, 0, ENOSYS),
            (libc::SYS_unshare, libc::CLONE_NEWUSER as u32, EPERM),
            (libc::SYS_socket, libc::AF_INET as u32, libc::SECCOMP_RET_ALLOW),
            (libc::SYS_socket, libc::AF_ALG as u32, EPERM),
            (libc::SYS_socket, libc::AF_VSOCK as u32, EPERM),
            (libc::SYS_personality, 0, libc::SECCOMP_RET_ALLOW),
            (libc::SYS_personality, 0x0004_0000, EPERM),
        ] {
            assert_eq!(run(&program, AUDIT_ARCH, call as u32, argument).0, expected, "{call} {argument:#x}");
        }
    }

    #[test]
    fn dangerous_calls_are_refused() {
        let program = default_filter();
        for call in [
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_open_by_handle_at,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_kexec_load,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
        ] {
            assert_eq!(run(&program, AUDIT_ARCH, call as u32, 0).0, EPERM, "{call}");
        }
    }

    #[test]
    fn foreign_instruction_sets_do_not_get_around_it() {
        let program = default_filter();
        const I386: u32 = 0x4000_0003;
        const X32: u32 = 0x4000_0000;
        for number in 0..600 {
            assert_eq!(run(&program, I386, number, 0).0, ENOSYS);
            assert_eq!(run(&program, AUDIT_ARCH, X32 | number, 0).0, ENOSYS);
        }
    }
}
