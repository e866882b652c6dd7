"""Count the instructions that one call there and back executes in user space, with valgrind.

    python benchmarks/instructions.py [JOB ...]

A job of ``jobs.py`` runs under callgrind with two numbers of iterations; the difference is what the
additional iterations executed. That is conduit, the interpreter's loop around it and the C library:
all but what the system does inside its calls. Load does not change the figure by more than a few
instructions, so that it shows what no clock can. Needs valgrind; a minute or two.
"""

import argparse
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

from floor import Floor
from jobs import OURS, STDLIB, Comparison, Setting, one_fd, one_file, one_socket, shared

JOBS: dict[str, Callable[[Setting], Comparison]] = {
    "fd": one_fd,
    "socket": one_socket,
    "rb": lambda setting: one_file(setting, "rb"),
    "r": lambda setting: one_file(setting, "r"),
    "share": lambda setting: shared(setting, 253),
}
FEW, MANY = 500, 1500


def run(job: str, name: str, iterations: int) -> None:
    """Do a job a number of times, in the process that is counted."""
    with ExitStack() as stack:
        contestant = JOBS[job](Setting(Floor(stack), stack)).contestants[name]
        gc.collect()
        gc.disable()
        contestant(iterations)


def counted(job: str, name: str, iterations: int) -> int:
    """Return how many instructions such a process executes in all."""
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}", sys.executable,
         __file__, job, "--run", name, str(iterations)],
        env={**os.environ, "PYTHONHASHSEED": "0"}, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"valgrind failed:\n{done.stderr}")
    return int(found[1])


def main() -> None:
    """Print the figure of each job, for conduit and the standard library."""
    parser = argparse.ArgumentParser(description="Count the instructions of one call and back.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)} (all)")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    jobs = options.jobs or list(JOBS)
    for job in jobs:
        if job not in JOBS:
            parser.error(f"no job {job!r}")
    if options.run:
        name, iterations = options.run
        run(jobs[0], name, int(iterations))
        return
    print(f"{'job':<8}{OURS:>12}{STDLIB:>22}   instructions")
    for job in jobs:
        figures = [
            (counted(job, name, MANY) - counted(job, name, FEW)) // (MANY - FEW)
            for name in (OURS, STDLIB)
        ]
        print(f"{job:<8}{figures[0]:>12,}{figures[1]:>22,}", flush=True)


if __name__ == "__main__":
    main()
