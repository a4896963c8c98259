//! The seccomp filters of containers.
//!
//! What is not allowed fails with EPERM; numbers that we do not know with ENOSYS, so that libc falls back to older calls.

mod calls;
mod names;
pub(super) mod oci;
mod program;

use std::collections::BTreeMap;

use libc::c_long;

use self::program::{Action, Policy, Rule, int};
use crate::{
    protocol::{SeccompCondition as Condition, SeccompProfile, SeccompTest as Test},
    sys::confine::Instruction,
};

/// The flags of clone(2) that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACE: u64 = 0x7e02_0000;

const REFUSED: Action = Action::errno(libc::EPERM);
const MISSING: Action = Action::errno(libc::ENOSYS);

/// The default profile (reference: security.md, 3.4) as a program for seccomp(2).
pub(super) fn default_filter() -> Vec<Instruction> {
    compile(default_policy())
}

/// The default profile and what a sandbox inside needs (`security.nested`).
pub(super) fn nested_filter() -> Vec<Instruction> {
    compile(nested_policy())
}

/// The filter of an administrator's profile; `None` if it is longer than the kernel takes.
///
/// A rule without conditions decides about its calls whatever the others say, as with libseccomp; else the first that holds.
/// Numbers that are newer than our list get ENOSYS where the profile refuses what it does not name, as with runc.
pub(super) fn profile_filter(profile: &SeccompProfile) -> Option<Vec<Instruction>> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for rule in &profile.rules {
        for call in rule.names.iter().filter_map(|name| names::number(name)) {
            let rule = Rule { when: rule.conditions.clone(), action: Action(rule.action) };
            calls.entry(number(call)).or_default().push(rule);
        }
    }
    for rules in calls.values_mut() {
        if let Some(index) = rules.iter().position(|rule| rule.when.is_empty()) {
            *rules = vec![rules.swap_remove(index)];
        }
    }
    let refuses = profile.default_action & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO;
    let default = Action(profile.default_action);
    Policy { calls, default, unknown: if refuses { MISSING } else { default } }.compile()
}

fn compile(policy: Policy) -> Vec<Instruction> {
    policy.compile().expect("our own policies are a tenth of what the kernel takes")
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).expect("numbers of system calls are small and positive")
}

fn default_policy() -> Policy {
    let allowed = [calls::COMMON, calls::COMMON_NEW, calls::ARCHITECTURE].into_iter().flatten();
    let mut calls: BTreeMap<u32, Vec<Rule>> =
        allowed.map(|call| (number(*call), vec![Rule::always(Action::ALLOW)])).collect();
    let no_namespace = Condition { argument: 0, test: Test::Masked { mask: NEW_NAMESPACE, value: 0 } };
    // Neither has namespaces: AF_ALG reaches the kernel's crypto code, AF_VSOCK the hypervisor.
    let refused_families = [libc::AF_ALG, libc::AF_VSOCK].map(|family| when(vec![int(0, family)], REFUSED));
    // PER_LINUX, PER_LINUX32, UNAME26, both, and the question which one is set.
    let personas = [0, 8, 0x2_0000, 0x2_0008, -1].map(|persona| when(vec![int(0, persona)], Action::ALLOW));
    calls.extend([
        (number(libc::SYS_clone), vec![when(vec![no_namespace], Action::ALLOW)]),
        // Its flags are behind a pointer; libc falls back to clone.
        (number(libc::SYS_clone3), vec![Rule::always(MISSING)]),
        (number(libc::SYS_socket), otherwise_allowed(refused_families)),
        (number(libc::SYS_personality), personas.into()),
    ]);
    Policy { calls, default: REFUSED, unknown: MISSING }
}

/// Root of a namespace of its own has all capabilities there, and with them reaches much more of the kernel. So beside the
/// calls that sandboxes make, this takes away what they do without and what has had more faults than most.
fn nested_policy() -> Policy {
    let mut policy = default_policy();
    let namespaces = [
        libc::SYS_clone,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
    ];
    policy.calls.extend(namespaces.map(|call| (number(call), vec![Rule::always(Action::ALLOW)])));
    // mount(8) falls back to mount(2) if the new calls are not there, and not if they are refused.
    let new_mount_calls = [
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_mount_setattr,
    ];
    policy.calls.extend(new_mount_calls.map(|call| (number(call), vec![Rule::always(MISSING)])));
    policy.calls.insert(number(libc::SYS_socket), nested_sockets());
    policy.calls.insert(number(libc::SYS_setsockopt), nested_socket_options());
    policy
}

