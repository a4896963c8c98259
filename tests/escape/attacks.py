# Attempts to get out of a container, or at what belongs to the host. Prints one line for each: its name, and `refused` or
# `reached` with the reason. Where an attempt would do harm if it succeeded, it stops at the last check that the kernel
# makes before.
#
# Usage: attacks.py CANARY, the path of a file of the host.

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys
import tempfile

CANARY = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
ON_X86 = platform.machine() == "x86_64"

# Names that libc does not know: the number on x86_64 and on aarch64.
CALLS = {
    "ptrace": (101, 117),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "process_vm_readv": (310, 270),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
}


def check(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name, *arguments):
    return check(libc.syscall(CALLS[name][0 if ON_X86 else 1], *arguments))


def mount(source, target, kind, flags=0, data=None):
    encode = lambda text: None if text is None else text.encode()
    check(libc.mount(encode(source), encode(target), encode(kind), flags, encode(data)))


def scratch():
    return tempfile.mkdtemp(dir="/tmp")


def open_for_writing(path):
    os.close(os.open(path, os.O_WRONLY))


def read_some(path):
    with open(path, "rb", buffering=0) as file:
        if not file.read(1):
            raise OSError(errno.ENODATA, "it is empty")


def mounting(kind, data=None):
    return lambda: mount("none", scratch(), kind, data=data)


def remounting(path):
    return lambda: mount(None, path, None, 0x20 | 0x1000)  # MS_REMOUNT | MS_BIND, writable


def unsharing(flags):
    def attempt():
        pid = os.fork()
        if pid == 0:
            os._exit(0 if libc.unshare(flags) == 0 else ctypes.get_errno())
        number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if number:
            raise OSError(number, os.strerror(number))

    return attempt


def device(kind, major, minor):
    def attempt():
        path = scratch() + "/device"
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
        os.close(os.open(path, os.O_RDONLY))

    return attempt


def entering(namespace):
    return lambda: call("setns", os.open(f"/proc/1/ns/{namespace}", os.O_RDONLY), 0)


def perf():
    attributes = bytearray(128)
    struct.pack_into("IIQ", attributes, 0, 1, 128, 0)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK of processor 0
    call("perf_event_open", bytes(attributes), -1, 0, -1, 0)


def file_by_handle():
    # The root of whatever file system /proc/1's root is on, by its usual inode (as the "shocker" exploit).
    mount_fd = os.open("/etc/hosts", os.O_RDONLY)
    call("open_by_handle_at", mount_fd, struct.pack("IiQ", 8, 1, 2), os.O_RDONLY)


def tracing_init():
    call("ptrace", 0x4206, 1, 0, 0)  # PTRACE_SEIZE, which does not stop it


def memory_of_init():
    call("process_vm_readv", 1, struct.pack("QQ", ctypes.addressof(ctypes.create_string_buffer(8)), 8), 1,
         struct.pack("QQ", 0x1000, 8), 1, 0)


def out_of_chroot():
    pid = os.fork()
    if pid == 0:
        try:
            outside = os.open("/", os.O_RDONLY)
            os.chroot(scratch())
            os.fchdir(outside)
            for _ in range(100):
                os.chdir("..")
            os.chroot(".")
            os._exit(0 if os.path.exists(CANARY) else errno.ENOENT)
        except OSError as error:
            os._exit(error.errno)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number:
        raise OSError(number, os.strerror(number))


def through_descriptors():
    # CVE-2024-21626: a directory of the host that somebody has left open.
    for fd in range(3, 1024):
        try:
            os.stat(CANARY.lstrip("/"), dir_fd=fd)
            return
        except OSError:
            continue
    raise OSError(errno.ENOENT, "none leads there")


def releasing_agent():
    # CVE-2022-0492
    for line in open("/proc/self/mounts"):
        _, point, kind, *_ = line.split(" ")
        if kind == "cgroup" and os.path.exists(point + "/release_agent"):
            return open_for_writing(point + "/release_agent")
    directory = scratch()
    mount("none", directory, "cgroup", data="memory")
    open_for_writing(directory + "/release_agent")


def own_cgroup():
    # The limits of its own: at the top of what it sees.
    for path in ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                 "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"]:
        try:
            return open_for_writing(path)
        except OSError as error:
            last = error
    raise last


def interface_down():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name = next(name for _, name in socket.if_nameindex())
        request = struct.pack("16sh14x", name.encode(), 0)
        fcntl.ioctl(sock, 0x8914, request)  # SIOCSIFFLAGS


def netlink_filter():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:  # NETLINK_NETFILTER
        sock.bind((0, 0))
        # A new table of nftables, in a batch (linux/netfilter/nfnetlink.h).
        batch = lambda kind: struct.pack("IHHIIBBH", 20, kind, 1, 1, 0, 0, 0, socket.htons(10))
        name = struct.pack("HH8s", 12, 1, b"escape\0")
        table = struct.pack("IHHIIBBH", 20 + len(name), 0x0A00, 0x405, 2, 0, 2, 0, 0) + name
        sock.send(batch(16) + table + batch(17))
        number = -struct.unpack_from("i", sock.recv(4096), 16)[0]
        if number:
            raise OSError(number, os.strerror(number))


def clock():
    import time

    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))


def module():
    check(call("init_module", b"no module", 9, b""))


