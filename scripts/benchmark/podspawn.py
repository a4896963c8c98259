"""A private instance of podspawn."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from .measure import output

DEBIAN = "bootstrap:debian/bookworm?include=git,iperf3,perl"


class Podspawn:
    """Runs from `start` on, until the `with` block ends. Users are called u0, u1, ... and have the same key."""

    def __init__(self, scratch: Path, images: Path, key: Path, name: str = "podspawn", *, config: str = "", users: int = 1):
        self.program = os.environ["PODSPAWN"]
        self.root = scratch / name
        self.key = key
        self.port = free_port()
        etc = self.root / "etc/podspawn"
        etc.mkdir(parents=True)
        state = self.root / "var/lib/podspawn"
        state.mkdir(parents=True, mode=0o700)
        (state / "images").symlink_to(images / "var/lib/podspawn/images")
        # Its own log is on a terminal or in the journal elsewhere; here in a file, which costs the same.
        settings = f'listen: "127.0.0.1:{self.port}"\ndefaults:\n  image: {DEBIAN}\n{config}'
        (etc / "config.yaml").write_text(settings)
        for number in range(users):
            self.command("add-user", f"u{number}", "--key-file", f"{key}.pub")
        self.process = None

    def __enter__(self):
        with open(self.root / "log", "wb") as log:
            self.process = subprocess.Popen([self.program, "--root", self.root, "serve"], stderr=log)
        deadline = time.monotonic() + 30
        while b"listening on" not in (self.root / "log").read_bytes():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"podspawn did not start: {(self.root / 'log').read_text()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.process.send_signal(2)
        self.process.wait()
        shutil.rmtree(self.root)

    def command(self, *words) -> str:
        return output(self.program, "--root", self.root, "-q", *words)

    def ssh(self, *words, user="u0", options=()):
        """The arguments of a client that says `words`."""
        return ["ssh", *client_options(self.key), *map(str, options), "-p", str(self.port), f"{user}@127.0.0.1", *words]

    def metrics(self) -> dict[str, float]:
        """All metrics without labels, by name; docs/metrics.md describes them."""
        text = request(self.root / "run/podspawn/podspawn.sock", "/metrics")
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#") and "{" not in line)
        return {name: float(value) for name, value in pairs}

    def until_idle(self, sessions: int = 0) -> None:
        """Waits until that many sessions are there at most."""
        deadline = time.monotonic() + 60
        while self.metrics()["podspawn_sessions_total"] > sessions:
            if time.monotonic() > deadline:
                raise RuntimeError("sessions do not end")
            time.sleep(0.002)


def client_options(key: Path):
    """Of ssh, sftp and scp: no files of this host's user, and the same key exchange with whatever server."""
    options = {
        "IdentityFile": key,
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "BatchMode": "yes",
        "KexAlgorithms": "curve25519-sha256",
    }
    return ["-F", "none", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def request(path: Path, target: str) -> str:
    """GET over a Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"GET {target} HTTP/1.0\r\nHost: .\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return answer.split(b"\r\n\r\n", 1)[1].decode()
