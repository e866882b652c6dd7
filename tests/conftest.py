"""Fixtures of all tests: what fails a test that leaks, hangs or warns, and two connected ends."""

from __future__ import annotations

import faulthandler
import gc
import operator
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import Bench
from drivers import BLOCKING, LOOPS, Driver, LoopDriver
from helpers import GENEROUS, HAS_PROC, KINDS, open_descriptors, raise_limit_of_descriptors

import conduit

PATIENCE = 120
"""Seconds after which a test hangs, and the run is ended with every thread's traceback."""


def pytest_configure(config: pytest.Config) -> None:
    if "error" not in config.getini("filterwarnings"):
        config.addinivalue_line("filterwarnings", "error")
    raise_limit_of_descriptors()
    # What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A handler that does nothing: Python complains of a signal that comes just as the default is
    # put back. Not of Python code, whose lines a test may count.
    signal.signal(signal.SIGCHLD, operator.is_)


ANYWHERE = ["test_anywhere.py", "test_first_mistakes.py", "test_stubs.py"]
"""What runs without /proc, on macOS say: the others look at descriptors or at what waits."""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    outside = collection_path.suffix == ".py" and collection_path.name not in ANYWHERE
    return True if outside and not HAS_PROC else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not HAS_PROC:
        files = len(list(Path(__file__).parent.glob("test_*.py"))) - len(ANYWHERE)
        terminalreporter.line(f"SKIPPED [{files}] files of tests: they look into /proc")


@pytest.fixture(scope="session")
def terminal(pytestconfig: pytest.Config) -> Iterator[int]:
    """Where standard error goes when pytest does not capture it."""
    capture: Any = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        number = os.dup(2)
    yield number
    os.close(number)


@pytest.fixture(scope="session")
def start_loop() -> Iterator[Callable[[str], LoopDriver]]:
    """Start an event loop that stays until all tests have run, unless it runs already."""
    with ExitStack() as stack:

        @cache
        def start(loop: str) -> LoopDriver:
            # uvloop has no wheel for each Python that conduit supports.
            if find_spec(loop) is None:
                pytest.skip(f"not installed: {loop}")
            return LoopDriver(loop, stack)

        yield start


# The quick tests of `make check` run on one event loop.
LOOP_PARAMS = [
    loop if loop == "asyncio" else pytest.param(loop, marks=pytest.mark.slow) for loop in LOOPS
]


@pytest.fixture(params=[BLOCKING, *LOOP_PARAMS])
def driver(request: pytest.FixtureRequest, start_loop: Callable[[str], LoopDriver]) -> Driver:
    """The classes to make conduits of: the blocking ones, and those on each event loop."""
    return Driver() if request.param == BLOCKING else start_loop(request.param)


@pytest.fixture(params=LOOP_PARAMS)
def anyio_backend(
    request: pytest.FixtureRequest, start_loop: Callable[[str], LoopDriver]
) -> tuple[str, dict[str, Any]]:
    """The event loop of a test that is a coroutine itself."""
    # The first loop of a kind opens what all later ones share.
    start_loop(request.param)
    settings = LOOPS[request.param]
    return settings["backend"], settings.get("backend_options", {})


@pytest.fixture(autouse=True)
def no_descriptor_leaks_and_nothing_hangs(
    request: pytest.FixtureRequest, terminal: int
) -> Iterator[None]:
    for loop in {"driver", "anyio_backend"}.intersection(request.fixturenames):
        # What it has open stays, and is not the test's.
        request.getfixturevalue(loop)
    before = open_descriptors()
    faulthandler.dump_traceback_later(PATIENCE, exit=True, file=terminal)
    yield
    faulthandler.cancel_dump_traceback_later()
    after = open_descriptors()
    # A thread may be closing some just now.
    deadline = time.monotonic() + GENEROUS / 3
    while after != before and time.monotonic() < deadline:
        gc.collect()
        after = open_descriptors()
    leaked = {number: name for number, name in after.items() if before.get(number) != name}
    lost = {number: name for number, name in before.items() if after.get(number) != name}
    assert not leaked, f"left open: {leaked}"
    assert not lost, f"closed, though they belonged to others: {lost}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> int:
    """A type of Unix socket: both, where the meaning is the same."""
    value: int = request.param
    return value


@pytest.fixture
def ends(kind: int, driver: Driver) -> Iterator[tuple[conduit.Conduit, conduit.Conduit]]:
    """Two connected conduits."""
    one, other = driver.Conduit.pair(type=kind)
    with one, other:
        yield one, other


@pytest.fixture
def wired(kind: int, driver: Driver) -> Iterator[tuple[conduit.Conduit, socket.socket]]:
    """A conduit and the plain socket at its other end."""
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with mine, peer, driver.Conduit.from_conn(mine) as link:
        mine.close()
        yield link, peer


@pytest.fixture
def default_timeout() -> Iterator[None]:
    """Put ``socket.setdefaulttimeout`` back to what it was."""
    before = socket.getdefaulttimeout()
    yield
    socket.setdefaulttimeout(before)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A directory in which one `conduit run` follows the other."""
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)
