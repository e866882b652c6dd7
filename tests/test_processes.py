"""Two real processes that exchange every kind of thing a descriptor can be open on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import GENEROUS, content, is_open, memory, other_process, reserved_port, waits

import conduit
from conduit import Conduit


class Other:
    """The other process, once started, and the conduit to it."""

    def __init__(self, kind: int) -> None:
        self.link, self._end = Conduit.pair(type=kind)
        self._process: subprocess.Popen[str] | None = None

    def start(self, task: str, *args: str) -> None:
        self._process = other_process(task, self._end.fileno(), *args)
        self._end.close()
        self.link.timeout = GENEROUS

    def outcome(self) -> dict[str, Any]:
        """Wait for the end of the process; what it saw."""
        assert self._process is not None
        out, _ = self._process.communicate(timeout=GENEROUS)
        assert self._process.returncode == 0
        seen: dict[str, Any] = json.loads(out)
        return seen

    def status(self) -> int:
        assert self._process is not None
        self._process.communicate(timeout=GENEROUS)
        return self._process.returncode

    def close(self) -> None:
        self.link.close()
        self._end.close()
        if self._process is not None:
            with self._process:
                self._process.kill()


@pytest.fixture
def other(kind: int) -> Iterator[Other]:
    process = Other(kind)
    try:
        yield process
    finally:
        process.close()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_regular_file_keeps_its_offset(other: Other, tmp_path: Path, flags: int) -> None:
    (tmp_path / "f").write_bytes(b"read here, read there")
    number = os.open(tmp_path / "f", flags)
    assert os.read(number, 11) == b"read here, "
    other.start("read")
    other.link.transfer_fd(number)
    assert not is_open(number)
    assert other.outcome() == {
        "mode": "rb" if flags == os.O_RDONLY else "rb+",
        "offset": 11,
        "rest": "read there",
    }


def test_a_file_object_is_read_on_by_the_other_process(other: Other, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("first\nsecond\nthird\n")
    file = open(tmp_path / "f", encoding="utf-8")
    assert file.readline() == "first\n"
    other.start("read")
    other.link.transfer_file(file)
    assert other.outcome() == {"mode": "rb", "offset": 6, "rest": "second\nthird\n"}


def test_a_writer_is_written_on_by_the_other_process(other: Other, tmp_path: Path) -> None:
    file = open(tmp_path / "f", "wb")
    file.write(b"here, ")
    other.start("write")
    other.link.transfer_file(file)
    assert other.outcome() == {"mode": "wb"}
    assert (tmp_path / "f").read_bytes() == b"here, by the other process"


def test_the_reading_end_of_a_pipe_reads(other: Other) -> None:
    reader, writer = os.pipe()
    other.start("read_pipe")
    other.link.transfer_fd(reader)
    os.write(writer, b"down the pipe")
    os.close(writer)
    assert other.outcome() == {"mode": "rb", "rest": "down the pipe"}


def test_the_writing_end_of_a_pipe_writes(other: Other) -> None:
    reader, writer = os.pipe()
    other.start("write")
    other.link.transfer_fd(writer)
    with open(reader, "rb") as file:
        assert file.read() == b"by the other process", "and no copy of the end is left here"
    assert other.outcome() == {"mode": "wb"}


@pytest.mark.parametrize("waiting", [True, False])
def test_a_tcp_connection_is_carried_on(other: Other, waiting: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client:
        server.setblocking(waiting)
        other.start("talk")
        other.link.transfer_conn(server)
        client.sendall(b"hello")
        client.settimeout(GENEROUS)
        assert client.recv(64) == b"HELLO"
        assert client.recv(64) == b"", "the only copy was closed"
        assert other.outcome() == {
            "family": socket.AF_INET,
            "type": socket.SOCK_STREAM,
            "proto": socket.IPPROTO_TCP,
            "timeout": None if waiting else 0.0,
            "peer": list(client.getsockname()),
        }


@pytest.mark.parametrize("waiting", [True, False])
def test_a_udp_connection_is_carried_on(other: Other, waiting: bool) -> None:
    here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with here, there:
        here.bind(("127.0.0.1", 0))
        there.bind(("127.0.0.1", 0))
        here.connect(there.getsockname())
        there.connect(here.getsockname())
        there.setblocking(waiting)
        here.send(b"hello")
        other.start("talk")
        other.link.transfer_conn(there, keep=True)
        here.settimeout(GENEROUS)
        assert here.recv(64) == b"HELLO"
        assert other.outcome() == {
            "family": socket.AF_INET,
            "type": socket.SOCK_DGRAM,
            "proto": socket.IPPROTO_UDP,
            "timeout": None if waiting else 0.0,
            "peer": list(here.getsockname()),
        }


def test_a_listener_accepts_in_the_other_process(other: Other) -> None:
    with reserved_port() as port:
        listener = socket.create_server(("127.0.0.1", port))
        address = listener.getsockname()
        with socket.create_connection(address) as client:
            other.start("accept")
            other.link.transfer_conn(listener)
            client.settimeout(GENEROUS)
            pid = client.recv(64)
            seen = other.outcome()
            assert seen == {"pid": int(pid), "address": list(address)}
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_a_terminal_is_one_in_the_other_process(other: Other) -> None:
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (50, 132))
    other.start("terminal")
    other.link.transfer_fd(slave)
    os.write(master, b"typed\n")
    seen = other.outcome()
    assert seen == {"tty": True, "columns": 132, "line": "typed\n"}
    shown = b""
    while len(shown) < len(b"typed\r\nread typed\r\n"):
        shown += os.read(master, 64)
    assert shown == b"typed\r\nread typed\r\n"
    os.close(master)


def test_memory_is_shared_with_the_other_process(other: Other) -> None:
    number = memory(b"here, and stays")
    other.start("memory")
    other.link.transfer_fd(number, keep=True)
    assert other.outcome() == {"seen": "here,"}
    assert content(number) == b"there and stays"
    os.close(number)


def test_a_directory_is_listed_and_opened_in(other: Other, tmp_path: Path) -> None:
    (tmp_path / "inside").write_text("found")
    other.start("directory")
    other.link.transfer_fd(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    assert other.outcome() == {"names": ["inside"], "found": "found"}


def test_dev_null_swallows_in_the_other_process(other: Other) -> None:
    number = os.open(os.devnull, os.O_RDWR)
    device = os.fstat(number).st_rdev
    other.start("null")
    other.link.transfer_fd(number)
    assert other.outcome() == {"device": device, "read": ""}


def test_what_the_other_process_had_opened_goes_on_here(other: Other, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("first\nsecond\n")
    other.start("give", str(tmp_path / "f"))
    file = other.link.receive_file("r", encoding="utf-8", name="from the other")
    listener, client = other.link.receive_conn(), other.link.receive_conn()
    with file, listener, client:
        seen = other.outcome()
        assert seen["closed"]
        assert seen["line"] + file.read() == "first\nsecond\n"
        assert file.name == "from the other"
        assert list(listener.getsockname()) == seen["address"]
        assert waits(listener.fileno())
        server, _ = listener.accept()
        with server:
            client.sendall(b"to myself")
            assert server.recv(64) == b"to myself"
    with pytest.raises(conduit.PeerClosedError):
        other.link.receive_fd()


@pytest.mark.hazard("F23")
def test_a_descriptor_outlives_its_sender(other: Other, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("left behind")
    other.start("die", str(tmp_path / "f"))
    assert other.status() == -signal.SIGKILL
    with other.link.receive_file("r", encoding="utf-8") as file:
        assert file.read() == "left behind"
    with pytest.raises(conduit.PeerClosedError):
        other.link.receive_fd()


def test_more_descriptors_than_a_socket_queues_arrive_in_order(other: Other) -> None:
    other.start("many", "1000")
    for i in range(1000):
        other.link.transfer_fd(memory(b"%d" % i))
    assert other.outcome() == {"contents": [str(i) for i in range(1000)]}