/// Unix and Internet sockets, and netlink but for packet filters, IPsec and what modules add to it. No packet sockets, which
/// root of a network namespace could open.
fn nested_sockets() -> Vec<Rule> {
    const NETLINK: [i32; 3] = [libc::NETLINK_NETFILTER, libc::NETLINK_XFRM, libc::NETLINK_GENERIC];
    let netlink = int(0, libc::AF_NETLINK);
    let refused = NETLINK.map(|protocol| when(vec![netlink, int(2, protocol)], REFUSED));
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let allowed = families.map(|family| when(vec![int(0, family)], Action::ALLOW));
    refused.into_iter().chain(allowed).collect()
}

/// No options by which tables of packet filters and multicast routers are loaded: all numbers from 64 on of IPv4, and of
/// IPv6 those which mean no option of a socket.
fn nested_socket_options() -> Vec<Rule> {
    const FIRST_TABLE: u64 = 64;
    const FIRST_ROUTER: u64 = 200;
    let from = |first: u64| {
        // The kernel takes it as 32 bits; if there are more of them, it is refused too.
        Condition { argument: 2, test: Test::GreaterOrEqual(first) }
    };
    let level = |level: i32| int(1, level);
    otherwise_allowed([
        when(vec![level(libc::IPPROTO_IP), from(FIRST_TABLE)], REFUSED),
        when(vec![level(libc::IPPROTO_IPV6), from(FIRST_ROUTER)], REFUSED),
        when(vec![level(libc::IPPROTO_IPV6), int(2, 64)], REFUSED),
        when(vec![level(libc::IPPROTO_IPV6), int(2, 65)], REFUSED),
    ])
}

fn when(conditions: Vec<Condition>, action: Action) -> Rule {
    Rule { when: conditions, action }
}

fn otherwise_allowed(rules: impl IntoIterator<Item = Rule>) -> Vec<Rule> {
    rules.into_iter().chain([Rule::always(Action::ALLOW)]).collect()
}

#[cfg(test)]
mod tests {
    use crate::protocol::SeccompRule;

    use super::{
        program::{
            LAST_KNOWN,
            tests::{Call, run},
        },
        *,
    };

    const ALLOWED: u32 = Action::ALLOW.0;
    const EPERM: u32 = REFUSED.0;
    const ENOSYS: u32 = MISSING.0;

    fn decide(program: &[Instruction], call: c_long, arguments: &[u64]) -> u32 {
        run(program, Call::new(number(call), arguments)).0
    }

