"""The command: see scripts/bench."""

import argparse
import os
import pickle
import subprocess
import tempfile
import time
import traceback
from pathlib import Path

from . import machine, report
from .works import ALL, Bench


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in ALL]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(ALL)}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures podspawn and its peers in one run.")
    parser.add_argument("--only", type=names, default=list(ALL), metavar="WORK,...", help="measure these only")
    parser.add_argument("--skip", type=names, default=[], metavar="WORK,...", help="do not measure these")
    parser.add_argument("--quick", action="store_true", help="few repetitions and little data: to see whether it works")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), metavar="DIR", help="where results go")
    parser.add_argument("--list", action="store_true", help="print the names of the works")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ALL))
        return
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    images = Path("target/bench-images").resolve()
    description = machine.describe() | {"date": time.strftime("%Y-%m-%d")}
    with tempfile.TemporaryDirectory(prefix="podspawn-bench.", dir="/var/tmp") as directory:
        scratch = Path(directory)
        machine.plain_shell(scratch)
        results = []
        for name in options.only:
            if name in options.skip:
                continue
            print(f"=== {name}", flush=True)
            measured = in_child(scratch, images, options.quick, name)
            results += measured
            print(report.table(measured), flush=True)
    report.write(options.output, description | {"quick": options.quick}, results)
    print(f"Written to {options.output}")


def in_child(scratch: Path, images: Path, quick: bool, name: str) -> list:
    """Measures one work in a child, as some enter another mount namespace for good."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            place = scratch / name
            place.mkdir()
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(ALL[name](Bench(place, images, quick)), pipe)
            status = 0
        except BaseException:  # noqa: BLE001: it must not return into the parent's code
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    subprocess.run(["rm", "-rf", scratch / name], check=False)
    if status != 0:
        raise SystemExit(f"scripts/bench: {name} could not be measured")
    return pickle.loads(said)


main()
