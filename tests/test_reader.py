"""Reader: bytes by number or up to a delimiter, and descriptors in their order."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import os
import pickle
import signal
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import anyio
import pytest
from anyio.lowlevel import checkpoint
from drivers import Driver, only_blocking, settle
from helpers import (
    GENEROUS,
    Call,
    content,
    dripping,
    handling,
    interrupt_once_polling,
    is_open,
    is_private,
    memory,
    needs_descriptors,
    not_traced,
    room_for,
    send,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sides import PACKET_KINDS, identity, is_at_eof

from conduit import (
    MAX_FDS,
    Conduit,
    Descriptor,
    Error,
    ErrType,
    Message,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)
from conduit.aio import AsyncConduit, AsyncReader
from conduit.reader import ReadAhead, Reader

Make = Callable[..., Reader]


@pytest.fixture
def kind() -> int:
    """A Reader is for streams."""
    return socket.SOCK_STREAM


@pytest.fixture
def make(driver: Driver, wired: tuple[Conduit, socket.socket]) -> Iterator[Make]:
    """What makes the reader of a test, which is closed after it."""
    with contextlib.ExitStack() as stack:
        yield lambda **kwargs: stack.enter_context(driver.Reader(wired[0], **kwargs))


@pytest.fixture
def reader(make: Make) -> Reader:
    return make()


@pytest.fixture
def peer(wired: tuple[Conduit, socket.socket]) -> socket.socket:
    return wired[1]


@pytest.fixture
def link(wired: tuple[Conduit, socket.socket]) -> Conduit:
    return wired[0]


def give(peer: socket.socket, data: bytes, *contents: bytes) -> None:
    """Send bytes with new files; the receiver has the only descriptors of them then."""
    fds = [memory(each) for each in contents]
    send(peer, fds, data)
    for fd in fds:
        os.close(fd)


def take(reader: Reader, count: int = 1) -> list[bytes]:
    """Take descriptors, and return what is in their files."""
    contents = []
    for descriptor in reader.take_fds(count):
        with descriptor:
            assert is_private(descriptor.fileno())
            contents.append(content(descriptor.fileno()))
    return contents


# Bytes


def test_bytes_by_number_and_up_to_a_delimiter_come_in_their_order(
    reader: Reader, peer: socket.socket
) -> None:
    peer.sendall(b"12345first\nsecond\r\n67\n")
    assert reader.receive_exactly(5) == b"12345"
    assert reader.receive_until(b"\n") == b"first"
    assert reader.receive_until(b"\r\n") == b"second"
    assert reader.receive_exactly(1) == b"6"
    assert reader.buffered == 2
    assert reader.receive_exactly(2) == b"7\n"
    assert reader.buffered == 0


def test_no_bytes_at_all_are_received_at_once(reader: Reader, link: Conduit) -> None:
    link.timeout = 0
    assert reader.receive_exactly(0) == b""


def test_an_empty_line_is_empty_bytes(reader: Reader, peer: socket.socket) -> None:
    peer.sendall(b"\n\na\n")
    assert [reader.receive_until(b"\n") for _ in range(3)] == [b"", b"", b"a"]


@pytest.mark.parametrize("split", range(1, 9))
def test_a_delimiter_is_found_however_it_is_split(
    reader: Reader, peer: socket.socket, link: Conduit, split: int
) -> None:
    link.timeout = 0
    stream = b"one--\r\ntwo"
    peer.sendall(stream[:split])
    with contextlib.suppress(WouldBlockError):
        assert reader.receive_until(b"--\r\n") == b"one"
        return
    peer.sendall(stream[split:])
    link.timeout = None
    assert reader.receive_until(b"--\r\n") == b"one"
    assert reader.receive_exactly(3) == b"two"


def test_another_delimiter_is_looked_for_from_the_beginning(
    reader: Reader, peer: socket.socket, link: Conduit
) -> None:
    link.timeout = 0
    peer.sendall(b"one;two")
    for _ in range(2):
        with pytest.raises(WouldBlockError):
            reader.receive_until(b"\n")
    assert reader.receive_until(b";") == b"one"
    with pytest.raises(WouldBlockError):
        reader.receive_until(b";")
    peer.sendall(b"\n;")
    assert reader.receive_until(b"\n") == b"two"


def test_a_delimiter_is_looked_for_in_all_that_is_left(
    reader: Reader, peer: socket.socket, link: Conduit
) -> None:
    link.timeout = 0
    peer.sendall(b"abcdef")
    with pytest.raises(WouldBlockError):
        reader.receive_until(b"\n")
    assert reader.receive_exactly(4) == b"abcd"
    peer.sendall(b"\ngh")
    with pytest.raises(WouldBlockError):
        reader.receive_exactly(100)
    link.timeout = None
    assert reader.receive_until(b"\n") == b"ef"


def test_a_size_over_the_limit_is_received_whole(make: Make, peer: socket.socket) -> None:
    reader = make(limit=10)
    payload = os.urandom(1 << 20)
    sending = Call(peer.sendall, payload + b"rest\n")
    assert reader.receive_exactly(len(payload)) == payload
    sending.result()
    assert reader.receive_until(b"\n") == b"rest"


def test_no_memory_is_taken_for_what_does_not_come(
    reader: Reader, peer: socket.socket, link: Conduit
) -> None:
    link.timeout = 0.01
    peer.sendall(b"a")
    tracemalloc.start()
    try:
        with pytest.raises(TransferTimeoutError):
            reader.receive_exactly(1 << 40)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_no_more_than_the_limit_is_read_ahead(
    make: Make, peer: socket.socket, link: Conduit
) -> None:
    reader = make(limit=10)
    peer.sendall(b"x" * 100)
    assert reader.receive_exactly(1) == b"x"
    assert reader.buffered == 9


@pytest.mark.parametrize("sent", [b"0123456789\r\n", b"0123456789\r\nmore of it"])
def test_a_line_as_long_as_the_limit_is_received(
    make: Make, peer: socket.socket, sent: bytes
) -> None:
    peer.sendall(sent)
    assert make(limit=10).receive_until(b"\r\n") == b"0123456789"


@pytest.mark.parametrize(
    "sent", [b"0123456789a\r\n", b"0123456789a", b"0123456789abcdefghijkl\r\n"]
)
def test_a_line_over_the_limit_is_an_error_and_kept(
    make: Make, peer: socket.socket, sent: bytes
) -> None:
    reader = make(limit=10)
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
    if sent == b"0123456789a":
        # It might yet have been one: the limit is without the delimiter.
        with pytest.raises(PeerClosedError):
            reader.receive_until(b"\r\n")
    else:
        for _ in range(2):
            with pytest.raises(Error, match=r"b'\\r\\n' did not come within 10 bytes") as caught:
                reader.receive_until(b"\r\n")
            assert caught.value.errno == errno.EMSGSIZE
            assert caught.value.type is ErrType.FAILED_TRANSFER
    assert reader.receive_exactly(len(sent)) == sent


def test_a_line_over_the_limit_is_an_error_though_its_end_is_there(
    make: Make, peer: socket.socket
) -> None:
    reader = make(limit=10)
    peer.sendall(b"01\n3456789abc\n")
    assert reader.receive_exactly(14) == b"01\n3456789abc\n"
    peer.sendall(b"x" * 15 + b"\n" + b"y" * 5)
    assert reader.receive_exactly(1) == b"x"
    peer.sendall(b"z" * 10)
    # All of it is read ahead, for a size; the line's end is behind the limit all the same.
    assert reader.receive_exactly(3) == b"xxx"
    with pytest.raises(Error, match="did not come within 10 bytes"):
        reader.receive_until(b"\n")
    assert reader.receive_exactly(1) == b"x"
    assert reader.receive_until(b"\n") == b"x" * 10


# The end, and other interruptions


def test_the_end_in_the_middle_says_how_much_came_and_loses_nothing(
    reader: Reader, peer: socket.socket
) -> None:
    give(peer, b"abc", b"file")
    peer.shutdown(socket.SHUT_WR)
    for _ in range(2):
        with pytest.raises(PeerClosedError, match="the peer closed its end after 3 of 10 bytes"):
            reader.receive_exactly(10)
        with pytest.raises(PeerClosedError, match=r"after 3 bytes without b'\\n'"):
            reader.receive_until(b"\n")
    assert (reader.buffered, reader.pending) == (3, 1)
    assert reader.receive_exactly(2) == b"ab"
    assert reader.receive_exactly(1) == b"c"
    assert take(reader) == [b"file"]
    with pytest.raises(PeerClosedError, match="after 0 of 1 bytes"):
        reader.receive_exactly(1)


def test_a_deadline_loses_nothing(reader: Reader, peer: socket.socket, link: Conduit) -> None:
    link.timeout = 0.05
    give(peer, b"abc", b"file")
    for _ in range(2):
        with pytest.raises(TransferTimeoutError):
            reader.receive_exactly(5)
        with pytest.raises(TransferTimeoutError):
            reader.receive_until(b"\n")
    give(peer, b"de\n", b"other")
    assert reader.receive_until(b"\n") == b"abcde"
    assert take(reader, 2) == [b"file", b"other"]


@only_blocking
def test_a_deadline_says_how_much_came(reader: Reader, peer: socket.socket, link: Conduit) -> None:
    link.timeout = 0.01
    peer.sendall(b"abc")
    with pytest.raises(TransferTimeoutError, match="receiving: 3 of 5 bytes came, and are kept"):
        reader.receive_exactly(5)
    with pytest.raises(TransferTimeoutError, match="3 bytes without b';' came, and are kept"):
        reader.receive_until(b";")


def test_a_deadline_is_that_of_the_whole_call_however_slowly_a_peer_sends(
    make: Make, peer: socket.socket, link: Conduit
) -> None:
    reader = make(limit=1 << 20)
    link.timeout = 0.2
    with dripping(peer) as drips:
        with pytest.raises(TransferTimeoutError):
            reader.receive_exactly(1 << 20)
        with pytest.raises(TransferTimeoutError):
            reader.receive_until(b"\n")
    sent = drips.result()
    assert reader.receive_exactly(sent) == b"x" * sent


@only_blocking
def test_a_call_that_waits_for_the_rest_ends_when_the_conduit_is_closed(
    reader: Reader, peer: socket.socket, link: Conduit
) -> None:
    link.timeout = GENEROUS
    peer.sendall(b"abc")
    call = Call(reader.receive_exactly, 10)
    assert call.is_waiting()
    link.close()
    with pytest.raises(Error) as caught:
        call.result()
    assert caught.value.type is ErrType.NO_FD
    assert reader.receive_exactly(3) == b"abc"


class Interrupted(Exception):
    pass


def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted


@only_blocking
@pytest.mark.parametrize("timeout", [None, GENEROUS])
def test_what_a_signal_handler_raises_stays_itself_and_loses_nothing(
    reader: Reader, peer: socket.socket, link: Conduit, timeout: float | None
) -> None:
    link.timeout = timeout
    give(peer, b"abc", b"file")
    with handling(signal.SIGUSR1, interrupt):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(Interrupted):
            reader.receive_until(b"\n")
        interrupting.result()
    peer.sendall(b"\n")
    assert reader.receive_until(b"\n") == b"abc"
    assert take(reader) == [b"file"]


@only_blocking
@pytest.mark.parametrize("raised", [PeerClosedError, TransferTimeoutError, Error])
def test_an_error_of_conduit_that_a_handler_raises_is_the_handlers(
    reader: Reader, peer: socket.socket, raised: type[Error]
) -> None:
    own = raised("a handler's own", ErrType.BAD_CTRL_MESG)

    def handler(signum: int, frame: FrameType | None) -> NoReturn:
        raise own

    with handling(signal.SIGUSR1, handler):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(raised) as caught:
            reader.receive_until(b"\n")
        interrupting.result()
    assert caught.value is own
    own.__traceback__ = None
    peer.sendall(b"goes on\n")
    assert reader.receive_until(b"\n") == b"goes on"


@only_blocking
@not_traced
@needs_descriptors(2048)
@pytest.mark.parametrize("limit", [7, 65536])
def test_handlers_that_raise_at_any_instruction_lose_no_byte_and_no_descriptor(
    make: Make, peer: socket.socket, limit: int
) -> None:
    reader = make(limit=limit)
    count = 3000
    lines = [b"%d" % number for number in range(count)]
    armed, struck = False, 0

    def strike(signum: int, frame: FrameType | None) -> None:
        nonlocal armed
        # What is raised in the callback of a weak reference reaches nobody.
        if armed and frame is not None and "_weakrefset" not in frame.f_code.co_filename:
            armed = False
            raise Interrupted

    def write() -> None:
        fd = memory()
        for number in range(count):
            send(peer, [fd] if number % 3 == 0 else [], b"%d\n" % number)
        os.close(fd)

    def read(got: list[bytes], fds: list[tuple[Descriptor, ...]]) -> None:
        nonlocal armed
        armed = True
        while len(got) < count:
            got.append(reader.receive_until(b"\n"))
            while reader.pending:
                fds.append(reader.take_fds())
        armed = False

    # A system with a coarse clock strikes seldom.
    while struck <= 10:
        got: list[bytes] = []
        fds: list[tuple[Descriptor, ...]] = []
        with handling(signal.SIGALRM, strike):
            writing = Call(write)
            signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
            while len(got) < count:
                # In a function: where a loop goes back, 3.13 lets what is raised out of the `try`.
                try:
                    read(got, fds)
                except Interrupted:
                    struck += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        writing.result()
        fds.append(reader.take_fds(reader.pending))
        assert got == lines
        taken = [descriptor for some in fds for descriptor in some]
        assert len(taken) == count // 3
        for descriptor in taken:
            descriptor.close()


# Descriptors


def test_descriptors_are_taken_in_the_order_in_which_they_came(
    reader: Reader, peer: socket.socket
) -> None:
    give(peer, b"one\n", b"1", b"2")
    give(peer, b"two\n", b"3")
    give(peer, b"three\n")
    assert reader.receive_until(b"\n") == b"one"
    assert reader.pending == 2
    assert take(reader, 1) == [b"1"]
    assert reader.receive_until(b"\n") == b"two"
    assert reader.receive_until(b"\n") == b"three"
    assert take(reader, 2) == [b"2", b"3"]
    assert reader.take_fds(0) == ()
    assert reader.pending == 0


@pytest.mark.hazard("C1")
def test_a_descriptor_may_come_with_bytes_that_were_sent_before_it(
    reader: Reader, peer: socket.socket
) -> None:
    give(peer, b"without\n")
    give(peer, b"with\n", b"file")
    assert reader.receive_until(b"\n") == b"without"
    assert reader.pending == 1, "the system glued both"
    assert reader.receive_until(b"\n") == b"with"
    assert take(reader) == [b"file"]


def test_fewer_descriptors_than_are_to_be_taken_is_an_error_and_takes_none(
    reader: Reader, peer: socket.socket
) -> None:
    give(peer, b"\n", b"1", b"2")
    reader.receive_until(b"\n")
    with pytest.raises(
        Error, match=r"expected 3 descriptors .* received 2 \(none taken\)"
    ) as caught:
        reader.take_fds(3)
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert take(reader, 2) == [b"1", b"2"]
    with pytest.raises(Error, match="received 0"):
        reader.take_fds()


@pytest.mark.hazard("E1")
def test_a_flood_of_descriptors_is_an_error_and_close_closes_them_all(
    reader: Reader, peer: socket.socket
) -> None:
    mine, theirs = os.pipe()
    for _ in range(6):
        send(peer, [theirs] * 100, b"x" * 10)
    os.close(theirs)
    for _ in range(2):
        with pytest.raises(Error, match="300 descriptors came and were not taken") as caught:
            reader.receive_until(b"\n")
        assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert (reader.buffered, reader.pending) == (30, 300)
    # Nothing is lost: who takes them goes on.
    for descriptor in reader.take_fds(300):
        descriptor.close()
    assert reader.receive_exactly(60) == b"x" * 60
    assert reader.pending == 300
    reader.close()
    assert is_at_eof(mine)


def test_as_many_descriptors_as_two_messages_have_are_kept(
    reader: Reader, peer: socket.socket
) -> None:
    fd = memory()
    for _ in range(2):
        send(peer, [fd] * MAX_FDS, b"x")
    os.close(fd)
    assert reader.receive_exactly(2) == b"xx"
    for descriptor in reader.take_fds(2 * MAX_FDS):
        descriptor.close()


@pytest.mark.hazard("R1")
def test_no_room_for_a_descriptor_is_an_error_now_and_when_one_reads_on(
    reader: Reader, peer: socket.socket
) -> None:
    give(peer, b"kept")
    assert reader.receive_exactly(1) == b"k"
    fd = memory()
    send(peer, [fd, fd], b"lost\n")
    os.close(fd)
    with room_for(1), pytest.raises(Error) as caught:
        reader.receive_until(b"\n")
    assert (caught.value.type, caught.value.errno) == (ErrType.BAD_CTRL_MESG, errno.EMFILE)
    peer.sendall(b"after\n")
    with pytest.raises(Error, match="bytes were lost with an earlier message") as caught:
        reader.receive_until(b"\n")
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert reader.receive_exactly(3) == b"ept"


# Closing


def test_close_closes_what_was_not_taken_and_leaves_the_conduit_open(
    reader: Reader, peer: socket.socket, link: Conduit
) -> None:
    mine, theirs = os.pipe()
    send(peer, [theirs, theirs], b"ab")
    os.close(theirs)
    assert reader.receive_exactly(1) == b"a"
    (taken,) = reader.take_fds()
    assert not reader.closed
    reader.close()
    reader.close()
    assert reader.closed
    assert is_open(taken.fileno())
    taken.close()
    assert is_at_eof(mine)
    assert (reader.buffered, reader.pending) == (0, 0)
    for call in (
        lambda: reader.receive_exactly(0),
        lambda: reader.receive_exactly(1),
        lambda: reader.receive_until(b"b"),
    ):
        with pytest.raises(Error, match="its Reader is closed") as caught:
            call()
        assert caught.value.type is ErrType.NO_FD
    with pytest.raises(Error, match="its Reader is closed"):
        reader.take_fds(0)
    peer.sendall(b"c")
    assert link.receive().data == b"c"


def test_leaving_it_closes_it(driver: Driver, link: Conduit, peer: socket.socket) -> None:
    mine, theirs = os.pipe()
    send(peer, [theirs], b"ab")
    os.close(theirs)
    with driver.Reader(link) as reader:
        assert reader.receive_exactly(1) == b"a"
    assert reader.closed
    assert is_at_eof(mine)


@only_blocking
def test_what_comes_to_a_reader_that_was_closed_meanwhile_is_closed(
    reader: Reader, peer: socket.socket
) -> None:
    call = Call(reader.receive_exactly, 2)
    assert call.is_waiting()
    reader.close()
    mine, theirs = os.pipe()
    send(peer, [theirs], b"a")
    os.close(theirs)
    with pytest.raises(Error, match="its Reader is closed"):
        call.result()
    assert is_at_eof(mine)


@only_blocking
def test_each_descriptor_of_a_reader_that_is_dropped_warns(
    driver: Driver, peer: socket.socket, link: Conduit
) -> None:
    mine, theirs = os.pipe()
    send(peer, [theirs, theirs], b"a")
    os.close(theirs)
    reader = driver.Reader(link)
    assert reader.receive_exactly(1) == b"a"
    with pytest.warns(ResourceWarning, match=r"unclosed <conduit\.Descriptor") as warned:
        del reader
        settle(link)
        gc.collect()
    assert len(warned) == 2
    assert is_at_eof(mine)


# Arguments


@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_a_socket_that_keeps_messages_apart_is_refused(driver: Driver, link: Conduit) -> None:
    with pytest.raises(Error, match="a Reader is for streams") as caught:
        driver.Reader(link)
    assert caught.value.errno == errno.EPROTOTYPE
    assert caught.value.type is ErrType.FAILED_TRANSFER


def test_a_closed_conduit_has_no_reader(driver: Driver, link: Conduit) -> None:
    link.close()
    with pytest.raises(Error) as caught:
        driver.Reader(link)
    assert caught.value.type is ErrType.NO_FD


def test_what_is_no_socket_has_no_reader(driver: Driver) -> None:
    fd = memory()
    with driver.Conduit(fd) as link, pytest.raises(Error) as caught:
        driver.Reader(link)
    assert caught.value.errno == errno.ENOTSOCK
    os.close(fd)


def test_impossible_arguments_are_value_errors(reader: Reader, make: Make) -> None:
    with pytest.raises(ValueError, match="limit must be at least 1 byte, not 0"):
        make(limit=0)
    with pytest.raises(ValueError, match="at least 0 bytes, not -1"):
        reader.receive_exactly(-1)
    with pytest.raises(ValueError, match="at least one byte"):
        reader.receive_until(b"")
    with pytest.raises(ValueError, match="at least 0 descriptors, not -1"):
        reader.take_fds(-1)


def test_arguments_of_a_wrong_type_are_type_errors_and_lose_nothing(
    reader: Reader, peer: socket.socket
) -> None:
    wrong: Any = reader
    peer.sendall(b"1.5\n")
    for _ in range(2):
        with pytest.raises(TypeError):
            wrong.receive_exactly("1")
        with pytest.raises(TypeError):
            wrong.receive_exactly(1.5)
        with pytest.raises(TypeError):
            wrong.receive_until("\n")
        with pytest.raises(TypeError):
            wrong.receive_until(10)
        with pytest.raises(TypeError):
            wrong.take_fds("1")
        assert reader.receive_exactly(1) in b"1."
    assert reader.receive_until(b"\n") == b"5"


@only_blocking
def test_a_reader_is_neither_copied_nor_pickled(reader: Reader) -> None:
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot pickle or copy"):
            attempt(reader)


def test_a_repr_says_what_was_read_ahead(reader: Reader, peer: socket.socket) -> None:
    give(peer, b"abc", b"file")
    reader.receive_exactly(1)
    assert "2 bytes, 1 descriptors" in repr(reader)
    reader.close()
    assert "closed" in repr(reader)


# Any stream


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int, bool]]]:
    """Messages of bytes and a number of descriptors, and the pieces in which they are sent.

    With each piece, whether there is an attempt to receive after it.
    """
    parts = st.tuples(st.binary(max_size=40), st.sampled_from([0, 0, 1, 2, 5]))
    messages = draw(st.lists(parts, min_size=1, max_size=12))
    pieces: list[tuple[bytes, int, bool]] = []
    unsent, count = b"", 0

    def cut() -> None:
        nonlocal unsent, count
        if unsent:
            pieces.append((unsent, count, draw(st.booleans())))
        unsent, count = b"", 0

    for body, fds in messages:
        # A line tells the length of what follows, and how many descriptors belong to it.
        framed = b"%d %d\r\n" % (len(body), fds) + body
        if fds or draw(st.booleans()):
            # Descriptors are sent with the first byte of their message.
            cut()
        count = count or fds
        places = draw(st.lists(st.integers(1, len(framed) - 1), max_size=3, unique=True))
        for start, end in zip([0, *sorted(places)], [*sorted(places), None], strict=True):
            if start:
                cut()
            unsent += framed[start:end]
    cut()
    return messages, pieces


class Framed:
    """Receives such messages, and can be interrupted in the middle of one."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.head: list[int] = []
        self.received: list[tuple[bytes, list[tuple[int, int]]]] = []

    def receive(self, count: int) -> None:
        """Receive until there are so many."""
        while len(self.received) < count:
            self.head = self.head or list(map(int, self.reader.receive_until(b"\r\n").split()))
            body = self.reader.receive_exactly(self.head[0])
            taken = self.reader.take_fds(self.head[1])
            self.received.append((body, [identity(descriptor.fileno()) for descriptor in taken]))
            self.head = []
            for descriptor in taken:
                descriptor.close()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(streams(), st.sampled_from([50, 1000, 65536]))
