"""Payloads of any kind and any length."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import termios
import time
from types import FrameType
from typing import Any

import pytest
from drivers import only_blocking
from helpers import (
    GENEROUS,
    Call,
    borrowed,
    content,
    fill,
    handling,
    interrupt_once_polling,
    is_open,
    memory,
    room_for,
)
from sides import ALL_KINDS, PACKET_KINDS, beside, close_all, files, identity, is_at_eof

from conduit import (
    Conduit,
    Descriptor,
    Error,
    ErrType,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]

LARGE = bytes(range(256)) * (16 << 12)
"""16 MiB, many times what a socket's buffer takes."""

STREAM = ALL_KINDS[:1]


def received(end: Conduit, count: int) -> bytes:
    """Take so many bytes off a stream, and no descriptors."""
    parts = []
    while count:
        message = end.receive(max_data=count)
        assert message.fds == ()
        parts.append(message.data)
        count -= len(message.data)
    return b"".join(parts)


@pytest.mark.hazard("B5", "C5")
@pytest.mark.parametrize("kind", STREAM)
@pytest.mark.parametrize("max_data", [65536, 4099])
def test_a_payload_of_many_megabytes_arrives_whole_with_its_descriptors_at_the_first_byte(
    ends: Ends, max_data: int
) -> None:
    one, other = ends
    numbers = files(3)
    expected = [identity(number) for number in numbers]

    def read_slowly() -> None:
        one.close()
        with other.receive(max_data=1) as message:
            assert message.data == LARGE[:1]
            assert [identity(fd.fileno()) for fd in message.fds] == expected
        place = 1
        while place < len(LARGE):
            message = other.receive(max_data)
            assert message.fds == ()
            assert message.data == LARGE[place : place + len(message.data)]
            place += len(message.data)
        other.transfer(data=b"all")

    with beside(read_slowly):
        one.transfer(*numbers, data=LARGE)
        assert not any(is_open(number) for number in numbers)
        assert one.receive().data == b"all"


@pytest.mark.parametrize("kind", STREAM)
def test_a_large_payload_alone_arrives_whole_and_the_next_message_after_it(ends: Ends) -> None:
    one, other = ends

    def read() -> None:
        assert received(other, len(LARGE)) == LARGE
        with other.receive() as message:
            assert message.data == b"next"
            assert len(message.fds) == 1
        other.transfer(data=b"all")

    with beside(read):
        one.transfer(data=LARGE)
        one.transfer(memory(), data=b"next")
        assert one.receive().data == b"all"


@pytest.mark.parametrize("kind", STREAM)
def test_a_large_payload_arrives_whole_over_a_socket_in_non_blocking_mode(ends: Ends) -> None:
    one, other = ends
    os.set_blocking(one.fileno(), False)
    call = Call(one.transfer, memory(), data=LARGE)
    assert call.is_waiting()
    with other.receive(max_data=1) as message:
        assert len(message.fds) == 1
    assert received(other, len(LARGE) - 1) == LARGE[1:]
    call.result()
    assert not os.get_blocking(one.fileno())


def mapped() -> mmap.mmap:
    memory = mmap.mmap(-1, 5)
    memory[:] = b"12345"
    return memory


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    "data",
    [
        b"12345",
        bytearray(b"12345"),
        memoryview(b"12345"),
        memoryview(b"0123456")[1:6],
        memoryview(bytearray(b"12345")).cast("B", [1, 5]),
        array.array("B", b"12345"),
        ctypes.create_string_buffer(b"12345", 5),
        mapped(),
    ],
    ids=lambda data: type(data).__name__,
)
def test_any_bytes_like_object_is_a_payload(ends: Ends, data: Any) -> None:
    one, other = ends
    one.transfer(memory(), data=data)
    with other.receive() as message:
        assert message.data == b"12345"
        assert len(message.fds) == 1


def test_items_longer_than_a_byte_are_sent_whole(ends: Ends) -> None:
    one, other = ends
    one.transfer(data=array.array("i", [1, 2, 3]))
    assert array.array("i", other.receive().data).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("data", "cls"),
    [
        ("text", TypeError),
        (5, TypeError),
        ([1, 2], TypeError),
        (memoryview(b"12345")[::2], BufferError),
        (memoryview(b"12345")[::-1], BufferError),
    ],
    ids=["str", "int", "list", "strided", "reversed"],
)
def test_anything_else_is_refused_and_nothing_is_sent_or_closed(
    ends: Ends, data: Any, cls: type[Exception]
) -> None:
    one, other = ends
    number = memory()
    with pytest.raises(cls):
        one.transfer(number, data=data)
    assert is_open(number)
    other.timeout = 0
    with pytest.raises(WouldBlockError):
        other.receive()
    os.close(number)


