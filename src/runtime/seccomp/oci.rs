//! A policy in the words of the OCI runtime specification.
//!
//! There, rules have no order: where several of a call's hold, it is libseccomp's to choose. Ours are asked one after the other. So
//! each is said without what the ones before it cover, as sets of arguments that share some of their bits, which both express
//! (`SCMP_CMP_MASKED_EQ`).

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as OciAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::{
    default_policy, names, nested_policy, number,
    program::{Action, Policy, Rule},
};
use crate::protocol::{SeccompCondition as Condition, SeccompProfile, SeccompTest as Test, SecuritySpec};

/// Values of an argument that have these bits of a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bits {
    mask: u64,
    value: u64,
}

/// What arguments are like, by their numbers; those that are not here may be anything.
type Region = BTreeMap<u8, Bits>;

/// The filter that a container with this profile has; `None` if it has none.
pub fn filter(security: &SecuritySpec) -> Option<LinuxSeccomp> {
    security.seccomp.then(|| match &security.seccomp_profile {
        Some(profile) => of_profile(profile),
        None if security.nested => of_policy(&nested_policy()),
        None => of_policy(&default_policy()),
    })
}

/// A policy of ours.
fn of_policy(policy: &Policy) -> LinuxSeccomp {
    let mut always: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut conditional = Vec::new();
    for (call, name) in policy.calls.keys().filter_map(|call| Some((call, name_of(*call)?))) {
        let mut covered: Vec<Region> = Vec::new();
        for Rule { when, action } in &policy.calls[call] {
            let whole = regions(when);
            let new = covered
                .iter()
                .fold(whole.clone(), |left, before| left.iter().flat_map(|region| without(region, before)).collect());
            covered.extend(whole);
            for region in new.iter().filter(|_| *action != policy.default) {
                if region.is_empty() {
                    always.entry(action.0).or_default().push(name.to_owned());
                } else {
                    conditional.push(call_rule(vec![name.to_owned()], *action, arguments(region)));
                }
            }
        }
    }
    let always = always.into_iter().map(|(action, names)| call_rule(names, Action(action), Vec::new()));
    seccomp(policy.default, always.chain(conditional).collect())
}

/// An administrator's, which came in these words.
fn of_profile(profile: &SeccompProfile) -> LinuxSeccomp {
    let rules = profile.rules.iter().map(|rule| {
        let conditions = rule.conditions.iter().map(|Condition { argument, test }| {
            let (op, value, second) = match *test {
                Test::Equal(value) => (Operator::ScmpCmpEq, value, None),
                Test::NotEqual(value) => (Operator::ScmpCmpNe, value, None),
                Test::Less(value) => (Operator::ScmpCmpLt, value, None),
                Test::LessOrEqual(value) => (Operator::ScmpCmpLe, value, None),
                Test::GreaterOrEqual(value) => (Operator::ScmpCmpGe, value, None),
                Test::Greater(value) => (Operator::ScmpCmpGt, value, None),
                Test::Masked { mask, value } => (Operator::ScmpCmpMaskedEq, mask, Some(value)),
            };
            argument_of(*argument, op, value, second)
        });
        call_rule(rule.names.clone(), Action(rule.action), conditions.collect())
    });
    seccomp(Action(profile.default_action), rules.collect())
}

fn name_of(call: u32) -> Option<&'static str> {
    names::ALL.into_iter().flatten().find_map(|(name, known)| (number(*known) == call).then_some(*name))
}

fn seccomp(default: Action, rules: Vec<LinuxSyscall>) -> LinuxSeccomp {
    let arch = if cfg!(target_arch = "aarch64") { Arch::ScmpArchAarch64 } else { Arch::ScmpArchX86_64 };
    let (action, errno) = action(default);
    let mut seccomp = LinuxSeccomp::default();
    seccomp.set_default_action(action).set_default_errno_ret(errno);
    seccomp.set_architectures(Some(vec![arch])).set_syscalls(Some(rules));
    seccomp
}

fn call_rule(names: Vec<String>, what: Action, arguments: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let (action, errno) = action(what);
    let mut rule = LinuxSyscall::default();
    rule.set_names(names).set_action(action).set_errno_ret(errno);
    rule.set_args((!arguments.is_empty()).then_some(arguments));
    rule
}

