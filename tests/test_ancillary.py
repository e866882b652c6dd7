"""Control messages that are not descriptors come with the ones that are."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from helpers import as_int, borrowed, memory, open_descriptors, room_for, send
from sides import (
    ALL_KINDS,
    PACKET_KINDS,
    SETGID,
    SETUID,
    SYS_ADMIN,
    beside,
    files,
    identity,
    is_at_eof,
    is_capable,
)

from conduit import Conduit, Error, PeerClosedError

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]

SCM_CREDENTIALS = 2

# From Linux's asm-generic/socket.h; Python's socket module names only the first.
OPTIONS = {
    "SO_PASSCRED": 16,
    "SO_TIMESTAMP": 29,
    "SO_PASSSEC": 34,
    "SO_TIMESTAMPNS": 35,
    "SO_PASSPIDFD": 76,
    "SO_INQ": 84,
}


def switch_on(number: int, name: str) -> bool:
    """Ask for a kind of control message; whether the system knows it."""
    with borrowed(number) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, OPTIONS[name], 1)
        except OSError as exc:
            if exc.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                raise
            return False
    return True


@pytest.fixture(params=[[name] for name in OPTIONS] + [list(OPTIONS)], ids="+".join)
def asked(request: pytest.FixtureRequest, wired: Wired) -> list[str]:
    """The kinds of control messages that the conduit's socket asks for."""
    names = [name for name in request.param if switch_on(wired[0].fileno(), name)]
    if not names:
        pytest.skip(f"this system knows no {request.param[0]}")
    return names


@pytest.mark.hazard("X2")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 253])
def test_descriptors_come_alone_out_of_all_that_came(
    wired: Wired, asked: list[str], count: int
) -> None:
    link, peer = wired
    before = open_descriptors()
    number = memory()
    send(peer, [number] * count, b"hello")
    with link.receive() as message:
        assert message.data == b"hello"
        assert [identity(fd.fileno()) for fd in message.fds] == [identity(number)] * count
    os.close(number)
    assert open_descriptors() == before


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_plain_transfer_comes_alone_out_of_all_that_came(wired: Wired, asked: list[str]) -> None:
    link, peer = wired
    before = open_descriptors()
    number = memory()
    for _ in range(3):
        send(peer, [number])
    received = link.receive_fd()
    assert identity(received) == identity(number)
    with link.receive_file() as file, link.receive() as message:
        assert identity(file.fileno()) == identity(message.fds[0].fileno()) == identity(number)
    os.close(received)
    os.close(number)
    assert open_descriptors() == before


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_there_is_a_control_message_of_each_kind_that_was_asked_for(
    wired: Wired, asked: list[str]
) -> None:
    """What the other tests are worth: the system does send what they ask for."""
    link, peer = wired
    send(peer, [], b"hello")
    with borrowed(link.fileno()) as sock:
        _, control, _, _ = sock.recvmsg(100, 10_000)
    sent = {kind for level, kind, data in control}
    for _, kind, data in control:
        if kind == 4:
            os.close(int.from_bytes(data, "little", signed=True))
    # A label comes only where a security module gives one, a time stamp only with packets.
    expected = {SCM_CREDENTIALS for name in asked if name == "SO_PASSCRED"}
    expected |= {4 for name in asked if name == "SO_PASSPIDFD"}
    assert expected <= sent


@pytest.mark.hazard("D1")
@pytest.mark.parametrize("kind", ALL_KINDS[:2])
def test_the_end_is_told_though_control_messages_come_with_it(
    wired: Wired, asked: list[str]
) -> None:
    link, peer = wired
    send(peer, [], b"last")
    peer.close()
    assert link.receive().data == b"last"
    for _ in range(2):
        with pytest.raises(PeerClosedError):
            link.receive()


@pytest.mark.parametrize("kind", PACKET_KINDS)
def test_an_empty_packet_with_control_messages_is_a_message(wired: Wired, asked: list[str]) -> None:
    link, peer = wired
    number = memory()
    send(peer, [], b"")
    empty = link.receive()
    assert (empty.data, empty.fds) == (b"", ())
    send(peer, [number], b"")
    with link.receive() as message:
        assert message.data == b""
        assert len(message.fds) == 1
    os.close(number)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_everything_is_closed_when_a_message_is_refused(wired: Wired, asked: list[str]) -> None:
    link, peer = wired
    before = open_descriptors()
    out, into = os.pipe()
    send(peer, [into, into])
    os.close(into)
    with pytest.raises(Error):
        link.receive(max_fds=1)
    assert is_at_eof(out)
    assert open_descriptors() == before


