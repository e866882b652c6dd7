"""Measure what docs/performance.md tells, and write its tables and drawings.

    python benchmarks/performance.py --write docs [--only PART ...]

Each part stands between two markers in the page, and is replaced there. Without ``--write`` the
tables are only printed. It takes some minutes, and wants valgrind and an idle machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import bench
import dealing
import instructions
import memory
import scaling
from drawing import Axis, Bar, Drawing, bars, decades, lines
from floor import Floor
from jobs import FLOOR, OURS, STDLIB, Setting, comparisons
from rounds import measure, ratio

ROUND_NS = 3_000_000


class Part(NamedTuple):
    """One part of the page: what stands there, and the drawings beside it, by file name."""

    text: str
    drawings: dict[str, Drawing]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown, whose first column is text and whose others are figures."""
    lines_ = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines_)


def duration(us: float) -> str:
    """Write microseconds for people to read."""
    if us >= 1000:
        return f"{us / 1000:.3g} ms"
    return f"{us:.3g} µs"


def size(count: float) -> str:
    """Write a number of bytes in the unit that suits it."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.0f} {name}"
    return f"{count:.0f} B"


def machine(options: argparse.Namespace) -> Part:
    """Tell what the figures depend on."""
    release = ".".join(platform.release().split(".")[:2])
    return Part(
        f"{platform.system()} {release}, {platform.python_implementation()} "
        f"{platform.python_version()}, {bench.processor_model()}, {os.cpu_count()} processors.",
        {},
    )


def jobs(options: argparse.Namespace) -> Part:
    """Compare each job of the bench."""
    rows: list[list[str]] = []
    drawn: list[Bar] = []
    with ExitStack() as stack:
        for comparison in comparisons(Setting(Floor(stack), stack)):
            times = measure(comparison.contestants, options.rounds, ROUND_NS)
            title, _, what = comparison.title.partition(": ")
            rows.append([f"**{title}**" + (f": {what}" if what else ""), "", "", ""])
            for name, series in times.items():
                of_floor = f"{ratio(times, name, FLOOR):.2f}" if FLOOR in times else ""
                of_other = f"{ratio(times, name, comparison.alternative):.2f}"
                rows.append([name, of_floor, of_other, duration(min(series))])
            ours = next(name for name in times if name not in (FLOOR, comparison.alternative))
            value = ratio(times, ours, comparison.alternative)
            drawn.append(Bar(SHORT.get(title, title), value, f"{value:.2f}",
                             "ours" if value <= 1 else "other"))  # fmt: skip
    drawing = bars("Time relative to how it is done without conduit (the line: 1)", drawn, 1.0)
    return Part(
        table(["job", "x floor", "x other", "fastest"], rows), {"performance-jobs.svg": drawing}
    )


SHORT = {
    "transfer_fd and receive_fd": "one descriptor",
    "transfer_conn and receive_conn, TCP socket objects": "a socket object",
    'transfer_file and receive_file, file objects, "rb"': "a binary file object",
    'transfer_file and receive_file, file objects, "r"': "a text file object",
    "Channel, packets": "a dict, packets",
    "Channel, a stream": "a dict, a stream",
    "on asyncio": "on asyncio",
    "on uvloop": "on uvloop",
    "on trio": "on trio",
    "lines of 80 bytes": "lines, Reader",
    "import, in a new interpreter": "import conduit",
}


def counted(options: argparse.Namespace) -> Part:
    """Count the instructions of one call there and back, by the part that executes them."""
    if shutil.which("valgrind") is None:
        sys.exit("there is no valgrind")
    rows = []
    for job, found in instructions.measure([*COUNTED]).items():
        ours = found[OURS]
        rows.append(
            [COUNTED[job], f"{found[STDLIB].total():,}", f"**{ours.total():,}**"]
            + [f"{ours[part]:,}" for part in instructions.PARTS]
        )
    names = [f"`{part}`" for part in instructions.MODULES]
    header = ["job", "without conduit", "conduit", *names, instructions.PYTHON, "C library"]
    return Part(table(header, rows), {})


COUNTED = {
    "fd": "`os.dup`, `transfer_fd`, `receive_fd`, `os.close`",
    "socket": "`transfer_conn`, `receive_conn`",
    "rb": "`transfer_file`, `receive_file`, binary",
    "r": "the same, text",
    "share": "253 numbers with `keep=True`, `receive`, close",
}


def swept(
    options: argparse.Namespace, sweep: str, title: str, axis: str, write: Callable[[float], str]
) -> Part:
    """Measure one of the sweeps: a table, and a drawing."""
    series: dict[str, list[tuple[float, float]]] = {}
    rows = []
    with ExitStack() as stack:
        for number, contestants in scaling.SWEEPS[sweep](Setting(Floor(stack), stack)):
            # Only the longest take more than a round; their number is what counts then.
            times = measure(contestants, options.rounds // 4 + 1, ROUND_NS)
            fastest = {name: min(each) for name, each in times.items()}
            rows.append([write(number), *map(duration, fastest.values())])
            for name, us in fastest.items():
                series.setdefault(name, []).append((number, us))
    if FLOOR in series:
        floor = dict(series[FLOOR])
        y = Axis({1.0: "1", 1.25: "1.25", 1.5: "1.5", 1.75: "1.75", 2.0: "2"}, "times the C floor",
                 log=False)  # fmt: skip
        drawn = {
            name: [(number, us / floor[number]) for number, us in each]
            for name, each in series.items()
        }
    else:
        y = decades("time", [us for each in series.values() for _, us in each], duration)
        drawn = series
    x = Axis({number: write(number) for number, _ in next(iter(series.values()))}, axis)
    drawing = lines(title, x, y, drawn, kinds=_KINDS[sweep])
    return Part(table([axis, *series], rows), {f"performance-{sweep}.svg": drawing})


_KINDS = {
    "descriptors": ("floor", "ours", "other", "fourth"),
    "bytes": ("ours", "other", "third"),
    "connections": ("ours", "third", "other"),
}


def workers(options: argparse.Namespace) -> Part:
    """Compare the ways in which connections reach workers."""
    rows, drawn = [], []
    for way, kind in zip(dealing.WAYS, ("ours", "other", "third"), strict=True):
        found = {count: dealing.measure(way, count, options.seconds) for count in dealing.WORKERS}
        rows.append(
            [way]
            + [f"{figures.rate:,.0f}" for figures in found.values()]
            + [f"{figures.busiest:.0f}" for count, figures in found.items() if count > 1]
        )
        drawn += [
            Bar(_workers(count), figures.rate, f"{figures.rate:,.0f}", kind, way)
            for count, figures in found.items()
        ]
    header = ["connections a second"]
    header += map(_workers, dealing.WORKERS)
    header += [
        f"of {dealing.KEPT} kept, most at one of {count}" for count in dealing.WORKERS if count > 1
    ]
    drawing = bars("Connections a second, by way and number of workers", drawn)
    return Part(table(header, rows), {"performance-workers.svg": drawing})


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count > 1)}"


def objects(options: argparse.Namespace) -> Part:
    """Tell what each kind of object takes."""
    rows = [
        [name, f"{figures.size:,}", f"{figures.fds:.0f}"]
        for name, figures in memory.measure().items()
    ]
    return Part(table(["object", "bytes", "descriptors"], rows), {})


PARTS: dict[str, Callable[[argparse.Namespace], Part]] = {
    "machine": machine,
    "jobs": jobs,
    "instructions": counted,
    "descriptors": lambda options: swept(
        options, "descriptors", "Moving N descriptors in one message", "descriptors", str
    ),
    "bytes": lambda options: swept(
        options, "bytes", "Bringing N bytes and a descriptor to another process", "bytes", size
    ),
    "connections": lambda options: swept(
        options, "connections", "One descriptor, with N connections open", "connections", str
    ),
    "workers": workers,
    "memory": objects,
}  # fmt: skip


def written(page: str, name: str, text: str) -> str:
    """Return the page with a part replaced."""
    begin, end = f"<!-- figures: {name} -->\n", "<!-- end -->"
    page, count = re.subn(
        f"({re.escape(begin)}).*?({end})", lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page,
        flags=re.DOTALL,
    )  # fmt: skip
    if count != 1:
        raise ValueError(f"the page has {count} places for {name}")
    return page


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description="Measure what docs/performance.md tells.")
    parser.add_argument("--write", type=Path, metavar="DOCS", help="the directory of the page")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART",
                        help=f"of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=100, help="rounds of each job (100)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way to deal (2)")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    for name in options.only:
        if processors:
            os.sched_setaffinity(0, processors)
        if name in ("jobs", "descriptors", "bytes", "connections"):
            bench.pin()
        part = PARTS[name](options)
        print(f"\n{name}\n\n{part.text}", flush=True)
        if options.write:
            page = options.write / "performance.md"
            page.write_text(written(page.read_text(), name, part.text))
            for file, drawing in part.drawings.items():
                (options.write / file).write_text(str(drawing))


if __name__ == "__main__":
    main()
