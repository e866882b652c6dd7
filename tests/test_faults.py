"""Faults from outside: peers that are killed, signals, forks, full tables, races, and long use."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import random
import resource
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import Driver
from helpers import (
    GENEROUS,
    PORTABLE,
    Call,
    compiled,
    content,
    drain,
    fill,
    fork_among_threads,
    handling,
    is_open,
    memory,
    not_traced,
    open_descriptors,
    room_for,
)
from sides import (
    beside,
    close_all,
    files,
    identity,
    is_at_eof,
    may_change_user,
    wait_until_process_polls,
)

from conduit import (
    Conduit,
    Descriptor,
    Error,
    ErrType,
    Listener,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)

Ends = tuple[Conduit, Conduit]

LONG_PAYLOAD = b"payload!" * (1 << 18)
"""More than any socket takes at once."""


# The peer is killed


@pytest.fixture
def driver() -> Driver:
    """Threads, signals and dying processes are what the blocking classes must bear."""
    return Driver()


class Doomed:
    """A child process that does something, says so, and stays until it is killed."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._said, said = os.pipe()
        self.pid = fork_among_threads()
        if not self.pid:
            try:
                signal.alarm(int(GENEROUS))
                function()
                os.write(said, b".")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(said)

    def wait_until_done(self) -> None:
        assert os.read(self._said, 1) == b".", "it failed; its standard error says why"

    def wait_until_it_waits(self) -> None:
        wait_until_process_polls(self.pid)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._said)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def assert_gone(link: Conduit) -> None:
    """Every further call says that the peer is gone, and takes nothing."""
    number = memory(b"mine")
    for _ in range(2):
        with pytest.raises(PeerClosedError):
            link.receive()
        with pytest.raises(PeerClosedError) as caught:
            link.transfer_fd(number)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.sent == 0
    assert content(number) == b"mine"
    os.close(number)


def test_a_peer_killed_before_it_connects_is_not_noticed(path: str, kind: int) -> None:
    doomed = Doomed(lambda: None)
    doomed.wait_until_done()
    with Listener(path, type=kind) as listener:
        call = Call(listener.accept, GENEROUS)
        assert call.is_waiting()
        doomed.kill()
        assert call.is_waiting()
        with Conduit.connect(path, type=kind), call.result():
            pass


def test_a_peer_killed_once_connected_is_accepted_and_gone(path: str, kind: int) -> None:
    """F22: what it sent before is there."""

    def connect() -> None:
        link = Conduit.connect(path, type=kind)
        link.transfer_fd(memory(b"before"))
        kept.append(link)

    kept: list[Conduit] = []
    with Listener(path, type=kind) as listener:
        doomed = Doomed(connect)
        doomed.wait_until_done()
        doomed.kill()
        with listener.accept(GENEROUS) as link:
            assert link.peer.pid in (doomed.pid, 0)
            with link.receive_file() as file:
                assert file.read() == b"before"
            assert_gone(link)


@pytest.mark.hazard("R5b")
def test_a_listener_killed_before_it_accepts_destroys_what_was_sent(path: str, kind: int) -> None:
    """R5b."""
    kept: list[Listener] = []
    doomed = Doomed(lambda: kept.append(Listener(path, type=kind)))
    doomed.wait_until_done()
    with Conduit.connect(path, type=kind) as link:
        out, into = os.pipe()
        link.transfer_fd(into)
        doomed.kill()
        assert is_at_eof(out)
        assert_gone(link)
    with pytest.raises(Error) as caught:
        Conduit.connect(path, type=kind)
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.ECONNREFUSED)
    with Listener(path, type=kind) as again, Conduit.connect(path, type=kind):
        again.accept(GENEROUS).close()


@pytest.mark.hazard("F23")
@pytest.mark.parametrize("unread", [0, 3])
def test_what_a_peer_sent_before_it_was_killed_arrives(ends: Ends, unread: int) -> None:
    """F22, F23 and, where it left something unread, D5."""
    mine, its = ends

    def transmit() -> None:
        mine.close()
        for i in range(5):
            its.transfer(*files(i), data=b"message %d" % i)

    doomed = Doomed(transmit)
    its.close()
    doomed.wait_until_done()
    for _ in range(unread):
        mine.transfer(*files(2), data=b"unread")
    doomed.kill()
    data = b""
    contents: list[bytes] = []
    while len(contents) < 10:
        with mine.receive() as message:
            data += message.data
            contents += [content(fd.fileno()) for fd in message.fds]
    assert data == b"".join(b"message %d" % i for i in range(5))
    assert contents == [b"%d" % place for i in range(5) for place in range(i)]
    assert_gone(mine)


