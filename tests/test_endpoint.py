"""A datagram socket at a path: who sent what, and waiting for somebody who listens."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from drivers import Driver, only_blocking
from helpers import Call, content, in_child, memory
from sides import NOBODY, beside, needs_root, public_directory

import conduit
from conduit import Conduit, Error, ErrType, Peer

ME = Peer(os.getpid(), os.getuid(), os.getgid())


def datagram(path: Path | str, data: bytes = b"x") -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(data, os.fspath(path))


def test_what_comes_tells_who_sent_it(tmp_path: Path, driver: Driver) -> None:
    with driver.Conduit.bind(tmp_path / "s") as link:
        number = memory(b"1")
        with Conduit.connect(tmp_path / "s", type=socket.SOCK_DGRAM) as sender:
            sender.transfer(number, data=b"hello")
        datagram(tmp_path / "s", b"")
        with link.receive() as message:
            assert message.data == b"hello"
            assert message.sender == ME
            assert content(message.fds[0].fileno()) == b"1"
        empty = link.receive()
        assert (empty.data, empty.fds, empty.sender) == (b"", (), ME)


def test_an_empty_datagram_carries_a_file_as_journald_takes_it(
    tmp_path: Path, driver: Driver
) -> None:
    with driver.Conduit.bind(tmp_path / "s") as link:
        with driver.Conduit.connect(tmp_path / "s", type=socket.SOCK_DGRAM) as sender:
            sender.transfer(memory(b"1"), data=b"")
        with link.receive() as message:
            assert (message.data, message.sender) == (b"", ME)
            assert content(message.fds[0].fileno()) == b"1"


@needs_root
def test_each_sender_is_told(driver: Driver) -> None:
    with public_directory() as directory:
        path = os.path.join(directory, "s")
        with driver.Conduit.bind(path, mode=0o666) as link:
            with beside(lambda: datagram(path), user=NOBODY) as pid:
                assert link.receive().sender == Peer(pid, NOBODY, NOBODY)
            datagram(path)
            assert link.receive().sender == Peer(os.getpid(), 0, 0)


def test_a_socket_that_passes_no_credentials_tells_no_sender(
    ends: tuple[Conduit, Conduit],
) -> None:
    one, other = ends
    one.transfer(data=b"x")
    assert other.receive().sender is None


@pytest.mark.parametrize("mode", [0o600, 0o620, 0o666])
def test_the_path_has_its_mode_and_is_gone_after_closing(
    tmp_path: Path, driver: Driver, mode: int
) -> None:
    path = tmp_path / "s"
    with driver.Conduit.bind(path, mode=mode) as link:
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert os.listdir(tmp_path) == ["s"]
        assert str(path) in repr(link)
    assert os.listdir(tmp_path) == []


def test_a_name_is_used_in_place_of_the_path(tmp_path: Path, driver: Driver) -> None:
    with driver.Conduit.bind(tmp_path / "s", name="journal") as link:
        assert link.name == "journal"


def test_an_abstract_name_is_bound(driver: Driver) -> None:
    name = f"@conduit-endpoint-{os.getpid()}"
    with driver.Conduit.bind(name) as link:
        datagram(f"\0{name[1:]}")
        assert link.receive().data == b"x"


def test_what_somebody_is_bound_to_is_left_alone_and_what_is_stale_is_replaced(
    tmp_path: Path, driver: Driver
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(os.fspath(path))
        with pytest.raises(Error) as caught:
            driver.Conduit.bind(path)
        assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EADDRINUSE)
        assert "binding" in str(caught.value)
    with driver.Conduit.bind(path) as link:
        datagram(path)
        assert link.receive().data == b"x"


def test_a_place_that_cannot_be_is_an_error(tmp_path: Path, driver: Driver) -> None:
    with pytest.raises(Error) as caught:
        driver.Conduit.bind(tmp_path / "none" / "s")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(Error) as caught:
        driver.Conduit.bind(tmp_path / ("x" * 200))
    assert caught.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("mode", [-1, 0o10000])
def test_a_mode_that_none_has_is_a_value_error(tmp_path: Path, driver: Driver, mode: int) -> None:
    for make in (driver.Conduit.bind, driver.Listener):
        with pytest.raises(ValueError, match="permission bits"):
            make(tmp_path / "s", mode=mode)
    assert list(tmp_path.iterdir()) == []


def test_where_the_directory_is_gone_a_relative_path_is_an_error_and_no_other(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for make in (driver.Conduit.bind, driver.Listener):
        with pytest.raises(Error, match="the current directory is not to be found") as caught:
            make("s")
        assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.ENOENT)
        make(tmp_path / "s").close()
        make(f"@conduit-{os.getpid()}-gone").close()


@only_blocking
def test_a_child_leaves_the_path(tmp_path: Path, driver: Driver) -> None:
    path = tmp_path / "s"
    with driver.Conduit.bind(path) as link:
        assert in_child(link.close) == 0
        datagram(path)
        assert link.receive().data == b"x"


@only_blocking
def test_a_path_that_another_has_replaced_is_left_alone(tmp_path: Path, driver: Driver) -> None:
    path = tmp_path / "s"
    with driver.Conduit.bind(path):
        path.unlink()
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"


@only_blocking
def test_a_path_that_cannot_be_removed_is_an_error_and_the_conduit_is_closed(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = driver.Conduit.bind(tmp_path / "s")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "refused")

    with monkeypatch.context() as patch, pytest.raises(Error, match="removing") as caught:
        patch.setattr(os, "unlink", refuse)
        link.close()
    assert caught.value.type is ErrType.FAILED_CLOSE
    assert link.closed


# Waiting for who listens


@pytest.mark.parametrize("stale", [False, True])
def test_with_wait_a_connect_waits_for_a_listener(
    tmp_path: Path, driver: Driver, stale: bool
) -> None:
    path = tmp_path / "s"
    if stale:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(os.fspath(path))
    connecting = Call(driver.Conduit.connect, path, wait=True)
    assert connecting.is_waiting()
    with conduit.Listener(path) as listener:
        with connecting.result() as link, listener.accept() as there:
            link.transfer(data=b"x")
            assert there.receive().data == b"x"


def test_with_wait_a_connect_ends_at_its_deadline(tmp_path: Path, driver: Driver) -> None:
    with pytest.raises(TimeoutError):
        driver.Conduit.connect(tmp_path / "s", wait=True, timeout=0.05)
    with pytest.raises(BlockingIOError):
        Conduit.connect(tmp_path / "s", wait=True, timeout=0)


def test_with_wait_what_never_works_is_an_error_at_once(tmp_path: Path, driver: Driver) -> None:
    with conduit.Listener(tmp_path / "s"), pytest.raises(Error) as caught:
        driver.Conduit.connect(tmp_path / "s", type=socket.SOCK_SEQPACKET, wait=True)
    assert caught.value.errno == errno.EPROTOTYPE
