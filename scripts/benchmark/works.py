"""The works that are measured, in the order of the table. Each is a function of a `Bench`, and returns what it measured."""

import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

from . import machine
from .measure import Work, busy, output, take_turns, timed, until_succeeds
from .peers import IMAGE, Engines, Sshd
from .podspawn import DEBIAN, Podspawn, client_options, free_port

MIB = 1 << 20


class Bench:
    """What all works need: where to write, how often to repeat, and the peers, which are started when first asked for."""

    def __init__(self, scratch: Path, images: Path, quick: bool):
        self.scratch = scratch
        self.images = images
        self.quick = quick
        self.key = scratch / "key"
        output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        self.instances = 0

    def rounds(self, number: int) -> int:
        return max(3, number // 5) if self.quick else number

    def podspawn(self, config: str = "", users: int = 1) -> Podspawn:
        self.instances += 1
        return Podspawn(self.scratch, self.images, self.key, f"podspawn{self.instances}", config=config, users=users)

    def sshd(self) -> Sshd:
        self.instances += 1
        directory = self.scratch / f"sshd{self.instances}"
        directory.mkdir()
        return Sshd(directory, self.key)

    def engines(self) -> Engines:
        self.instances += 1
        directory = self.scratch / f"engines{self.instances}"
        directory.mkdir()
        rootfs = self.scratch / "rootfs.tar"
        if not rootfs.exists():
            output(os.environ["PODSPAWN"], "--root", self.images, "-q", "image", "export", DEBIAN, rootfs)
        return Engines(directory, rootfs)


# Sessions end with their last connection, as in a run of an agent that needs nothing afterwards.
DISPOSABLE = "session: {mode: destroy-on-disconnect}\n"


def login(bench: Bench):
    """A fresh container for each login."""
    work = Work("login", "`ssh host true`, the whole client: podspawn makes and removes a container, sshd gives the host itself")
    work.targets = [("podspawn", "sshd", "<=", 0.25)]
    client = Work("login: client", "processor time of the client alone in the same logins")
    with bench.podspawn(DISPOSABLE) as ours, bench.sshd() as sshd:
        def connect(server, name):
            ran = timed(*server.ssh("true"))
            client.add(name, ran.cpu)
            if server is ours:
                ours.until_idle()
            return ran.wall
        subjects = {"podspawn": lambda: connect(ours, "podspawn"), "sshd": lambda: connect(sshd, "sshd")}
        take_turns(work, bench.rounds(50), subjects, also=[client])
    return [work, client]


def creation(bench: Bench):
    """Making and removing a container."""
    whole = Work("create, run true, remove", "from the start of the client to its end; with network where not said otherwise")
    whole.targets = [("podspawn", "docker run", "<=", 0.25)]
    inside = Work("create", "podspawn alone, in the server: from the request for a session to a container that runs")
    inside.targets = [("podspawn", None, "<=", 0.003)]
    gone = Work("remove", "podspawn: from the last close to nothing left; docker and podman: `rm -f` of a container that sleeps")
    gone.targets = [("podspawn", None, "<=", 0.02)]
    both = Work("create and remove", "in the server; crun and runc: `run` of a ready bundle with true, without network and overlay")
    both.targets = [("podspawn", "crun", "<=", 0.15), ("podspawn", "docker run -d, exec", "<=", 0.01)]
    with bench.podspawn(DISPOSABLE) as ours:
        machine.hide_hybrid_cgroups()
        with bench.engines() as engines:
            def session():
                before = ours.metrics()
                ran = timed(*ours.ssh("true"))
                ours.until_idle()
                after = ours.metrics()
                made, removed = (
                    after[name] - before[name]
                    for name in ("podspawn_session_creation_seconds_sum", "podspawn_session_removal_seconds_sum")
                )
                inside.add("podspawn", made)
                gone.add("podspawn", removed)
                both.add("podspawn", made + removed)
                return ran.wall

            def low(name):
                ran = timed(*engines.low(name), "run", "--bundle", engines.bundle, f"bench-{os.getpid()}")
                both.add(name, ran.wall)
                return ran.wall

            def detached():
                ran = timed(*engines.docker, "run", "-d", "--name", "bench", IMAGE, "sleep", "infinity").wall
                ran += timed(*engines.docker, "exec", "bench", "true").wall
                both.add("docker run -d, exec", ran)
                gone.add("docker", timed(*engines.docker, "rm", "-f", "bench").wall)
                return ran

            def podman_detached():
                took = timed(*engines.podman, *engines.podman_run, "-d", "--name", "bench", IMAGE, "sleep", "infinity").wall
                gone.add("podman", timed(*engines.podman, "rm", "-f", "-t", "0", "bench").wall)
                return took

            subjects = {
                "podspawn": session,
                "crun (no network)": lambda: low("crun"),
                "runc (no network)": lambda: low("runc"),
                "docker run": lambda: timed(*engines.docker, "run", "--rm", IMAGE, "true").wall,
                "docker run -d, exec": detached,
                "podman run": lambda: timed(*engines.podman, *engines.podman_run, "--rm", IMAGE, "true").wall,
            }
            subjects |= {"podman run -d": podman_detached}
            take_turns(whole, bench.rounds(20), subjects, also=[inside, gone, both])
    return [inside, gone, both, whole]


def execution(bench: Bench):
    """A command in an environment that is there."""
    work = Work("exec", "`true` in a live session or container, the whole client; ssh over a connection that is open")
    work.targets = [("podspawn", "docker", "<=", 0.04), ("podspawn", "sshd", "<=", 1.0)]
    with bench.podspawn() as ours, bench.sshd() as sshd:
        machine.hide_hybrid_cgroups()
        with bench.engines() as engines:
            output(*engines.docker, "run", "-d", "--name", "bench", IMAGE, "sleep", "infinity")
            output(*engines.podman, *engines.podman_run, "-d", "--name", "bench", IMAGE, "sleep", "infinity")
            timed(*engines.low("crun"), "run", "--detach", "--bundle", engines.sleeper, "bench")
            masters = {}
            for name, server in (("podspawn", ours), ("sshd", sshd)):
                path = bench.scratch / f"master-{name}"
                timed(*server.ssh(options=["-M", "-N", "-f", "-S", path]))
                masters[name] = (server, path)

            def over(name):
                server, path = masters[name]
                return timed(*server.ssh("true", options=["-S", path])).wall

            subjects = {
                "podspawn": lambda: over("podspawn"),
                "podspawn exec": lambda: timed(ours.program, "--root", ours.root, "exec", "u0", "--", "true").wall,
                "sshd": lambda: over("sshd"),
                "crun": lambda: timed(*engines.low("crun"), "exec", "bench", "true").wall,
                "docker": lambda: timed(*engines.docker, "exec", "bench", "true").wall,
                "podman": lambda: timed(*engines.podman, "exec", "bench", "true").wall,
                "no container": lambda: timed("true").wall,
            }
            take_turns(work, bench.rounds(40), subjects)
            for server, path in masters.values():
                output(*server.ssh(options=["-S", path, "-O", "exit"]))
            output(*engines.low("crun"), "delete", "--force", "bench")
            output(*engines.docker, "rm", "-f", "bench")
    return [work]


def crowd(bench: Bench):
    """Many at once."""
    number = 40 if bench.quick else 200
    work = Work("crowd", f"{number} x `ssh host true` at once, until the last has its answer: logins per second", unit="1/s")
    work.targets = [("podspawn", "sshd", ">=", 2.0)]
    rate = Work("creations", "sessions made, used and left per second, 8 at once, by a client that costs little", unit="1/s")
    rate.targets = [("podspawn", None, ">=", 300)]
    config = DISPOSABLE + "auth: {max_startups: '1000:30:1000', per_source_max_startups: none}\nresources: {max_containers: 1000}\n"
    with bench.podspawn(config, users=number) as ours, bench.sshd() as sshd:
        def at_once(server, user):
            start = time.perf_counter()
            clients = [subprocess.Popen(server.ssh("true", user=user(n)), stdin=subprocess.DEVNULL) for n in range(number)]
            failed = sum(client.wait() != 0 for client in clients)
            took = time.perf_counter() - start
            if failed:
                raise RuntimeError(f"{failed} of {number} clients failed")
            if server is ours:
                ours.until_idle()
            return number / took
        subjects = {"podspawn": lambda: at_once(ours, lambda n: f"u{n}"), "sshd": lambda: at_once(sshd, lambda _: "root")}
        take_turns(work, bench.rounds(5), subjects)

        def created():
            count = number * 2
            start = time.perf_counter()
            load(ours, count, 8, number)
            took = time.perf_counter() - start
            ours.until_idle()
            return count / took
        take_turns(rate, bench.rounds(5), {"podspawn": created})
    return [work, rate]


def load(server: Podspawn, connections: int, at_once: int, users: int) -> list[tuple[float, float]]:
    """Seconds until the login and until the status of `true`, for each connection."""
    words = ["--connections", connections, "--at-once", at_once, "--users", users]
    said = output(os.environ["LOAD"], f"127.0.0.1:{server.port}", server.key, *words)
    return [tuple(map(float, line.split())) for line in said.splitlines()]


def available() -> int:
    """Bytes that the machine has free, as new processes see it (proc_meminfo(5), MemAvailable)."""
    return int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024


def density(bench: Bench):
    """What many idle sessions cost."""
    number = 100 if bench.quick else 1000
    left = Work("idle session", f"memory of one of {number} sessions that nobody is connected to", unit="MB")
    left.targets = [("podspawn", None, "<=", 0.9)]
    connected = Work("connected session", f"memory of one of {number} sessions with a connection, without the client's", unit="MB")
    connected.targets = [("podspawn", None, "<=", 2.0)]
    growth = Work("growth", f"creation of the first and of the last tenth of {number} sessions", unit="s")
    growth.targets = [("last tenth", "first tenth", "<=", 2.0)]
    config = (
        "session: {grace_period: 10m}\nauth: {max_startups: '2000:30:2000', per_source_max_startups: none}\n"
        "resources: {max_containers: 2000}\n"
    )
    with bench.podspawn(config, users=number) as ours:
        before = available()
        tenth = number // 10
        for step in range(10):
            # Sessions of earlier tenths are there already: only the users of this one make new ones.
            words = ["--connections", tenth * (step + 1), "--at-once", 4, "--users", tenth * (step + 1)]
            earlier = ours.metrics()
            output(os.environ["LOAD"], f"127.0.0.1:{ours.port}", ours.key, *words)
            later = ours.metrics()
            made = later["podspawn_session_creation_seconds_sum"] - earlier["podspawn_session_creation_seconds_sum"]
            name = {0: "first tenth", 9: "last tenth"}.get(step, f"{tenth * step} there")
            growth.add(name, made / tenth)
        left.add("podspawn", (before - available()) / number / 1e6)
        words = [f"127.0.0.1:{ours.port}", ours.key, "--connections", number, "--at-once", 8, "--users", number, "--hold"]
        argv = [os.environ["LOAD"], *map(str, words)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            while client.stdout.readline().strip() not in ("ready", ""):
                pass
            status = Path(f"/proc/{client.pid}/status").read_text()
            own = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024
            connected.add("podspawn", (before - available() - own) / number / 1e6)
            client.stdin.close()
    return [left, connected, growth]


def bulk(bench: Bench):
    """Bytes through a session."""
    size = (128 if bench.quick else 1024) * MIB
    works = []
    with bench.podspawn() as ours, bench.sshd() as sshd:
        for cipher in ("aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"):
            for direction in ("out", "in"):
                rate = Work(f"bulk {direction}, {cipher.split('@')[0]}", f"{size // MIB} MiB through `ssh`", unit="MiB/s")
                rate.targets = [("podspawn", "sshd", ">=", 1.10 if direction == "out" else 1.30)]
                cost = Work(f"{rate.name}: processor", "processor time of the machine without the client's", unit="s/GiB")
                cost.targets = [("podspawn", "sshd", "<=", 0.75)]

                def transfer(server, name):
                    options = ["-c", cipher]
                    start = busy()
                    if direction == "out":
                        ran = timed(*server.ssh(f"head -c {size} /dev/zero", options=options))
                    else:
                        with open("/dev/zero", "rb") as zero:
                            with subprocess.Popen(["head", "-c", str(size)], stdin=zero, stdout=subprocess.PIPE) as head:
                                ran = timed(*server.ssh("cat > /dev/null", options=options), stdin=head.stdout.fileno())
                    cost.add(name, (busy() - start - ran.cpu) * 1024 * MIB / size)
                    return size / MIB / ran.wall

                subjects = {"podspawn": lambda: transfer(ours, "podspawn"), "sshd": lambda: transfer(sshd, "sshd")}
                take_turns(rate, bench.rounds(5), subjects, also=[cost])
                works += [rate, cost]
    return works


def sftp(bench: Bench):
    """Files."""
    big, small = bench.scratch / "big", bench.scratch / "small"
    size = (64 if bench.quick else 512) * MIB
    count = 200 if bench.quick else 2000
    with open(big, "wb") as file:
        file.write(os.urandom(MIB) * (size // MIB))
    small.mkdir()
    for number in range(count):
        (small / str(number)).write_bytes(os.urandom(4096))
    works = []
    with bench.podspawn() as ours, bench.sshd() as sshd:
        remote = {"podspawn": "/tmp/bench", "sshd": str(bench.scratch / "remote")}
        servers = {"podspawn": ours, "sshd": sshd}
        holders = [subprocess.Popen(ours.ssh(options=["-N"]))]
        for name, server in servers.items():
            output(*server.ssh(f"mkdir -p {remote[name]}"))
        for what, bound, batch in (
            ("put", 0.80, lambda at: f"put {big} {at}/big\n"),
            ("get", 0.95, lambda at: f"get {at}/big {bench.scratch}/got\n"),
            (f"put -r of {count} files of 4 KiB", 0.80, lambda at: f"put -r {small} {at}/\n"),
            (f"get -r of {count} files of 4 KiB", 0.80, lambda at: f"get -r {at}/small {bench.scratch}/got-small\n"),
        ):
            title = what if "files" in what else f"{what} of {size // MIB} MiB"
            work = Work(f"sftp {title}", "one `sftp`, login included")
            work.targets = [("podspawn", "sshd", "<=", bound)]

            def transfer(name):
                server = servers[name]
                script = bench.scratch / "batch"
                script.write_text(batch(remote[name]))
                user = "u0" if server is ours else "root"
                argv = ["sftp", "-q", "-b", script, *client_options(bench.key), "-P", server.port, f"{user}@127.0.0.1"]
                return timed(*argv).wall

            take_turns(work, bench.rounds(5), {name: lambda name=name: transfer(name) for name in servers})
            works.append(work)
        for holder in holders:
            holder.terminate()
            holder.wait()
    return works


# Sends as many zeros as its first argument says to whoever connects to its second, a port.
SENDER = """
use Socket;
socket(my $server, PF_INET, SOCK_STREAM, 0); setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1);
bind($server, sockaddr_in($ARGV[1], INADDR_LOOPBACK)) or die; listen($server, 5); $| = 1; print "listening\\n";
while (accept(my $client, $server)) {
    my ($left, $block) = ($ARGV[0], "\\0" x 65536);
    while ($left > 0) { my $sent = syswrite($client, $block, $left < 65536 ? $left : 65536); last unless $sent; $left -= $sent; }
    close $client;
}
"""


def forward(bench: Bench):
    """A forwarded port."""
    size = (128 if bench.quick else 1024) * MIB
    work = Work("forward", f"{size // MIB} MiB from a server inside through `ssh -L`", unit="MiB/s")
    work.targets = [("podspawn", "sshd", ">=", 1.0)]
    with bench.podspawn() as ours, bench.sshd() as sshd:
        clients = []
        subjects = {}
        for name, server in (("podspawn", ours), ("sshd", sshd)):
            local, inside = free_port(), free_port()
            options = ["-L", f"{local}:127.0.0.1:{inside}"]
            argv = server.ssh(f"perl - {size} {inside}", options=options)
            client = subprocess.Popen(list(map(str, argv)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            client.stdin.write(SENDER)
            client.stdin.close()
            client.stdout.readline()
            clients.append(client)

            def fetch(port=local):
                received = 0
                start = time.perf_counter()
                buffer = bytearray(MIB)
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    while count := connection.recv_into(buffer):
                        received += count
                if received != size:
                    raise RuntimeError(f"{received} bytes of {size} arrived")
                return size / MIB / (time.perf_counter() - start)
            subjects[name] = fetch
        take_turns(work, bench.rounds(5), subjects)
        for client in clients:
            client.kill()
            client.wait()
    return [work]


def pull(bench: Bench):
    """An image from a registry."""
    work = Work("pull", "an image of eight gzip layers from a registry on loopback, until it can be started")
    work.targets = [("podspawn", peer, "<=", 0.25) for peer in ("podman", "docker", "skopeo, umoci")]
    work.targets.append(("podspawn", "floor", "<=", 1.5))
    machine.hide_hybrid_cgroups()
    machine.journalled_disk(bench.scratch)
    with bench.engines() as engines:
        reference = layered_image(bench, engines)
        with registry(bench) as address:
            output("skopeo", "copy", "-q", "--dest-tls-verify=false", reference, f"docker://{address}/bench:latest")
            number = 0

            def fresh() -> Path:
                nonlocal number
                number += 1
                directory = bench.scratch / f"pull{number}"
                directory.mkdir()
                return directory

            def ours():
                root = fresh()
                (root / "etc/podspawn").mkdir(parents=True)
                (root / "etc/podspawn/config.yaml").write_text(f"images: {{insecure: ['{address}']}}\n")
                took = timed(os.environ["PODSPAWN"], "--root", root, "-q", "pull", f"{address}/bench:latest").wall
                output("rm", "-rf", root)
                return took

            def podman():
                took = timed(*engines.podman, "pull", "-q", "--tls-verify=false", f"{address}/bench:latest").wall
                output(*engines.podman, "rmi", "-f", f"{address}/bench:latest")
                return took

            def docker():
                took = timed(*engines.docker, "pull", "-q", f"{address}/bench:latest").wall
                output(*engines.docker, "rmi", "-f", f"{address}/bench:latest")
                return took

            def unpacked():
                at = fresh()
                took = timed("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{address}/bench:latest", f"oci:{at}/oci:latest").wall
                took += timed("umoci", "unpack", "--image", f"{at}/oci:latest", at / "bundle").wall
                output("rm", "-rf", at)
                return took

            manifest = json.loads(output("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{address}/bench:latest"))
            layers = sorted(manifest["layers"], key=lambda layer: layer["size"], reverse=True)
            digests = [layer["digest"] for layer in layers]

            def floor():
                at = fresh()
                took = timed("bash", "-c", FLOOR, "floor", f"http://{address}/v2/bench/blobs", at, *digests).wall
                output("rm", "-rf", at)
                return took

            subjects = {"podspawn": ours, "podman": podman, "docker": docker, "skopeo, umoci": unpacked, "floor": floor}
            take_turns(work, bench.rounds(5), subjects)
    return [work]


# What has to be done to an image in any case, by the fastest programs of the distribution: every layer fetched, both of its
# digests computed, decompressed and unpacked, as many at once as there are processors, the largest first, and written back.
FLOOR = """
set -euo pipefail
layer() {
    curl -sf "$1/$3" -o "$2/$3"
    sha256sum "$2/$3" >/dev/null &
    mkdir "$2/$3.d"
    libdeflate-gunzip -c "$2/$3" | tee >(sha256sum >/dev/null) | tar -x -C "$2/$3.d"
    wait
    rm "$2/$3"
}
export -f layer
printf '%s\\n' "${@:3}" | xargs -P "$(nproc)" -I {} bash -ec 'set -o pipefail; layer "$@"' layer "$1" "$2" {}
sync -f "$2"
"""


def layered_image(bench: Bench, engines: Engines) -> str:
    """Debian's files in eight layers of gzip, as an OCI layout; its name for skopeo."""
    layout = bench.scratch / "layered"
    output("umoci", "init", "--layout", layout)
    output("umoci", "new", "--image", f"{layout}:latest")
    parts = ["usr/bin", "usr/lib/x86_64-linux-gnu", "usr/lib/git-core", "usr/share/doc", "usr/share/locale", "usr/share/perl", "etc", None]
    rootfs = engines.bundle / "rootfs"
    parts = [part for part in parts if part is None or (rootfs / part).is_dir()]
    for number, part in enumerate(parts):
        tar = bench.scratch / f"layer{number}.tar"
        excluded = [f"--exclude=./{other}" for other in parts if other and part is None]
        output("tar", "-c", "-f", tar, "-C", rootfs, *excluded, "." if part is None else f"./{part}")
        output("umoci", "raw", "add-layer", "--image", f"{layout}:latest", tar)
        tar.unlink()
    return f"oci:{layout}:latest"


class registry:
    """Debian's docker-registry on loopback, for the length of a `with` block, which gets its address."""

    def __init__(self, bench: Bench):
        self.directory = bench.scratch / "registry"
        self.directory.mkdir()

    def __enter__(self):
        address = f"127.0.0.1:{free_port()}"
        config = self.directory / "config.yml"
        storage = {"filesystem": {"rootdirectory": str(self.directory / "data")}}
        config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": address}, "log": {"level": "error"}}))
        log = open(self.directory / "log", "wb")
        self.process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
        log.close()
        until_succeeds(["curl", "-sf", f"http://{address}/v2/"], 20, "docker-registry did not start")
        return address

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def project(bench: Bench):
    """A session as a Podfile wants it, when all of it was built before."""
    work = Work("second session", "`ssh host true`: of a project with a built Podfile, and without a project")
    work.targets = [("project", "bare", "<=", 1.2)]
    podfile = f"base: {json.dumps(DEBIAN)}\nextra_commands: [\"touch /built\"]\nenv: {{A: b}}\non_create: ':'\n"
    with bench.podspawn(DISPOSABLE + "network: {egress: open}\n") as ours, git_server(bench, {"podfile.yaml": podfile}) as url:
        ours.command("add-project", "backend", "--repo", url)

        def connect(user):
            took = timed(*ours.ssh("true", user=user)).wall
            ours.until_idle()
            return took
        take_turns(work, bench.rounds(30), {"bare": lambda: connect("u0"), "project": lambda: connect("u0+backend")})
    return [work]


class git_server:
    """`git daemon` with one repository of these files, on loopback."""

    def __init__(self, bench: Bench, files: dict[str, str]):
        self.base = bench.scratch / "git"
        work = bench.scratch / "work"
        work.mkdir()
        for name, text in files.items():
            (work / name).write_text(text)
        who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        output("git", "-C", work, "init", "-q", "-b", "main")
        output("git", "-C", work, "add", ".")
        output("git", "-C", work, *who, "commit", "-q", "-m", "first")
        output("git", "clone", "-q", "--bare", work, self.base / "repository.git")

    def __enter__(self):
        # Sessions do not reach this host, so somebody else has to be the internet.
        output("ip", "netns", "add", "internet")
        output("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "uplink", "netns", "internet")
        output("ip", "address", "add", "203.0.113.254/24", "dev", "uplink")
        output("ip", "link", "set", "uplink", "up")
        there = ["ip", "netns", "exec", "internet"]
        output("ip", "-n", "internet", "address", "add", "203.0.113.1/24", "dev", "uplink")
        output("ip", "-n", "internet", "link", "set", "uplink", "up")
        argv = [*there, "git", "daemon", "--export-all", f"--base-path={self.base}", "--reuseaddr"]
        self.process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        url = "git://203.0.113.1/repository.git"
        until_succeeds(["git", "ls-remote", url], 10, "git daemon did not start")
        return url

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        output("ip", "netns", "delete", "internet")


def services(bench: Bench):
    """The network between a session and its services."""
    seconds = "2" if bench.quick else "5"
    work = Work("service", "bytes from a session to its service by TCP; podman: between two containers on its bridge", unit="MiB/s")
    work.targets = [("podspawn", "podman", ">=", 1.0)]
    image = json.dumps(DEBIAN)
    podfile = f"base: {image}\nservices:\n  - {{name: server, image: {image}, command: iperf3 -s, ports: [5201]}}\n"
    with bench.podspawn("network: {egress: open}\n") as ours, git_server(bench, {"podfile.yaml": podfile}) as url:
        ours.command("add-project", "backend", "--repo", url)
        output(*ours.ssh("true", user="u0+backend"))
        machine.hide_hybrid_cgroups()
        with bench.engines() as engines:
            output(*engines.podman, *engines.podman_run, "-d", "--name", "server", IMAGE, "iperf3", "-s")
            output(*engines.podman, *engines.podman_run, "-d", "--name", "client", IMAGE, "sleep", "infinity")
            address = output(*engines.podman, "inspect", "--format", "{{.NetworkSettings.IPAddress}}", "server").strip()
            client = ["iperf3", "-J", "-t", seconds, "-c"]

            def rate(said: str) -> float:
                return json.loads(said)["end"]["sum_received"]["bits_per_second"] / 8 / MIB

            subjects = {
                "podspawn": lambda: rate(output(*ours.ssh(" ".join([*client, "server"]), user="u0+backend"))),
                "podman": lambda: rate(output(*engines.podman, "exec", "client", *client, address)),
            }
            take_turns(work, bench.rounds(5), subjects)
    return [work]


ALL = {
    "login": login,
    "creation": creation,
    "exec": execution,
    "crowd": crowd,
    "density": density,
    "bulk": bulk,
    "sftp": sftp,
    "forward": forward,
    "pull": pull,
    "project": project,
    "services": services,
}