    #[test]
    fn every_number_gets_its_verdict() {
        let program = default_filter();
        let allowed: std::collections::BTreeSet<u32> =
            [calls::COMMON, calls::COMMON_NEW, calls::ARCHITECTURE].into_iter().flatten().map(|&n| number(n)).collect();
        let special = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_socket, libc::SYS_personality].map(number);
        for number in (0..600_u32).filter(|number| !special.contains(number)) {
            let expected = match number {
                n if allowed.contains(&n) => ALLOWED,
                0..=LAST_KNOWN => EPERM,
                _ => ENOSYS,
            };
            let (action, steps) = run(&program, Call::new(number, &[]));
            assert_eq!(action, expected, "call {number}");
            assert!(steps < 32, "call {number} takes {steps} instructions");
        }
    }

    #[test]
    fn arguments_decide_where_they_must() {
        let program = default_filter();
        // The kernel looks at the lower half only.
        const ABOVE: u64 = 1 << 32;
        for (call, argument, expected) in [
            (libc::SYS_clone, libc::SIGCHLD as u64, ALLOWED),
            (libc::SYS_clone, libc::CLONE_NEWUSER as u64, EPERM),
            (libc::SYS_clone, (libc::CLONE_NEWNS | libc::SIGCHLD) as u64, EPERM),
            (libc::SYS_clone, libc::CLONE_NEWCGROUP as u64 | ABOVE, EPERM),
            (libc::SYS_clone3, 0, ENOSYS),
            (libc::SYS_unshare, libc::CLONE_NEWUSER as u64, EPERM),
            (libc::SYS_socket, libc::AF_INET as u64, ALLOWED),
            (libc::SYS_socket, libc::AF_ALG as u64, EPERM),
            (libc::SYS_socket, libc::AF_VSOCK as u64, EPERM),
            (libc::SYS_socket, libc::AF_VSOCK as u64 | ABOVE, EPERM),
            (libc::SYS_personality, 0, ALLOWED),
            (libc::SYS_personality, 0xffff_ffff, ALLOWED),
            (libc::SYS_personality, 0x0004_0000, EPERM),
        ] {
            assert_eq!(decide(&program, call, &[argument]), expected, "{call} {argument:#x}");
        }
    }

    /// Those that no filter of ours allows.
    const DANGEROUS: [c_long; 16] = [
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_io_uring_setup,
        libc::SYS_open_by_handle_at,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_reboot,
        libc::SYS_settimeofday,
        libc::SYS_swapon,
        libc::SYS_acct,
        libc::SYS_quotactl,
    ];

    #[test]
    fn dangerous_calls_are_refused() {
        for program in [default_filter(), nested_filter()] {
            for call in DANGEROUS {
                assert_eq!(decide(&program, call, &[]), EPERM, "{call}");
            }
        }
        let program = default_filter();
        for call in [libc::SYS_mount, libc::SYS_setns, libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_fsopen] {
            assert_eq!(decide(&program, call, &[]), EPERM, "{call}");
        }
    }

    #[test]
    fn a_sandbox_inside_gets_namespaces_and_less_of_the_network() {
        let program = nested_filter();
        let (inet, inet6, netlink) = (libc::AF_INET as u64, libc::AF_INET6 as u64, libc::AF_NETLINK as u64);
        for (call, arguments, expected) in [
            (libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0], ALLOWED),
            (libc::SYS_clone3, [0, 0, 0], ENOSYS),
            (libc::SYS_unshare, [libc::CLONE_NEWNET as u64, 0, 0], ALLOWED),
            (libc::SYS_mount, [0, 0, 0], ALLOWED),
            (libc::SYS_fsopen, [0, 0, 0], ENOSYS),
            (libc::SYS_socket, [inet, 0, 0], ALLOWED),
            (libc::SYS_socket, [inet6, 0, 0], ALLOWED),
            (libc::SYS_socket, [libc::AF_PACKET as u64, 0, 0], EPERM),
            (libc::SYS_socket, [libc::AF_VSOCK as u64, 0, 0], EPERM),
            (libc::SYS_socket, [netlink, 0, libc::NETLINK_ROUTE as u64], ALLOWED),
            (libc::SYS_socket, [netlink, 0, libc::NETLINK_NETFILTER as u64], EPERM),
            (libc::SYS_setsockopt, [3, libc::SOL_SOCKET as u64, 200], ALLOWED),
            (libc::SYS_setsockopt, [3, 0, libc::IP_TTL as u64], ALLOWED),
            (libc::SYS_setsockopt, [3, 0, 64], EPERM),
            (libc::SYS_setsockopt, [3, 0, 64 | 1 << 40], EPERM),
            (libc::SYS_setsockopt, [3, 41, libc::IPV6_TCLASS as u64], ALLOWED),
            (libc::SYS_setsockopt, [3, 41, 64], EPERM),
            (libc::SYS_setsockopt, [3, 41, 200], EPERM),
        ] {
            assert_eq!(decide(&program, call, &arguments), expected, "{call} {arguments:?}");
        }
    }
    fn rule(names: &[&str], action: Action, conditions: &[Condition]) -> SeccompRule {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        SeccompRule { names, action: action.0, conditions: conditions.to_vec() }
    }

    #[test]
    fn a_profile_is_what_it_says() {
        let (refused, missing) = (Action::errno(libc::EACCES), Action::errno(libc::ENOSYS));
        let domain = |domain: u64| Condition { argument: 0, test: Test::Equal(domain) };
        let rules = vec![
            rule(&["read", "no_such_call", "mmap2"], Action::ALLOW, &[]),
            rule(&["socket"], Action::ALLOW, &[domain(1)]),
            rule(&["socket"], missing, &[domain(2)]),
            rule(&["kill"], refused, &[domain(1)]),
            rule(&["kill"], Action::ALLOW, &[]),
        ];
        let profile = SeccompProfile { default_action: refused.0, rules };
        let program = profile_filter(&profile).unwrap();
        for (call, argument, expected) in [
            (libc::SYS_read, 0, Action::ALLOW),
            (libc::SYS_write, 0, refused),
            (libc::SYS_socket, 1, Action::ALLOW),
            (libc::SYS_socket, 2, missing),
            (libc::SYS_socket, 3, refused),
            (libc::SYS_kill, 1, Action::ALLOW),
            (c_long::from(LAST_KNOWN + 1), 0, MISSING),
        ] {
            assert_eq!(decide(&program, call, &[argument]), expected.0, "{call} {argument}");
        }
        let open = SeccompProfile { default_action: ALLOWED, rules: vec![rule(&["reboot"], refused, &[])] };
        let program = profile_filter(&open).unwrap();
        assert_eq!(decide(&program, libc::SYS_reboot, &[]), refused.0);
        assert_eq!(decide(&program, c_long::from(LAST_KNOWN + 1), &[]), ALLOWED);
        let many = |n: u32| rule(&["read"], refused, &[domain(n.into())]);
        let long = SeccompProfile { default_action: ALLOWED, rules: (0..2000).map(many).collect() };
        assert!(profile_filter(&long).is_none());
    }

    #[test]
    fn every_allowed_call_has_a_name() {
        for call in [calls::COMMON, calls::COMMON_NEW, calls::ARCHITECTURE].into_iter().flatten() {
            assert!(names::ALL.iter().copied().flatten().any(|(_, number)| number == call), "{call}");
        }
    }
}
