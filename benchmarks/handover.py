"""Measure the handover of a `Takeover` alone.

    python benchmarks/handover.py --rounds 15

From the successor's connecting until it is the owner, with some sockets and with state of some
size. What clients notice of a restart is measured by ``restart.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from conduit import Descriptor
from conduit.takeover import Takeover

HOST = "127.0.0.1"
PATIENCE = 30.0
"""Seconds that nothing takes unless it hangs."""


class Cargo(NamedTuple):
    """What is handed over.

    Attributes:
        sockets: listening ones, each asked for.
        state: bytes of state.
        kept: whether the state is in memory that is kept and mapped, filled beforehand.
    """

    sockets: int
    state: int = 0
    kept: bool = False

    def __str__(self) -> str:
        if not self.state:
            return f"{self.sockets} socket{'s' * (self.sockets > 1)}"
        how = "kept in memory, `keep` and `take`" if self.kept else "offered, `offer`"
        return f"1 socket, {self.state >> 20} MiB of state {how}"


CARGOES = [
    *map(Cargo, (1, 100, 1000)),
    *(Cargo(1, size << 20, kept) for kept in (False, True) for size in (1, 64)),
]


def hand_over(cargo: Cargo, rounds: int) -> list[float]:
    """Let so many processes take over, one after another; the seconds that each took."""
    with tempfile.TemporaryDirectory(prefix="handover-") as directory:
        command = [sys.executable, "-P", __file__, "--take-over", f"{directory}/control"]
        command += map(str, map(int, cargo))
        processes: list[subprocess.Popen[str]] = []
        seconds = []
        try:
            for _ in range(rounds + 1):
                processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                said = processes[-1].stdout
                assert said is not None
                seconds.append(float(said.readline()))
        finally:
            for process in processes:
                if process is processes[-1]:
                    process.kill()
                process.communicate(timeout=PATIENCE)
        # The first had no predecessor.
        return seconds[1:]


def take_over(control: str, cargo: Cargo) -> None:
    """Take over, print the seconds that it took, and serve until somebody follows."""
    begin = time.perf_counter()
    with Takeover(control) as takeover, contextlib.ExitStack() as stack:
        for index in range(cargo.sockets):
            stack.enter_context(takeover.listen(HOST, 0, name=f"listener {index}"))
        memory = takeover.take("memory")
        if memory is not None:
            stack.enter_context(mmap.mmap(memory.fileno(), cargo.state))
        takeover.ready()
        seconds = time.perf_counter() - begin
        if takeover.predecessor is not None:
            assert len(takeover.state) == (0 if cargo.kept else cargo.state)
        if cargo.kept:
            with memory or Descriptor(os.memfd_create("state")) as fd:
                if memory is None:
                    os.write(fd.fileno(), bytes(cargo.state))
                takeover.keep("memory", fd)
        else:
            takeover.offer(bytes(cargo.state))
        print(seconds, flush=True)
        takeover.wait()


def handover_table(results: dict[Cargo, list[float]]) -> str:
    """The seconds of each takeover as a table in Markdown."""
    lines = ["| handed over | median | fastest |", "|---|---:|---:|"]
    for cargo, seconds in results.items():
        median, fastest = (1000 * each for each in (statistics.median(seconds), min(seconds)))
        lines.append(f"| {cargo} | {median:.1f} ms | {fastest:.1f} ms |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Measure handovers.")
    parser.add_argument("--rounds", type=int, default=11, help="handovers of each kind")
    parser.add_argument("--take-over", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.take_over:
        control, sockets, state, kept = options.take_over
        take_over(control, Cargo(int(sockets), int(state), kept == "1"))
        return
    print(handover_table({cargo: hand_over(cargo, options.rounds) for cargo in CARGOES}))


if __name__ == "__main__":
    main()
