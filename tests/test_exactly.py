"""So many bytes and no more, what stays when a call ends early, and messages in a loop."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import sys
import time

import pytest
from drivers import only_blocking
from helpers import (
    GENEROUS,
    PORTABLE,
    Call,
    content,
    dripping,
    flooding,
    handling,
    interrupt_once_polling,
    is_open,
    memory,
    send,
)

from conduit import (
    Conduit,
    Error,
    ErrType,
    Peer,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]

only_streams = pytest.mark.parametrize(
    "kind", [pytest.param(socket.SOCK_STREAM, id="stream")], indirect=True
)
only_packets = pytest.mark.parametrize(
    "kind", [pytest.param(socket.SOCK_SEQPACKET, id="seqpacket")], indirect=True
)


@only_streams
def test_descriptors_stay_with_the_message_whose_bytes_are_asked_for(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(b"1"), data=b"first")
    one.transfer(memory(b"2"), memory(b"3"), data=b"second")
    with other.receive_exactly(5) as first, other.receive_exactly(6) as second:
        assert (first.data, second.data) == (b"first", b"second")
        assert [content(fd.fileno()) for fd in first.fds] == [b"1"]
        assert [content(fd.fileno()) for fd in second.fds] == [b"2", b"3"]


@only_streams
def test_what_is_asked_for_is_gathered_however_it_was_sent(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(b"1"), data=b"a")
    one.transfer(data=b"bc")
    one.transfer(memory(b"2"), data=b"def")
    with other.receive_exactly(5) as message:
        assert message.data == b"abcde"
        assert [content(fd.fileno()) for fd in message.fds] == [b"1", b"2"]
    assert other.receive().data == b"f"


@only_streams
def test_more_than_a_socket_holds_is_gathered_too(ends: Ends) -> None:
    one, other = ends
    payload = bytes(range(256)) * 8192
    sending = Call(one.transfer, memory(b"1"), data=payload)
    with other.receive_exactly(len(payload)) as message:
        assert message.data == payload
        assert len(message.fds) == 1
    sending.result()


@only_packets
def test_packets_are_gathered_and_one_that_is_longer_is_refused(ends: Ends) -> None:
    one, other = ends
    for data in (b"ab", b"c", b"defg"):
        one.transfer(data=data)
    assert other.receive_exactly(3).data == b"abc"
    with pytest.raises(Error) as caught:
        other.receive_exactly(3)
    assert caught.value.errno == errno.EMSGSIZE


@only_packets
def test_empty_packets_are_no_part_of_what_is_asked_for_but_what_comes_with_them_is(
    wired: Wired,
) -> None:
    link, peer = wired
    peer.send(b"")
    send(peer, [0], b"")
    peer.send(b"ab")
    with link.receive_exactly(2) as message:
        assert (message.data, len(message.fds)) == (b"ab", 1)


@pytest.mark.skipif(PORTABLE, reason="without POLLRDHUP, queued empty packets look like the end")
@only_packets
@only_blocking
def test_a_deadline_holds_however_many_empty_packets_come(wired: Wired) -> None:
    link, peer = wired
    with flooding(peer, b""):
        # It may take its time to begin.
        link.receive()
        link.timeout = 0.2
        begun = time.monotonic()
        with pytest.raises(TransferTimeoutError):
            link.receive_exactly(1)
        assert 0.19 < time.monotonic() - begun < GENEROUS


def test_no_bytes_are_there_at_once(ends: Ends) -> None:
    _, other = ends
    message = other.receive_exactly(0)
    assert (message.data, message.fds) == (b"", ())
    other.close()
    with pytest.raises(Error) as caught:
        other.receive_exactly(0)
    assert caught.value.type is ErrType.NO_FD


@pytest.mark.parametrize("size", [-1, 1 << 70])
def test_a_size_that_cannot_be_is_a_value_error(ends: Ends, size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be 0 to .* not {size}"):
        ends[1].receive_exactly(size)


@only_streams
def test_what_came_before_the_deadline_is_there_for_the_next_call(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(b"1"), data=b"ab")
    other.timeout = 0.05
    for _ in range(2):
        with pytest.raises(TimeoutError):
            other.receive_exactly(4)
    with pytest.raises(Error, match="with another one first"):
        other.receive()
    with pytest.raises(ValueError, match="2 bytes have come already"):
        other.receive_exactly(1)
    one.transfer(memory(b"2"), data=b"cd")
    with other.receive_exactly(4) as message:
        assert message.data == b"abcd"
        assert [content(fd.fileno()) for fd in message.fds] == [b"1", b"2"]
    one.transfer(data=b"e")
    assert other.receive().data == b"e"


@only_streams
def test_a_deadline_is_that_of_the_whole_call_however_slowly_a_peer_sends(wired: Wired) -> None:
    link, peer = wired
    link.timeout = 0.2
    with dripping(peer) as drips, pytest.raises(TimeoutError):
        link.receive_exactly(1 << 20)
    sent = drips.result()
    assert link.receive_exactly(sent).data == b"x" * sent


@only_streams
@only_blocking
def test_what_came_before_a_signal_handler_raised_is_there_for_the_next_call(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(b"1"), data=b"ab")

    def interrupt(*_: object) -> None:
        raise KeyError("from the handler")

    with handling(signal.SIGUSR1, interrupt):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(KeyError):
            other.receive_exactly(3)
    interrupting.result()
    one.transfer(data=b"c")
    with other.receive_exactly(3) as message:
        assert message.data == b"abc"
        assert len(message.fds) == 1


@only_streams
@only_blocking
def test_a_call_in_a_handler_and_the_one_it_interrupts_both_leave_what_they_got(ends: Ends) -> None:
    one, other = ends
    one.transfer(memory(b"1"), data=b"ab")

    def interrupt(*_: object) -> None:
        one.transfer(memory(b"2"), data=b"cd")
        other.timeout = 0.01
        other.receive_exactly(10)

    with handling(signal.SIGUSR1, interrupt):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(TransferTimeoutError):
            other.receive_exactly(10)
    interrupting.result()
    with other.receive_exactly(4) as message:
        assert sorted(message.data) == sorted(b"abcd")
        assert sorted(content(fd.fileno()) for fd in message.fds) == [b"1", b"2"]


@only_streams
def test_closing_closes_what_had_come(ends: Ends) -> None:
    one, other = ends
    out, into = os.pipe()
    one.transfer(into, data=b"ab")
    other.timeout = 0.05
    with pytest.raises(TimeoutError):
        other.receive_exactly(4)
    other.close()
    assert os.read(out, 1) == b""
    os.close(out)


@only_streams
def test_an_end_in_the_middle_says_how_many_bytes_came(ends: Ends) -> None:
    one, other = ends
    out, into = os.pipe()
    one.transfer(into, data=b"ab")
    one.close()
    with pytest.raises(PeerClosedError, match="after 2 of 5 bytes"):
        other.receive_exactly(5)
    assert os.read(out, 1) == b""
    os.close(out)
    with pytest.raises(PeerClosedError) as caught:
        other.receive_exactly(5)
    assert "bytes" not in str(caught.value)


@only_streams
def test_more_descriptors_than_asked_for_close_all_that_came(wired: Wired) -> None:
    link, peer = wired
    out, into = os.pipe()
    send(peer, [into], b"a")
    send(peer, [into, into], b"b")
    os.close(into)
    with pytest.raises(Error) as caught:
        link.receive_exactly(2, max_fds=2)
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert os.read(out, 1) == b""
    os.close(out)


@only_blocking
@only_streams
def test_a_long_message_arrives_whole_whenever_calls_end_early(ends: Ends) -> None:
    one, other = ends
    rng = random.Random(1)
    data = rng.randbytes(5 << 20)
    other.timeout = 0
    sent = 0
    while sent < len(data):
        with pytest.raises(WouldBlockError):
            other.receive_exactly(len(data))
        # Less than any socket's buffer holds.
        piece = data[sent : sent + rng.randint(1, 60_000)]
        one.transfer(*([] if sent else [memory(b"1")]), data=piece)
        sent += len(piece)
    with other.receive_exactly(len(data)) as message:
        assert message.data == data
        assert [content(fd.fileno()) for fd in message.fds] == [b"1"]


def test_a_call_after_one_that_ended_early_may_ask_for_more_or_less(ends: Ends) -> None:
    one, other = ends
    other.timeout = 0.01
    one.transfer(data=b"abc")
    for size in (9, 1000, 5):
        with pytest.raises(TimeoutError):
            other.receive_exactly(size)
    with pytest.raises(ValueError, match="3 bytes have come already, more than 2"):
        other.receive_exactly(2)
    one.transfer(data=b"defghij")
    message = other.receive_exactly(10)
    assert message.data == b"abcdefghij"


@only_streams
def test_no_more_is_received_than_the_last_call_asks_for(ends: Ends) -> None:
    one, other = ends
    other.timeout = 0.01
    one.transfer(data=b"abc")
    with pytest.raises(TimeoutError):
        other.receive_exactly(1000)
    one.transfer(data=b"defgh")
    assert other.receive_exactly(5).data == b"abcde"
    assert other.receive().data == b"fgh"


@only_streams
def test_no_memory_is_taken_for_what_is_only_announced(ends: Ends) -> None:
    one, other = ends
    one.transfer(data=b"abc")
    other.timeout = 0.01
    with pytest.raises(TimeoutError):
        other.receive_exactly(sys.maxsize)
    assert other.receive_exactly(3).data == b"abc"


@pytest.mark.skipif(not hasattr(socket, "SO_PASSCRED"), reason="this system has no SO_PASSCRED")
@only_streams
def test_the_sender_is_known_though_a_call_ended_early(ends: Ends) -> None:
    one, other = ends
    with socket.socket(fileno=os.dup(other.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    one.transfer(data=b"ab")
    other.timeout = 0.01
    with pytest.raises(TimeoutError):
        other.receive_exactly(3)
    one.transfer(data=b"c")
    message = other.receive_exactly(3)
    assert message.data == b"abc"
    assert message.sender == Peer(os.getpid(), os.getuid(), os.getgid())
    assert isinstance(message.sender, Peer)


@only_blocking
@only_streams
def test_of_two_calls_that_end_early_both_leave_what_they_got(ends: Ends) -> None:
    one, other = ends
    other.timeout = 0.3
    both_waited = False
    while not both_waited:
        calls = [Call(other.receive_exactly, 10) for _ in range(2)]
        both_waited = all(call.is_waiting() for call in calls)
        one.transfer(memory(b"1"), data=b"ab")
        one.transfer(memory(b"2"), data=b"cd")
        for call in calls:
            with pytest.raises(TimeoutError):
                call.result()
        with other.receive_exactly(4) as message:
            assert sorted(message.data) == sorted(b"abcd")
            assert len(message.fds) == 2


# One direction


def test_after_a_shutdown_the_peer_comes_to_the_end_and_may_still_send(ends: Ends) -> None:
    one, other = ends
    one.transfer(data=b"last")
    one.shutdown()
    assert other.receive().data == b"last"
    with pytest.raises(PeerClosedError):
        other.receive()
    other.transfer(data=b"answer")
    assert one.receive().data == b"answer"
    with pytest.raises(PeerClosedError):
        one.transfer(data=b"more")


def test_a_shutdown_for_reading_ends_what_waits(ends: Ends) -> None:
    _, other = ends
    waiting = Call(other.receive)
    assert waiting.is_waiting()
    other.shutdown(socket.SHUT_RD)
    with pytest.raises(PeerClosedError):
        waiting.result()


def test_a_shutdown_that_fails_is_an_error(ends: Ends) -> None:
    one, _ = ends
    with pytest.raises(ValueError, match="SHUT_RD, SHUT_WR or SHUT_RDWR, not 7"):
        one.shutdown(7)
    one.close()
    with pytest.raises(Error) as caught:
        one.shutdown()
    assert caught.value.type is ErrType.NO_FD
    sock, peer = socket.socketpair()
    with peer, Conduit(sock.fileno()) as borrowing:
        sock.close()
        with pytest.raises(Error, match="shutting down") as caught:
            borrowing.shutdown()
        assert caught.value.errno == errno.EBADF


# Messages in a loop


def test_a_loop_brings_every_message_until_the_peer_closes(ends: Ends) -> None:
    one, other = ends
    seen = []
    one.transfer(memory(b"1"), data=b"a")
    one.transfer(memory(b"2"), data=b"b")
    one.close()
    for message in other:
        with message:
            seen.append((message.data, [content(fd.fileno()) for fd in message.fds]))
    assert seen == [(b"a", [b"1"]), (b"b", [b"2"])]


def test_a_loop_ends_with_what_is_no_end(wired: Wired) -> None:
    link, peer = wired
    refused = memory()
    send(peer, [refused] * 2, b"x")
    send(peer, [], b"y")
    os.close(refused)
    link.timeout = 0.05
    messages = iter(link)
    with next(messages) as message:
        assert len(message.fds) == 2
    assert next(messages).data == b"y"
    with pytest.raises(TimeoutError):
        next(messages)
    assert is_open(link.fileno())