fn action(Action(action): Action) -> (OciAction, Option<u32>) {
    let data = action & libc::SECCOMP_RET_DATA;
    match action & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW => (OciAction::ScmpActAllow, None),
        libc::SECCOMP_RET_ERRNO => (OciAction::ScmpActErrno, Some(data)),
        libc::SECCOMP_RET_LOG => (OciAction::ScmpActLog, None),
        libc::SECCOMP_RET_TRACE => (OciAction::ScmpActTrace, Some(data)),
        libc::SECCOMP_RET_TRAP => (OciAction::ScmpActTrap, None),
        libc::SECCOMP_RET_KILL_THREAD => (OciAction::ScmpActKillThread, None),
        _ => (OciAction::ScmpActKillProcess, None),
    }
}

fn argument_of(index: u8, op: Operator, value: u64, second: Option<u64>) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    let argument = if let Some(second) = second { argument.value_two(second) } else { argument };
    argument.build().expect("every field has a default")
}

fn arguments(region: &Region) -> Vec<LinuxSeccompArg> {
    let argument = |(index, bits): (&u8, &Bits)| match bits.mask {
        u64::MAX => argument_of(*index, Operator::ScmpCmpEq, bits.value, None),
        mask => argument_of(*index, Operator::ScmpCmpMaskedEq, mask, Some(bits.value)),
    };
    region.iter().map(argument).collect()
}

/// Where all conditions hold.
fn regions(when: &[Condition]) -> Vec<Region> {
    when.iter().fold(vec![Region::new()], |regions, condition| {
        let values = values(condition.test);
        let narrowed = regions.iter().flat_map(|region| {
            values.iter().filter_map(|bits| {
                let mut region = region.clone();
                let before = region.get(&condition.argument).copied().unwrap_or(Bits { mask: 0, value: 0 });
                region.insert(condition.argument, both(before, *bits)?);
                Some(region)
            })
        });
        narrowed.collect()
    })
}

/// What is in both; `None` if that is nothing.
fn both(one: Bits, other: Bits) -> Option<Bits> {
    let agree = (one.value ^ other.value) & one.mask & other.mask == 0;
    agree.then_some(Bits { mask: one.mask | other.mask, value: one.value | other.value })
}

fn values(test: Test) -> Vec<Bits> {
    const END: u128 = 1 << 64;
    match test {
        Test::Masked { mask, value } => vec![Bits { mask, value }],
        Test::Equal(value) => vec![Bits { mask: u64::MAX, value }],
        Test::NotEqual(value) => [range(0, value.into()), range(u128::from(value) + 1, END)].concat(),
        Test::Less(value) => range(0, value.into()),
        Test::LessOrEqual(value) => range(0, u128::from(value) + 1),
        Test::GreaterOrEqual(value) => range(value.into(), END),
        Test::Greater(value) => range(u128::from(value) + 1, END),
    }
}

/// The values from `start` to below `end`, in blocks of a power of two.
fn range(mut start: u128, end: u128) -> Vec<Bits> {
    let mut blocks = Vec::new();
    while start < end {
        let aligned = if start == 0 { 64 } else { start.trailing_zeros() };
        let size = 1_u128 << aligned.min((end - start).ilog2());
        blocks.push(Bits { mask: !((size - 1) as u64), value: start as u64 });
        start += size;
    }
    blocks
}

