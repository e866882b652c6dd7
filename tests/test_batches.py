"""Many descriptors in one message."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from drivers import only_blocking
from helpers import content, is_open, is_private, memory
from sides import ALL_KINDS, beside, close_all, files, identity

from conduit import (
    MAX_FDS,
    Conduit,
    Descriptor,
    DescriptorTypeError,
    Error,
    ErrType,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)

Ends = tuple[Conduit, Conduit]


def assert_nothing_came(end: Conduit) -> None:
    end.timeout = 0
    with pytest.raises(WouldBlockError):
        end.receive()
    end.timeout = None


class Holder:
    """What a program of its own might pass: an object with fileno() and close()."""

    def __init__(self, number: int, complaint: Exception | None = None) -> None:
        self.number = number
        self.closings = 0
        self.complaint = complaint

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        self.closings += 1
        if self.closings == 1:
            os.close(self.number)
        if self.complaint:
            raise self.complaint


def test_one_message_carries_253() -> None:
    assert MAX_FDS == 253


@pytest.mark.hazard("A1")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_1_to_253_descriptors_arrive_in_their_order(ends: Ends) -> None:
    one, other = ends
    numbers = files(MAX_FDS)
    expected = [identity(number) for number in numbers]
    for count in range(1, MAX_FDS + 1):
        one.transfer(*numbers[:count], keep=True)
        with other.receive() as message:
            assert [identity(fd.fileno()) for fd in message.fds] == expected[:count]
            assert message.data == b"\0"
            assert all(is_private(fd.fileno()) for fd in message.fds)
    one.transfer(*numbers)
    assert not any(is_open(number) for number in numbers)
    with other.receive() as message:
        assert [identity(fd.fileno()) for fd in message.fds] == expected


def test_253_descriptors_reach_another_process_in_their_order(ends: Ends) -> None:
    one, other = ends

    def echo() -> None:
        with other.receive() as message:
            seen = [value for fd in message.fds for value in identity(fd.fileno())]
            other.transfer(data=array.array("Q", seen))

    with beside(echo):
        numbers = files(MAX_FDS)
        expected = [value for number in numbers for value in identity(number)]
        one.transfer(*numbers)
        assert array.array("Q", one.receive().data).tolist() == expected


@pytest.mark.hazard("B2")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_254_are_refused_before_anything_is_sent_and_the_limit_is_named(ends: Ends) -> None:
    one, other = ends
    number = memory()
    with pytest.raises(Error, match=r"at most 253 .* not 254") as caught:
        one.transfer(*[number] * 254, data=b"payload")
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert caught.value.errno == errno.EINVAL
    assert is_open(number)
    assert_nothing_came(other)
    os.close(number)


@pytest.mark.hazard("B3")
@pytest.mark.parametrize("place", [0, 1, 251, 252])
def test_one_closed_number_among_many_is_named_and_nothing_is_sent_or_closed(
    ends: Ends, place: int
) -> None:
    one, other = ends
    numbers = files(MAX_FDS)
    closed = numbers[place]
    os.close(closed)
    with pytest.raises(Error, match=rf"descriptor {closed} .*item {place + 1} of 253") as caught:
        one.transfer(*numbers)
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert caught.value.errno == errno.EBADF
    numbers.remove(closed)
    assert all(is_open(number) for number in numbers)
    assert_nothing_came(other)
    one.transfer(*numbers)
    with other.receive() as message:
        assert len(message.fds) == 252


def closed_descriptor() -> Descriptor:
    descriptor = Descriptor(memory())
    descriptor.close()
    return descriptor


def closed_file() -> Any:
    file = os.fdopen(memory(), "r+b")
    file.close()
    return file


def closed_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.close()
    return sock


class Unflushable(Holder):
    def __init__(self) -> None:
        super().__init__(1)

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.hazard("B3")
@pytest.mark.parametrize(
    ("bad", "kind_of_error", "cls"),
    [
        pytest.param(lambda: -1, ErrType.NO_FD, Error, id="negative"),
        pytest.param(lambda: 1 << 31, ErrType.NO_FD, Error, id="too-large"),
        pytest.param(lambda: True, ErrType.NO_FD, DescriptorTypeError, id="bool"),
        pytest.param(lambda: 1.5, ErrType.NO_FD, DescriptorTypeError, id="float"),
        pytest.param(lambda: "1", ErrType.NO_FD, DescriptorTypeError, id="string"),
        pytest.param(closed_descriptor, ErrType.NO_FD, Error, id="closed-descriptor"),
        pytest.param(closed_file, ErrType.NO_FD, Error, id="closed-file"),
        pytest.param(closed_socket, ErrType.NO_FD, Error, id="closed-socket"),
        pytest.param(Unflushable, ErrType.FAILED_TRANSFER, Error, id="full-disk"),
    ],
)
def test_one_bad_item_of_any_form_is_named_and_nothing_is_sent_or_closed(
    ends: Ends, bad: Any, kind_of_error: ErrType, cls: type[Error]
) -> None:
    one, other = ends
    number, holder, descriptor = memory(), Holder(memory()), Descriptor(memory())
    with pytest.raises(cls, match="item 3 of 4") as caught:
        one.transfer(number, holder, bad(), descriptor)
    assert caught.value.type is kind_of_error
    assert is_open(number)
    assert is_open(holder.number)
    assert not holder.closings
    assert not descriptor.closed
    assert_nothing_came(other)
    with descriptor:
        os.close(number)
        os.close(holder.number)


@pytest.mark.hazard("G9", "R4")
def test_the_conduit_itself_among_the_items_is_refused(ends: Ends) -> None:
    one, other = ends
    number = memory()
    with pytest.raises(Error, match="carry itself") as caught:
        one.transfer(number, one)
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert is_open(number)
    assert not one.closed
    assert_nothing_came(other)
    os.close(number)


def test_items_of_every_form_travel_together_and_each_is_closed_through_its_own_object(
    ends: Ends, tmp_path: Path
) -> None:
    one, other = ends
    number = memory(b"number")
    descriptor = Descriptor(memory(b"descriptor"))
    written = open(tmp_path / "written", "w+")
    written.write("unflushed")
    (tmp_path / "read").write_text("first\nsecond\n")
    read = open(tmp_path / "read")
    assert read.readline() == "first\n"
    sock, far = socket.socketpair()
    holder = Holder(memory(b"own"))
    one.transfer(number, descriptor, written, read, sock, holder, data=b"all")
    assert not is_open(number)
    assert descriptor.closed
    assert written.closed
    assert read.closed
    assert sock.fileno() == -1
    assert holder.closings == 1
    with far, other.receive() as message:
        assert message.data == b"all"
        assert [content(fd.fileno()) for fd in (*message.fds[:3], message.fds[5])] == [
            b"number",
            b"descriptor",
            b"unflushed",
            b"own",
        ]
        with message.fds[3].to_file("r") as rest:
            assert rest.read() == "second\n"
        with message.fds[4].to_conn() as conn:
            conn.sendall(b"hello")
            assert far.recv(5) == b"hello"


def test_kept_items_of_every_form_stay_open_and_usable(ends: Ends, tmp_path: Path) -> None:
    one, other = ends
    number = memory()
    sock, far = socket.socketpair()
    holder = Holder(memory())
    with (
        far,
        sock,
        Descriptor(memory()) as descriptor,
        open(tmp_path / "file", "w") as file,
    ):
        file.write("be")
        one.transfer(number, descriptor, file, sock, holder, keep=True)
        with other.receive() as message:
            assert len(message.fds) == 5
            assert (tmp_path / "file").read_text() == "be"
        assert is_open(number)
        assert not descriptor.closed
        file.write("fore")
        sock.sendall(b"x")
        assert not holder.closings
    assert (tmp_path / "file").read_text() == "before"
    os.close(number)
    holder.close()


def test_what_cannot_be_closed_can_only_be_kept(ends: Ends) -> None:
    class Lent:
        def fileno(self) -> int:
            return number

    one, other = ends
    number = memory()
    with pytest.raises(DescriptorTypeError, match=r"keep=True"):
        one.transfer(Lent())
    assert_nothing_came(other)
    one.transfer(Lent(), keep=True)
    with other.receive() as message:
        assert identity(message.fds[0].fileno()) == identity(number)
    os.close(number)


def test_the_same_number_twice_is_sent_twice_and_closed_once(ends: Ends) -> None:
    one, other = ends
    number = memory()
    expected = identity(number)
    one.transfer(number, number, number)
    assert not is_open(number)
    with other.receive() as message:
        assert [identity(fd.fileno()) for fd in message.fds] == [expected] * 3
        assert len({fd.fileno() for fd in message.fds}) == 3


def test_the_same_object_twice_is_sent_twice_and_closed_once(ends: Ends) -> None:
    one, other = ends
    holder, descriptor = Holder(memory()), Descriptor(memory())
    expected = [identity(thing.fileno()) for thing in (holder, descriptor, holder, descriptor)]
    one.transfer(holder, descriptor, holder, descriptor)
    assert holder.closings == 1
    assert descriptor.closed
    with other.receive() as message:
        assert [identity(fd.fileno()) for fd in message.fds] == expected


@pytest.mark.parametrize("numbers_first", [False, True])
def test_an_object_and_its_number_in_one_call_are_closed_once_through_the_object(
    ends: Ends, numbers_first: bool
) -> None:
    one, other = ends
    holder, descriptor = Holder(memory()), Descriptor(memory())
    expected = [identity(thing.fileno()) for thing in (holder, descriptor)] * 2
    items: list[Any] = [holder, descriptor, holder.fileno(), descriptor.fileno()]
    one.transfer(*(items[2:] + items[:2] if numbers_first else items))
    assert holder.closings == 1
    assert not is_open(holder.number)
    assert descriptor.closed
    with other.receive() as message:
        assert [identity(fd.fileno()) for fd in message.fds] == expected


def test_an_item_whose_close_fails_is_reported_once_all_others_are_closed(ends: Ends) -> None:
    one, other = ends
    failing = Holder(memory(), OSError(errno.EIO, os.strerror(errno.EIO)))
    number, before, after = memory(), Holder(memory()), Holder(memory())
    descriptor = Descriptor(memory())
    with pytest.raises(Error, match=r"was sent, but closing it here failed") as caught:
        one.transfer(before, failing, number, after, descriptor)
    assert caught.value.type is ErrType.FAILED_CLOSE
    assert caught.value.errno == errno.EIO
    assert isinstance(caught.value.__cause__, OSError)
    assert [before.closings, failing.closings, after.closings] == [1, 1, 1]
    assert not is_open(number)
    assert descriptor.closed
    with other.receive() as message:
        assert len(message.fds) == 5


@only_blocking
def test_an_exception_of_a_close_that_is_no_error_leaves_nothing_unclosed(ends: Ends) -> None:
    one, other = ends
    interrupted = Holder(memory())
    after = Holder(memory())

    def close() -> None:
        os.close(interrupted.number)
        raise KeyboardInterrupt

    interrupted.close = close  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        one.transfer(interrupted, after)
    with other.receive() as message:
        assert len(message.fds) == 2
    assert after.closings == 1


def test_an_item_that_closes_itself_when_it_is_flushed_is_told_of(ends: Ends) -> None:
    class Fickle(Holder):
        def flush(self) -> None:
            self.close()
            self.number = -1

    one, other = ends
    number = memory()
    with pytest.raises(Error, match=r"^item 2 of 2: .* has no descriptor") as caught:
        one.transfer(number, Fickle(memory()))
    assert caught.value.type is ErrType.NO_FD
    one.transfer(number)
    other.receive().close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no class of Python's has __buffer__()")
def test_what_a_payload_does_to_an_item_as_it_is_looked_at_is_seen(ends: Ends) -> None:
    class Payload:
        def __buffer__(self, flags: int) -> memoryview:
            fresh = memory(b"fresh")
            os.close(holder.number)
            holder.number = fresh
            return memoryview(b"x")

    one, other = ends
    holder = Holder(memory(b"stale"))
    data: Any = Payload()
    one.transfer(holder, data=data)
    with other.receive() as message:
        assert content(message.fds[0].fileno()) == b"fresh"


@pytest.mark.parametrize("keep", [True, False])
def test_a_descriptor_that_was_not_sent_is_its_owners_as_before(ends: Ends, keep: bool) -> None:
    one, other = ends
    other.close()
    for let_go in (Descriptor.close, Descriptor.to_conn):
        mine, peer = socket.socketpair()
        peer.setblocking(False)
        with peer:
            descriptor = Descriptor(mine.detach())
            with pytest.raises(PeerClosedError):
                one.transfer(descriptor, descriptor, keep=keep)
            assert identity(descriptor.fileno())
            with contextlib.closing(let_go(descriptor) or descriptor):
                assert descriptor.closed
            assert peer.recv(1) == b""


def test_a_batch_that_could_not_be_sent_in_time_stays_open(ends: Ends) -> None:
    one, other = ends
    one.timeout = 0
    sent = 0
    spare = memory()
    with pytest.raises(WouldBlockError):
        while True:
            one.transfer(spare, data=b"x", keep=True)
            sent += 1
    numbers, holder = files(100), Holder(memory())
    one.timeout = 0.05
    with pytest.raises(TransferTimeoutError) as caught:
        one.transfer(*numbers, holder)
    assert caught.value.sent == 0
    assert all(is_open(number) for number in numbers)
    assert not holder.closings
    received = 0
    while received < sent:
        with other.receive() as message:
            received += len(message.data)
    one.transfer(*numbers, holder)
    with other.receive() as message:
        assert len(message.fds) == 101
    close_all([spare])
