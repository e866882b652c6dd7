"""Measure conduit against the system calls in C and against the standard library, in one run.

    python benchmarks/bench.py [--rounds N] [--quick]

What is measured is in ``jobs.py``, how in ``rounds.py``; docs/performance.md says how to read the
table. The run ends with the bars of the design, and whether each holds. Its exit status does not
depend on them: how long something takes is measured here and tested nowhere.
"""

import argparse
import contextlib
import os
import platform
import statistics
import sys
import sysconfig
from contextlib import ExitStack
from pathlib import Path

from floor import Floor
from jobs import FLOOR, Comparison, Setting, comparisons
from rounds import measure, ratio

HEADER = f"{'x floor':>8}{'x other':>9}{'us':>10}{'median':>10}  contestant"


def pin() -> str:
    """Keep this process and its children on one processor; say which."""
    if sys.platform != "linux":
        return "not pinned"
    # The first processor is the one that most interrupts go to.
    processor = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processor})
    return f"pinned to CPU {processor}"


def processor_model() -> str:
    """Return what the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> str:
    """Return what the figures depend on."""
    build = " without the GIL" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}{build}, "
        f"{processor_model()}, {pin()}{load}"
    )


def print_comparison(comparison: Comparison, times: dict[str, list[float]]) -> None:
    """Print one block of the table."""
    print(f"\n{comparison.title}")
    for name, series in times.items():
        of_floor = f"{ratio(times, name, FLOOR):.2f}" if FLOOR in times else ""
        of_other = f"{ratio(times, name, comparison.alternative):.2f}"
        median = statistics.median(series)
        print(f"{of_floor:>8}{of_other:>9}{min(series):>10.2f}{median:>10.2f}  {name}", flush=True)


def verdicts(comparison: Comparison, times: dict[str, list[float]]) -> list[str]:
    """Return a line for each bar of a comparison."""
    lines = []
    for bar in comparison.bars:
        value = ratio(times, bar.name, bar.base)
        verdict = "holds" if value <= bar.most else "MISSED"
        job = comparison.title.partition(":")[0]
        lines.append(f"{verdict:<8}{value:.2f} <= {bar.most:<5} {job}: {bar.name} / {bar.base}")
    return lines


def main() -> None:
    """Run all comparisons and print the table, and the bars."""
    parser = argparse.ArgumentParser(description="Compare conduit with C and the standard library.")
    parser.add_argument("--rounds", type=int, default=100, help="rounds per comparison (100)")
    parser.add_argument("--quick", action="store_true", help="10 rounds: a look, no measurement")
    options = parser.parse_args()
    rounds = 10 if options.quick else options.rounds
    if rounds < 1:
        parser.error("--rounds must be at least 1")
    round_ms = 3

    print(f"{machine()}; {rounds} rounds of {round_ms} ms each\n\n{HEADER}")
    bars = []
    with ExitStack() as stack:
        for comparison in comparisons(Setting(Floor(stack), stack)):
            times = measure(comparison.contestants, rounds, round_ms * 1_000_000)
            print_comparison(comparison, times)
            bars += verdicts(comparison, times)
    print("\nThe bars of the design\n" + "\n".join(bars))


if __name__ == "__main__":
    main()
