"""One descriptor from end to end: who owns it when, what crosses the wire, what is refused."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drivers import only_blocking
from helpers import (
    GENEROUS,
    PORTABLE,
    Call,
    as_int,
    content,
    fill,
    handling,
    is_open,
    is_private,
    memory,
    not_traced,
    open_descriptors,
    room_for,
    run_python,
    same_file,
    send,
)

import conduit
from conduit import Conduit, Error, ErrType

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]


class Storm(Exception):
    """What the signal handler raises."""


def test_a_number_is_moved(ends: Ends) -> None:
    number = memory(b"moved")
    ends[0].transfer_fd(number)
    assert not is_open(number)
    arrived = ends[1].receive_fd()
    assert content(arrived) == b"moved"
    os.close(arrived)


@pytest.mark.hazard("E5")
def test_a_number_is_shared_with_keep(ends: Ends) -> None:
    number = memory(b"shared")
    ends[0].transfer_fd(number, keep=True)
    assert is_open(number)
    arrived = ends[1].receive_fd()
    assert arrived != number
    os.lseek(number, 3, os.SEEK_SET)
    assert os.read(arrived, 3) == b"red", "they share one offset"
    os.close(number)
    os.close(arrived)


def test_a_file_is_moved_and_knows_it(ends: Ends, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"file")
    file = open(tmp_path / "f", "rb")
    ends[0].transfer_file(file)
    assert file.closed
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"file"


def test_a_file_is_shared_with_keep(ends: Ends, tmp_path: Path) -> None:
    with open(tmp_path / "f", "w+b") as file:
        ends[0].transfer_file(file, keep=True)
        assert not file.closed
        with ends[1].receive_file() as arrived:
            arrived.write(b"by the receiver")
        assert file.read() == b""
        file.seek(0)
        assert file.read() == b"by the receiver"


def test_a_socket_is_moved_and_knows_it(ends: Ends) -> None:
    one, other = socket.socketpair()
    with other:
        ends[0].transfer_conn(one)
        assert one.fileno() == -1
        with ends[1].receive_conn() as arrived:
            arrived.sendall(b"hello")
            assert other.recv(5) == b"hello"
        assert other.recv(5) == b"", "no copy is left here"


def test_a_socket_is_shared_with_keep(ends: Ends) -> None:
    one, other = socket.socketpair()
    with one, other:
        ends[0].transfer_conn(one, keep=True)
        with ends[1].receive_conn() as arrived:
            arrived.sendall(b"a")
            one.sendall(b"b")
            assert other.recv(2, socket.MSG_WAITALL) == b"ab"


def test_a_conduit_travels_through_a_conduit(ends: Ends) -> None:
    one, other = Conduit.pair()
    with other:
        ends[0].transfer_conn(one)
        assert one.closed
        with ends[1].receive_conn() as arrived, Conduit.from_conn(arrived) as link:
            link.transfer_fd(memory(b"nested"))
            with other.receive_file() as file:
                assert file.read() == b"nested"


@pytest.mark.hazard("P4", "Y7")
def test_a_moved_object_never_closes_its_number_again(ends: Ends, tmp_path: Path) -> None:
    file = open(tmp_path / "f", "wb")
    number = file.fileno()
    ends[0].transfer_file(file)
    innocent = memory(b"innocent")
    assert innocent == number, "the lowest free number is given out first"
    file.close()
    del file
    gc.collect()
    assert content(innocent) == b"innocent"
    os.close(innocent)
    os.close(ends[1].receive_fd())


@pytest.mark.hazard("P4", "Y7")
def test_a_moved_socket_never_closes_its_number_again(ends: Ends) -> None:
    sock = socket.socket()
    number = sock.fileno()
    ends[0].transfer_conn(sock)
    innocent = memory(b"innocent")
    assert innocent == number, "the lowest free number is given out first"
    sock.close()
    del sock
    gc.collect()
    assert content(innocent) == b"innocent"
    os.close(innocent)
    os.close(ends[1].receive_fd())


@pytest.mark.hazard("B1")
def test_the_wire_is_one_zero_byte_and_one_message_of_rights(wired: Wired) -> None:
    link, peer = wired
    link.transfer_fd(memory(b"wire"))
    data, ancillary, flags, _ = peer.recvmsg(64, socket.CMSG_SPACE(4096))
    assert data == b"\0"
    [(level, kind, rights)] = ancillary
    assert (level, kind, len(rights)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, 4)
    assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
    number = int.from_bytes(rights, "little" if as_int(1)[0] else "big")
    assert content(number) == b"wire"
    os.close(number)


def test_any_one_byte_is_a_plain_transfer(wired: Wired) -> None:
    link, peer = wired
    number = memory(b"x")
    send(peer, [number], b"x")
    os.close(number)
    with link.receive_file() as arrived:
        assert arrived.read() == b"x"


def test_a_packet_without_bytes_may_bring_a_descriptor() -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, peer, Conduit(mine.fileno()) as link:
        number = memory(b"empty")
        send(peer, [number], b"")
        os.close(number)
        with link.receive_file() as arrived:
            assert arrived.read() == b"empty"


def test_datagram_sockets_carry_descriptors_too() -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with mine, peer, Conduit(mine.fileno()) as link, Conduit(peer.fileno()) as other:
        link.transfer_fd(memory(b"datagram"))
        with other.receive_file() as arrived:
            assert arrived.read() == b"datagram"
        number = memory(b"as Go does")
        send(peer, [number], b"")
        os.close(number)
        with link.receive_file() as arrived:
            assert arrived.read() == b"as Go does"


@pytest.mark.hazard("B22")
def test_a_closed_datagram_peer_is_a_closed_peer() -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with mine, Conduit(mine.fileno()) as link:
        peer.close()
        number = memory()
        for _ in range(2):
            with pytest.raises(conduit.PeerClosedError):
                link.transfer_fd(number)
        os.close(number)


def test_messages_arrive_in_order(ends: Ends) -> None:
    for i in range(20):
        ends[0].transfer_fd(memory(b"%d" % i))
    for i in range(20):
        with ends[1].receive_file() as arrived:
            assert arrived.read() == b"%d" % i


def test_both_ends_send(ends: Ends) -> None:
    ends[0].transfer_fd(memory(b"there"))
    ends[1].transfer_fd(memory(b"and back"))
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"there"
    with ends[0].receive_file() as arrived:
        assert arrived.read() == b"and back"


# What is refused, before anything is sent


@pytest.mark.hazard("P17")
@pytest.mark.parametrize("wrong", [True, False, 1.5, 1.0, "1", b"1", None, [1]])
def test_a_descriptor_is_an_int(ends: Ends, wrong: object) -> None:
    with pytest.raises(conduit.DescriptorTypeError) as caught:
        ends[0].transfer_fd(wrong)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    assert caught.value.type is ErrType.NO_FD
    assert_nothing_was_sent(ends[1])


def test_an_object_with_fileno_is_no_int(ends: Ends) -> None:
    with open(os.devnull) as file, pytest.raises(TypeError):
        ends[0].transfer_fd(file)  # type: ignore[arg-type]
    assert_nothing_was_sent(ends[1])


@pytest.mark.hazard("P17")
@pytest.mark.parametrize("wrong", [-1, -2, -(2**31), 2**31, 2**63, 2**64 + 1, -(2**64)])
def test_a_number_that_cannot_be_a_descriptor_is_no_fd(ends: Ends, wrong: int) -> None:
    with pytest.raises(Error) as caught:
        ends[0].transfer_fd(wrong)
    assert caught.value.type is ErrType.NO_FD
    assert not isinstance(caught.value, TypeError)
    assert_nothing_was_sent(ends[1])


@pytest.mark.hazard("G9", "R4")
def test_a_conduit_does_not_carry_itself(ends: Ends) -> None:
    with pytest.raises(Error) as caught:
        ends[0].transfer_fd(ends[0].fileno())
    assert caught.value.type is ErrType.FAILED_TRANSFER
    with pytest.raises(Error):
        ends[0].transfer_conn(ends[0])
    assert not ends[0].closed
    assert_nothing_was_sent(ends[1])


def test_a_descriptor_the_system_refuses_stays_here(ends: Ends) -> None:
    number = memory()
    os.close(number)
    for keep in (False, True):
        with pytest.raises(Error) as caught:
            ends[0].transfer_fd(number, keep=keep)
        assert (caught.value.type, caught.value.errno) == (ErrType.FAILED_TRANSFER, errno.EBADF)
    assert_nothing_was_sent(ends[1])
    ends[0].transfer_fd(memory(b"after"))
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"after"


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def udp_pair() -> tuple[socket.socket, socket.socket]:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for sock in (one, other):
        sock.bind(("127.0.0.1", 0))
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    return one, other


@pytest.mark.hazard("B9")
@pytest.mark.parametrize("make", [tcp_pair, udp_pair])
def test_only_unix_sockets_are_trusted_with_a_descriptor(
    make: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    one, other = make()
    number = memory()
    with one, other, Conduit(one.fileno()) as link:
        with pytest.raises(Error) as caught:
            link.transfer_fd(number)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.errno == errno.EAFNOSUPPORT
        with pytest.raises(Error) as caught:
            link.receive_fd()
        assert caught.value.errno == errno.EAFNOSUPPORT
        assert is_open(number)
        one.send(b"next")
        assert other.recv(9) == b"next", "not a byte was sent"
    os.close(number)


@pytest.mark.hazard("B9")
def test_what_is_no_socket_is_no_transport() -> None:
    reader, writer = os.pipe()
    number, file = memory(), memory()
    for end in (reader, writer, file):
        with pytest.raises(Error) as caught:
            Conduit(end).transfer_fd(number)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.errno == errno.ENOTSOCK
        with pytest.raises(Error) as caught:
            Conduit(end).receive_fd()
        assert caught.value.errno == errno.ENOTSOCK
        assert is_open(number)
    for end in (reader, writer, file, number):
        os.close(end)


@pytest.mark.hazard("L6")
def test_a_number_nobody_has_is_no_transport() -> None:
    number = memory()
    os.close(number)
    with pytest.raises(Error) as caught:
        Conduit(number).receive_fd()
    assert (caught.value.type, caught.value.errno) == (ErrType.FAILED_TRANSFER, errno.EBADF)


def test_a_listening_or_unconnected_socket_carries_nothing(kind: int, tmp_path: Path) -> None:
    number = memory()
    with socket.socket(socket.AF_UNIX, kind) as sock:
        link = Conduit(sock.fileno())
        for _ in range(2):
            with pytest.raises(Error) as caught:
                link.transfer_fd(number)
            assert caught.value.type is ErrType.FAILED_TRANSFER
            with pytest.raises(Error) as caught:
                link.receive_fd()
            assert caught.value.type is ErrType.FAILED_TRANSFER
            assert is_open(number)
            if not sock.getsockname():
                sock.bind(str(tmp_path / "listener"))
                sock.listen()
    os.close(number)


def test_what_fails_leaves_everything_open(ends: Ends, tmp_path: Path) -> None:
    ends[1].close()
    number = memory(b"number")
    (tmp_path / "f").write_bytes(b"file")
    one, other = socket.socketpair()
    with one, other, open(tmp_path / "f", "rb") as file:
        assert file.read(1) == b"f"
        with pytest.raises(conduit.PeerClosedError):
            ends[0].transfer_fd(number)
        with pytest.raises(conduit.PeerClosedError):
            ends[0].transfer_file(file)
        with pytest.raises(conduit.PeerClosedError):
            ends[0].transfer_conn(one)
        assert content(number) == b"number"
        assert file.read() == b"ile"
        one.send(b"x")
        assert other.recv(1) == b"x"
    os.close(number)


# What arrives


@pytest.mark.hazard("F6")
def test_what_arrives_is_close_on_exec(ends: Ends) -> None:
    one, other = socket.socketpair()
    with other:
        ends[0].transfer_fd(memory())
        ends[0].transfer_fd(memory())
        ends[0].transfer_conn(one)
        number = ends[1].receive_fd()
        with ends[1].receive_file() as file, ends[1].receive_conn() as conn:
            for each in (number, file.fileno(), conn.fileno()):
                assert is_private(each)
        os.close(number)


def test_all_the_library_opens_is_close_on_exec(ends: Ends) -> None:
    before = open_descriptors()
    receiving = Call(ends[0].receive_fd)
    assert receiving.is_waiting()
    made = set(open_descriptors()) - set(before)
    assert all(map(is_private, made))
    ends[1].transfer_fd(memory())
    os.close(receiving.result())


@pytest.mark.hazard("F6")
def test_no_child_inherits_what_arrives_while_it_is_made(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if PORTABLE:
        # Python gives the GIL up for vfork(), which it uses on Linux alone. A system without
        # MSG_CMSG_CLOEXEC has only fork(), with the GIL held.
        monkeypatch.setattr(subprocess, "_USE_VFORK", False)
    path = tmp_path / "secret"
    path.touch()
    begun, done = threading.Event(), threading.Event()

    def receive() -> None:
        while not done.is_set():
            number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            ends[0].transfer_fd(number)
            os.close(ends[1].receive_fd())
            begun.set()

    receiving = Call(receive)
    try:
        assert begun.wait(GENEROUS)
        for _ in range(30):
            listing = subprocess.run(
                ["ls", "-l", "/proc/self/fd"],
                close_fds=False,
                stdout=subprocess.PIPE,
                check=True,
            )
            assert str(path).encode() not in listing.stdout
    finally:
        done.set()
    receiving.result()


@pytest.mark.hazard("E31")
def test_what_arrives_is_never_a_standard_stream() -> None:
    program = """
