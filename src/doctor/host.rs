//! What any instance needs of this host.

use std::{fs, path::Path};

use nix::sys::utsname::uname;

use super::Check;
use crate::{cgroup::Cgroups, network, runtime::disk_image};

/// Overlayfs on idmapped layers came with it, the last of what we need.
const OLDEST_KERNEL: (u32, u32) = (5, 19);

pub fn checks() -> Vec<Check> {
    vec![
        root(),
        kernel(&uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()),
        file_system("overlay", &fs::read_to_string("/proc/filesystems").unwrap_or_default()),
        cgroups(),
        user_namespaces(number("/proc/sys/user/max_user_namespaces")),
        nft(),
        forwarding(number("/proc/sys/net/ipv4/ip_forward")),
    ]
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn root() -> Check {
    if nix::unistd::geteuid().is_root() {
        return Check::pass("user", "root");
    }
    Check::fail("user", "not root", "namespaces, mounts and networks are root's to make").mend("sudo podspawn doctor")
}

fn kernel(release: &str) -> Check {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let found = format!("Linux {release}");
    if version >= OLDEST_KERNEL {
        return Check::pass("kernel", found);
    }
    let why = "layers are shared by containers with ids of their own, which overlayfs can do since 5.19";
    Check::fail("kernel", found, why)
}

fn file_system(name: &'static str, known: &str) -> Check {
    if known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        return Check::pass("overlayfs", "the kernel has it");
    }
    // A module that nobody has needed yet is loaded by the first mount.
    Check::warn("overlayfs", "not loaded", "containers are made of layers with it").mend(format!("modprobe {name}"))
}

fn cgroups() -> Check {
    match Cgroups::unified() {
        Ok(true) => Check::pass("cgroups", "v2 with memory and pids"),
        Ok(false) => {
            let why = "limits are kept, but CPU pressure, swap and out-of-memory kills are handled better by v2";
            let mend = "boot the kernel with systemd.unified_cgroup_hierarchy=1";
            Check::warn("cgroups", "v1, or both (hybrid)", why).mend(mend)
        }
        Err(error) => Check::fail("cgroups", error.to_string(), "without limits one session could take the host down"),
    }
}

fn user_namespaces(max: Option<u64>) -> Check {
    let name = "user namespaces";
    match max {
        None => Check::fail(name, "the kernel has none", "a container's root is nobody on the host by one"),
        Some(0) => {
            Check::fail(name, "user.max_user_namespaces is 0", "a container's root is nobody on the host by one")
                .mend("sysctl user.max_user_namespaces=65536")
        }
        Some(max) => Check::pass(name, format!("up to {max}")),
    }
}

fn nft() -> Check {
    match network::nft_program() {
        Ok(path) => Check::pass("nftables", path.display().to_string()),
        Err(error) => {
            Check::fail("nftables", error.to_string(), "sessions are kept apart, and connected, by its rules")
                .mend("apt-get install nftables")
        }
    }
}

fn forwarding(enabled: Option<u64>) -> Check {
    let name = "forwarding";
    match enabled {
        Some(0) | None => {
            let why = "sessions reach the network by it; the server turns it on when it starts";
            Check::warn(name, "net.ipv4.ip_forward is off", why).mend("sysctl net.ipv4.ip_forward=1")
        }
        Some(_) => Check::pass(name, "net.ipv4.ip_forward is on"),
    }
}

/// How it is kept what sessions may write. `wanted` is whether all of them have a limit.
pub(super) fn disk_limits(wanted: bool) -> Check {
    let name = "disk limits";
    let lacks = |found: &str, mend: &str| {
        let check = if wanted {
            Check::fail(name, found, "defaults.disk is set, and no session can be made that cannot be limited")
        } else {
            Check::warn(name, found, "projects and users whose disk is limited have no sessions")
        };
        check.mend(mend)
    };
    match disk_image::mkfs() {
        Err(error) => lacks(&error.to_string(), "apt-get install e2fsprogs"),
        Ok(_) if !Path::new("/dev/loop-control").exists() => lacks("the kernel has no loop devices", "modprobe loop"),
        Ok(mkfs) => {
            let found = format!("each limited session has a file system in a file (loop device, {})", mkfs.display());
            Check::pass(name, found)
        }
    }
}

/// Whether the sandboxes of tools inside sessions are allowed to use user namespaces.
pub(super) fn nested() -> Check {
    let name = "nested sandboxes";
    let why = "security.nested is set, and sandboxes inside sessions need user namespaces as an ordinary user";
    for (sysctl, forbidden) in
        [("kernel.apparmor_restrict_unprivileged_userns", 1), ("kernel.unprivileged_userns_clone", 0)]
    {
        let path = Path::new("/proc/sys").join(sysctl.replace('.', "/"));
        if path.to_str().and_then(number) == Some(forbidden) {
            let mend = format!("sysctl {sysctl}={}", 1 - forbidden);
            return Check::warn(name, format!("{sysctl} is {forbidden}"), why).mend(mend);
        }
    }
    Check::pass(name, "nothing forbids user namespaces")
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn kernels_are_compared_by_their_numbers() {
        let table = [
            ("5.19.0", Verdict::Pass),
            ("5.18.19-generic", Verdict::Fail),
            ("6.1.0-18-cloud-amd64", Verdict::Pass),
            ("10.0", Verdict::Pass),
            ("", Verdict::Fail),
        ];
        for (release, verdict) in table {
            assert_eq!(kernel(release).verdict, verdict, "{release:?}");
        }
    }

    #[test]
    fn sysctls_and_file_systems_are_judged() {
        assert_eq!(user_namespaces(Some(0)).mend.as_deref(), Some("sysctl user.max_user_namespaces=65536"));
        assert_eq!(user_namespaces(Some(96_364)).verdict, Verdict::Pass);
        assert_eq!((forwarding(Some(0)).verdict, forwarding(Some(1)).verdict), (Verdict::Warn, Verdict::Pass));
        assert_eq!(file_system("overlay", "nodev\tproc\nnodev\toverlay\n").verdict, Verdict::Pass);
        assert_eq!(file_system("overlay", "nodev\toverlayx\n").verdict, Verdict::Warn);
    }
}