def test_a_receiver_is_told_that_its_peer_was_killed(ends: Ends) -> None:
    mine, its = ends
    doomed = Doomed(mine.close)
    its.close()
    doomed.wait_until_done()
    call = Call(mine.receive)
    assert call.is_waiting()
    doomed.kill()
    with pytest.raises(PeerClosedError):
        call.result()
    assert_gone(mine)


def test_a_peer_killed_while_it_waits_for_a_message_is_gone(ends: Ends) -> None:
    mine, its = ends

    def receive() -> None:
        mine.close()
        its.receive()

    doomed = Doomed(receive)
    its.close()
    doomed.wait_until_it_waits()
    doomed.kill()
    assert_gone(mine)


@pytest.mark.hazard("F24", "S6")
def test_a_peer_killed_before_it_received_takes_what_was_sent_with_it(ends: Ends) -> None:
    """F24: to send is not to deliver."""
    mine, its = ends
    doomed = Doomed(mine.close)
    its.close()
    doomed.wait_until_done()
    out, into = os.pipe()
    mine.transfer(into, into, data=b"never read")
    assert not is_open(into)
    doomed.kill()
    assert is_at_eof(out)
    assert_gone(mine)


def test_a_peer_killed_once_it_received_has_closed_what_it_got(ends: Ends) -> None:
    mine, its = ends
    kept: list[int] = []

    def receive() -> None:
        mine.close()
        kept.append(its.receive_fd())

    out, into = os.pipe()
    # Before the fork, so that the child's only copy is the one that it received.
    mine.transfer_fd(into)
    doomed = Doomed(receive)
    its.close()
    doomed.wait_until_done()
    doomed.kill()
    assert is_at_eof(out)
    assert_gone(mine)


def test_a_peer_killed_in_the_middle_of_its_payload_leaves_what_had_left() -> None:
    mine, its = Conduit.pair()
    with mine, its:

        def transmit() -> None:
            mine.close()
            its.transfer(*files(3), data=LONG_PAYLOAD)

        doomed = Doomed(transmit)
        its.close()
        doomed.wait_until_it_waits()
        doomed.kill()
        with mine.receive() as message:
            assert [content(fd.fileno()) for fd in message.fds] == [b"0", b"1", b"2"]
            data = message.data
        with contextlib.suppress(PeerClosedError):
            while True:
                message = mine.receive()
                assert not message.fds
                data += message.data
        assert 0 < len(data) < len(LONG_PAYLOAD)
        assert LONG_PAYLOAD.startswith(data)
        assert_gone(mine)


def test_a_sender_whose_peer_is_killed_in_the_middle_of_the_payload_keeps_all() -> None:
    mine, its = Conduit.pair()
    with mine, its:
        doomed = Doomed(mine.close)
        its.close()
        doomed.wait_until_done()
        numbers = files(3)
        call = Call(mine.transfer, *numbers, data=LONG_PAYLOAD)
        assert call.is_waiting()
        doomed.kill()
        with pytest.raises(PeerClosedError) as caught:
            call.result()
        assert 0 < caught.value.sent < len(LONG_PAYLOAD)
        assert [content(number) for number in numbers] == [b"0", b"1", b"2"]
        with pytest.raises(Error, match="only partly sent") as after:
            mine.transfer(*numbers)
        assert after.value.type is ErrType.FAILED_TRANSFER
        with pytest.raises(PeerClosedError):
            mine.receive()
        close_all(numbers)


def test_a_sender_that_waits_for_a_peer_that_is_killed_keeps_all(ends: Ends) -> None:
    mine, its = ends
    doomed = Doomed(mine.close)
    its.close()
    doomed.wait_until_done()
    fill(mine.fileno())
    numbers = files(3)
    call = Call(mine.transfer, *numbers)
    assert call.is_waiting()
    doomed.kill()
    with pytest.raises(PeerClosedError) as caught:
        call.result()
    assert caught.value.sent == 0
    assert [content(number) for number in numbers] == [b"0", b"1", b"2"]
    close_all(numbers)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5, 8, 50, 300])
