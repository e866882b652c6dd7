"""Count the instructions that one call there and back executes in user space, with valgrind.

    python benchmarks/instructions.py [JOB ...]

A job of ``jobs.py`` runs under callgrind, few times and many times; the difference is what the
additional iterations executed. That is conduit, the interpreter's loop around it and the C library:
all but what the system does inside its calls. Load does not change the figure by more than a few
instructions, so that it shows what no clock can. conduit's figure is also told by binary. Needs
valgrind; a minute or two.
"""

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from floor import Floor
from jobs import OURS, STDLIB, Comparison, Setting, one_fd, one_file, one_socket, shared

JOBS: dict[str, Callable[[Setting], Comparison]] = {
    "fd": one_fd,
    "socket": one_socket,
    "rb": lambda setting: one_file(setting, "rb"),
    "r": lambda setting: one_file(setting, "r"),
    "share": lambda setting: shared(setting, 253),
}
FEW, MANY = 200, 1200

MARK = "getpriority"
"""A function of the C library that nothing calls but what divides the counts."""

MODULES = ("_conduit", "_handle", "_syscalls")
PYTHON, LIBRARY = "Python", "C library"
PARTS = (*MODULES, PYTHON, LIBRARY)
"""conduit's compiled modules, the interpreter (conduit's Python files run in it), the C library."""


def run(job: str, name: str) -> None:
    """Do a job few times and many times, in the process that is counted."""
    with ExitStack() as stack:
        contestant = JOBS[job](Setting(Floor(stack), stack)).contestants[name]
        gc.collect()
        gc.disable()
        contestant(FEW)
        for iterations in (FEW, MANY):
            os.getpriority(os.PRIO_PROCESS, 0)
            contestant(iterations)
        os.getpriority(os.PRIO_PROCESS, 0)


def counted(job: str, name: str) -> Counter[str]:
    """Return how many instructions an iteration executes, by the part that has them."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "out")
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
             f"--dump-before={MARK}", sys.executable, __file__, job, "--run", name],
            env={**os.environ, "PYTHONHASHSEED": "0"}, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
        # The first dump has what was before, and the last what came after.
        dumps = [Path(directory, f"out.{index}") for index in (2, 3)]
        if done.returncode or not all(dump.exists() for dump in dumps):
            raise SystemExit(f"valgrind failed:\n{done.stderr}")
        few, many = (by_part(dump.read_text().splitlines()) for dump in dumps)
    return Counter({part: (many[part] - few[part]) // (MANY - FEW) for part in many})


def by_part(lines: Iterable[str]) -> Counter[str]:
    """Sum up a file of callgrind by the binary to which each instruction belongs."""
    parts: dict[str, str] = {}
    counts: Counter[str] = Counter()
    part, of_a_call = "", False
    for line in lines:
        key, is_assignment, value = line.partition("=")
        if is_assignment and key in ("ob", "cob"):
            # The first time a name stands behind its number, "(1) /lib/libc.so.6".
            number, _, name = value.partition(" ")
            if name:
                parts[number] = part_of(Path(name).name)
            part = parts[number] if key == "ob" else part
        elif key == "calls":
            of_a_call = True  # The next line has what the callee executed, counted there.
        elif line[:1] in tuple("0123456789+-*"):
            counts[part] += 0 if of_a_call else int(line.split()[1])
            of_a_call = False
    return counts


def part_of(binary: str) -> str:
    """Return the part to which a binary belongs."""
    module = binary.partition(".")[0]
    if module in MODULES:
        return module
    return LIBRARY if re.match(r"(libc|ld-linux|ld-musl|libm|libpthread)\b", binary) else PYTHON


def measure(jobs: Sequence[str]) -> dict[str, dict[str, Counter[str]]]:
    """Return the instructions of one iteration of each job, by contestant and by part."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            job: {name: pool.submit(counted, job, name) for name in (OURS, STDLIB)} for job in jobs
        }
        return {
            job: {name: run.result() for name, run in names.items()} for job, names in runs.items()
        }


def main() -> None:
    """Print the figures of each job, for conduit and the standard library."""
    parser = argparse.ArgumentParser(description="Count the instructions of one call and back.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)} (all)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    jobs = options.jobs or list(JOBS)
    for job in jobs:
        if job not in JOBS:
            parser.error(f"no job {job!r}")
    if options.run:
        run(jobs[0], options.run)
        return
    print(f"{'job':<8}{STDLIB:>20}{OURS:>11}:" + "".join(f"{part:>12}" for part in PARTS))
    for job, found in measure(jobs).items():
        print(
            f"{job:<8}{found[STDLIB].total():>20,}{found[OURS].total():>11,}:"
            + "".join(f"{found[OURS][part]:>12,}" for part in PARTS)
        )


if __name__ == "__main__":
    main()