@pytest.mark.hazard("B14")
@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_a_packet_longer_than_the_socket_takes_is_refused_whole(ends: Ends) -> None:
    one, other = ends
    number = memory()
    with pytest.raises(Error, match="use a stream") as caught:
        one.transfer(number, data=LARGE)
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert caught.value.errno == errno.EMSGSIZE
    assert caught.value.sent == 0
    assert is_open(number)
    one.transfer(number, data=b"short")
    with other.receive() as message:
        assert message.data == b"short"


@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_a_packet_of_100_kilobytes_arrives_whole(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(), data=LARGE[:100_000])
    with other.receive(max_data=100_000) as message:
        assert message.data == LARGE[:100_000]
        assert len(message.fds) == 1


def assert_broken_in_the_middle(one: Conduit, other: Conduit, caught: Error, number: int) -> None:
    """See that a payload was cut off, that its sender knows how much left, and what it may do."""
    assert 0 < caught.sent < len(LARGE)
    assert is_open(number)
    one.timeout = other.timeout = 0
    for items, data in (((number,), None), ((), b"more")):
        with pytest.raises(Error, match="only partly sent") as refused:
            one.transfer(*items, data=data)
        assert refused.value.type is ErrType.FAILED_TRANSFER
        assert refused.value.sent == 0
    with pytest.raises(Error, match="only partly sent"):
        one.transfer_fd(number)
    assert is_open(number)
    other.timeout = None
    with other.receive(max_data=1) as message:
        assert message.data == LARGE[:1]
        assert len(message.fds) == 1
    assert received(other, caught.sent - 1) == LARGE[1 : caught.sent]
    other.timeout = 0
    with pytest.raises(WouldBlockError):
        other.receive()
    other.transfer(data=b"answer")
    assert one.receive().data == b"answer"
    os.close(number)


@pytest.mark.hazard("B5b")
@only_blocking
@pytest.mark.parametrize("kind", STREAM)
def test_a_deadline_in_the_middle_of_a_payload_says_how_much_left_and_ends_the_sending(
    ends: Ends,
) -> None:
    one, other = ends
    number = memory()
    one.timeout = 0.1
    with pytest.raises(TransferTimeoutError, match=r"it took \d+ of \d+ bytes") as caught:
        one.transfer(number, data=LARGE)
    assert str(caught.value.sent) in str(caught.value)
    assert_broken_in_the_middle(one, other, caught.value, number)


@only_blocking
@pytest.mark.parametrize("kind", STREAM)
def test_a_timeout_of_0_in_the_middle_of_a_payload_is_such_a_deadline(ends: Ends) -> None:
    one, other = ends
    number = memory()
    one.timeout = 0
    with pytest.raises(WouldBlockError, match=r"took \d+ of \d+ bytes") as caught:
        one.transfer(number, data=LARGE)
    assert str(caught.value.sent) in str(caught.value)
    assert_broken_in_the_middle(one, other, caught.value, number)


@only_blocking
@pytest.mark.parametrize("kind", STREAM)
def test_a_deadline_holds_for_a_whole_payload_however_steadily_it_is_read(ends: Ends) -> None:
    one, other = ends
    number = memory()
    one.timeout = 0.2

    def read_on() -> None:
        one.close()
        # A byte at a time this takes minutes; the sender is never stuck for long.
        while True:
            try:
                other.receive(max_data=64).close()
            except PeerClosedError:
                return

    huge = bytes(1 << 30)
    with beside(read_on):
        with pytest.raises(TransferTimeoutError) as caught:
            one.transfer(number, data=huge)
        assert 0 < caught.value.sent < len(huge)
        one.close()
        other.close()
    os.close(number)


@only_blocking
@pytest.mark.parametrize("kind", STREAM)
def test_a_signal_handler_that_raises_in_the_middle_of_a_payload_ends_the_sending(
    ends: Ends,
) -> None:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    one, _ = ends
    number = memory()
    with handling(signal.SIGUSR1, interrupt):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            one.transfer(number, data=LARGE)
        interrupting.result()
    assert is_open(number)
    with pytest.raises(Error, match="only partly sent"):
        one.transfer(number)
    os.close(number)


@pytest.mark.hazard("B5b")
@only_blocking
@pytest.mark.parametrize("kind", STREAM)
def test_a_signal_in_the_middle_of_a_payload_does_not_disturb_it(ends: Ends) -> None:
    one, other = ends
    begin, go = os.pipe()

    def let_the_reader_begin(signum: int, frame: FrameType | None) -> None:
        os.write(go, b"!")

    def read() -> None:
        one.close()
        assert os.read(begin, 1) == b"!"
        with other.receive(max_data=1) as message:
            assert len(message.fds) == 1
        assert received(other, len(LARGE) - 1) == LARGE[1:]

    with beside(read), handling(signal.SIGUSR1, let_the_reader_begin):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        one.transfer(memory(), data=LARGE)
        interrupting.result()
    close_all([begin, go])