def test_a_peer_killed_at_any_moment_leaves_whole_messages(ends: Ends, after: int) -> None:
    mine, its = ends

    def transmit() -> None:
        mine.close()
        place = 0
        while True:
            its.transfer(memory(b"%d" % place), memory(b"%d" % (place + 1)))
            place += 2

    doomed = Doomed(transmit)
    its.close()
    got = 0

    def receive_one() -> int:
        with mine.receive() as message:
            assert [content(fd.fileno()) for fd in message.fds] == [b"%d" % got, b"%d" % (got + 1)]
            return len(message.fds)

    while got < after:
        got += receive_one()
    doomed.kill()
    with pytest.raises(PeerClosedError):
        while True:
            got += receive_one()
    assert_gone(mine)


# Signals


class Drop(Exception):
    """What a signal handler raises."""


@contextlib.contextmanager
def rain(handler: Callable[..., None], interval: float = 2e-4) -> Iterator[None]:
    """Let a signal come again and again."""
    with handling(signal.SIGALRM, handler):
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, interval, interval)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.hazard("F1b")
@pytest.mark.parametrize("timeout", [0.05, 0.3])
@pytest.mark.parametrize("sending", [True, False], ids=["sending", "receiving"])
def test_a_rain_of_signals_moves_no_deadline(ends: Ends, timeout: float, sending: bool) -> None:
    """F1."""
    mine, _ = ends
    if sending:
        fill(mine.fileno())
    mine.timeout = timeout
    drops: list[int] = []
    with Descriptor(memory()) as descriptor:
        # A machine that is busy elsewhere lets few drops fall before one deadline.
        while len(drops) <= 10:
            with rain(lambda *_: drops.append(1)):
                began = time.monotonic()
                with pytest.raises(TransferTimeoutError) as caught:
                    mine.transfer(descriptor) if sending else mine.receive()
            assert timeout <= time.monotonic() - began < GENEROUS
            assert caught.value.sent == 0
        assert not descriptor.closed


@not_traced
@pytest.mark.hazard("P2")
def test_handlers_that_raise_leave_no_received_descriptor_behind(ends: Ends) -> None:
    """P2: what arrived is with the caller or closed, whenever the handler raises."""
    mine, its = ends
    count = 4000
    numbers = files(3)
    armed: list[bool] = []
    seen = drops = 0

    def drop(*_: Any) -> None:
        if armed:
            armed.clear()
            raise Drop

    def transmit() -> None:
        for i in range(count):
            its.transfer(*numbers, data=b"%6d" % i, keep=True)
        its.close()

    with warnings.catch_warnings():
        # A message that the handler kept from its caller is dropped, and says so.
        warnings.simplefilter("ignore", ResourceWarning)
        before = len(open_descriptors())
        call = Call(transmit)
        with rain(drop):
            last = -1
            while True:
                try:
                    armed.append(True)
                    # Six bytes at a time keep the messages apart on a stream too.
                    with mine.receive(6) as message:
                        armed.clear()
                        assert int(message.data) > last
                        last = int(message.data)
                        assert len(message.fds) == 3
                        seen += 1
                except Drop:
                    drops += 1
                except PeerClosedError:
                    armed.clear()
                    break
        call.result()
        gc.collect()
        # Its other end was closed by the thread; the waker of this one may have come.
        assert len(open_descriptors()) <= before + 1
    assert drops
    assert count - drops <= seen <= count
    close_all(numbers)


