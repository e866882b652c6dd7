"""Run tests under ThreadSanitizer, and fail for a report in conduit's own code.

    python tools/tsan.py [ARGUMENT OF PYTEST...]

In the current directory, a copy of the tree, it builds the modules for a free-threaded Python
that was built with --with-thread-sanitizer: the one that the environment variable
CONDUIT_TSAN_PYTHON names, or one on the PATH. Without one it says so, and that is no failure.
What the build and the tests import is that of the Python that runs this: a pip that ran under
ThreadSanitizer would take longer than the tests.

CPython has races of its own, and ThreadSanitizer reports them. A report is conduit's if one of
the two accesses is made by a conduit module itself, or both by functions of CPython that conduit
modules have called. What CPython does to run a test, or conduit's plain Python, does not count,
nor does a race that CPython knows as its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

VARIABLE = "CONDUIT_TSAN_PYTHON"
NAMES = [f"python3.{minor}t" for minor in range(13, 16)]
OPTION = "--with-thread-sanitizer"

# A frame is "#1 function file:line (module+0x12)". The sanitizer's own functions stand in front
# of others: its memset, its close.
FRAME = re.compile(r"^ +#\d+ (\S+) .*?\(([^()]+)\+0x[0-9a-f]+\)")
SANITIZER = re.compile(r"^lib(?:clang_rt\.)?tsan")
MODULE = re.compile(r"^_(?:conduit|handle|syscalls)\.")
INTERPRETER = "_PyEval_EvalFrameDefault"
# Interning a string, as for the name of a function in a traceback: python/cpython#129701, #113956.
KNOWN = "intern_common"
# Above the two stacks of a race; further ones tell where a thread or a block of memory is from.
ACCESS = re.compile(r"^  (?:previous )?(?:atomic )?(?:read|write) of size ", re.IGNORECASE)
RACE = re.compile(r"^WARNING: ThreadSanitizer: (data race|heap-use-after-free)")


def is_suitable(python: str) -> bool:
    """Whether a Python was built for ThreadSanitizer, and without a GIL."""
    code = (
        "import sysconfig as s;"
        "print(s.get_config_var('Py_GIL_DISABLED'), s.get_config_var('CONFIG_ARGS'))"
    )
    try:
        run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return run.stdout.startswith("1 ") and OPTION in run.stdout


def find_python() -> str | None:
    """Return the Python to use, or None if there is none."""
    if named := os.environ.get(VARIABLE):
        if not is_suitable(named):
            sys.exit(f"{VARIABLE}={named}: no Python built with --disable-gil {OPTION}")
        return named
    found = (shutil.which(name) for name in NAMES)
    return next((python for python in found if python and is_suitable(python)), None)


def reports(text: str) -> Iterator[list[str]]:
    """Split a log of ThreadSanitizer into the lines of each report."""
    report: list[str] = []
    for line in text.splitlines():
        if line.startswith("WARNING: ThreadSanitizer:"):
            report = []
        report.append(line)
        if line.startswith("SUMMARY: ThreadSanitizer:"):
            yield report
            report = []
    if report and report[0].startswith("WARNING"):
        yield report  # of a process that was killed as it wrote


def stacks(report: list[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield what stands above each stack, and the function and file of each frame, inner first."""
    head = ""
    frames: list[tuple[str, str]] = []
    for line in report[1:]:
        if found := FRAME.match(line):
            if not SANITIZER.match(found[2]):
                frames.append((found[1], found[2]))
        else:
            if frames:
                yield head, frames
            head, frames = line, []
    if frames:
        yield head, frames


def is_ours(report: list[str]) -> bool:
    """Whether a report is of conduit's code; see the module."""
    accesses = [
        list(takewhile(lambda frame: frame[0] != INTERPRETER, frames))
        for head, frames in stacks(report)
        if ACCESS.match(head) or not RACE.match(report[0])
    ]
    if all(any(function == KNOWN for function, _ in frames) for frames in accesses):
        return False
    calls = [[file for _, file in frames] for frames in accesses]
    return any(files and MODULE.match(files[0]) for files in calls) or (
        len(calls) > 1 and all(any(map(MODULE.match, files)) for files in calls)
    )


def build(python: str) -> None:
    """Compile the modules in place, the .pyx by the Cython of this Python, which is faster."""
    sources = sorted(str(path) for path in Path("conduit").glob("*.pyx"))
    subprocess.run([sys.executable, "-m", "cython", *sources], check=True)
    subprocess.run(
        [python, "setup.py", "--quiet", "build_ext", "--inplace"],
        env=os.environ | {"CONDUIT_SANITIZE": "thread"},
        check=True,
    )


def main(arguments: list[str]) -> int:
    """Build, run the tests, and return 1 for a report in conduit's code, else pytest's status."""
    python = find_python()
    if python is None:
        print(f"not run: tsan: no Python built with {OPTION}: {VARIABLE} names none")
        return 0
    here = os.getcwd()
    paths = [here, os.path.join(here, "tests"), sysconfig.get_path("purelib")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    build(python)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        # Standard error, and no log_path: a file opened for the first report would be a leak to
        # the test that is running.
        os.environ["TSAN_OPTIONS"] = "exitcode=0:history_size=5"
        with log.open("wb") as stderr:
            status = subprocess.call(
                [python, "-m", "pytest", "--capture=no", *arguments], stderr=stderr
            )
        text = log.read_text(errors="replace")
    found = list(reports(text))
    if status:
        print(text)
    ours = [report for report in found if is_ours(report)]
    # One place is met many times.
    first = {report[-1]: report for report in reversed(ours)}
    for report in first.values():
        print(*report, sep="\n", end="\n\n")
    for summary, count in Counter(report[-1] for report in ours).most_common():
        print(f"{count} x {summary}")
    print(f"ThreadSanitizer: {len(ours)} reports in conduit's code, {len(found)} in all")
    return 1 if ours else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