import os, sys, conduit
report = os.dup(1)
for number in (0, 1, 2):
    os.close(number)
one, other = conduit.Conduit.pair()
assert min(one.fileno(), other.fileno()) > 2
sent = os.memfd_create("sent")
assert sent < 3
os.write(sent, b"arrived")
one.transfer_fd(sent, keep=True)
one.transfer_fd(sent, keep=True)
one.transfer_fd(os.dup(sent), keep=False)
os.close(sent)
arrived = [other.receive_fd(), other.receive_file().fileno()]
with other.receive_file() as file:
    arrived.append(file.fileno())
    os.write(report, b"ok" if min(arrived) > 2 and not {0, 1, 2} & set(
        int(n) for n in os.listdir("/proc/self/fd") if int(n) != 0) else repr(arrived).encode())
os._exit(0)
"""
    assert run_python(program).stdout == "ok"


@pytest.mark.hazard("A15")
def test_a_message_without_a_descriptor_is_an_error_and_the_next_arrives(wired: Wired) -> None:
    link, peer = wired
    peer.send(b"\0")
    for receive in (link.receive_fd, link.receive_file, link.receive_conn):
        with pytest.raises(Error) as caught:
            receive()
        assert caught.value.type is ErrType.BAD_CTRL_MESG
        assert not isinstance(caught.value, EOFError)
        peer.send(b"\0")
    with pytest.raises(Error):
        link.receive_fd()
    number = memory(b"next")
    send(peer, [number])
    os.close(number)
    with link.receive_file() as arrived:
        assert arrived.read() == b"next"


@pytest.mark.hazard("A2")
@pytest.mark.parametrize("count", [2, 3, conduit.MAX_FDS])
def test_more_than_one_descriptor_is_an_error_and_all_are_closed(wired: Wired, count: int) -> None:
    link, peer = wired
    for receive in (link.receive_fd, link.receive_file, link.receive_conn):
        reader, writer = os.pipe()
        send(peer, [writer] * count)
        os.close(writer)
        with pytest.raises(Error) as caught:
            receive()
        assert caught.value.type is ErrType.BAD_CTRL_MESG
        assert str(count) in str(caught.value)
        assert os.read(reader, 1) == b"", "every copy of the writing end is closed"
        os.close(reader)


@pytest.mark.hazard("A10")
def test_a_longer_packet_is_an_error_and_its_descriptor_is_closed() -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, peer, Conduit(mine.fileno()) as link:
        reader, writer = os.pipe()
        send(peer, [writer], b"two")
        os.close(writer)
        with pytest.raises(Error) as caught:
            link.receive_fd()
        assert caught.value.type is ErrType.BAD_CTRL_MESG
        assert caught.value.errno == errno.EMSGSIZE
        assert os.read(reader, 1) == b""
        os.close(reader)


@pytest.mark.hazard("X1")
@pytest.mark.parametrize("option", ["SO_PASSCRED", "SO_TIMESTAMP", "SO_PASSSEC", "SO_PASSPIDFD"])
def test_other_control_messages_do_not_crowd_a_descriptor_out(wired: Wired, option: str) -> None:
    link, peer = wired
    # Linux's numbers for what Python has no name for.
    number = getattr(socket, option, {"SO_TIMESTAMP": 29, "SO_PASSPIDFD": 76}.get(option, 34))
    with socket.socket(fileno=os.dup(link.fileno())) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, number, 1)
        except OSError as exc:
            pytest.skip(f"{option}: {exc}")
    sent = memory(b"with more")
    send(peer, [sent])
    os.close(sent)
    with link.receive_file() as arrived:
        assert arrived.read() == b"with more"
    peer.close()
    with pytest.raises(conduit.PeerClosedError):
        link.receive_fd()


@pytest.mark.hazard("D1")
def test_an_empty_packet_is_not_the_end() -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, peer, Conduit(mine.fileno()) as link:
        peer.send(b"")
        with pytest.raises(Error) as caught:
            link.receive_fd()
        assert caught.value.type is ErrType.BAD_CTRL_MESG
        assert not isinstance(caught.value, conduit.PeerClosedError)
        number = memory(b"more")
        send(peer, [number])
        os.close(number)
        with link.receive_file() as arrived:
            assert arrived.read() == b"more"
        peer.close()
        with pytest.raises(conduit.PeerClosedError) as closed:
            link.receive_fd()
        assert closed.value.type is ErrType.FAILED_TRANSFER


def test_the_end_is_told_every_time(ends: Ends) -> None:
    ends[1].close()
    for receive in (ends[0].receive_fd, ends[0].receive_file, ends[0].receive_conn):
        with pytest.raises(conduit.PeerClosedError) as caught:
            receive()
        assert isinstance(caught.value, EOFError)
        assert caught.value.errno is None


@pytest.mark.hazard("F22")
def test_what_was_sent_before_the_end_arrives(ends: Ends) -> None:
    ends[0].transfer_fd(memory(b"1"))
    ends[0].transfer_fd(memory(b"2"))
    ends[0].close()
    for expected in (b"1", b"2"):
        with ends[1].receive_file() as arrived:
            assert arrived.read() == expected
    with pytest.raises(conduit.PeerClosedError):
        ends[1].receive_fd()


@pytest.mark.hazard("D5", "L4")
def test_what_was_sent_before_a_reset_arrives(ends: Ends) -> None:
    ends[0].transfer_fd(memory(b"1"))
    ends[0].transfer_fd(memory(b"2"))
    ends[1].transfer_fd(memory(b"never read, so the close resets"))
    ends[0].close()
    for expected in (b"1", b"2"):
        with ends[1].receive_file() as arrived:
            assert arrived.read() == expected
    for _ in range(2):
        with pytest.raises(conduit.PeerClosedError):
            ends[1].receive_fd()


@pytest.mark.hazard("D4")
def test_a_shut_down_peer_sends_no_more_but_receives(wired: Wired) -> None:
    link, peer = wired
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(conduit.PeerClosedError):
        link.receive_fd()
    link.transfer_fd(memory())
    data, numbers, _, _ = socket.recv_fds(peer, 1, 1)
    assert data == b"\0"
    os.close(numbers[0])


@pytest.mark.hazard("R1")
@pytest.mark.parametrize("room", [0, 1])
def test_a_full_table_is_named_and_nothing_is_left(wired: Wired, room: int) -> None:
    link, peer = wired
    reader, writer = os.pipe()
    send(peer, [writer] * (room + 1))
    os.close(writer)
    with room_for(room), pytest.raises(Error) as caught:
        link.receive_fd()
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert caught.value.errno == errno.EMFILE
    assert "RLIMIT_NOFILE" in str(caught.value)
    assert os.read(reader, 1) == b""
    os.close(reader)
    number = memory(b"later")
    send(peer, [number])
    os.close(number)
    with link.receive_file() as arrived:
        assert arrived.read() == b"later"


def test_a_full_table_stops_no_transfer(ends: Ends) -> None:
    number = memory(b"sent all the same")
    with room_for(0):
        ends[0].transfer_fd(number)
        with ends[1].receive_file() as arrived:
            assert arrived.read() == b"sent all the same"


@pytest.mark.hazard("F31")
@pytest.mark.skipif(PORTABLE, reason="Linux without MSG_NOSIGNAL has no SO_NOSIGPIPE either")
def test_a_dead_peer_is_no_signal_even_by_default() -> None:
    program = """