@not_traced
def test_handlers_that_raise_leave_a_descriptor_here_or_send_it_never_both(ends: Ends) -> None:
    """Promise 1, under F1: a descriptor is the caller's still, or it has arrived."""
    mine, its = ends
    armed: list[bool] = []
    drops = 0

    def drop(*_: Any) -> None:
        if armed:
            armed.clear()
            raise Drop

    def collect() -> None:
        mine.close()
        os.read(begin, 1)
        drain(its.fileno(), queued)
        for i in range(1500):
            with its.receive_file() as file:
                assert file.read() == b"%d" % i
        with pytest.raises(PeerClosedError):
            its.receive()

    queued = fill(mine.fileno())
    begin, begun = os.pipe()
    # In another process, for here what arrives would soon have the number of what was sent.
    with beside(collect), rain(drop):
        its.close()
        for i in range(1500):
            number = memory(b"%d" % i)
            while is_open(number):
                try:
                    armed.append(True)
                    mine.transfer_fd(number)
                    armed.clear()
                except Drop:
                    if not drops:
                        os.write(begun, b".")
                    drops += 1
        mine.close()
    assert drops
    close_all([begin, begun])


# Forks


SPAWNER = r"""
#define _GNU_SOURCE
#include <spawn.h>
#include <stddef.h>
#include <sys/types.h>

pid_t start(char *const argv[])
{
    static char *const empty[] = {NULL};
    pid_t pid;
    return posix_spawn(&pid, argv[0], NULL, NULL, argv, empty) ? -1 : pid;
}
"""

LOOKER = r"""
#include <fcntl.h>
#include <stdlib.h>

/* Fails if any descriptor is open here but those that it is told of. */
int main(int argc, char **argv)
{
    for (int fd = 3; fd < 4096; fd++) {
        int known = 0;
        for (int i = 1; i < argc; i++)
            known |= atoi(argv[i]) == fd;
        if (!known && fcntl(fd, F_GETFD) != -1)
            return 1;
    }
    return 0;
}
"""


@pytest.mark.slow
@pytest.mark.hazard("F6")
def test_no_child_ever_sees_a_descriptor_that_arrives_meanwhile(tmp_path: Path) -> None:
    """F6: nor any that the library makes for itself."""
    looker = compiled(tmp_path, "looker", LOOKER)
    library = compiled(tmp_path, "spawner", SPAWNER, "-shared", "-fPIC")
    # Where close-on-exec cannot come with a descriptor, Python's own forks are what is safe, and
    # those hold the GIL; otherwise any fork is.
    start = (ctypes.PyDLL if PORTABLE else ctypes.CDLL)(str(library)).start
    known = [str(n).encode() for n in open_descriptors() if n > 2 and os.get_inheritable(n)]
    arguments = (ctypes.c_char_p * (len(known) + 2))(str(looker).encode(), *known, None)
    children, done = 600, threading.Event()
    listening = str(tmp_path / "s")
    worked = [0, 0, 0]

    def look() -> int:
        pid = start(arguments)
        assert pid > 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def look_often() -> int:
        found = sum(look() for _ in range(children))
        while min(worked) <= 10:
            found += look()
        return found

    def exchange(place: int, kind: int, count: int) -> None:
        one, other = Conduit.pair(type=kind)
        numbers = files(count)
        with one, other:
            while not done.is_set():
                one.transfer(*numbers, keep=True)
                other.receive().close()
                worked[place] += 1
        close_all(numbers)

    def make(place: int) -> None:
        with Listener(listening) as listener:
            while not done.is_set():
                with Conduit.connect(listening) as one, listener.accept() as other:
                    other.timeout = 0.001
                    with pytest.raises(TransferTimeoutError):
                        other.receive()
                    with Conduit.from_conn(one):
                        worked[place] += 1

    seen = memory()
    os.set_inheritable(seen, True)
    assert look() == 1, "a descriptor that a child does see"
    os.close(seen)
    assert look() == 0
    working = [
        Call(exchange, 0, socket.SOCK_SEQPACKET, 253),
        Call(exchange, 1, socket.SOCK_STREAM, 1),
        Call(make, 2),
    ]
    looking = [Call(look_often) for _ in range(2)]
    try:
        assert [call.result() for call in looking] == [0, 0]
    finally:
        done.set()
        for call in working:
            call.result()


# Full tables


@pytest.mark.parametrize("room", range(4))
def test_a_pair_there_is_no_room_for_says_so_and_leaves_nothing(room: int) -> None:
    with room_for(room):
        try:
            for end in Conduit.pair():
                end.close()
        except Error as exc:
            assert room < 2
            assert (exc.type, exc.errno) == (ErrType.NO_FD, errno.EMFILE)
            assert "RLIMIT_NOFILE" in str(exc)
        else:
            assert room >= 2


