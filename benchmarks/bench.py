"""Measure conduit against the system calls in C and against the standard library, in one run.

    python benchmarks/bench.py [--rounds N] [--quick]

Each comparison is one job done by several contestants. They take turns, round after round, and
every ratio is the median of the ratios within a round, so that what slows the machine down for a
while slows all of them. A round is many iterations of the job, long enough (tens of milliseconds)
for the clock, without garbage collection, on one pinned processor.

To add a comparison, write a function that returns one and name it in ``comparisons``. A contestant
is a function from a number of iterations to the nanoseconds they took: ``clocked`` makes one of a
plain loop, and one on an event loop reads the clock inside the loop.
"""

import argparse
import contextlib
import gc
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import anyio
from anyio.abc import UNIXSocketStream

import conduit
from conduit.aio import AsyncConduit

# Takes a number of iterations and returns how many nanoseconds they took in all.
Round = Callable[[int], int]

FLOOR = "C floor"
STDLIB = "send_fds/recv_fds"
OURS = "conduit"
ANYIO = "anyio's send_fds/receive_fds"

# As anyio takes them, with the most that conduit's time may be of anyio's there.
LOOPS: dict[str, tuple[dict[str, Any], float]] = {
    "asyncio": ({"backend": "asyncio"}, 0.5),
    "uvloop": ({"backend": "asyncio", "backend_options": {"use_uvloop": True}}, 0.5),
    "trio": ({"backend": "trio"}, 0.7),
}

LEGEND = """\
x floor     time relative to the same system calls made from C; in brackets, the most it may be
x send_fds  time relative to socket.send_fds and recv_fds with the same closes (on an event loop,
            to anyio's); likewise
us          median time of one iteration in microseconds; then its quartiles over the rounds
One descriptor: duplicate, send, close what was sent, receive, close what came.
Batches: one descriptor named N times in one message and shared (keep=True), so that no side
duplicates or closes what it sends: send, receive, close what came."""


@dataclass(frozen=True)
class Comparison:
    """One job, and who does it; the ratios allowed to conduit, where the design names them."""

    title: str
    contestants: dict[str, Round]
    most_of_floor: float | None = None
    most_of_stdlib: float | None = None
    stdlib: str = STDLIB


@dataclass(frozen=True)
class Setting:
    """What all comparisons share: the floor's process, and what is closed in the end."""

    floor: "Floor"
    stack: ExitStack

    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """Return a connected pair, closed when the run is over."""
        one, other = socket.socketpair()
        return self.stack.enter_context(one), self.stack.enter_context(other)

    def conduits(self) -> tuple[conduit.Conduit, conduit.Conduit]:
        """Return a connected pair, closed when the run is over."""
        one, other = conduit.Conduit.pair()
        return self.stack.enter_context(one), self.stack.enter_context(other)

    def opened(self, path: str) -> int:
        """Return a descriptor of a file open for reading, closed when the run is over."""
        fd = os.open(path, os.O_RDONLY)
        self.stack.callback(os.close, fd)
        return fd


class Floor:
    """The process of the compiled ``floor.c``, which runs a round whenever it is asked to."""

    def __init__(self, stack: ExitStack) -> None:
        program = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "floor"
        compiler = shlex.split(os.environ.get("CC") or "cc")
        source = Path(__file__).with_name("floor.c")
        subprocess.run([*compiler, "-O2", "-o", program, source], check=True)
        self._process = stack.enter_context(
            subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        )

    def contestant(self, mode: str, count: int) -> Round:
        """Return a contestant that moves or keeps ``count`` descriptors (see ``floor.c``)."""

        def run(iterations: int) -> int:
            pipe_in, pipe_out = self._process.stdin, self._process.stdout
            assert pipe_in is not None and pipe_out is not None
            pipe_in.write(f"{mode} {count} {iterations}\n")
            answer = pipe_out.readline()
            if not answer:
                raise RuntimeError("the floor's program ended early")
            return int(answer)

        return run


def clocked(work: Callable[[int], None]) -> Round:
    """Return a contestant from a function that does the job a number of times."""

    def run(iterations: int) -> int:
        begun = perf_counter_ns()
        work(iterations)
        return perf_counter_ns() - begun

    return run