def test_any_split_of_a_stream_is_returned_as_it_was_sent(
    driver: Driver,
    stream: tuple[list[tuple[bytes, int]], list[tuple[bytes, int, bool]]],
    limit: int,
) -> None:
    messages, pieces = stream
    files = [memory() for _, count in messages for _ in range(count)]
    expected, unsent = iter([identity(fd) for fd in files]), iter(files)
    mine, peer = socket.socketpair()
    with mine, peer, driver.Conduit.from_conn(mine) as link:
        with driver.Reader(link, limit=limit) as reader:
            framed = Framed(reader)
            for piece, count, attempted in pieces:
                send(peer, [next(unsent) for _ in range(count)], piece)
                # On a loop, an attempt that ends by its deadline takes real time.
                if attempted and type(driver) is Driver:
                    link.timeout = 0
                    with contextlib.suppress(WouldBlockError):
                        framed.receive(len(messages))
            link.timeout = GENEROUS
            framed.receive(len(messages))
            assert (reader.buffered, reader.pending) == (0, 0)
            assert framed.received == [
                (body, [next(expected) for _ in range(count)]) for body, count in messages
            ]
    for fd in files:
        os.close(fd)


class Searched(bytearray):
    """Counts the bytes that are searched."""

    searched = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        Searched.searched += min(len(self), end) - start
        return super().find(sub, start, end)