@pytest.mark.parametrize("low", [1, 2, 3])
@pytest.mark.parametrize("room", range(5))
def test_a_pair_that_cannot_be_moved_above_standard_error_leaves_nothing(
    low: int, room: int
) -> None:
    """E31: the numbers below are left to the streams they belong to."""
    kept = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in range(low)]
    outcome: Error | list[int] = []
    with room_for(room):
        for number in range(low):
            os.close(number)
        try:
            one, other = Conduit.pair()
            outcome = [one.fileno(), other.fileno()]
            one.close()
            other.close()
        except Error as exc:
            outcome = exc.with_traceback(None)
        finally:
            for number in range(low):
                os.dup2(kept[number], number)
    close_all(kept)
    if isinstance(outcome, Error):
        assert (outcome.type, outcome.errno) == (ErrType.NO_FD, errno.EMFILE)
        assert room < 2
    else:
        assert min(outcome) > 2


@pytest.mark.parametrize("room", range(5))
@pytest.mark.parametrize("needs", range(4))
def test_a_sender_that_waits_needs_room_for_what_it_holds(
    ends: Ends, needs: int, room: int
) -> None:
    """F30: it waits with duplicates, or sends nothing and keeps all."""
    mine, _ = ends
    numbers = files(needs)
    fill(mine.fileno())
    mine.timeout = 0.01
    with room_for(room), pytest.raises(Error) as caught:
        mine.transfer(*numbers, data=b"x")
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert caught.value.errno == (errno.EMFILE if room < needs else errno.ETIMEDOUT)
    assert caught.value.sent == 0
    assert [content(number) for number in numbers] == [b"%d" % i for i in range(needs)]
    close_all(numbers)


@pytest.mark.hazard("L3", "R2")
def test_too_many_descriptors_on_their_way_is_told_and_everything_stays(kind: int) -> None:
    """R2."""

    def send_too_many() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        one, other = Conduit.pair(type=kind)
        with one, other:
            numbers = files(5)
            identities = [identity(number) for number in numbers]
            sent = 20
            for _ in range(sent):
                one.transfer(*numbers, keep=True)
            # More are on their way than the limit is now, whatever this user's other processes do.
            resource.setrlimit(resource.RLIMIT_NOFILE, (50, hard))
            with pytest.raises(Error) as caught:
                one.transfer(*numbers, keep=True)
            assert caught.value.type is ErrType.FAILED_TRANSFER
            assert caught.value.errno == errno.ETOOMANYREFS
            assert "RLIMIT_NOFILE" in str(caught.value)
            assert "unread" in str(caught.value)
            for call in (one.transfer_fd, other.transfer_fd):
                with pytest.raises(Error) as caught:
                    call(numbers[0])
                assert caught.value.errno == errno.ETOOMANYREFS
            assert [identity(number) for number in numbers] == identities
            one.transfer(data=b"bytes pass")
            for _ in range(sent):
                with other.receive() as message:
                    assert [identity(fd.fileno()) for fd in message.fds] == identities
            with contextlib.suppress(WouldBlockError):
                other.timeout = 0
                other.receive()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            one.transfer(*numbers)
            with other.receive() as message:
                assert [identity(fd.fileno()) for fd in message.fds] == identities

    # A user of its own, since the system counts what a user's processes have sent together.
    user = 50_000 + os.getpid() % 10_000 if may_change_user else None
    with beside(send_too_many, user=user):
        pass


# Races


