"""Run tests under ThreadSanitizer, and fail for a report in conduit's own code.

    python tools/tsan.py [ARGUMENT OF PYTEST...]

In the current directory, a copy of the tree, it builds the modules for a free-threaded Python
that was built with --with-thread-sanitizer: the one that the environment variable
CONDUIT_TSAN_PYTHON names, or one on the PATH. Without one it says so, and that is no failure.
What the build and the tests import is that of the Python that runs this: a pip that ran under
ThreadSanitizer would take longer than the tests.

CPython has races of its own, and reports them. One is conduit's if a conduit module is among the
frames of an access up to the interpreter's loop, which called into it: so what a module does by a
function of CPython counts, and what CPython does in running a test or the plain Python of conduit
does not.
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
from pathlib import Path

VARIABLE = "CONDUIT_TSAN_PYTHON"
NAMES = [f"python3.{minor}t" for minor in range(13, 16)]
OPTION = "--with-thread-sanitizer"

MODULE = re.compile(r"\bconduit/_[a-z]+\.")
INTERPRETER = re.compile(r" _PyEval_EvalFrameDefault ")
FRAME = re.compile(r"^ +#\d+ ")
# The other stacks of a report tell where a thread was started, or a block was allocated.
ACCESS = re.compile(r"^  (?:Previous |\[failed|.*(?:read|write) of size )", re.IGNORECASE)
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


def is_ours(report: list[str]) -> bool:
    """Whether conduit's code is at fault, or may be."""
    race = RACE.match(report[0])
    counts = not race
    for line in report[1:]:
        if not FRAME.match(line):
            if line.strip():
                counts = not race or ACCESS.match(line) is not None
        elif counts and MODULE.search(line):
            return True
        elif INTERPRETER.search(line):
            counts = False
    return False


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
        # The tests decide on the exit status of each process, and this script on the reports.
        os.environ["TSAN_OPTIONS"] = f"log_path={log}:exitcode=0:history_size=5"
        status = subprocess.call([python, "-m", "pytest", *arguments])
        logs = sorted(Path(directory).iterdir())
        found = [report for path in logs for report in reports(path.read_text(errors="replace"))]
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