@pytest.mark.parametrize("kind", STREAM)
def test_closing_in_the_middle_of_a_payload_says_how_much_left(ends: Ends) -> None:
    one, other = ends
    number = memory()
    call = Call(one.transfer, number, data=LARGE)
    assert call.is_waiting()
    one.close()
    with pytest.raises(Error, match="closed meanwhile") as caught:
        call.result()
    assert caught.value.type is ErrType.NO_FD
    assert 0 < caught.value.sent < len(LARGE)
    assert is_open(number)
    with other.receive(max_data=1) as message:
        assert len(message.fds) == 1
    assert received(other, caught.value.sent - 1) == LARGE[1 : caught.value.sent]
    with pytest.raises(PeerClosedError):
        other.receive()
    os.close(number)


@pytest.mark.parametrize("kind", STREAM)
def test_a_peer_that_dies_in_the_middle_of_a_payload_is_reported_with_what_left(
    ends: Ends,
) -> None:
    one, other = ends
    number = memory()

    def read_some() -> None:
        one.close()
        other.receive(max_data=1).close()
        received(other, 100_000)

    with beside(read_some):
        other.close()
        with pytest.raises(PeerClosedError) as caught:
            one.transfer(number, data=LARGE)
    assert 100_001 <= caught.value.sent < len(LARGE)
    assert is_open(number)
    os.close(number)


@only_blocking
@pytest.mark.parametrize("kind", STREAM)
def test_a_deadline_before_anything_left_leaves_the_conduit_whole(ends: Ends) -> None:
    one, other = ends
    queued = fill(one.fileno())
    one.timeout = 0.05
    number = memory()
    with pytest.raises(TransferTimeoutError, match="nothing was transferred") as caught:
        one.transfer(number, data=LARGE)
    assert caught.value.sent == 0
    assert is_open(number)
    received(other, queued)
    one.transfer(number, data=b"whole")
    with other.receive() as message:
        assert message.data == b"whole"
        assert len(message.fds) == 1


@pytest.mark.hazard("C6")
@pytest.mark.parametrize("kind", STREAM)
def test_payloads_sent_by_several_threads_never_interleave(ends: Ends) -> None:
    one, other = ends
    size = 1 << 20
    letters = b"abcdef"
    calls = [
        Call(one.transfer, memory(bytes([letter])), data=bytes([letter]) * size)
        for letter in letters
    ]
    seen = []
    for _ in letters:
        with other.receive(max_data=1) as message:
            assert len(message.fds) == 1
            assert content(message.fds[0].fileno()) == message.data
        assert received(other, size - 1) == message.data * (size - 1)
        seen.append(message.data)
    for call in calls:
        call.result()
    assert sorted(seen) == [bytes([letter]) for letter in letters]


@only_blocking
@pytest.mark.parametrize("kind", STREAM)
def test_who_waits_for_another_threads_payload_waits_no_longer_than_its_deadline(
    ends: Ends,
) -> None:
    one, other = ends
    call = Call(one.transfer, data=LARGE)
    assert call.is_waiting()
    number = memory()
    for timeout, cls in ((0.05, TransferTimeoutError), (0, WouldBlockError)):
        one.timeout = timeout
        with pytest.raises(cls, match="another thread") as caught:
            one.transfer(number, data=b"next")
        assert caught.value.sent == 0
    assert is_open(number)
    assert received(other, len(LARGE)) == LARGE
    call.result()
    one.transfer(number, data=b"next")
    with other.receive() as message:
        assert message.data == b"next"


@pytest.mark.parametrize("kind", STREAM)
def test_a_new_timeout_holds_for_the_next_call_and_cuts_off_none_under_way(ends: Ends) -> None:
    one, other = ends
    call = Call(one.transfer, memory(), data=LARGE)
    assert call.is_waiting()
    one.timeout = 0
    with other.receive(max_data=1) as message:
        assert len(message.fds) == 1
    other.timeout = GENEROUS
    assert received(other, len(LARGE) - 1) == LARGE[1:]
    call.result()


def test_waiting_for_another_thread_and_for_the_socket_counts_as_one_wait() -> None:
    # Again where the machine was late: with a deadline for each wait, it would never be enough.
    for _ in range(20):
        one, other = Conduit.pair()
        with one, other:
            first = Call(one.transfer, data=LARGE)
            assert first.is_waiting()
            one.timeout = 2
            began = time.monotonic()
            second = Call(one.transfer, data=LARGE)
            # The first payload is taken off, but for what fills the buffer, half a deadline later.
            select.select([], [], [], 1)
            while first.thread.is_alive():
                received(other, 4096)
            first.result()
            freed = time.monotonic()
            with pytest.raises(TransferTimeoutError):
                second.result()
            ended = time.monotonic()
        assert ended - began >= 2
        if ended - freed < 1.9:
            return
    pytest.fail("the wait for the socket had a deadline of its own")


