"""Whole messages: what is sent together arrives together."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import pytest
from drivers import only_blocking, settle
from helpers import (
    PORTABLE,
    Call,
    content,
    handling,
    interrupt_once_polling,
    is_open,
    is_private,
    memory,
    send,
)
from sides import ALL_KINDS, PACKET_KINDS, beside, identity, is_at_eof

import conduit
from conduit import (
    Conduit,
    Descriptor,
    Error,
    ErrType,
    Message,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]


@pytest.fixture
def pipe() -> tuple[int, int]:
    """A pipe whose reading end tells whether the writing one, which the test sends, is closed."""
    return os.pipe()


@pytest.mark.hazard("P15")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_bytes_and_descriptors_arrive_together(ends: Ends) -> None:
    one, other = ends
    number = memory(b"inside")
    one.transfer(number, data=b"hello")
    assert not is_open(number)
    with other.receive() as message:
        assert message.data == b"hello"
        assert len(message.fds) == 1
        assert content(message.fds[0].fileno()) == b"inside"
        assert is_private(message.fds[0].fileno())


@pytest.mark.hazard("B4")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_items_without_data_come_with_one_nul_byte(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory())
    with other.receive() as message:
        assert message.data == b"\0"
        assert len(message.fds) == 1


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_data_without_items_is_a_message(ends: Ends) -> None:
    one, other = ends
    one.transfer(data=b"only bytes")
    message = other.receive()
    assert message.data == b"only bytes"
    assert message.fds == ()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_nothing_at_all_is_no_message(ends: Ends) -> None:
    one, other = ends
    with pytest.raises(ValueError, match="nothing to send"):
        one.transfer()
    other.timeout = 0
    with pytest.raises(WouldBlockError):
        other.receive()


def test_messages_go_to_another_process_and_come_back(ends: Ends) -> None:
    one, other = ends

    def upper() -> None:
        while data := other.receive():
            with data:
                answers = [memory(content(fd.fileno()).upper()) for fd in data.fds]
                other.transfer(*answers, data=data.data.upper())
                if data.data == b"last":
                    return

    with beside(upper):
        for data in (b"first", b"second", b"last"):
            one.transfer(memory(b"a"), memory(b"b"), data=data)
            with one.receive() as message:
                assert message.data == data.upper()
                assert [content(fd.fileno()) for fd in message.fds] == [b"A", b"B"]


def test_what_the_library_sends_is_what_recvmsg_expects(wired: Wired) -> None:
    link, peer = wired
    number = memory()
    expected = identity(number)
    link.transfer(number, data=b"hello")
    data, numbers, _, _ = socket.recv_fds(peer, 100, 10)
    assert data == b"hello"
    assert [identity(got) for got in numbers] == [expected]
    for got in numbers:
        os.close(got)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_what_any_program_sends_is_received(wired: Wired) -> None:
    link, peer = wired
    number = memory()
    send(peer, [number, number], b"hello")
    with link.receive() as message:
        assert message.data == b"hello"
        assert [identity(fd.fileno()) for fd in message.fds] == [identity(number)] * 2
    os.close(number)


@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_packets_keep_their_boundaries(ends: Ends) -> None:
    one, other = ends
    one.transfer(data=b"a")
    one.transfer(memory(), data=b"b")
    one.transfer(data=b"c")
    received = []
    for _ in range(3):
        with other.receive() as message:
            received.append((message.data, len(message.fds)))
    assert received == [(b"a", 0), (b"b", 1), (b"c", 0)]


@pytest.mark.hazard("C1")
@pytest.mark.parametrize("kind", ALL_KINDS[:1])
def test_a_stream_glues_earlier_bytes_in_front_of_a_message_and_ends_at_its_descriptors(
    ends: Ends,
) -> None:
    one, other = ends
    one.transfer(data=b"early")
    one.transfer(memory(b"1"), data=b"first")
    one.transfer(memory(b"2"), data=b"second")
    with other.receive() as message:
        assert message.data == b"earlyfirst"
        assert [content(fd.fileno()) for fd in message.fds] == [b"1"]
    with other.receive() as message:
        assert message.data == b"second"
        assert [content(fd.fileno()) for fd in message.fds] == [b"2"]


@pytest.mark.parametrize("kind", PACKET_KINDS)
@pytest.mark.parametrize("count", [1, 253])
def test_an_empty_packet_with_descriptors_is_a_message_and_not_the_end(
    wired: Wired, count: int
) -> None:
    link, peer = wired
    number = memory()
    send(peer, [number] * count, b"")
    send(peer, [], b"next")
    with link.receive() as message:
        assert message.data == b""
        assert [identity(fd.fileno()) for fd in message.fds] == [identity(number)] * count
    assert link.receive().data == b"next"
    os.close(number)


@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_an_empty_packet_without_descriptors_is_a_message_too(wired: Wired) -> None:
    link, peer = wired
    peer.send(b"")
    message = link.receive()
    assert (message.data, message.fds) == (b"", ())


@pytest.mark.skipif(PORTABLE, reason="without POLLRDHUP, queued empty packets look like the end")
@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_each_of_several_empty_packets_is_a_message(wired: Wired) -> None:
    link, peer = wired
    number = memory()
    for numbers in ([], [], [number], []):
        send(peer, numbers, b"")
    counts = []
    for _ in range(4):
        with link.receive() as message:
            assert message.data == b""
            counts.append(len(message.fds))
    assert counts == [0, 0, 1, 0]
    os.close(number)


@pytest.mark.parametrize("kind", ALL_KINDS[1:2])
def test_an_empty_packet_with_descriptors_is_a_message_when_its_sender_is_gone(
    wired: Wired,
) -> None:
    link, peer = wired
    number = memory()
    send(peer, [number], b"")
    peer.close()
    os.close(number)
    with link.receive() as message:
        assert len(message.fds) == 1
    with pytest.raises(PeerClosedError):
        link.receive()


@pytest.mark.hazard("A10")
@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_a_packet_longer_than_asked_for_is_an_error_and_all_its_descriptors_are_closed(
    wired: Wired, pipe: tuple[int, int]
) -> None:
    link, peer = wired
    out, into = pipe
    send(peer, [into, into, into], b"12345")
    os.close(into)
    with pytest.raises(Error, match=r"longer than the 4 bytes .* closed") as caught:
        link.receive(max_data=4)
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert caught.value.errno == errno.EMSGSIZE
    assert is_at_eof(out)
    send(peer, [], b"next")
    assert link.receive().data == b"next"


@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_a_packet_as_long_as_asked_for_is_whole(wired: Wired) -> None:
    link, peer = wired
    peer.send(b"12345")
    assert link.receive(max_data=5).data == b"12345"


@pytest.mark.parametrize("kind", ALL_KINDS[:1])
def test_a_stream_gives_no_more_bytes_than_asked_for_and_the_rest_next_time(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(), data=b"12345")
    with other.receive(max_data=4) as message:
        assert message.data == b"1234"
        assert len(message.fds) == 1
    message = other.receive(max_data=4)
    assert (message.data, message.fds) == (b"5", ())


@pytest.mark.hazard("A10", "E1")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(("sent", "most"), [(1, 0), (3, 2), (253, 252)])
def test_more_descriptors_than_asked_for_are_an_error_and_all_are_closed(
    wired: Wired, pipe: tuple[int, int], sent: int, most: int
) -> None:
    link, peer = wired
    out, into = pipe
    send(peer, [into] * sent)
    os.close(into)
    with pytest.raises(
        Error, match=rf"expected at most {most} descriptors, received {sent} \(all closed\)"
    ) as caught:
        link.receive(max_fds=most)
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert is_at_eof(out)
    send(peer, [], b"next")
    assert link.receive().data == b"next"


@pytest.mark.parametrize(("sent", "most"), [(0, 0), (2, 2), (1, 253)])
def test_no_more_descriptors_than_asked_for_are_fine(ends: Ends, sent: int, most: int) -> None:
    one, other = ends
    one.transfer(*[memory() for _ in range(sent)], data=b"x")
    with other.receive(max_fds=most) as message:
        assert len(message.fds) == sent


@pytest.mark.hazard("A10")
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_data": 0}, "max_data must be at least 1"),
        ({"max_data": -1}, "max_data must be at least 1"),
        ({"max_data": 1 << 64}, "max_data must be at most 2 GiB"),
        ({"max_fds": -1}, "max_fds must be at least 0"),
    ],
)
def test_impossible_limits_are_refused_before_anything_is_received(
    ends: Ends, limits: dict[str, int], said: str
) -> None:
    one, other = ends
    one.transfer(memory())
    with pytest.raises(ValueError, match=said):
        other.receive(**limits)
    with other.receive() as message:
        assert len(message.fds) == 1


def test_leaving_a_message_closes_what_was_not_taken(ends: Ends) -> None:
    one, other = ends
    near, far = socket.socketpair()
    one.transfer(memory(), memory(b"file"), near, memory())
    with far, other.receive() as message:
        detached = message.fds[0].detach()
        file = message.fds[1].to_file()
        conn = message.fds[2].to_conn()
        left = message.fds[3].fileno()
    assert not is_open(left)
    assert all(fd.closed for fd in message.fds)
    assert is_open(detached)
    os.close(detached)
    with file, conn:
        assert file.read() == b"file"
        assert is_open(conn.fileno())


def test_leaving_a_message_by_an_exception_closes_what_was_not_taken(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(), memory())
    with pytest.raises(ZeroDivisionError), other.receive() as message:
        raise ZeroDivisionError
    assert all(fd.closed for fd in message.fds)


def test_closing_a_message_twice_does_nothing_the_second_time(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory())
    message = other.receive()
    number = message.fds[0].fileno()
    message.close()
    reused = os.dup(0)
    message.close()
    os.close(reused)
    assert reused == number


def test_a_dropped_message_closes_its_descriptors_with_a_warning_for_each(
    ends: Ends, pipe: tuple[int, int]
) -> None:
    one, other = ends
    out, into = pipe
    if getattr(sys.flags, "context_aware_warnings", False) and not isinstance(other, Conduit):
        os.close(out)
        os.close(into)
        pytest.skip("here no thread sees the warnings of another, such as the event loop's")
    one.transfer(into, into)
    with pytest.warns(ResourceWarning, match=r"unclosed <?conduit\.Descriptor") as caught:
        other.receive()
        settle(other)
    assert len(caught) == 2
    assert is_at_eof(out)


def test_a_message_closes_all_the_rest_when_one_of_its_numbers_was_closed_elsewhere(
    ends: Ends, pipe: tuple[int, int]
) -> None:
    one, other = ends
    out, into = pipe
    one.transfer(memory(), into)
    message = other.receive()
    os.close(message.fds[0].fileno())
    with pytest.raises(Error) as caught:
        message.close()
    assert caught.value.type is ErrType.FAILED_CLOSE
    assert caught.value.errno == errno.EBADF
    assert is_at_eof(out)


def test_a_message_of_any_size_that_a_program_makes_closes_all_its_descriptors() -> None:
    descriptors = [Descriptor(memory()) for _ in range(300)]
    with Message(b"", descriptors):
        pass
    assert all(descriptor.closed for descriptor in descriptors)


def test_a_message_holds_nothing_but_descriptors() -> None:
    with Descriptor(memory()) as descriptor, pytest.raises(TypeError):
        Message(b"", [descriptor, 5])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_receive_ends_at_its_deadline(ends: Ends) -> None:
    one, other = ends
    other.timeout = 0.05
    began = time.monotonic()
    with pytest.raises(TransferTimeoutError, match="deadline") as caught:
        other.receive()
    assert time.monotonic() - began >= 0.049
    assert caught.value.type is ErrType.FAILED_TRANSFER
    one.transfer(data=b"later")
    assert other.receive().data == b"later"


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_timeout_of_0_never_waits(ends: Ends) -> None:
    one, other = ends
    other.timeout = 0
    with pytest.raises(WouldBlockError) as caught:
        other.receive()
    assert caught.value.errno == errno.EAGAIN
    one.transfer(memory(), data=b"there")
    with other.receive() as message:
        assert message.data == b"there"


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_receive_waits_for_a_message_and_wakes_by_it(ends: Ends) -> None:
    one, other = ends
    call = Call(other.receive)
    assert call.is_waiting()
    one.transfer(memory(), data=b"wake")
    with call.result() as message:
        assert message.data == b"wake"
        assert len(message.fds) == 1


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_closing_a_conduit_wakes_a_receive(ends: Ends) -> None:
    _, other = ends
    call = Call(other.receive)
    assert call.is_waiting()
    other.close()
    with pytest.raises(Error, match="closed meanwhile") as caught:
        call.result()
    assert caught.value.type is ErrType.NO_FD


@only_blocking
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_signal_handler_that_raises_ends_a_receive_and_loses_nothing(ends: Ends) -> None:
    one, other = ends

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handling(signal.SIGUSR1, interrupt):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            other.receive()
        interrupting.result()
    one.transfer(memory(), data=b"intact")
    with other.receive() as message:
        assert message.data == b"intact"
        assert len(message.fds) == 1


@pytest.mark.parametrize("kind", ALL_KINDS[:2])
def test_the_end_is_told_once_all_that_was_sent_is_received(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(), data=b"last words")
    one.close()
    with other.receive() as message:
        assert message.data == b"last words"
    for _ in range(2):
        with pytest.raises(PeerClosedError, match="closed its end"):
            other.receive()


@pytest.mark.parametrize("kind", ALL_KINDS[:2])
def test_what_was_sent_is_received_though_the_sender_left_something_unread(ends: Ends) -> None:
    one, other = ends
    other.transfer(data=b"unread")
    one.transfer(memory(), data=b"last words")
    one.close()
    with other.receive() as message:
        assert message.data == b"last words"
        assert len(message.fds) == 1
    with pytest.raises(PeerClosedError):
        other.receive()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_sending_to_nobody_leaves_everything_open(ends: Ends) -> None:
    one, other = ends
    other.close()
    number = memory()
    with pytest.raises(PeerClosedError) as caught:
        one.transfer(number, data=b"hello")
    assert caught.value.sent == 0
    assert is_open(number)
    os.close(number)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_closed_conduit_neither_sends_nor_receives(ends: Ends) -> None:
    one, _ = ends
    one.close()
    number = memory()
    for call in (lambda: one.transfer(number), one.receive):
        with pytest.raises(Error, match="closed") as caught:
            call()
        assert caught.value.type is ErrType.NO_FD
    assert is_open(number)
    os.close(number)


@pytest.mark.parametrize("call", ["receive_fd", "receive_file", "receive_conn"])
@pytest.mark.parametrize("count", [0, 2])
def test_a_batch_is_no_plain_transfer_and_is_closed(
    wired: Wired, pipe: tuple[int, int], call: str, count: int
) -> None:
    link, peer = wired
    out, into = pipe
    send(peer, [into] * count)
    os.close(into)
    with pytest.raises(Error, match=f"expected 1 descriptor, received {count}") as caught:
        getattr(link, call)()
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert is_at_eof(out)


def test_a_message_says_what_it_holds(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(), data=b"12345")
    with other.receive() as message:
        assert repr(message) == "<conduit.Message of 5 bytes and 1 descriptors>"
    assert isinstance(message, conduit.Message)


def test_a_datagram_peer_that_turned_elsewhere_is_told_and_not_waited_for(tmp_path: Path) -> None:
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, peer, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.bind(str(tmp_path / "s"))
        ours.send(b"unread")
        # What it has not read is lost, of which Linux tells the sender.
        peer.connect(str(tmp_path / "s"))
        with Conduit.from_conn(ours) as conduit, pytest.raises(PeerClosedError) as caught:
            conduit.receive()
        assert caught.value.errno == errno.ECONNRESET