# Name, attempt, and the errors that say that the attempt would have been made.
ATTACKS = [
    ("mount a tmpfs", mounting("tmpfs"), ()),
    ("mount a procfs", mounting("proc"), ()),
    ("mount a sysfs", mounting("sysfs"), ()),
    ("mount a debugfs", mounting("debugfs"), (errno.ENODEV, errno.EBUSY)),
    ("mount a cgroup file system", mounting("cgroup2"), (errno.EBUSY,)),
    ("mount an overlay", mounting("overlay", "lowerdir=/bin:/etc"), ()),
    ("mount a disk", lambda: mount("/dev/null", scratch(), "ext4"), (errno.ENOTBLK, errno.ENODEV)),
    ("bind a directory", lambda: mount("/etc", scratch(), None, 0x1000), ()),
    ("make /proc/sys writable", remounting("/proc"), ()),
    ("make /sys writable", remounting("/sys"), ()),
    ("copy a mount", lambda: call("open_tree", -100, b"/", 0x8001), ()),
    ("configure a file system", lambda: call("fsopen", b"tmpfs", 0), ()),
    ("make a user namespace", unsharing(0x10000000), ()),
    ("make a mount namespace", unsharing(0x00020000), ()),
    ("make a network namespace", unsharing(0x40000000), ()),
    ("make a cgroup namespace", unsharing(0x02000000), ()),
    ("enter init's mount namespace", entering("mnt"), ()),
    ("enter init's network namespace", entering("net"), ()),
    ("open a disk", device(0o060000, 8, 0), (errno.ENXIO,)),
    ("open the host's memory", device(0o020000, 1, 1), ()),
    ("open the kernel's log", device(0o020000, 1, 11), ()),
    ("make a FUSE device", device(0o020000, 10, 229), (errno.ENXIO, errno.ENODEV)),
    ("read the kernel's memory", lambda: read_some("/proc/kcore"), ()),
    ("read the kernel's log", lambda: check(libc.klogctl(3, ctypes.create_string_buffer(64), 64)), ()),
    ("set where cores go", lambda: open_for_writing("/proc/sys/kernel/core_pattern"), ()),
    ("set the module loader", lambda: open_for_writing("/proc/sys/kernel/modprobe"), ()),
    ("drop the host's caches", lambda: open_for_writing("/proc/sys/vm/drop_caches"), ()),
    ("press SysRq", lambda: open_for_writing("/proc/sysrq-trigger"), ()),
    ("write to /sys", lambda: open_for_writing("/sys/kernel/profiling"), ()),
    ("set a release agent", releasing_agent, ()),
    ("change its own limits", own_cgroup, ()),
    ("load a module", module, (errno.ENOEXEC, errno.EINVAL)),
    ("load a kernel", lambda: call("kexec_load", 0, 0, None, 0), ()),
    ("reboot", lambda: check(libc.syscall(169 if ON_X86 else 142, 0, 0, 0, None)), (errno.EINVAL,)),
    ("set the clock", clock, ()),
    ("set the hostname", lambda: socket.sethostname("escape"), ()),
    ("swap", lambda: check(libc.swapon(b"/nonexistent", 0)), (errno.ENOENT,)),
    ("record processes", lambda: check(libc.acct(b"/nonexistent")), (errno.ENOENT,)),
    ("load a BPF map", lambda: call("bpf", 0, struct.pack("IIII", 2, 4, 4, 1) + bytes(112), 128), ()),
    ("count the host's events", perf, ()),
    ("handle page faults", lambda: call("userfaultfd", 0x80001), ()),
    ("set up an io_uring", lambda: call("io_uring_setup", 4, ctypes.create_string_buffer(120)), ()),
    ("look at keyrings", lambda: call("keyctl", 0, -5, 0), ()),
    ("add a key", lambda: call("add_key", b"user", b"escape", b"x", 1, -3), ()),
    ("open a file by its handle", file_by_handle, (errno.ESTALE, errno.EOPNOTSUPP)),
    ("trace init", tracing_init, ()),
    ("read init's memory", memory_of_init, (errno.EFAULT,)),
    ("see init's root directory", lambda: os.listdir("/proc/1/root/"), ()),
    ("see init's descriptors", lambda: os.listdir("/proc/1/fd/"), ()),
    ("execute init's program", lambda: read_some("/proc/1/exe"), ()),
    ("find a file of the host", lambda: os.stat(CANARY), ()),
    ("find it by init's root", lambda: os.stat("/proc/1/root" + CANARY), ()),
    ("find it by a descriptor", through_descriptors, ()),
    ("break out of a chroot", out_of_chroot, ()),
    ("open a raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(), ()),
    ("open a packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(), ()),
    ("open a socket to the hypervisor", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close(),
     (errno.EAFNOSUPPORT,)),
    ("open a socket for kernel crypto", lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close(),
     (errno.EAFNOSUPPORT,)),
    ("take the network down", interface_down, ()),
    ("change packet filters", netlink_filter, ()),
    ("raise its priority", lambda: os.nice(-5), ()),
    # Last, as it makes others impossible.
    ("uncover what is below a mount", lambda: check(libc.umount2(b"/sys", 2)), ()),
]

for name, attempt, would_have in ATTACKS:
    try:
        attempt()
        outcome = "reached"
    except OSError as error:
        reached = error.errno in would_have
        outcome = f"{'reached' if reached else 'refused'}: {errno.errorcode.get(error.errno, error.errno)}"
    print(f"{name}: {outcome}", flush=True)
