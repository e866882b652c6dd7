"""Run tox environments, show what they print as they print it, and sum up their tests.

    python tools/checks.py ENV[,ENV...] [-- what the environments get]
    python tools/checks.py --at-hand    name the environment of this Python
    python tools/checks.py --sum FILE   sum up the outputs of several runs, one after another

The last line counts the tests of all environments. The lines above it say what was skipped, and
why: tests, and whole environments whose Python is not here. The exit status is tox's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections import Counter

# Of pytest's last line, "== 3 passed, 1 skipped in 0.10s ==", or the same without the signs.
# Those of a run beside another may stand behind the dots of that.
SUMMARY = re.compile(r"(?:^|(=) )((?:\d+ [a-z]+(?:, )?)+) in \d[\d.:()hms ]*=*$")
STARTED = re.compile(r"=+ test session starts =+$")
SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] (?:\S+: )?(.*)$")
ENDED = re.compile(r"^  ([\w.-]+): (OK|SKIP|FAIL)\b")
# tox says the first of an environment; the second is our own word for anything else.
ABSENT = re.compile(r"^(?:([\w.-]+): skipped because|not run: ([^:]+):) (.*)$")
# A file of coverage's report that it does not wholly reach, and which of its lines.
UNREACHED = re.compile(r"^(\S+\.pyx?)\s.*\s(?!100)\d+%\s+(\S.*)$")


class Report:
    """What the lines of a run of tox say about its tests."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.absent: dict[str, str] = {}
        self.environments: dict[str, str] = {}
        self.unreached: list[str] = []
        self.unfinished = 0

    def read(self, line: str) -> None:
        """Take in one line of the output."""
        line = re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()
        if STARTED.search(line):
            self.unfinished += 1
        elif found := SUMMARY.search(line):
            # A quiet run says only how it ended.
            self.unfinished -= found[1] is not None
            for part in found[2].split(", "):
                number, word = part.split(" ", 1)
                self.counts[word] += int(number)
        elif found := SKIPPED.match(line):
            self.reasons[found[2]] += int(found[1])
        elif found := ABSENT.match(line):
            self.absent[found[1] or found[2]] = found[3]
        elif found := UNREACHED.match(line):
            self.unreached.append(f"not reached: {found[1]}: {found[2]}")
        elif found := ENDED.match(line):
            self.environments[found[1]] = found[2]

    def lines(self) -> list[str]:
        """Return the closing lines. An error is a test that failed before it could begin."""
        failed = sum(self.counts[word] for word in ("failed", "error", "errors"))
        lines = [f"skipped {count}: {reason}" for reason, count in sorted(self.reasons.items())]
        lines += [f"not run: {name}: {why}" for name, why in self.absent.items()]
        lines += self.unreached
        if bad := [name for name, how in self.environments.items() if how == "FAIL"]:
            lines.append(f"failed: {', '.join(bad)}")
        if self.unfinished:
            lines.append(f"failed: {self.unfinished} runs of pytest ended without a summary")
        passed, skipped = self.counts["passed"], self.counts["skipped"]
        lines.append(f"{passed} passed, {failed + self.unfinished} failed, {skipped} skipped")
        return lines


def main(environments: str, *arguments: str) -> int:
    """Run tox and return its exit status."""
    command = [sys.executable, "-m", "tox", "run-parallel", "--parallel-live", "-p", "2"]
    report = Report()
    with subprocess.Popen(
        [*command, "-e", environments, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as tox:
        assert tox.stdout is not None
        for line in tox.stdout:
            print(line, end="", flush=True)
            report.read(line)
    print("", *report.lines(), sep="\n", flush=True)
    return tox.returncode


def sum_up(log: str) -> list[str]:
    """Return the closing lines of several runs, from what they printed."""
    report = Report()
    with open(log, errors="replace") as lines:
        for line in lines:
            report.read(line)
    return report.lines()


def at_hand() -> str:
    """Name the environment that tests on the Python that runs this."""
    threads = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return f"py{sys.version_info.major}{sys.version_info.minor}{threads}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--at-hand"]:
        print(at_hand())
    elif sys.argv[1] == "--sum":
        print(*sum_up(*sys.argv[2:]), sep="\n")
    else:
        sys.exit(main(*sys.argv[1:]))
