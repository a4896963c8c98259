//! `security.seccomp_profile`: a file in Docker's format (moby's `seccomp/default.json`) or that of the OCI runtime
//! specification (`linux.seccomp`), which are nearly the same.
//!
//! As Docker does, rules that are for other capabilities, architectures or kernels are left out here, and system calls that
//! this machine does not have later. Whatever else is not understood is an error: a rule that is skipped may be the one that
//! mattered.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompOperator};
use serde::Deserialize;

use super::Stamp;
use crate::protocol::{SeccompCondition, SeccompProfile, SeccompRule, SeccompTest};

/// A bigger file is a mistake; moby's default has 17 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Conditions of one rule that the kernel could take; one for each argument is usual.
const MAX_CONDITIONS: usize = 6;

#[cfg(target_arch = "x86_64")]
const NATIVE: (&str, &str) = ("SCMP_ARCH_X86_64", "amd64");
#[cfg(target_arch = "aarch64")]
const NATIVE: (&str, &str) = ("SCMP_ARCH_AARCH64", "arm64");

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is larger than 1 MiB", .0.display())]
    TooLarge(PathBuf),
    #[error("{} is not a seccomp profile", .0.display())]
    Syntax(PathBuf, #[source] serde_json::Error),
    #[error("{}: {why}", .path.display())]
    Rule { path: PathBuf, why: String },
}

/// A profile and the file that it was read from.
#[derive(Debug, Clone)]
pub struct ProfileFile {
    pub path: PathBuf,
    stamp: Option<Stamp>,
    pub profile: SeccompProfile,
}

impl ProfileFile {
    pub(super) fn read(path: PathBuf, circumstances: &Circumstances<'_>) -> Result<Self, ProfileError> {
        let stamp = Stamp::of(&path);
        let profile = read(&path, circumstances)?;
        Ok(Self { path, stamp, profile })
    }

    /// Whether the file has not changed since.
    pub(super) fn is_the_same(&self) -> bool {
        Stamp::of(&self.path) == self.stamp
    }
}

/// What rules may depend on.
pub(super) struct Circumstances<'a> {
    /// The bounding set: names without `CAP_`.
    pub(super) capabilities: &'a [String],
    /// Major and minor version.
    pub(super) kernel: (u32, u32),
}