@pytest.mark.parametrize("kind", STREAM)
def test_who_waits_for_a_payload_that_is_cut_off_sends_nothing(ends: Ends) -> None:
    one, _ = ends
    one.timeout = 0.2
    first = Call(one.transfer, data=LARGE)
    # On a busy machine the first may have ended by now; the second fails in the same way then.
    first.is_waiting()
    one.timeout = None
    second = Call(one.transfer, data=b"next")
    with pytest.raises(TransferTimeoutError):
        first.result()
    with pytest.raises(Error, match="only partly sent"):
        second.result()


def assert_left_alone(call: Call[None], out: int, into: int, innocent: int) -> None:
    """See that a pipe's end was sent, and that what has its number by now is not closed."""
    with pytest.raises(Error, match="given to another file") as caught:
        call.result()
    assert caught.value.type is ErrType.FAILED_CLOSE
    assert is_at_eof(out)
    assert content(into) == b"innocent"
    close_all([innocent, into])


@pytest.mark.hazard("F30")
@pytest.mark.parametrize("kind", STREAM)
def test_descriptors_of_a_waiting_payload_are_what_was_given_whatever_the_numbers_become(
    ends: Ends,
) -> None:
    one, other = ends
    queued = fill(one.fileno())
    out, into = os.pipe()
    call = Call(one.transfer, into, data=LARGE)
    assert call.is_waiting()
    innocent = memory(b"innocent")
    os.dup2(innocent, into)
    received(other, queued)
    with other.receive(max_data=1) as message:
        assert message.fds[0].kind == "fifo"
    received(other, len(LARGE) - 1)
    assert_left_alone(call, out, into, innocent)


@pytest.mark.hazard("F30")
@pytest.mark.parametrize("kind", STREAM)
def test_a_number_reused_once_its_descriptor_left_ahead_of_its_payload_is_left_alone(
    ends: Ends,
) -> None:
    one, other = ends
    out, into = os.pipe()
    call = Call(one.transfer, into, data=LARGE)
    assert call.is_waiting()
    with other.receive(max_data=1) as message:
        assert message.fds[0].kind == "fifo"
    innocent = memory(b"innocent")
    os.dup2(innocent, into)
    received(other, len(LARGE) - 1)
    assert_left_alone(call, out, into, innocent)


def wait_until_full(sock: socket.socket) -> None:
    """Return once what can be read from a socket grows no more. Opens nothing."""
    queued, same = 0, 0
    while same < 200:
        os.sched_yield()
        now = array.array("i", [0])
        fcntl.ioctl(sock, termios.FIONREAD, now)
        same = same + 1 if now[0] == queued > 0 else 0
        queued = now[0]


@pytest.mark.parametrize("kind", STREAM)
@pytest.mark.parametrize("owned", [True, False])
def test_a_long_payload_is_sent_in_a_full_table_and_a_number_that_cannot_be_compared_stays_open(
    wired: Wired, owned: bool
) -> None:
    link, peer = wired
    numbers = files(3)
    items = [Descriptor(number) for number in numbers] if owned else numbers
    with room_for(1):
        call = Call(link.transfer, *items, data=LARGE)
        # A peer that reads at once may let all of it leave in the first call.
        wait_until_full(peer)
        left = len(LARGE)
        while left:
            # As a peer that wants the bytes alone.
            left -= len(peer.recv(left))
        if owned:
            call.result()
        else:
            with pytest.raises(Error, match="cannot tell") as caught:
                call.result()
            assert caught.value.type is ErrType.FAILED_CLOSE
    # There was room for one duplicate, and with that the first could be compared.
    assert sum(map(is_open, numbers)) == (0 if owned else 2)
    close_all(list(filter(is_open, numbers)))


@pytest.mark.hazard("A6")
@pytest.mark.parametrize("kind", ALL_KINDS[:2])
def test_a_buffer_cannot_be_resized_while_it_is_sent_and_can_be_afterwards(ends: Ends) -> None:
    one, other = ends
    data = bytearray(LARGE[:1000])
    queued = fill(one.fileno())
    call = Call(one.transfer, data=data)
    assert call.is_waiting()
    with pytest.raises(BufferError):
        data.clear()
    for _ in range(queued):
        with borrowed(other.fileno()) as sock:
            sock.recv(1, socket.MSG_DONTWAIT)
    assert other.receive().data == LARGE[:1000]
    call.result()
    data.clear()