import os, signal, conduit
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    one, other = conduit.Conduit.pair(type=kind)
    other.close()
    try:
        one.transfer_fd(0)
    except conduit.PeerClosedError:
        os.fstat(0)
        print("told")
    one.close()
"""
    done = run_python(program)
    assert (done.returncode, done.stdout) == (0, "told\ntold\n"), done.stderr


# Numbers that change hands while a sender waits


def reopened(path: Path, number: int) -> int:
    """The same file opened anew, under the number another had."""
    other = os.open(path, os.O_RDWR)
    os.dup2(other, number, inheritable=False)
    os.close(other)
    return number


@pytest.mark.hazard("F30")
@pytest.mark.parametrize("reuse", ["another file", "the same file", "another eventfd", "nothing"])
def test_a_number_reused_while_the_sender_waits_is_left_alone(
    wired: Wired, tmp_path: Path, reuse: str
) -> None:
    link, peer = wired
    path = tmp_path / "f"
    path.write_bytes(b"the right file")
    eventfd = reuse == "another eventfd"
    if PORTABLE and reuse in ("the same file", "another eventfd"):
        pytest.skip("only Linux tells open files on one inode apart")
    number = os.eventfd(7) if eventfd else os.open(path, os.O_RDWR)
    queued = fill(link.fileno())
    sending = Call(link.transfer_fd, number)
    assert sending.is_waiting()
    if reuse == "nothing":
        os.close(number)
    elif reuse == "the same file":
        reopened(path, number)
    else:
        new = os.eventfd(9) if eventfd else memory(b"innocent")
        os.dup2(new, number, inheritable=False)
        os.close(new)
    for _ in range(queued):
        peer.recv(1)
    with pytest.raises(Error) as caught:
        sending.result()
    assert caught.value.type is ErrType.FAILED_CLOSE
    with Conduit(peer.fileno()) as other:
        arrived = other.receive_fd()
    if eventfd:
        assert os.eventfd_read(arrived) == 7
        assert os.eventfd_read(number) == 9
    else:
        assert content(arrived) == b"the right file"
        assert reuse == "nothing" or is_open(number)
        assert reuse != "another file" or content(number) == b"innocent"
    os.close(arrived)
    if reuse == "nothing":
        assert not is_open(number)
    else:
        os.close(number)


def test_a_file_closed_while_the_sender_waits_is_sent_and_its_number_left_alone(
    wired: Wired, tmp_path: Path
) -> None:
    link, peer = wired
    (tmp_path / "f").write_bytes(b"the right file")
    file = open(tmp_path / "f", "rb")
    queued = fill(link.fileno())
    sending = Call(link.transfer_file, file)
    assert sending.is_waiting()
    number = file.fileno()
    file.close()
    innocent = os.dup2(0, number, inheritable=False)
    for _ in range(queued):
        peer.recv(1)
    sending.result()
    with Conduit(peer.fileno()) as other, other.receive_file() as arrived:
        assert arrived.read() == b"the right file"
    assert is_open(innocent)
    os.close(innocent)


def test_a_sender_that_waited_closes_its_number(wired: Wired) -> None:
    link, peer = wired
    makers: list[Callable[[], int]] = [lambda: memory(b"waited")]
    if not PORTABLE:
        # Elsewhere nothing tells one from another, and it would be left open.
        makers.append(lambda: os.eventfd(1))
    for make in makers:
        number = make()
        queued = fill(link.fileno())
        sending = Call(link.transfer_fd, number)
        assert sending.is_waiting()
        for _ in range(queued):
            peer.recv(1)
        sending.result()
        assert not is_open(number)
        with Conduit(peer.fileno()) as other:
            os.close(other.receive_fd())


# Signal handlers that raise at any instruction


fired = threading.Event()


def storm(signum: Any, frame: Any) -> None:
    fired.set()
    raise Storm


def wait_for_the_storm() -> None:
    # Taking the GIL anew makes CPython 3.11 see a signal that came just as it took it before, and
    # where Python drops an exception, as in a __del__, the wait ends too.
    while not fired.is_set():
        os.sched_yield()


@pytest.mark.slow
@pytest.mark.hazard("P2")
@not_traced
@only_blocking
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["file", "text", "conn"])
def test_a_signal_handler_that_raises_leaks_nothing_that_is_received(ends: Ends, what: str) -> None:
    sock, other = socket.socketpair()
    receive: dict[str, Callable[[], Any]] = {
        "file": ends[1].receive_file,
        "text": lambda: ends[1].receive_file("r", encoding="utf-8"),
        "conn": ends[1].receive_conn,
    }
    storms = 0
    arrived = None
    with sock, other:
        open_before = len(open_descriptors())
        for round_ in range(1500):
            fired.clear()
            ends[0].transfer_fd(sock.fileno(), keep=True)
            if what == "text":
                os.close(ends[1].receive_fd())
                ends[0].transfer_fd(os.open(__file__, os.O_RDONLY))
            with handling(signal.SIGALRM, storm):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + round_ % 90))
                    try:
                        arrived = receive[what]()
                        wait_for_the_storm()
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Storm:
                    storms += 1
            ends[1].timeout = 0
            if arrived is not None:
                arrived.close()
            else:
                try:
                    os.close(ends[1].receive_fd())
                except conduit.WouldBlockError:
                    pass
            ends[1].timeout = None
            arrived = None
            if round_ % 100 == 99:
                gc.collect()
                assert len(open_descriptors()) == open_before
    assert storms > 1400


@pytest.mark.hazard("P2")
@not_traced
@only_blocking
def test_a_signal_handler_that_raises_leaves_a_sender_all_or_nothing(ends: Ends) -> None:
    reader, writer = os.pipe()
    for round_ in range(1000):
        fired.clear()
        number = os.dup(writer)
        with handling(signal.SIGALRM, storm):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + round_ % 40))
                try:
                    ends[0].transfer_fd(number)
                    wait_for_the_storm()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Storm:
                pass
        ends[1].timeout = 0
        try:
            arrived = ends[1].receive_fd()
        except conduit.WouldBlockError:
            assert is_open(number), "not sent, so not closed"
            os.close(number)
        else:
            # What arrives may be given the number that was closed.
            assert arrived == number or not is_open(number), "sent, so closed"
            assert same_file(arrived, writer)
            os.close(arrived)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


# Many threads


@pytest.mark.hazard("F20", "FT", "H1")
def test_each_message_goes_to_exactly_one_receiver(ends: Ends) -> None:
    senders, receivers, each = 4, 4, 60

    def transmit(sender: int) -> None:
        for i in range(each):
            ends[0].transfer_fd(memory(b"%d:%d" % (sender, i)))

    def collect() -> list[bytes]:
        contents = []
        for _ in range(senders * each // receivers):
            with ends[1].receive_file() as arrived:
                contents.append(arrived.read())
        return contents

    collecting = [Call(collect) for _ in range(receivers)]
    sending = [Call(transmit, sender) for sender in range(senders)]
    for call in sending:
        call.result()
    got = [item for call in collecting for item in call.result()]
    assert sorted(got) == sorted(b"%d:%d" % (s, i) for s in range(senders) for i in range(each))


def assert_nothing_was_sent(link: Conduit) -> None:
    before = link.timeout
    link.timeout = 0
    with pytest.raises(conduit.WouldBlockError):
        link.receive_fd()
    link.timeout = before