impl<'a> Circumstances<'a> {
    /// Those of this machine.
    pub(super) fn here(capabilities: &'a [String]) -> Self {
        let release = nix::sys::utsname::uname().ok().and_then(|names| version(names.release().to_str()?));
        Self { capabilities, kernel: release.unwrap_or_default() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<Architecture>>,
    flags: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Architecture {
    architecture: String,
    #[serde(rename = "subArchitectures")]
    _sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: LinuxSeccompOperator,
}

/// What a rule is for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads the profile for containers with these capabilities on this machine.
fn read(path: &Path, circumstances: &Circumstances<'_>) -> Result<SeccompProfile, ProfileError> {
    let failed = |error| ProfileError::Read(path.to_owned(), error);
    if fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(ProfileError::TooLarge(path.to_owned()));
    }
    let bytes = fs::read(path).map_err(failed)?;
    let document: Document =
        serde_json::from_slice(&bytes).map_err(|error| ProfileError::Syntax(path.to_owned(), error))?;
    document.profile(circumstances).map_err(|why| ProfileError::Rule { path: path.to_owned(), why })
}

impl Document {
    fn profile(self, circumstances: &Circumstances<'_>) -> Result<SeccompProfile, String> {
        if let Some(flag) = self.flags.iter().flatten().next() {
            return Err(format!("the flag {flag} is not supported"));
        }
        let mapped = self.arch_map.iter().flatten().map(|entry| &entry.architecture);
        let mut architectures = self.architectures.iter().flatten().chain(mapped).peekable();
        if architectures.peek().is_some() && !architectures.any(|name| name == NATIVE.0) {
            return Err(format!("it is for other architectures than {}", NATIVE.0));
        }
        let default_action = action(self.default_action, self.default_errno_ret)?;
        let mut rules = Vec::new();
        for (index, entry) in self.syscalls.into_iter().enumerate() {
            let rule = entry.rule(circumstances, self.default_errno_ret);
            rules.extend(rule.map_err(|why| format!("syscalls[{index}]: {why}"))?);
        }
        Ok(SeccompProfile { default_action, rules })
    }
}

impl Entry {
    /// The rule, if it is for these circumstances. It is checked in any case.
    fn rule(
        self,
        circumstances: &Circumstances<'_>,
        default_errno: Option<u32>,
    ) -> Result<Option<SeccompRule>, String> {
        let holds = self.includes.includes(circumstances)? && !self.excludes.excludes(circumstances)?;
        let names = match (self.name, self.names) {
            (Some(name), None) => vec![name],
            (None, Some(names)) => names,
            _ => return Err("it has either name or names".to_owned()),
        };
        let plain = |name: &String| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if let Some(name) = names.iter().find(|name| !plain(name)) {
            return Err(format!("{name:?} is not the name of a system call"));
        }
        let arguments = self.args.unwrap_or_default();
        if arguments.len() > MAX_CONDITIONS {
            return Err(format!("it has more than {MAX_CONDITIONS} conditions"));
        }
        let rule = SeccompRule {
            names,
            action: action(self.action, self.errno_ret.or(default_errno))?,
            conditions: arguments.into_iter().map(Argument::condition).collect::<Result<_, _>>()?,
        };
        Ok(holds.then_some(rule))
    }
}

impl Argument {
    fn condition(self) -> Result<SeccompCondition, String> {
        let Self { index: argument, value, value_two, op } = self;
        if argument > 5 {
            return Err(format!("a call has arguments 0 to 5, not {argument}"));
        }
        let test = match op {
            LinuxSeccompOperator::ScmpCmpNe => SeccompTest::NotEqual(value),
            LinuxSeccompOperator::ScmpCmpLt => SeccompTest::Less(value),
            LinuxSeccompOperator::ScmpCmpLe => SeccompTest::LessOrEqual(value),
            LinuxSeccompOperator::ScmpCmpEq => SeccompTest::Equal(value),
            LinuxSeccompOperator::ScmpCmpGe => SeccompTest::GreaterOrEqual(value),
            LinuxSeccompOperator::ScmpCmpGt => SeccompTest::Greater(value),
            LinuxSeccompOperator::ScmpCmpMaskedEq => SeccompTest::Masked { mask: value, value: value_two },
        };
        Ok(SeccompCondition { argument, test })
    }
}

impl Filter {
    /// Whether a rule with this as its `includes` is for these circumstances: all that it names has to hold.
    fn includes(&self, circumstances: &Circumstances<'_>) -> Result<bool, String> {
        let capabilities = self.caps.iter().flatten().all(|name| has(circumstances, name));
        let arch = self.arches.as_ref().is_none_or(|arches| arches.is_empty() || arches.iter().any(|a| a == NATIVE.1));
        Ok(capabilities && arch && self.kernel(circumstances)?.unwrap_or(true))
    }

    /// Whether a rule with this as its `excludes` is not for these circumstances: it is enough that one holds.
    fn excludes(&self, circumstances: &Circumstances<'_>) -> Result<bool, String> {
        let capability = self.caps.iter().flatten().any(|name| has(circumstances, name));
        let arch = self.arches.iter().flatten().any(|arch| arch == NATIVE.1);
        Ok(capability || arch || self.kernel(circumstances)?.unwrap_or(false))
    }

    fn kernel(&self, circumstances: &Circumstances<'_>) -> Result<Option<bool>, String> {
        let Some(text) = &self.min_kernel else { return Ok(None) };
        let version = version(text).ok_or_else(|| format!("{text:?} is not a kernel version"))?;
        Ok(Some(circumstances.kernel >= version))
    }
}

fn has(circumstances: &Circumstances<'_>, capability: &str) -> bool {
    let name = capability.strip_prefix("CAP_").unwrap_or(capability);
    circumstances.capabilities.iter().any(|held| held == name)
}

/// The first two numbers of a kernel's version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, String> {
    // What does not fit into the result of a call (MAX_ERRNO) would be cut by the kernel.
    if let Some(errno) = errno.filter(|errno| *errno > 4095) {
        return Err(format!("{errno} is not an error number"));
    }
    if action == LinuxSeccompAction::ScmpActNotify {
        return Err("SCMP_ACT_NOTIFY is not supported".to_owned());
    }
    Ok(action.as_u32(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERRNO: u32 = libc::SECCOMP_RET_ERRNO;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn profile(json: &str) -> Result<SeccompProfile, String> {
        let capabilities = ["CHOWN".to_owned(), "SYS_CHROOT".to_owned()];
        let circumstances = Circumstances { capabilities: &capabilities, kernel: (6, 1) };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("profile.json");
        fs::write(&file, json).unwrap();
        read(&file, &circumstances)
            .map_err(|error| crate::errors::chain(error).replace(&format!("{}/", directory.path().display()), ""))
    }

    fn names(json: &str) -> Vec<String> {
        profile(json).unwrap().rules.into_iter().flat_map(|rule| rule.names).collect()
    }

    #[test]
    fn both_formats_are_understood() {
        let oci = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["{}"], "syscalls": [
                {{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}},
                {{"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args":
                    [{{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}}]}},
                {{"names": ["swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}},
                {{"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS", "args": null}}]}}"#,
            NATIVE.0
        );
        let found = profile(&oci).unwrap();
        assert_eq!(found.default_action, ERRNO | libc::ENOSYS as u32);
        let actions: Vec<u32> = found.rules.iter().map(|rule| rule.action).collect();
        assert_eq!(actions, [ALLOW, ALLOW, ERRNO | libc::EACCES as u32, libc::SECCOMP_RET_KILL_PROCESS]);
        let masked = SeccompTest::Masked { mask: 2_114_060_288, value: 0 };
        assert_eq!(found.rules[1].conditions, [SeccompCondition { argument: 0, test: masked }]);
        let docker = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{{"architecture": "{}", "subArchitectures": null}}],
                "syscalls": [
                {{"name": "read", "action": "SCMP_ACT_ALLOW", "comment": "x", "includes": {{}}, "excludes": {{}}}},
                {{"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {{"caps": ["CAP_SYS_CHROOT"]}}}},
                {{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {{"caps": ["CAP_SYS_ADMIN"]}}}},
                {{"names": ["unshare"], "action": "SCMP_ACT_ALLOW", "excludes": {{"caps": ["CAP_SYS_CHROOT"]}}}},
                {{"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {{"minKernel": "4.8"}}}},
                {{"names": ["later"], "action": "SCMP_ACT_ALLOW", "includes": {{"minKernel": "6.2"}}}},
                {{"names": ["here"], "action": "SCMP_ACT_ALLOW", "includes": {{"arches": ["amd64", "arm64"]}}}},
                {{"names": ["there"], "action": "SCMP_ACT_ALLOW", "includes": {{"arches": ["s390x"]}}}},
                {{"names": ["not_here"], "action": "SCMP_ACT_ALLOW", "excludes": {{"arches": ["amd64", "arm64"]}}}}]}}"#,
            NATIVE.0
        );
        assert_eq!(names(&docker), ["read", "chroot", "ptrace", "here"]);
        assert_eq!(profile(&docker).unwrap().default_action, ERRNO | 1);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let syscall = |text: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{{text}}}]}}"#);
        for (json, expected) in [
            ("{".to_owned(), "not a seccomp profile"),
            ("{}".to_owned(), "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_PERMIT"}"#.to_owned(), "SCMP_ACT_PERMIT"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "sycalls": []}"#.to_owned(), "sycalls"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#.to_owned(), "listenerPath"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(), "SCMP_ACT_NOTIFY is not supported"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}"#.to_owned(), "the flag X is not supported"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}"#.to_owned(), "other arch"),
            (r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65536}"#.to_owned(), "65536 is not an error"),
            (syscall(r#""action": "SCMP_ACT_ERRNO""#), "syscalls[0]: it has either name or names"),
            (syscall(r#""names": ["no call"], "action": "SCMP_ACT_ERRNO""#), "\"no call\" is not the name"),
            (
                syscall(
                    r#""name": "x", "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]"#,
                ),
                "arguments 0 to 5, not 6",
            ),
            (
                syscall(r#""name": "x", "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 0, "op": "EQ"}]"#),
                "EQ",
            ),
            (
                syscall(r#""name": "x", "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "new"}"#),
                "syscalls[0]: \"new\"",
            ),
            (syscall(r#""name": "x", "action": "SCMP_ACT_ERRNO", "includes": {"cap": []}"#), "unknown field `cap`"),
        ] {
            let error = profile(&json).unwrap_err();
            assert!(error.contains(expected) && error.contains("profile.json"), "{json}: {error}");
        }
    }
}