/// What of a region is not in the other one.
fn without(region: &Region, other: &Region) -> Vec<Region> {
    let anything = Bits { mask: 0, value: 0 };
    if other.iter().any(|(index, bits)| both(region.get(index).copied().unwrap_or(anything), *bits).is_none()) {
        return vec![region.clone()];
    }
    let mut pieces = Vec::new();
    let mut rest = region.clone();
    for (index, bits) in other {
        for bit in (0..64).rev().map(|shift| 1_u64 << shift).filter(|bit| bits.mask & bit != 0) {
            let known = rest.get(index).copied().unwrap_or(anything);
            if known.mask & bit == 0 {
                let mut piece = rest.clone();
                piece.insert(*index, Bits { mask: known.mask | bit, value: known.value | (!bits.value & bit) });
                pieces.push(piece);
                rest.insert(*index, Bits { mask: known.mask | bit, value: known.value | (bits.value & bit) });
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::{
        super::program::tests::{Call, run},
        *,
    };

    /// What libseccomp would make of it: a call without a rule that holds gets the default action.
    fn decide(seccomp: &LinuxSeccomp, name: &str, arguments: &[u64; 3]) -> (OciAction, Option<u32>) {
        let holds = |argument: &LinuxSeccompArg| {
            let value = arguments[argument.index()];
            match argument.op() {
                Operator::ScmpCmpEq => value == argument.value(),
                Operator::ScmpCmpMaskedEq => value & argument.value() == argument.value_two().unwrap(),
                other => panic!("{other:?}"),
            }
        };
        let rules = seccomp.syscalls().as_ref().unwrap();
        let mut found: Vec<_> = rules
            .iter()
            .filter(|rule| rule.names().iter().any(|known| known == name))
            .filter(|rule| rule.args().iter().flatten().all(holds))
            .map(|rule| (rule.action(), rule.errno_ret()))
            .collect();
        assert!(found.len() < 2, "{name} {arguments:?}: {found:?}");
        found.pop().unwrap_or((seccomp.default_action(), seccomp.default_errno_ret()))
    }

    #[test]
    fn each_call_gets_the_same_verdict_as_from_our_own_filter() {
        // Beyond the bits that the kernel takes of most.
        const HIGH: u64 = 1 << 40;
        let interesting = [0, 1, 2, 6, 8, 12, 16, 17, 38, 39, 40, 41, 63, 64, 65, 66, 199, 200, 1 << 31, 0xffff_ffff];
        let namespaces = [0x1000_0000, 0x2_0000, 0x200_0000, 0x4000_0000, 0x2_0008].map(|flag: u64| flag | 0x11);
        let all: Vec<u64> = interesting.into_iter().chain(namespaces).flat_map(|v| [v, v | HIGH]).collect();
        // Those that decide about sockets: families and protocols of netlink, levels and numbers of options.
        let [second, third] = [[0, 1, 41, HIGH, 17], [12, 16, 64, 199, HIGH + 12]];
        for policy in [default_policy(), nested_policy()] {
            let (program, seccomp) = (policy.compile().unwrap(), of_policy(&policy));
            for (name, call) in names::ALL.into_iter().flatten() {
                let conditional = policy.calls.get(&number(*call)).is_some_and(|rules| rules.len() > 1);
                let (second, third) = if conditional { (&second[..], &third[..]) } else { (&[0][..], &[0][..]) };
                let each = |a: u64| second.iter().flat_map(move |b| third.iter().map(move |c| [a, *b, *c]));
                for arguments in all.iter().flat_map(|a| each(*a)) {
                    let ours = action(Action(run(&program, Call::new(number(*call), &arguments)).0));
                    assert_eq!(decide(&seccomp, name, &arguments), ours, "{name} {arguments:x?}");
                }
            }
            assert!(seccomp.syscalls().as_ref().unwrap().len() < 400);
        }
    }

    #[test]
    fn comparisons_are_blocks_of_values() {
        for (test, inside, outside) in [
            (Test::Less(200), vec![0, 63, 128, 199], vec![200, 256, u64::MAX]),
            (Test::LessOrEqual(0), vec![0], vec![1, u64::MAX]),
            (Test::GreaterOrEqual(65), vec![65, 66, 127, 128, u64::MAX], vec![0, 64]),
            (Test::Greater(u64::MAX - 1), vec![u64::MAX], vec![0, u64::MAX - 1]),
            (Test::NotEqual(38), vec![0, 37, 39, u64::MAX], vec![38]),
            (Test::Greater(u64::MAX), vec![], vec![0, u64::MAX]),
        ] {
            let blocks = values(test);
            let holds = |value: u64| blocks.iter().filter(|bits| value & bits.mask == bits.value).count();
            assert!(inside.iter().all(|value| holds(*value) == 1), "{test:?}");
            assert!(outside.iter().all(|value| holds(*value) == 0), "{test:?}");
        }
    }
}