def one_descriptor(setting: Setting) -> Comparison:
    """Move one number."""
    fd = setting.opened(os.devnull)
    here, there = setting.conduits()
    sock_here, sock_there = setting.sockets()

    def ours(iterations: int) -> None:
        for _ in range(iterations):
            here.transfer_fd(os.dup(fd))
            os.close(there.receive_fd())

    def stdlib(iterations: int) -> None:
        for _ in range(iterations):
            sent = os.dup(fd)
            socket.send_fds(sock_here, [b"\0"], [sent])
            os.close(sent)
            _, fds, _, _ = socket.recv_fds(sock_there, 1, 1)
            os.close(fds[0])

    # Since Python 3.14 sendfds() waits until recvfds() has acknowledged, which comes after it
    # here: each takes the acknowledgement of the one before.
    sock_there.send(b"A")

    def multiprocessing(iterations: int) -> None:
        for _ in range(iterations):
            sent = os.dup(fd)
            reduction.sendfds(sock_here, [sent])
            os.close(sent)
            os.close(reduction.recvfds(sock_there, 1)[0])

    return Comparison(
        "One descriptor: transfer_fd and receive_fd",
        {
            FLOOR: setting.floor.contestant("move", 1),
            OURS: clocked(ours),
            STDLIB: clocked(stdlib),
            "multiprocessing.reduction": clocked(multiprocessing),
        },
        most_of_floor=1.25,
        most_of_stdlib=0.75,
    )


def one_connection(setting: Setting) -> Comparison:
    """Move a TCP socket's number and make a socket of it again."""
    fd = setting.stack.enter_context(socket.socket()).fileno()
    here, there = setting.conduits()
    sock_here, sock_there = setting.sockets()

    def ours(iterations: int) -> None:
        for _ in range(iterations):
            here.transfer_fd(os.dup(fd))
            there.receive_conn().close()

    def stdlib(iterations: int) -> None:
        for _ in range(iterations):
            sent = os.dup(fd)
            socket.send_fds(sock_here, [b"\0"], [sent])
            os.close(sent)
            _, fds, _, _ = socket.recv_fds(sock_there, 1, 1)
            socket.socket(fileno=fds[0]).close()

    return Comparison(
        "One socket: receive_conn against socket(fileno=...)",
        {OURS: clocked(ours), STDLIB: clocked(stdlib)},
    )


def one_file(setting: Setting) -> Comparison:
    """Move a regular file's number and make a file object of it again."""
    fd = setting.opened(__file__)
    here, there = setting.conduits()
    sock_here, sock_there = setting.sockets()

    def ours(iterations: int) -> None:
        for _ in range(iterations):
            here.transfer_fd(os.dup(fd))
            there.receive_file().close()

    def stdlib(iterations: int) -> None:
        for _ in range(iterations):
            sent = os.dup(fd)
            socket.send_fds(sock_here, [b"\0"], [sent])
            os.close(sent)
            _, fds, _, _ = socket.recv_fds(sock_there, 1, 1)
            os.fdopen(fds[0], "rb").close()

    return Comparison(
        'One file: receive_file against fdopen(..., "rb")',
        {OURS: clocked(ours), STDLIB: clocked(stdlib)},
    )


def batch(setting: Setting, count: int, most_of_floor: float | None = None) -> Comparison:
    """Share one number ``count`` times in one message."""
    items = [setting.opened(os.devnull)] * count
    here, there = setting.conduits()
    sock_here, sock_there = setting.sockets()

    def ours(iterations: int) -> None:
        for _ in range(iterations):
            here.transfer(*items, keep=True)
            with there.receive():
                pass

    def stdlib(iterations: int) -> None:
        for _ in range(iterations):
            socket.send_fds(sock_here, [b"\0"], items)
            _, fds, _, _ = socket.recv_fds(sock_there, 1, count)
            for fd in fds:
                os.close(fd)

    return Comparison(
        f"A batch of {count}: transfer and receive",
        {
            FLOOR: setting.floor.contestant("keep", count),
            OURS: clocked(ours),
            STDLIB: clocked(stdlib),
        },
        most_of_floor,
    )