@pytest.mark.hazard("F4", "P14")
def test_close_in_the_middle_of_calls_touches_no_foreign_descriptor(kind: int) -> None:
    """F4, G5, F30: others open and close files meanwhile, under the numbers that get free."""
    generator = random.Random(kind)
    done = threading.Event()

    def churn() -> int:
        """Own files for an instant each; nobody else may close or send one."""
        times = 0
        while not (times and done.is_set()):
            numbers = [memory(b"foreign") for _ in range(3)]
            identities = [identity(number) for number in numbers]
            link, peer = Conduit.pair(type=kind)
            with link, peer:
                link.transfer_fd(numbers[0], keep=True)
                arrived = peer.receive_fd()
                assert identity(arrived) == identities[0]
                os.close(arrived)
            assert [identity(number) for number in numbers] == identities
            close_all(numbers)
            times += 1
        return times

    def transmit(link: Conduit, move: bool) -> None:
        while True:
            number = memory(b"ours")
            own = identity(number)
            try:
                link.transfer_fd(number, keep=not move)
            except Error as exc:
                assert exc.type is ErrType.NO_FD or isinstance(exc, PeerClosedError), exc
                assert identity(number) == own
                os.close(number)
                return
            if not move:
                assert identity(number) == own
                os.close(number)

    def collect(link: Conduit) -> None:
        with contextlib.suppress(PeerClosedError):
            while True:
                try:
                    with link.receive() as message:
                        assert [content(fd.fileno()) for fd in message.fds] == [b"ours"] * len(
                            message.fds
                        )
                except PeerClosedError:
                    raise
                except Error as exc:
                    assert exc.type is ErrType.NO_FD, exc
                    return

    churning = [Call(churn) for _ in range(2)]
    try:
        for _ in range(60):
            one, other = Conduit.pair(type=kind)
            calls = [
                Call(transmit, one, True),
                Call(transmit, one, False),
                Call(collect, other),
                Call(collect, other),
            ]
            closing = [one, other]
            generator.shuffle(closing)
            for _ in range(generator.randrange(3)):
                one.transfer(data=b"x")
            for link in closing:
                link.close()
            for call in calls:
                call.result()
    finally:
        done.set()
        times = [call.result() for call in churning]
    assert min(times) > 0


# Long use


def resident() -> int:
    """This process's memory in bytes (VmRSS)."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def is_sanitized() -> bool:
    """Whether an address sanitizer, which keeps freed memory, is at work."""
    with open("/proc/self/maps") as maps:
        return "libasan" in maps.read()


def stays_where_it_was(step: Callable[[], None], times: int) -> None:
    """Do something often: neither memory nor descriptors may grow by it."""
    for _ in range(times // 10):
        step()
    gc.collect()
    numbers, size = open_descriptors().keys(), resident()
    for _ in range(times):
        step()
    gc.collect()
    assert open_descriptors().keys() == numbers
    assert is_sanitized() or resident() - size < 4 << 20


def move_there_and_back(ends: Ends, held: list[int]) -> Callable[[], None]:
    one, other = ends

    def step() -> None:
        one.transfer_fd(held[0])
        held[0] = other.receive_fd()

    return step


def exchange_messages(ends: Ends, held: list[int]) -> Callable[[], None]:
    one, other = ends

    def step() -> None:
        one.transfer(held[0], held[0], data=b"message", keep=True)
        other.receive(100, 2).close()

    return step


def refuse_messages(ends: Ends, held: list[int]) -> Callable[[], None]:
    one, other = ends

    def step() -> None:
        one.transfer(held[0], held[0], keep=True)
        with contextlib.suppress(Error):
            other.receive_fd()

    return step


def fail_to_send(ends: Ends, held: list[int]) -> Callable[[], None]:
    one, _ = ends
    one.timeout = 0
    fill(one.fileno())

    def step() -> None:
        with contextlib.suppress(WouldBlockError):
            one.transfer(held[0], held[0], data=b"message")

    return step


def use_objects(ends: Ends, held: list[int]) -> Callable[[], None]:
    one, other = ends

    def step() -> None:
        one.transfer_fd(held[0], keep=True)
        other.receive_file().close()

    return step


USES = [move_there_and_back, exchange_messages, refuse_messages, fail_to_send, use_objects]


def use(ends: Ends, how: Callable[[Ends, list[int]], Callable[[], None]], times: int) -> None:
    held = [memory()]
    stays_where_it_was(how(ends, held), times)
    close_all(held)


@pytest.mark.slow
@pytest.mark.parametrize("how", USES)
def test_twenty_thousand_uses_leave_memory_and_descriptors_where_they_were(
    ends: Ends, how: Callable[[Ends, list[int]], Callable[[], None]]
) -> None:
    use(ends, how, 20_000)


@pytest.mark.long
@pytest.mark.parametrize("how", USES)
def test_a_million_uses_leave_memory_and_descriptors_where_they_were(
    ends: Ends, how: Callable[[Ends, list[int]], Callable[[], None]]
) -> None:
    use(ends, how, 1_000_000)
