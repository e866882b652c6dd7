"""The standard library at the other end, in both directions."""

from __future__ import annotations

import os
import socket
import struct
from multiprocessing import reduction

import pytest
from helpers import Call, content, is_open, is_private, memory
from multiprocessing_forms import FORMS, Form

import conduit
from conduit import Conduit, Error, ErrType

Wired = tuple[Conduit, socket.socket]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """A multiprocessing of either generation; no test looks at which."""
    return FORMS[request.param]


def acknowledged(link: Conduit) -> bool:
    """Whether the peer acknowledges what was sent, rather than close its end."""
    try:
        return link.receive(max_data=1).data == b"A"
    except conduit.PeerClosedError:
        return False


def test_send_fds_to_receive_fd(wired: Wired) -> None:
    link, peer = wired
    number = memory(b"from socket")
    assert socket.send_fds(peer, [b"\0"], [number]) == 1
    os.close(number)
    arrived = link.receive_fd()
    assert content(arrived) == b"from socket"
    assert is_private(arrived)
    os.close(arrived)


def test_transfer_fd_to_recv_fds(wired: Wired) -> None:
    link, peer = wired
    link.transfer_fd(memory(b"to socket"))
    data, numbers, flags, _ = socket.recv_fds(peer, 16, 4)
    assert data == b"\0"
    assert not flags & socket.MSG_CTRUNC
    [number] = numbers
    assert content(number) == b"to socket"
    os.close(number)


def test_transfer_conn_to_recv_fds(wired: Wired) -> None:
    link, peer = wired
    one, other = socket.socketpair()
    with other:
        link.transfer_conn(one)
        _, [number], _, _ = socket.recv_fds(peer, 1, 1)
        with socket.socket(fileno=number) as arrived:
            arrived.sendall(b"connected")
            assert other.recv(64) == b"connected"


@pytest.mark.hazard("A2")
def test_several_descriptors_of_send_fds_are_refused_and_closed(wired: Wired) -> None:
    link, peer = wired
    reader, writer = os.pipe()
    socket.send_fds(peer, [b"\0"], [writer, writer, writer])
    os.close(writer)
    with pytest.raises(Error) as caught:
        link.receive_fd()
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_sendfds_of_multiprocessing_ends_once_it_is_acknowledged(wired: Wired, form: Form) -> None:
    link, peer = wired
    number = memory(b"from multiprocessing")
    # One that waits for none leaves them unread.
    for _ in range(3):
        sending = Call(form.sendfds, peer, [number])
        with link.receive_file() as arrived:
            link.transfer(data=b"A")
            assert arrived.read() == b"from multiprocessing"
        sending.result()
        os.lseek(number, 0, os.SEEK_SET)
    os.close(number)
    peer.close()
    with pytest.raises(conduit.PeerClosedError):
        link.receive_file()


@pytest.mark.hazard("P10")
def test_sendfds_of_two_is_refused_and_both_are_closed(wired: Wired, form: Form) -> None:
    link, peer = wired
    reader, writer = os.pipe()
    sending = Call(form.sendfds, peer, [writer, writer])
    with pytest.raises(Error) as caught:
        link.receive_fd()
    link.transfer(data=b"A")
    sending.result()
    os.close(writer)
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_message_that_says_its_count_to_recvfds_of_multiprocessing(
    wired: Wired, form: Form
) -> None:
    link, peer = wired
    one, other = memory(b"one"), memory(b"other")
    link.transfer(one, data=b"\1")
    [number] = form.recvfds(peer, 1)
    assert content(number) == b"one"
    os.close(number)
    link.transfer(other, other, data=b"\2")
    first, second = form.recvfds(peer, 2)
    assert content(first) == content(second) == b"other"
    os.close(first)
    os.close(second)
    peer.close()
    assert [acknowledged(link), acknowledged(link)] in ([True, True], [False, False])
    assert not is_open(one)
    assert not is_open(other)


def test_what_follows_an_acknowledgement_is_found_without_knowing_whether_one_comes(
    form: Form,
) -> None:
    mine, peer = socket.socketpair()
    with peer, Conduit.from_conn(mine) as link:
        mine.close()
        link.transfer(memory(b"sent"), data=b"\1")
        [number] = form.recvfds(peer, 1)
        os.close(number)
        # As Connection.send_bytes() does: the length, which begins with no "A" below a gigabyte.
        peer.sendall(struct.pack("!i", 6) + b"answer")
        head = link.receive(max_data=4).data
        if head[:1] == b"A":
            head = head[1:]
        while len(head) < 4:
            head += link.receive(max_data=4 - len(head)).data
        assert struct.unpack("!i", head) == (6,)
        assert link.receive(max_data=6).data == b"answer"


def test_recvfds_of_multiprocessing_wants_the_count_a_plain_transfer_does_not_say(
    wired: Wired, form: Form
) -> None:
    link, peer = wired
    number = memory()
    link.transfer_fd(number)
    with pytest.raises(AssertionError, match="Len is"):
        form.recvfds(peer, 1)
    # It leaks what it refuses, under the lowest free number.
    os.close(number)


def test_send_handle_of_multiprocessing_to_receive_conn(wired: Wired) -> None:
    link, peer = wired
    one, other = socket.socketpair()
    with one, other:
        sending = Call(reduction.send_handle, peer, one.fileno(), os.getpid())
        with link.receive_conn() as arrived:
            link.transfer(data=b"A")
            arrived.sendall(b"handled")
            assert other.recv(64) == b"handled"
        sending.result()


def test_the_end_of_each_is_told_by_the_other(wired: Wired, form: Form) -> None:
    link, peer = wired
    link.close()
    assert socket.recv_fds(peer, 1, 1) == (b"", [], 0, None)
    with pytest.raises(EOFError):
        form.recvfds(peer, 1)


def test_the_end_of_a_plain_socket_is_a_closed_peer(wired: Wired) -> None:
    link, peer = wired
    peer.close()
    with pytest.raises(conduit.PeerClosedError):
        link.receive_fd()
