"""Times of commands, and what is made of them. All times are seconds."""

import math
import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field


@dataclass
class Ran:
    """How a command went: wall time, and processor time of it and of the children that it has waited for (wait4(2))."""

    wall: float
    cpu: float


def output(*argv, stdin=None) -> str:
    """What a command says, which is not measured, within ten minutes. Raises RuntimeError, with its errors, when it fails."""
    done = subprocess.run([str(word) for word in argv], input=stdin, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def timed(*argv, stdin=None, stdout=None) -> Ran:
    """Runs a command whose output nobody needs, as cheaply as it goes; `stdin` and `stdout` are descriptors."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    errors, write = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, null if stdin is None else stdin, 0),
        (os.POSIX_SPAWN_DUP2, null if stdout is None else stdout, 1),
        (os.POSIX_SPAWN_DUP2, write, 2),
    ]
    words = [str(word) for word in argv]
    start = time.perf_counter()
    pid = os.posix_spawnp(words[0], words, os.environ, file_actions=actions)
    os.close(write)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    # A daemon that the command has started may keep the other end open.
    os.set_blocking(errors, False)
    try:
        said = os.read(errors, 4096).decode(errors="replace").strip()
    except BlockingIOError:
        said = ""
    os.close(errors)
    os.close(null)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise RuntimeError(f"{' '.join(words)}: status {code}: {said}")
    return Ran(wall, usage.ru_utime + usage.ru_stime)


def until_succeeds(argv, seconds: float, what: str) -> None:
    """Waits until the command succeeds. Raises RuntimeError, in the words of `what`, when it has not after so many seconds."""
    deadline = time.monotonic() + seconds
    while subprocess.run([str(word) for word in argv], capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise RuntimeError(what)
        time.sleep(0.05)


def busy() -> float:
    """Processor seconds that the whole machine has used since it started (proc_stat(5)): all but idle and iowait."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, stat.readline().split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def percentile(samples, share: float) -> float:
    """The nearest rank: the smallest sample that at least `share` of all do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass
class Work:
    """One thing that was measured: for each subject all its samples."""

    name: str
    what: str
    unit: str = "s"
    samples: dict[str, list[float]] = field(default_factory=dict)
    # (subject, peer, "<=" or ">=", bound of the ratio of their medians), or with None for the peer a bound of the median.
    targets: list[tuple] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, subject: str, value: float) -> None:
        self.samples.setdefault(subject, []).append(value)

    def median(self, subject: str) -> float | None:
        samples = self.samples.get(subject)
        return statistics.median(samples) if samples else None

    def judged(self):
        """(target as text, value, met) for each target whose subjects were measured."""
        for subject, peer, relation, bound in self.targets:
            mine = self.median(subject)
            theirs = 1.0 if peer is None else self.median(peer)
            if mine is None or not theirs:
                continue
            value = mine / theirs
            met = value <= bound if relation == "<=" else value >= bound
            of = f"{subject} {relation} {bound:g} {self.unit}" if peer is None else f"{subject} / {peer} {relation} {bound:g}"
            yield of, value, met


def take_turns(work: Work, rounds: int, subjects: dict, also: list[Work] = ()) -> None:
    """Calls each subject's function `rounds` times in turn; each returns one sample, and may add to the works of `also`.
    The first turn is not counted."""
    for turn in range(rounds + 1):
        for name, function in subjects.items():
            value = function()
            if turn > 0:
                work.add(name, value)
        if turn == 0:
            for other in also:
                other.samples.clear()
