"""Contestants that take turns, round after round, and the ratios between their times.

A contestant is a function from a number of iterations to the nanoseconds they took. Rounds are
short, so that many of them pass without another program on the processor, and the contestants
take turns, so that all meet the same load. A ratio is between the fastest rounds of two
contestants: what disturbs a round only ever makes it longer.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import TypeVar

T = TypeVar("T")

# Takes a number of iterations and returns how many nanoseconds they took in all.
Round = Callable[[int], int]


def clocked(work: Callable[[int], object]) -> Round:
    """Return a contestant from a function that does the job a number of times."""

    def run(iterations: int) -> int:
        begun = perf_counter_ns()
        work(iterations)
        return perf_counter_ns() - begun

    return run


def clocked_after(prepare: Callable[[], T], work: Callable[[T], object]) -> Round:
    """Return a contestant that does the job once for each preparation, which is not timed."""

    def run(iterations: int) -> int:
        took = 0
        for _ in range(iterations):
            prepared = prepare()
            begun = perf_counter_ns()
            work(prepared)
            took += perf_counter_ns() - begun
        return took

    return run


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage inside the block."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def iterations_in(run: Round, target_ns: int) -> int:
    """Return how many iterations take about ``target_ns``; running them warms up, too."""
    iterations = 1
    while True:
        # One that another program interrupts seems to need few iterations, and would then measure
        # what happens once a round.
        took = min(run(iterations) for _ in range(3))
        if took * 4 >= target_ns:
            return max(1, iterations * target_ns // took)
        iterations *= 4


def measure(contestants: dict[str, Round], rounds: int, round_ns: int) -> dict[str, list[float]]:
    """Let the contestants take turns; return for each the microseconds per iteration, by round."""
    iterations = {name: iterations_in(run, round_ns) for name, run in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    gc.collect()
    with no_collection():
        for _ in range(rounds):
            for name in order:
                took = contestants[name](iterations[name])
                times[name].append(took / iterations[name] / 1000)
            # Each then follows another, which leaves other caches.
            order.append(order.pop(0))
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Return how long a contestant takes relative to another."""
    return min(times[name]) / min(times[base])
