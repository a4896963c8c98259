"""What podspawn is compared with: an sshd, and container engines with the same image."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .measure import output, until_succeeds
from .podspawn import client_options, free_port

# The name of the image in docker and podman.
IMAGE = "localhost/bench:latest"


class Sshd:
    """OpenSSH's server, for root, without a container."""

    def __init__(self, scratch: Path, key: Path):
        self.directory = scratch / "sshd"
        self.directory.mkdir()
        self.key = key
        self.port = free_port()
        self.process = None

    def __enter__(self):
        host_key = self.directory / "host_key"
        output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key)
        authorized = self.directory / "authorized_keys"
        shutil.copy(f"{self.key}.pub", authorized)
        Path("/run/sshd").mkdir(exist_ok=True)
        config = self.directory / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {host_key}\nAuthorizedKeysFile {authorized}\nPidFile none\n"
            "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nMaxStartups 1000\n"
            "Subsystem sftp /usr/lib/openssh/sftp-server\n"
        )
        self.process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", config])
        until_succeeds(self.ssh("true"), 10, "sshd did not start")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def ssh(self, *words, options=(), user="root"):
        return ["ssh", *client_options(self.key), *map(str, options), "-p", str(self.port), f"{user}@127.0.0.1", *words]


class Engines:
    """crun and runc with a bundle that is ready, podman, and a dockerd of its own."""

    def __init__(self, scratch: Path, rootfs: Path):
        self.scratch = scratch / "engines"
        self.scratch.mkdir()
        self.rootfs = rootfs
        self.dockerd = None
        self.bundle = self.scratch / "bundle"
        socket = f"unix://{self.scratch}/docker.sock"
        self.docker = ["docker", "--host", socket]
        # podman wants at most 50 characters for it.
        self.run = tempfile.TemporaryDirectory(prefix="bench.", dir="/run")
        storage = ["--root", self.scratch / "podman", "--runroot", self.run.name, "--tmpdir", f"{self.run.name}/tmp"]
        # crun, as it is the faster of the two; the default rlimits need CAP_SYS_RESOURCE, which a container may lack.
        self.podman = ["podman", *map(str, storage), "--runtime", "crun", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        self.podman_run = ["run", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]

    def __enter__(self):
        log = open(self.scratch / "dockerd.log", "wb")
        state = ["--data-root", self.scratch / "docker", "--exec-root", self.scratch / "docker-exec", "--pidfile", self.scratch / "docker.pid"]
        self.dockerd = subprocess.Popen(["dockerd", *map(str, state), "--host", self.docker[2]], stdout=log, stderr=log)
        log.close()
        try:
            until_succeeds([*self.docker, "info"], 60, "dockerd did not start")
            for engine in (self.docker, self.podman):
                output(*engine, "import", self.rootfs, IMAGE)
            self.make_bundle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        subprocess.run([*self.podman, "rm", "--all", "--force", "--time", "0"], capture_output=True, check=False)
        self.dockerd.terminate()
        self.dockerd.wait()
        self.run.cleanup()

    def make_bundle(self) -> None:
        """An OCI bundle of the image, with the seccomp filter and capabilities that podman gives, and no network."""
        rootfs = self.bundle / "rootfs"
        rootfs.mkdir(parents=True)
        output("tar", "-x", "-f", self.rootfs, "-C", rootfs)
        # podman's own configuration of a container with the same image is taken, so that the work is the same.
        made = output(*self.podman, "create", "--network", "none", *self.podman_run[1:], IMAGE, "true").strip()
        output(*self.podman, "init", made)
        directory = output(*self.podman, "inspect", "--format", "{{.OCIConfigPath}}", made).strip()
        config = json.loads(Path(directory).read_text())
        output(*self.podman, "rm", "--force", made)
        config["root"] = {"path": "rootfs", "readonly": False}
        config["process"]["terminal"] = False
        config.pop("hooks", None)
        # What podman binds from its own directories is gone with the container.
        own = (str(self.scratch), self.run.name)
        config["mounts"] = [mount for mount in config["mounts"] if not mount["source"].startswith(own)]
        config["linux"]["namespaces"] = [{"type": kind["type"]} for kind in config["linux"]["namespaces"]]
        config["linux"].pop("cgroupsPath", None)
        (self.bundle / "config.json").write_text(json.dumps(config))
        config["process"]["args"] = ["sleep", "infinity"]
        self.sleeper = self.scratch / "sleeper"
        self.sleeper.mkdir()
        (self.sleeper / "rootfs").symlink_to(rootfs)
        config["root"]["path"] = str(rootfs)
        (self.sleeper / "config.json").write_text(json.dumps(config))

    def low(self, name):
        """crun or runc, with its state kept below the scratch directory."""
        return [name, "--root", str(self.scratch / name)]


