"""Conduits themselves: what their constructors take and own, close(), names, timeout."""

from __future__ import annotations

import errno
import gc
import os
import socket
import weakref
from pathlib import Path

import pytest
from drivers import only_blocking
from helpers import (
    Call,
    content,
    is_open,
    is_private,
    memory,
    open_descriptors,
    same_file,
    stdin_closed,
    waits,
)

import conduit
from conduit import Conduit, Error, ErrType, Listener

Ends = tuple[Conduit, Conduit]


def test_a_number_is_borrowed() -> None:
    one, other = socket.socketpair()
    with one, other:
        link = Conduit(one.fileno())
        assert link.fileno() == one.fileno()
        link.close()
        assert link.closed
        other.send(b"x")
        assert one.recv(1) == b"x"


def test_a_borrowed_number_is_not_closed_by_dropping_the_conduit() -> None:
    one, other = socket.socketpair()
    with one, other:
        Conduit(one.fileno())
        gc.collect()
        assert is_open(one.fileno())


@pytest.mark.parametrize("number", [True, 1.5, "3", None, b"3", 3.0])
def test_a_conduit_takes_only_an_int(number: object) -> None:
    with pytest.raises(conduit.DescriptorTypeError) as caught:
        Conduit(number)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    assert caught.value.type is ErrType.NO_FD


@pytest.mark.parametrize("number", [-1, -(2**70), 2**31, 2**70])
def test_a_conduit_takes_no_number_that_cannot_be_a_descriptor(number: int) -> None:
    with pytest.raises(Error) as caught:
        Conduit(number)
    assert caught.value.type is ErrType.NO_FD
    assert not isinstance(caught.value, TypeError)


def test_a_conduit_is_initialised_once(kind: int) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        link = Conduit(one.fileno())
        receiving = Call(link.receive)
        assert receiving.is_waiting()
        with one.dup() as again:
            with pytest.raises(Error, match="initialised before") as caught:
                link.__init__(again.fileno())
            assert caught.value.type is ErrType.NO_FD
        assert link.fileno() == one.fileno()
        other.send(b"x")
        assert receiving.result().data == b"x"
        link.close()
        with pytest.raises(Error, match="initialised before"):
            link.__init__(one.fileno())
        assert link.closed


def test_from_file_borrows_and_keeps_the_file_alive() -> None:
    one, other = socket.socketpair()
    with other:
        file = one.makefile("rwb", buffering=0)
        one.close()
        number = file.fileno()
        alive = weakref.ref(file)
        link = Conduit.from_file(file)
        del file
        gc.collect()
        assert alive() is not None
        assert link.fileno() == number
        link.transfer_fd(memory())
        assert other.recv(1) == b"\0"
        held = alive()
        assert held is not None
        link.close()
        assert is_open(number)
        held.close()
        assert not is_open(number)


def test_close_lets_go_of_the_file() -> None:
    one, other = socket.socketpair()
    with one, other:
        file = one.makefile("rwb", buffering=0)
        alive = weakref.ref(file)
        link = Conduit.from_file(file)
        link.close()
        file.close()
        del file
        gc.collect()
        assert alive() is None


def test_from_file_takes_the_name_of_the_file(tmp_path: Path) -> None:
    with open(tmp_path / "name", "wb") as file, Conduit.from_file(file) as link:
        assert link.name == str(tmp_path / "name")


def test_every_constructor_of_one_conduit_takes_a_name() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert Conduit.from_file(one).name == ""
        assert Conduit.from_file(one, name="borrowed").name == "borrowed"
        with Conduit.from_conn(one, name="own") as link:
            assert link.name == "own"