@pytest.mark.hazard("X3")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_full_table_is_told_whatever_else_came(wired: Wired, asked: list[str], room: int) -> None:
    link, peer = wired
    before = open_descriptors()
    out, into = os.pipe()
    send(peer, [into] * 3)
    os.close(into)
    with room_for(room), pytest.raises(Error) as caught:
        link.receive()
    assert caught.value.errno == errno.EMFILE
    assert is_at_eof(out)
    assert open_descriptors() == before


@pytest.mark.hazard("K2")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("count", [0, 2])
def test_a_pidfd_there_is_no_room_for_harms_no_message(wired: Wired, count: int) -> None:
    link, peer = wired
    if not switch_on(link.fileno(), "SO_PASSPIDFD"):
        pytest.skip("this system knows no SO_PASSPIDFD")
    number = memory()
    send(peer, [number] * count, b"hello")
    with room_for(count), link.receive() as message:
        assert message.data == b"hello"
        assert len(message.fds) == count
    os.close(number)


@pytest.mark.hazard("T3")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_pidfd_that_was_sent_as_a_descriptor_is_one(wired: Wired) -> None:
    link, peer = wired
    switch_on(link.fileno(), "SO_PASSPIDFD")
    number = os.pidfd_open(os.getpid())
    send(peer, [number])
    os.close(number)
    with link.receive() as message:
        assert len(message.fds) == 1


@pytest.mark.hazard("X4")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("awaited", [True, False], ids=["passcred", "plain"])
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_credentials_that_the_sender_adds_are_never_taken_for_descriptors(
    wired: Wired, awaited: bool, first: bool
) -> None:
    link, peer = wired
    if awaited:
        assert switch_on(link.fileno(), "SO_PASSCRED")
    numbers = files(2)
    credentials = struct.pack("iII", os.getpid(), os.getuid(), os.getgid())
    control = [
        (socket.SOL_SOCKET, SCM_CREDENTIALS, credentials),
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(as_int, numbers))),
    ]
    peer.sendmsg([b"hello"], control if first else control[::-1])
    peer.sendmsg([b"alone"], control[:1])
    with link.receive(max_data=5) as message:
        assert message.data == b"hello"
        received = [identity(fd.fileno()) for fd in message.fds]
        assert received == [identity(number) for number in numbers]
    alone = link.receive()
    assert (alone.data, alone.fds) == (b"alone", ())
    for number in numbers:
        os.close(number)


@pytest.mark.hazard("G12")
@pytest.mark.skipif(
    not is_capable(SETUID, SETGID, SYS_ADMIN), reason="only root can claim to be another"
)
def test_credentials_that_look_like_open_numbers_close_nothing(wired: Wired) -> None:
    link, peer = wired
    assert switch_on(link.fileno(), "SO_PASSCRED")
    witness = memory()
    peer.sendmsg(
        [b"hello"],
        [(socket.SOL_SOCKET, SCM_CREDENTIALS, struct.pack("iII", os.getpid(), witness, witness))],
    )
    message = link.receive()
    assert (message.data, message.fds) == (b"hello", ())
    os.close(witness)


@pytest.mark.hazard("B1")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_several_control_messages_of_descriptors_are_one_message(wired: Wired) -> None:
    link, peer = wired
    numbers = files(5)
    peer.sendmsg(
        [b"hello"],
        [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(as_int, part)))
            for part in (numbers[:2], numbers[2:])
        ],
    )
    with link.receive() as message:
        received = [identity(fd.fileno()) for fd in message.fds]
        assert received == [identity(number) for number in numbers]
    for number in numbers:
        os.close(number)


@pytest.mark.hazard("A1")
def test_all_that_can_come_from_another_process_leaves_only_descriptors(ends: Ends) -> None:
    one, other = ends
    for name in OPTIONS:
        switch_on(other.fileno(), name)

    def transfer() -> None:
        one.transfer(*files(253), data=b"hello")

    with beside(transfer), other.receive() as message:
        assert message.data == b"hello"
        assert len(message.fds) == 253
        assert {fd.kind for fd in message.fds} == {"memfd"}
