"""Many threads on the same objects at full speed, as they meet where no GIL orders them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from drivers import Driver
from helpers import GENEROUS, TRACED, Call, content, is_open, memory, run_python
from sides import identity

import conduit
from conduit import Conduit, Descriptor, Error, ErrType

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        TRACED,
        reason="between two traced lines the GIL may change hands, which it never does otherwise",
    ),
]

SECONDS = 1.5
"""How long each storm lasts."""

Ends = tuple[Conduit, Conduit]


@pytest.fixture
def driver() -> Driver:
    """Threads, signals and dying processes are what the blocking classes must bear."""
    return Driver()


class Storm:
    """Threads that repeat functions until time is up, or one of them fails.

    On a slow machine time is not up before each thread has had ``enough`` rounds.
    """

    def __init__(self, seconds: float = SECONDS, *, enough: int = 6) -> None:
        self._deadline = time.monotonic() + seconds
        self._enough = enough
        self._failures: list[BaseException] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._rounds: list[tuple[str, list[int]]] = []

    def going(self) -> bool:
        if self._over.is_set():
            return False
        return time.monotonic() < self._deadline or any(
            rounds < self._enough for _, [rounds] in self._rounds
        )

    @property
    def rounds(self) -> Counter[str]:
        """How often each function has returned, in all of its threads."""
        counts: Counter[str] = Counter()
        for name, [rounds] in self._rounds:
            counts[name] += rounds
        return counts

    def add(self, function: Callable[[], Any], threads: int = 1) -> None:
        def run(rounds: list[int]) -> None:
            try:
                while self.going():
                    function()
                    rounds[0] += 1
            except BaseException as exc:
                self._failures.append(exc)
                self._over.set()

        rounds = [[0] for _ in range(threads)]
        self._rounds += [(function.__name__, one) for one in rounds]
        self._threads += [threading.Thread(target=run, args=(one,), daemon=True) for one in rounds]

    def run(self) -> None:
        before = sys.getswitchinterval()
        # With a GIL, threads meet in as many places as it changes hands.
        sys.setswitchinterval(1e-5)
        try:
            for thread in self._threads:
                thread.start()
            for thread in self._threads:
                thread.join(GENEROUS)
        finally:
            sys.setswitchinterval(before)
        assert not any(thread.is_alive() for thread in self._threads), "a thread hangs"
        if self._failures:
            raise self._failures.pop(0)


def bystander() -> None:
    """Open a file and close it: whoever closed it meanwhile, or put another there, is at fault."""
    numbers = [memory(b"bystander") for _ in range(3)]
    files = [identity(number) for number in numbers]
    time.sleep(0)
    for number, file in zip(numbers, files, strict=True):
        assert identity(number) == file
        os.close(number)


def test_no_import_turns_the_gil_on() -> None:
    if "t" not in sys.abiflags:
        pytest.skip("this Python has a GIL")
    code = "import sys, conduit.aio, conduit.takeover; sys.exit(sys._is_gil_enabled())"
    run = run_python(code)
    assert run.returncode == 0, run.stderr


@pytest.mark.hazard("FT")
def test_every_message_of_many_threads_arrives_once_and_whole(ends: Ends) -> None:
    sent: list[str] = []
    arrived: list[str] = []
    serial = iter(range(1 << 62))
    lock = threading.Lock()
    storm = Storm(enough=20)

    def transfer() -> None:
        with lock:
            number = next(serial)
        ends[0].transfer_fd(memory(b"%d" % number))
        sent.append(str(number))

    def receive() -> None:
        with contextlib.suppress(conduit.PeerClosedError):
            while True:
                with ends[1].receive_file() as file:
                    arrived.append(file.read().decode())

    # As many threads receive as send, and until nothing is left.
    receivers = [Call(receive) for _ in range(3)]
    storm.add(transfer, 3)
    storm.add(bystander, 2)
    storm.run()
    ends[0].close()
    for receiver in receivers:
        receiver.result()
    assert len(sent) > 50
    assert Counter(arrived) == Counter(sent)


@pytest.mark.hazard("C6")
def test_long_payloads_of_many_threads_are_not_mixed() -> None:
    one, other = Conduit.pair()
    size = 300_000
    marks = Counter[bytes]()
    storm = Storm()
    names = iter(b"abc")
    mark_of: dict[int, int] = {}
    ended = threading.Event()

    def transfer() -> None:
        mark = b"%c" % mark_of.setdefault(threading.get_ident(), next(names, 0))
        number = memory(mark)
        one.transfer(number, data=mark * size)

    def receive() -> None:
        data, name = b"", b""
        while len(data) < size:
            with other.receive(size - len(data)) as message:
                if message.fds:
                    assert not data
                    name = content(message.fds[0].fileno())
                data += message.data
        assert data == name * size
        marks[name] += 1

    def drain() -> None:
        try:
            while True:
                receive()
        except conduit.PeerClosedError:
            ended.set()

    with one, other:
        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        storm.add(transfer, 3)
        storm.add(bystander, 1)
        storm.run()
        with socket.socket(fileno=os.dup(one.fileno())) as sock:
            sock.shutdown(socket.SHUT_WR)
        assert ended.wait(GENEROUS)
        reader.join()
    assert sum(marks.values()) == storm.rounds["transfer"] > 5


@pytest.mark.hazard("FT")
def test_closing_races_every_call_and_no_foreign_number_is_touched(kind: int) -> None:
    storm = Storm(2 * SECONDS)
    lock = threading.Lock()
    shared: list[Ends] = [Conduit.pair(type=kind)]
    owned = memory(b"owned")
    owner = identity(owned)

    def close() -> None:
        time.sleep(0.0005)
        with lock:
            one, other = shared[0]
            shared[0] = Conduit.pair(type=kind)
        closers = [threading.Thread(target=end.close) for end in (one, other, one, other)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        assert one.closed and other.closed

    def ended(exc: Error) -> None:
        gone = isinstance(exc, conduit.PeerClosedError | conduit.TransferTimeoutError)
        assert gone or exc.type is ErrType.NO_FD, repr(exc)

    def transfer() -> None:
        one = shared[0][0]
        one.timeout = 0.05
        mine = os.dup(owned)
        try:
            one.transfer_fd(mine)
        except Error as exc:
            ended(exc)
            # Nothing was sent, so it is the caller's still.
            assert identity(mine) == owner
            os.close(mine)

    def receive() -> None:
        other = shared[0][1]
        other.timeout = 0.01
        try:
            with other.receive(1) as message:
                for descriptor in message.fds:
                    assert identity(descriptor.fileno()) == owner
        except Error as exc:
            ended(exc)

    def look() -> None:
        one = shared[0][0]
        try:
            assert one.fileno() > 2
            assert one.peer.pid == os.getpid()
            assert repr(one) and one.name == ""
        except Error as exc:
            assert exc.type is ErrType.NO_FD, repr(exc)
        timeout = one.timeout
        assert timeout is None or timeout >= 0

    storm.add(close)
    storm.add(transfer, 2)
    storm.add(receive, 2)
    storm.add(look)
    storm.add(bystander, 2)
    try:
        storm.run()
    finally:
        for end in shared[0]:
            end.close()
        assert identity(owned) == owner
        os.close(owned)
    assert min(storm.rounds.values()) > 5


def test_the_name_can_be_read_while_another_thread_replaces_it() -> None:
    one, other = Conduit.pair()
    with one, other:
        fd = one.fileno()
        link = Conduit(fd, "at first")
        storm = Storm(2 * SECONDS)

        # Each many times in a row: two instructions of one must meet two of the other.
        def rename() -> None:
            for turn in range(500):
                try:
                    # Long, and made anew: nothing but the conduit holds it.
                    link.__init__(fd, "x" * 1000 + str(turn))
                except Error:
                    continue

        def read() -> None:
            for _ in range(20000):
                link.name  # noqa: B018
            assert link.name.startswith(("at first", "xxx"))
            assert "conduit.Conduit" in repr(link)

        storm.add(rename)
        storm.add(read, 2)
        storm.run()


def test_one_descriptor_is_taken_once_whoever_wants_it(kind: int) -> None:
    """Close, detach, to_file, to_conn and transfer at once: one succeeds, the others say so."""
    one, other = Conduit.pair(type=kind)
    storm = Storm(2 * SECONDS, enough=21)
    wins: Counter[str] = Counter()
    one.timeout = other.timeout = GENEROUS

    def contend() -> None:
        mine, peer = socket.socketpair()
        file = identity(mine.fileno())
        descriptor = Descriptor(mine.detach())
        start = threading.Barrier(5)
        won: list[str] = []

        def attempt(name: str, take: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                start.wait()
                try:
                    take()
                    won.append(name)
                except Error as exc:
                    assert exc.type is ErrType.NO_FD, repr(exc)
                except BaseException as exc:
                    won.append(repr(exc))

            return run

        def detach() -> None:
            number = descriptor.detach()
            assert identity(number) == file
            os.close(number)

        def to_file() -> None:
            with descriptor.to_file() as taken:
                assert identity(taken.fileno()) == file

        def to_conn() -> None:
            with descriptor.to_conn() as taken:
                assert identity(taken.fileno()) == file

        def transfer() -> None:
            one.transfer(descriptor)
            with other.receive() as message:
                assert identity(message.fds[0].fileno()) == file

        takes = {"detach": detach, "to_file": to_file, "to_conn": to_conn, "transfer": transfer}
        threads = [threading.Thread(target=attempt(*take)) for take in takes.items()]
        with peer:
            for thread in threads:
                thread.start()
            start.wait()
            with contextlib.suppress(Error):
                assert descriptor.kind == "socket"
            for thread in threads:
                thread.join()
            assert descriptor.closed
            # Nobody holds the socket any more.
            assert peer.recv(1) == b""
        assert len(won) == 1 and won[0] in takes, won
        wins[won[0]] += 1

    with one, other:
        storm.add(contend)
        storm.add(bystander, 2)
        storm.run()
    assert sum(wins.values()) > 20


def test_closing_a_descriptor_that_others_send_closes_it_after_them(kind: int) -> None:
    one, other = Conduit.pair(type=kind)
    one.timeout = other.timeout = GENEROUS
    storm = Storm(2 * SECONDS, enough=21)
    shared = [Descriptor(memory(b"first"))]
    made = {identity(shared[0].fileno())}

    def replace() -> None:
        fresh = Descriptor(memory(b"next"))
        made.add(identity(fresh.fileno()))
        old, shared[0] = shared[0], fresh
        old.close()
        old.close()
        assert old.closed

    def transfer() -> None:
        try:
            one.transfer(shared[0], keep=True)
        except Error as exc:
            assert exc.type is ErrType.NO_FD, repr(exc)
            return
        with other.receive() as message:
            assert identity(message.fds[0].fileno()) in made

    storm.add(replace)
    storm.add(transfer, 3)
    storm.add(bystander, 2)
    with one, other:
        storm.run()
        shared[0].close()
    assert min(storm.rounds.values()) > 20


def test_closing_a_conduit_that_borrows_lets_go_of_the_file_once() -> None:
    class Lender:
        def __init__(self, number: int) -> None:
            self.number = number

        def fileno(self) -> int:
            return self.number

    mine, peer = socket.socketpair()
    lender = Lender(mine.fileno())
    references = sys.getrefcount(lender)
    storm = Storm()

    def contend() -> None:
        borrowed = Conduit.from_file(lender)
        start = threading.Barrier(3)

        def close() -> None:
            start.wait()
            borrowed.close()

        threads = [threading.Thread(target=close) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with mine, peer:
        storm.add(contend)
        storm.run()
        assert is_open(mine.fileno())
    assert sys.getrefcount(lender) == references


def test_beginning_anew_with_another_number_meets_no_call_under_way() -> None:
    mine, peer = socket.socketpair()
    storm = Storm()
    borrowed = Conduit(mine.fileno())

    def begin() -> None:
        with contextlib.suppress(Error):
            borrowed.__init__(mine.fileno(), "again")
            borrowed.timeout = 0.0005

    def receive() -> None:
        try:
            borrowed.receive()
        except Error as exc:
            late = isinstance(exc, conduit.TransferTimeoutError)
            assert late or exc.type is ErrType.NO_FD, repr(exc)

    # Until the storm is over: a receive that begins before the timeout is set waits for it.
    over = threading.Event()

    def feed() -> None:
        while not over.wait(0.0005):
            with contextlib.suppress(BlockingIOError):
                peer.send(b"x", socket.MSG_DONTWAIT)

    feeder = threading.Thread(target=feed)
    with mine, peer:
        storm.add(begin)
        storm.add(receive, 3)
        feeder.start()
        try:
            storm.run()
        finally:
            over.set()
            feeder.join()
        borrowed.close()
        assert is_open(mine.fileno())