def on_a_loop(setting: Setting, loop: str) -> Comparison:
    """Compare one transfer_fd and receive_fd on an event loop with anyio's own."""
    fd = setting.opened("/dev/null")
    options, most = LOOPS[loop]

    async def ours(iterations: int) -> int:
        one, other = AsyncConduit.pair()
        async with one, other:
            began = perf_counter_ns()
            for _ in range(iterations):
                await one.transfer_fd(os.dup(fd))
                os.close(await other.receive_fd())
            return perf_counter_ns() - began

    async def theirs(iterations: int) -> int:
        ends = socket.socketpair()
        one, other = [await UNIXSocketStream.from_socket(end) for end in ends]
        async with one, other:
            began = perf_counter_ns()
            for _ in range(iterations):
                copy = os.dup(fd)
                await one.send_fds(b"\0", [copy])
                os.close(copy)
                _, (arrived,) = await other.receive_fds(1, 1)
                os.close(arrived)
            return perf_counter_ns() - began

    return Comparison(
        f"On {loop}: transfer_fd and receive_fd",
        {
            OURS: lambda iterations: anyio.run(ours, iterations, **options),
            ANYIO: lambda iterations: anyio.run(theirs, iterations, **options),
        },
        most_of_stdlib=most,
        stdlib=ANYIO,
    )


def comparisons(setting: Setting) -> list[Comparison]:
    """Return all comparisons, in the order of the table."""
    return [
        one_descriptor(setting),
        one_connection(setting),
        one_file(setting),
        batch(setting, 16),
        batch(setting, 253, most_of_floor=1.15),
        *[on_a_loop(setting, loop) for loop in LOOPS],
    ]


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Collect garbage now and not inside the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def iterations_in(run: Round, target_ns: int) -> int:
    """Return how many iterations take about ``target_ns``; running them warms up, too."""
    iterations = 1
    while True:
        took = run(iterations)
        if took * 4 >= target_ns:
            return max(1, iterations * target_ns // took)
        iterations *= 4


def measure(contestants: dict[str, Round], rounds: int, round_ns: int) -> dict[str, list[float]]:
    """Let the contestants take turns; return for each the microseconds per iteration, by round."""
    iterations = {name: iterations_in(run, round_ns) for name, run in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(rounds):
        for name in order:
            with no_collection():
                took = contestants[name](iterations[name])
            times[name].append(took / iterations[name] / 1000)
        # Whoever follows a given contestant finds the caches as that one left them.
        order.append(order.pop(0))
    return times


def ratio(times: dict[str, list[float]], name: str, base: str, most: float | None) -> str:
    """Return the median of the ratios of each round, with the limit if there is one."""
    if base not in times:
        return ""
    value = statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
    return f"{value:.2f}" + (f" (<= {most})" if most and name == OURS else "")


def print_comparison(comparison: Comparison, times: dict[str, list[float]]) -> None:
    """Print one block of the table."""
    print(f"\n{comparison.title}")
    for name, series in times.items():
        of_floor = ratio(times, name, FLOOR, comparison.most_of_floor)
        of_stdlib = ratio(times, name, comparison.stdlib, comparison.most_of_stdlib)
        first, median, third = statistics.quantiles(series, n=4, method="inclusive")
        print(f"{of_floor:<15}{of_stdlib:<15}{median:>8.2f}  {first:>7.2f} - {third:<7.2f}  {name}")


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


def main() -> None:
    """Run all comparisons and print the table."""
    parser = argparse.ArgumentParser(description="Compare conduit with C and the standard library.")
    parser.add_argument("--rounds", type=int, default=25, help="rounds per comparison (25)")
    parser.add_argument(
        "--quick", action="store_true", help="five short rounds: a look, not a measurement"
    )
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    if rounds < 2:
        parser.error("quartiles need at least 2 rounds")
    round_ms = 5 if options.quick else 30

    pinned = pin()
    build = " without the GIL" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    print(
        f"{platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}{build}, "
        f"{processor_model()}, {pinned}; {rounds} rounds of {round_ms} ms each"
    )
    print(LEGEND)
    print(f"\n{'x floor':<15}{'x send_fds':<15}{'us':>8}  {'quartiles':^17}  contestant")
    with ExitStack() as stack:
        for comparison in comparisons(Setting(Floor(stack), stack)):
            times = measure(comparison.contestants, rounds, round_ms * 1_000_000)
            print_comparison(comparison, times)


if __name__ == "__main__":
    main()