def test_from_file_of_a_closed_file_is_no_fd(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        pass
    with pytest.raises(Error) as caught:
        Conduit.from_file(file)
    assert caught.value.type is ErrType.NO_FD
    assert isinstance(caught.value.__cause__, ValueError)


def test_from_conn_owns_a_private_duplicate() -> None:
    one, other = socket.socketpair()
    with other:
        link = Conduit.from_conn(one)
        assert link.fileno() != one.fileno()
        assert same_file(link.fileno(), one.fileno())
        assert is_private(link.fileno())
        one.close()
        link.transfer_fd(memory())
        assert other.recv(1) == b"\0"
        number = link.fileno()
        link.close()
        assert not is_open(number)
        assert other.recv(1) == b""


@pytest.mark.parametrize("timeout", [None, 0.0, 2.5])
def test_from_conn_takes_the_timeout_and_changes_no_flag(timeout: float | None) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(timeout)
        before = waits(one.fileno())
        with Conduit.from_conn(one) as link:
            assert link.timeout == timeout
            link.timeout = 1
            assert waits(one.fileno()) == before


def test_from_conn_of_an_object_without_a_timeout_waits_for_ever(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file, Conduit.from_conn(file) as link:
        assert link.timeout is None


def test_from_conn_of_a_closed_socket_is_no_fd() -> None:
    sock = socket.socket()
    sock.close()
    with pytest.raises(Error) as caught:
        Conduit.from_conn(sock)
    assert caught.value.type is ErrType.NO_FD


def test_pair_is_connected_private_and_of_the_type_asked_for(kind: int, ends: Ends) -> None:
    for end in ends:
        assert is_private(end.fileno())
        assert end.fileno() > 2
        assert end.timeout is None
        with socket.socket(fileno=os.dup(end.fileno())) as sock:
            assert sock.family == socket.AF_UNIX
            assert sock.type == kind
    number = memory(b"across")
    ends[0].transfer_fd(number)
    with ends[1].receive_file() as file:
        assert file.read() == b"across"


def test_pair_is_a_stream_unless_asked_otherwise() -> None:
    one, other = Conduit.pair()
    with one, other, socket.socket(fileno=os.dup(one.fileno())) as sock:
        assert sock.type == socket.SOCK_STREAM


@pytest.mark.parametrize("kind", [1.5, "1", None])
def test_a_type_that_is_no_int_is_a_type_error(kind: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="integer"):
        Conduit.pair(type=kind)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="integer"):
        Conduit.connect(tmp_path / "s", type=kind)  # type: ignore[arg-type]


def test_a_name_is_kept_as_an_exact_str() -> None:
    class Name(str):
        __slots__ = ()

        def __repr__(self) -> str:
            raise AssertionError

        __str__ = __repr__

    one, other = Conduit.pair()
    with one, other, Conduit(one.fileno(), Name("link")) as named:
        assert type(named.name) is str
        assert "'link'" in repr(named)
    with pytest.raises(Error, match="'link'"):
        named.fileno()


def test_an_impossible_pair_is_an_error() -> None:
    with pytest.raises(Error) as caught:
        Conduit.pair(type=12345)
    assert caught.value.type is ErrType.NO_FD
    assert caught.value.errno == errno.EINVAL


def test_close_is_idempotent_and_closes_once() -> None:
    one, other = Conduit.pair()
    with other:
        number = one.fileno()
        one.close()
        taken = memory()
        assert taken == number, "the lowest free number is given out first"
        one.close()
        del one
        gc.collect()
        assert is_open(taken)
        os.close(taken)


def test_leaving_the_context_closes() -> None:
    one, other = Conduit.pair()
    with one as entered, other:
        assert entered is one
        number = one.fileno()
        assert not one.closed
    assert one.closed
    assert other.closed
    assert not is_open(number)


def test_leaving_the_context_lets_the_exception_through() -> None:
    one, other = Conduit.pair()
    with pytest.raises(KeyError), one, other:
        raise KeyError
    assert one.closed


def test_a_dropped_owner_warns_and_closes() -> None:
    before = open_descriptors()
    one, other = Conduit.pair()
    owners = [one]
    del one
    with other, pytest.warns(ResourceWarning, match="unclosed <conduit.Conduit"):
        owners.clear()
    assert open_descriptors() == before


def test_the_name_shows_in_the_repr() -> None:
    one, other = socket.socketpair()
    with one, other:
        link = Conduit(one.fileno(), "upstream")
        assert link.name == "upstream"
        assert "'upstream'" in repr(link)
        assert str(one.fileno()) in repr(link)
        link.close()
        assert "closed" in repr(link)
        assert link.name == "upstream"
        assert Conduit(one.fileno()).name == ""


def test_a_name_is_a_string() -> None:
    with pytest.raises(TypeError):
        Conduit(0, 5)  # type: ignore[arg-type]


@only_blocking
@pytest.mark.parametrize(
    ("given", "kept"), [(None, None), (0, 0.0), (0.5, 0.5), (3, 3.0), (float("inf"), float("inf"))]
)
def test_timeout_is_kept_as_given(ends: Ends, given: float | None, kept: float | None) -> None:
    ends[0].timeout = given
    assert ends[0].timeout == kept


@only_blocking
@pytest.mark.parametrize("wrong", [-1, -0.001, float("nan"), float("-inf")])
def test_an_impossible_timeout_is_a_value_error(ends: Ends, wrong: float) -> None:
    ends[0].timeout = 7
    with pytest.raises(ValueError, match="timeout"):
        ends[0].timeout = wrong
    assert ends[0].timeout == 7


@only_blocking
def test_a_timeout_is_a_number(ends: Ends) -> None:
    with pytest.raises(TypeError):
        ends[0].timeout = "1"  # type: ignore[assignment]


@only_blocking
def test_a_timeout_changes_no_flag_of_the_socket(ends: Ends) -> None:
    for timeout in (0, 1, None):
        ends[0].timeout = timeout
        assert waits(ends[0].fileno())


@only_blocking
def test_a_conduit_takes_no_attribute_it_does_not_have(ends: Ends) -> None:
    with pytest.raises(AttributeError):
        ends[0].time_out = 1  # type: ignore[attr-defined]


def test_every_public_name_has_a_docstring() -> None:
    for name in conduit.__all__:
        value = getattr(conduit, name)
        assert isinstance(value, int) or value.__doc__, name
    for cls in (Conduit, conduit.Descriptor):
        for name, value in vars(cls).items():
            assert name.startswith("_") or value.__doc__, f"{cls.__name__}.{name}"


def test_max_fds_is_what_the_system_takes_in_one_message() -> None:
    one, other = socket.socketpair()
    with one, other:
        socket.send_fds(one, [b"x"], [0] * conduit.MAX_FDS)
        with pytest.raises(OSError) as caught:
            socket.send_fds(one, [b"x"], [0] * (conduit.MAX_FDS + 1))
        assert caught.value.errno == errno.EINVAL


def test_close_leaves_alone_the_file_that_has_its_number_by_then() -> None:
    one, other = Conduit.pair()
    fd, stranger = one.fileno(), memory(b"a stranger's")
    os.dup2(stranger, fd)
    with pytest.raises(Error, match="left alone") as caught:
        one.close()
    assert caught.value.type is ErrType.FAILED_CLOSE
    assert content(fd) == b"a stranger's"
    other.close()
    os.close(fd)
    os.close(stranger)


def test_without_standard_input_no_conduit_that_is_made_has_its_number(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with stdin_closed(), Listener(path), Conduit.connect(path) as link:
        one, other = Conduit.pair()
        with one, other:
            assert min(link.fileno(), one.fileno(), other.fileno()) > 2
            assert not is_open(0)


@pytest.mark.usefixtures("default_timeout")
def test_a_default_timeout_of_sockets_changes_nothing(tmp_path: Path) -> None:
    socket.setdefaulttimeout(7)
    with Listener(tmp_path / "s"), Conduit.connect(tmp_path / "s") as link:
        one, other = Conduit.pair()
        with one, other:
            for made in (link, one, other):
                assert made.timeout is None
                assert os.get_blocking(made.fileno())