def test_each_byte_is_searched_once_however_small_the_pieces() -> None:
    ahead = ReadAhead(10_000)
    ahead._tail = Searched()
    for _ in range(9_000):
        assert ahead.until(b"\r\n") is None
        ahead.arrived.append(Message(b"x"))
    assert Searched.searched < 3 * 9_000
    ahead.arrived.append(Message(b"\r\n"))
    assert ahead.until(b"\r\n") == b"x" * 9_000


# Tasks


@pytest.mark.anyio
class TestTasks:
    """What only an event loop has."""

    async def test_a_call_that_is_cancelled_loses_nothing(self) -> None:
        one, other = AsyncConduit.pair()
        async with one, other, AsyncReader(other) as reader:
            got: list[bytes] = []

            async def read() -> None:
                while True:
                    got.append(await reader.receive_until(b"\n"))

            for round_ in range(200):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    for _ in range(round_ % 3):
                        await checkpoint()
                    await one.transfer_fd(memory(b"%d" % round_), keep=False)
                    await one.transfer(data=b"%d\n" % round_)
                    for _ in range(round_ % 5):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
            while len(got) < 200:
                got.append(await reader.receive_until(b"\n"))
                for descriptor in reader.take_fds(reader.pending):
                    descriptor.close()
            assert got == [b"\0%d" % round_ for round_ in range(200)]

    async def test_tasks_that_share_a_reader_get_whole_lines_each(self) -> None:
        one, other = AsyncConduit.pair()
        got: list[bytes] = []

        async def read(reader: AsyncReader) -> None:
            for _ in range(20):
                line = await reader.receive_until(b"\n")
                got.append(line)

        async with one, other, AsyncReader(other) as reader:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(read, reader)
                await anyio.wait_all_tasks_blocked()
                # All of it in one piece, which is received by one of them.
                await one.transfer(data=b"".join(b"%d\n" % number for number in range(99)))
                with anyio.fail_after(GENEROUS):
                    while len(got) < 99:
                        await checkpoint()
                await one.transfer(data=b"99\n")
        assert sorted(map(int, got)) == list(range(100))

    @pytest.mark.parametrize("wanted", ["lines", "bytes"])
    @pytest.mark.parametrize("limit", [1, 65536])
    async def test_other_tasks_run_however_much_there_is_to_read(
        self, wanted: str, limit: int
    ) -> None:
        one, other = AsyncConduit.pair()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await checkpoint()
                turns += 1

        async with one, other, AsyncReader(other, limit=limit) as reader:
            await one.transfer(data=b"\n" * 10_000)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(count)
                await checkpoint()
                before = turns
                if wanted == "lines":
                    for _ in range(1000):
                        assert await reader.receive_until(b"\n") == b""
                else:
                    for _ in range(1000):
                        assert await reader.receive_exactly(1) == b"\n"
                assert turns - before >= 10
                tasks.cancel_scope.cancel()

    async def test_close_and_aclose_close_what_was_not_taken(self) -> None:
        one, other = AsyncConduit.pair()
        async with one, other:
            for close in (AsyncReader.close, AsyncReader.aclose):
                reader = AsyncReader(other)
                mine, theirs = os.pipe()
                await one.transfer_fd(theirs)
                assert await reader.receive_exactly(1) == b"\0"
                assert (reader.buffered, reader.pending, reader.closed) == (0, 1, False)
                assert "0 bytes, 1 descriptors" in repr(reader)
                done = close(reader)
                if done is not None:
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await done
                assert reader.closed
                assert is_at_eof(mine)
