"""The machine as it is described in the results, and the namespaces that all of a run happens in."""

import ctypes
import os
import platform
import subprocess
import tempfile
from pathlib import Path

CLONE_NEWNS = 0x20000
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(*arguments) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def first_line(*argv) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not installed"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else ""


def describe() -> dict:
    """What whoever reads the numbers has to know."""
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "unknown")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return {
        "system": release.get("PRETTY_NAME", "").strip('"'),
        "kernel": platform.release(),
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory": f"{memory} MiB",
        "file system": first_line("findmnt", "--noheadings", "--output", "FSTYPE,OPTIONS", "--target", "/var/tmp"),
        "cgroups": "v2" if unified else "v1, or hybrid",
        "load before": Path("/proc/loadavg").read_text().split()[0],
        "podspawn": first_line(os.environ["PODSPAWN"], "version"),
        "ssh, sshd": first_line("ssh", "-V"),
        "crun": first_line("crun", "--version"),
        "runc": first_line("runc", "--version"),
        "podman": first_line("podman", "--version"),
        "docker": first_line("dockerd", "--version"),
        "skopeo": first_line("skopeo", "--version"),
        "umoci": first_line("umoci", "--version"),
    }


def plain_shell(scratch: Path) -> None:
    """Gives root /bin/sh for a login shell in this mount namespace: what a bashrc costs is nobody's here."""
    passwd = scratch / "passwd"
    lines = Path("/etc/passwd").read_text().splitlines()
    passwd.write_text("\n".join(line.rsplit(":", 1)[0] + ":/bin/sh" if line.startswith("root:") else line for line in lines) + "\n")
    mount("--bind", passwd, "/etc/passwd")


def hide_hybrid_cgroups() -> None:
    """Enters one more mount namespace, where a hybrid host's unified hierarchy is covered: crun refuses to run beside it."""
    if LIBC.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    mount("--make-rprivate", "/")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2" and fields[4] != "/sys/fs/cgroup":
            mount("-t", "tmpfs", "tmpfs", fields[4])


def journalled_disk(directory: Path) -> None:
    """Covers a directory, in this mount namespace, with an ext4 of its own.

    Without a journal ext4 keeps away from inodes that were deleted seconds ago, and looks for others one by one: what is unpacked
    after something was removed would be slower each time.
    """
    with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="podspawn-bench.") as disk:
        disk.truncate(20 << 30)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", disk.name], check=True)
        mount("-o", "loop", disk.name, directory)
