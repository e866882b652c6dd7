"""Every kind of error, reached through the public API, and what an error tells."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import socket
from collections.abc import Callable

import pytest
from helpers import is_open, memory, room_for, send

import conduit
from conduit import Conduit, Error, ErrType

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]


class Stubborn:
    """A file whose close() fails, having closed."""

    def __init__(self) -> None:
        self.number = memory(b"stubborn")
        self.closings = 0

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        self.closings += 1
        os.close(self.number)
        raise OSError(errno.EIO, "the disk is on fire")


def test_error_types_are_those_of_the_go_library_in_its_order() -> None:
    assert [(member.name, member.value) for member in ErrType] == [
        ("UNKNOWN", 0),
        ("NO_FD", 1),
        ("FAILED_TRANSFER", 2),
        ("FAILED_CLOSE", 3),
        ("BAD_CLONE", 4),
        ("BAD_CTRL_MESG", 5),
    ]


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (conduit.Error, OSError),
        (conduit.PeerClosedError, EOFError),
        (conduit.TransferTimeoutError, TimeoutError),
        (conduit.WouldBlockError, BlockingIOError),
        (conduit.DescriptorTypeError, TypeError),
    ],
)
def test_each_error_is_an_error_and_its_builtin(
    error: type[Error], builtin: type[Exception]
) -> None:
    assert issubclass(error, Error)
    assert issubclass(error, builtin)
    assert issubclass(error, OSError)


def test_no_fd_is_a_number_that_cannot_be_a_descriptor(ends: Ends) -> None:
    with pytest.raises(Error) as caught:
        ends[0].transfer_fd(-1)
    assert caught.value.type is ErrType.NO_FD
    assert caught.value.errno is None


def test_no_fd_is_a_closed_conduit(ends: Ends) -> None:
    ends[0].close()
    number = memory()
    calls: list[Callable[[], object]] = [
        ends[0].fileno,
        ends[0].receive_fd,
        ends[0].receive_file,
        ends[0].receive_conn,
        lambda: ends[0].transfer_fd(number),
    ]
    for call in calls:
        with pytest.raises(Error) as caught:
            call()
        assert caught.value.type is ErrType.NO_FD
    assert is_open(number)
    os.close(number)


def test_no_fd_is_an_object_without_a_descriptor(ends: Ends) -> None:
    with pytest.raises(Error) as caught:
        Conduit.from_conn(object())  # type: ignore[arg-type]
    assert caught.value.type is ErrType.NO_FD
    with pytest.raises(Error) as caught:
        ends[0].transfer_file(object())  # type: ignore[arg-type]
    assert caught.value.type is ErrType.NO_FD


def test_failed_transfer_is_a_descriptor_that_is_not_open(ends: Ends) -> None:
    number = memory()
    os.close(number)
    with pytest.raises(Error) as caught:
        ends[0].transfer_fd(number)
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert caught.value.errno == errno.EBADF
    assert str(number) in str(caught.value)


def test_failed_transfer_is_a_peer_that_is_gone(ends: Ends) -> None:
    ends[1].close()
    number = memory()
    with pytest.raises(conduit.PeerClosedError) as caught:
        ends[0].transfer_fd(number)
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert caught.value.errno == errno.EPIPE
    assert is_open(number)
    os.close(number)


def test_failed_close_is_an_object_that_was_sent_and_whose_close_failed(ends: Ends) -> None:
    file = Stubborn()
    with pytest.raises(Error) as caught:
        ends[0].transfer_file(file)
    assert caught.value.type is ErrType.FAILED_CLOSE
    assert caught.value.errno == errno.EIO
    assert isinstance(caught.value.__cause__, OSError)
    assert file.closings == 1
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"stubborn"


def test_failed_close_is_an_own_number_that_another_closed() -> None:
    one, other = Conduit.pair()
    with other:
        os.close(one.fileno())
        with pytest.raises(Error) as caught:
            one.close()
        assert caught.value.type is ErrType.FAILED_CLOSE
        assert caught.value.errno == errno.EBADF
        assert one.closed
        one.close()


def test_bad_clone_is_a_conn_that_cannot_be_duplicated() -> None:
    class Gone:
        def fileno(self) -> int:
            return number

    number = memory()
    os.close(number)
    with pytest.raises(Error) as caught:
        Conduit.from_conn(Gone())
    assert caught.value.type is ErrType.BAD_CLONE
    assert caught.value.errno == errno.EBADF


def test_bad_clone_is_a_full_table_in_from_conn() -> None:
    one, other = socket.socketpair()
    with one, other:
        with room_for(0), pytest.raises(Error) as caught:
            Conduit.from_conn(one)
        assert caught.value.type is ErrType.BAD_CLONE
        assert caught.value.errno == errno.EMFILE
        assert "RLIMIT_NOFILE" in str(caught.value)
        other.send(b"x")
        assert one.recv(1) == b"x"


def test_bad_clone_is_no_socket_in_receive_conn(ends: Ends) -> None:
    ends[0].transfer_fd(memory())
    with pytest.raises(Error) as caught:
        ends[1].receive_conn()
    assert caught.value.type is ErrType.BAD_CLONE
    assert caught.value.errno == errno.ENOTSOCK


def test_bad_ctrl_mesg_is_a_message_without_a_descriptor(wired: Wired) -> None:
    link, peer = wired
    peer.send(b"\0")
    with pytest.raises(Error) as caught:
        link.receive_fd()
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert caught.value.errno is None


def test_bad_ctrl_mesg_is_a_message_with_two_descriptors(wired: Wired) -> None:
    link, peer = wired
    reader, writer = os.pipe()
    send(peer, [writer, writer])
    os.close(writer)
    with pytest.raises(Error) as caught:
        link.receive_fd()
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert "2" in str(caught.value)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_failed_pair_is_an_error_that_names_the_full_table() -> None:
    for count in (0, 1):
        with room_for(count), pytest.raises(Error) as caught:
            Conduit.pair()
        assert caught.value.errno == errno.EMFILE


def test_errors_name_the_conduit() -> None:
    one, other = socket.socketpair()
    with one, other, Conduit(one.fileno(), "to the worker") as link:
        link.timeout = 0
        with pytest.raises(conduit.WouldBlockError, match="to the worker") as caught:
            link.receive_fd()
        assert str(one.fileno()) in str(caught.value)


def test_errors_carry_the_errno_and_the_words_of_the_system(ends: Ends) -> None:
    ends[0].timeout = 0
    with pytest.raises(conduit.WouldBlockError) as caught:
        ends[0].receive_fd()
    assert caught.value.errno == errno.EAGAIN
    assert caught.value.strerror == os.strerror(errno.EAGAIN)
    assert caught.value.sent == 0
    assert "EAGAIN" in str(caught.value)


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_copying_and_pickling(ends: Ends, duplicate: object) -> None:
    assert callable(duplicate)
    ends[1].close()
    with pytest.raises(conduit.PeerClosedError) as caught:
        ends[0].receive_fd()
    twin = duplicate(caught.value)
    assert type(twin) is conduit.PeerClosedError
    assert (twin.type, twin.errno, twin.strerror, twin.sent, str(twin)) == (
        caught.value.type,
        caught.value.errno,
        caught.value.strerror,
        caught.value.sent,
        str(caught.value),
    )
