"""What a signal handler raises stays itself, wherever it strikes, and nothing is left or lost."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drivers import Driver
from helpers import (
    content,
    handling,
    in_child,
    is_open,
    memory,
    not_traced,
    open_descriptors,
)
from sides import close_all

from conduit import Conduit, Descriptor, Error, Listener, WouldBlockError
from conduit.errors import from_handler

Ends = tuple[Conduit, Conduit]


@pytest.fixture
def driver() -> Driver:
    """Signals are what the blocking classes must bear."""
    return Driver()


class Alarm(TimeoutError):
    """An exception that Python's own calls raise too, by its class."""


alarm = SimpleNamespace(due=False)
"""Whether the handler may raise. Another thread may get the signal, and tell Python late."""


def raise_alarm(*_: Any) -> None:
    if alarm.due:
        raise Alarm("the program's own deadline")


@contextlib.contextmanager
def struck(seconds: float) -> Iterator[None]:
    """Let a handler raise after so many seconds, unless the block has ended."""
    try:
        alarm.due = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        alarm.due = False
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(autouse=True)
def handler_raises() -> Iterator[None]:
    """Elsewhere than in `struck`, it raises at once."""
    alarm.due = True
    yield
    alarm.due = False


def peer(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    assert one.peer.uid == os.geteuid()


def kind(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    assert given.kind == "regular file"


def to_file(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    with given.to_file("r") as file:
        file.read(1)


def to_conn(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    one.transfer_conn(socket.socket(socket.AF_UNIX))
    with other.receive() as message:
        message.fds[0].to_conn().close()


def transfer_file(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    with open(path, "rb") as file:
        one.transfer_file(file)
        assert file.closed
    other.receive_file().close()


def transfer_conn(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    with socket.socket() as sock:
        one.transfer_conn(sock)
        assert sock.fileno() == -1
    other.receive_conn().close()


def transfer(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    with socket.socket() as sock, open(path, "rb") as file:
        one.transfer(sock, given, file, data=b"all")
        assert file.closed
        assert given.closed
    other.receive().close()


def from_file(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        Conduit.from_file(sock).close()
        Conduit.from_conn(sock).close()


def pair(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    for end in Conduit.pair():
        end.close()


def connect(one: Conduit, other: Conduit, given: Descriptor, path: Path) -> None:
    Conduit.connect(path.with_name("s")).close()


def empty(end: Conduit) -> None:
    """Take off what is still there."""
    end.timeout = 0
    with contextlib.suppress(WouldBlockError):
        while True:
            end.receive().close()


CALLS = [
    peer, kind, to_file, to_conn, transfer_file, transfer_conn, transfer, from_file, pair, connect,
]  # fmt: skip


@pytest.mark.slow
@not_traced
@pytest.mark.parametrize("call", CALLS)
def test_an_exception_of_a_handler_stays_itself_and_leaves_nothing_open(
    call: Callable[[Conduit, Conduit, Descriptor, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "file"
    path.write_text("x" * 20000)
    one, other = Conduit.pair()
    strikes = 0
    # Python drops what strikes in a finalizer.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    listener = Listener(tmp_path / "s")
    with listener, one, other, handling(signal.SIGALRM, raise_alarm), warnings.catch_warnings():
        # What is struck between two lines of this test is dropped, and says so.
        warnings.simplefilter("ignore", ResourceWarning)
        before = len(open_descriptors())
        deadline = time.monotonic() + 1.5
        other.timeout = 0
        while time.monotonic() < deadline or not strikes:
            given = Descriptor(os.open(path, os.O_RDONLY))
            try:
                with struck(random.uniform(5e-6, 3e-4)):
                    call(one, other, given, path)
            except Alarm:
                strikes += 1
            except Exception as exc:
                # Only where the handler struck it could it be the reason.
                assert not isinstance(exc.__context__, Alarm), repr(exc)
                raise
            given.close()
            empty(other)
            with contextlib.suppress(WouldBlockError):
                while True:
                    listener.accept(0).close()
        gc.collect()
        assert len(open_descriptors()) <= before + 1, "but for the waker"


@pytest.mark.parametrize("how", ["transfer_conn", "transfer"])
def test_a_socket_whose_close_is_interrupted_is_closed_all_the_same(ends: Ends, how: str) -> None:
    class Interrupted(socket.socket):
        calls = 0

        def close(self) -> None:
            self.calls += 1
            if self.calls == 1:
                signal.raise_signal(signal.SIGUSR1)
            super().close()

    one, other = ends
    mine, after = Interrupted(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    number = memory()
    items = (mine,) if how == "transfer_conn" else (mine, number, after)
    with handling(signal.SIGUSR1, raise_alarm), pytest.raises(Alarm) as caught:
        getattr(one, how)(*items)
    assert not isinstance(caught.value, Error)
    assert mine.fileno() == -1
    with other.receive() as message:
        assert len(message.fds) == len(items)
    assert is_open(number) is (how == "transfer_conn")
    assert (after.fileno() == -1) is (how == "transfer")
    after.close()
    if how == "transfer_conn":
        os.close(number)


def test_what_an_object_itself_raises_becomes_an_error(ends: Ends) -> None:
    class Failing:
        def fileno(self) -> int:
            raise Alarm("of the object's own")

        def close(self) -> None:
            raise AssertionError("it was not sent")

    with pytest.raises(Error, match="of the object's own"):
        ends[0].transfer_conn(Failing())


@pytest.mark.parametrize("where", ["fileno", "flush"])
def test_a_handler_that_strikes_within_a_method_of_an_object_stays_itself(
    ends: Ends, where: str
) -> None:
    strikes = [where]

    class Struck:
        def __init__(self) -> None:
            self.number = memory()

        def fileno(self) -> int:
            self.strike("fileno")
            return self.number

        def flush(self) -> None:
            self.strike("flush")

        def close(self) -> None:
            raise AssertionError("it was not sent")

        def strike(self, method: str) -> None:
            if method in strikes:
                strikes.remove(method)
                signal.raise_signal(signal.SIGUSR1)

    struck = Struck()
    with handling(signal.SIGUSR1, raise_alarm), pytest.raises(Alarm) as caught:
        ends[0].transfer_file(struck)
    assert not isinstance(caught.value, Error)
    assert not strikes
    os.close(struck.number)


@pytest.mark.parametrize("place", ["os.get_blocking", "conduit.objects.socket_options"])
def test_a_handler_that_strikes_while_a_socket_is_made_stays_itself(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def strike(number: int) -> int:
        signal.raise_signal(signal.SIGUSR1)
        raise AssertionError("unreachable")

    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    ends[0].transfer_conn(sock)
    monkeypatch.setattr(place, strike)
    with handling(signal.SIGUSR1, raise_alarm), pytest.raises(Alarm) as caught:
        ends[1].receive_conn()
    assert not isinstance(caught.value, Error)


def named_arguments(signum: int, frame: Any) -> None:
    raise_alarm()


class Callback:
    def __call__(self, signum: int, frame: Any) -> None:
        raise_alarm()


@pytest.mark.parametrize(
    "handler",
    [
        raise_alarm,
        named_arguments,
        Callback(),
    ],
)
def test_a_handler_of_any_form_is_told(handler: Any) -> None:
    def interrupted() -> None:
        signal.raise_signal(signal.SIGUSR1)

    with handling(signal.SIGUSR1, handler), pytest.raises(Alarm) as caught:
        interrupted()
    assert from_handler(caught.value)


def test_what_no_handler_raised_is_told_apart() -> None:
    def fail(number: int, name: str) -> None:
        raise Alarm

    with pytest.raises(Alarm) as caught:
        fail(1, "x")
    assert not from_handler(caught.value)
    assert from_handler(KeyboardInterrupt())


def test_a_file_that_is_made_by_a_struck_call_leaves_the_descriptor_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from conduit import objects

    def strike(*args: Any) -> Any:
        made.append(open_file(*args))
        raise Alarm

    made: list[Any] = []
    open_file = objects.open_file
    with Descriptor(memory(b"kept")) as descriptor:
        number = descriptor.fileno()
        with monkeypatch.context() as patch:
            patch.setattr("conduit._conduit.open_file", strike)
            with pytest.raises(Alarm):
                descriptor.to_file("rb", name="given")
        made.clear()
        gc.collect()
        assert descriptor.fileno() == number
        assert content(number) == b"kept"
        with descriptor.to_file("rb", name="given") as file:
            assert (file.name, file.read()) == ("given", b"kept")
    assert not is_open(number)


@pytest.mark.parametrize("mode", ["rb", "r"])
def test_a_file_that_is_received_by_a_struck_call_is_closed(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    from conduit import objects

    def strike(*args: Any) -> Any:
        made.append(open_file(*args))
        raise Alarm

    made: list[Any] = []
    open_file = objects.open_file
    monkeypatch.setattr("conduit._conduit.open_file", strike)
    one, other = Conduit.pair()
    with one, other:
        one.transfer_fd(memory(b"lost"))
        with pytest.raises(Alarm):
            other.receive_file(mode)
    assert made[0].closed


# Memory that runs out


@not_traced
@pytest.mark.parametrize(
    "name",
    ["receive", "receive_fd", "receive_file", "receive_conn", "from_conn", "pair", "connect",
     "accept", "transfer"],
)  # fmt: skip
def test_memory_that_runs_out_at_any_allocation_leaves_nothing_open(
    name: str, tmp_path: Path
) -> None:
    testing = pytest.importorskip("_testcapi")

    def child() -> None:
        sock = socket.socket(socket.AF_UNIX)
        failures = 0
        path = str(tmp_path / "s")
        # So that the int of a descriptor is no small one, which takes no memory before Python 3.15,
        # where it takes none up to 1,024.
        more = [memory() for _ in range(260)]
        # So that each collection looks only at what is made from here on.
        gc.freeze()
        with sock, Listener(path) as listener, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for allocation in range(60):
                one, other = Conduit.pair()
                one.timeout = other.timeout = 0
                numbers = [Descriptor(memory()), Descriptor(memory())]
                waiting = Conduit.connect(path)
                one.transfer_conn(sock, keep=True)
                calls: dict[str, Callable[[], Any]] = {
                    "from_conn": lambda: Conduit.from_conn(sock),
                    "pair": Conduit.pair,
                    "connect": lambda: Conduit.connect(path),
                    "accept": partial(listener.accept, 0),
                    "transfer": partial(one.transfer, *numbers),
                }
                call = calls.get(name) or getattr(other, name)
                gc.collect()
                before = set(open_descriptors())
                result: Any = ()
                try:
                    testing.set_nomemory(allocation, allocation + 1)
                    try:
                        result = call()
                    finally:
                        testing.remove_mem_hooks()
                # Without memory to compare users, a listener refuses its peer, and finds no other.
                except (MemoryError, RuntimeError, SystemError, WouldBlockError):
                    failures += 1
                results: Any = result if isinstance(result, tuple) else (result,)
                for place in range(len(results)):
                    if isinstance(results[place], int):
                        os.close(results[place])
                    elif results[place] is not None:
                        results[place].close()
                del result, results
                gc.collect()
                after = set(open_descriptors())
                assert not after - before, (allocation, after - before)
                for link in (one, other, waiting):
                    link.close()
                for number in numbers:
                    number.close()
                with contextlib.suppress(WouldBlockError):
                    while True:
                        listener.accept(0).close()
        gc.unfreeze()
        close_all(more)
        assert failures or (name == "receive_fd" and sys.version_info >= (3, 15))

    # In a process of one thread: it would strike another, such as the one that pytest-xdist has.
    assert in_child(child) == 0
