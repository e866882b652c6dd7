"""systemd: the barrier of ``systemd-notify``, the descriptor store, socket activation."""

from __future__ import annotations

import ctypes.util
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import is_private, memory, reserved_port, same_file
from peers import (
    LIMIT,
    all_of,
    connected,
    installed,
    needs,
    python,
    running,
    succeeded,
    wait_until_asleep,
)

import conduit
from conduit import Conduit


class Manager:
    """What a service manager is to a service: a datagram socket with a name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {**os.environ, "NOTIFY_SOCKET": str(path)}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(path))
            self.link = Conduit.from_conn(sock)
        self.link.timeout = LIMIT


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.link:
        yield manager


@needs("systemd-notify")
@pytest.mark.parametrize("credentials", [False, True], ids=["plain", "with-credentials"])
def test_systemd_notify_ends_well_once_the_pipe_of_its_barrier_is_closed(
    manager: Manager, credentials: bool
) -> None:
    with socket.socket(fileno=os.dup(manager.link.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, credentials)
    command = [installed("systemd-notify"), "--ready", "--status=as good as new"]
    with running(*command, env=manager.environment) as notify:
        with manager.link.receive() as ready:
            assert b"READY=1" in ready.data.split(b"\n")
            assert b"STATUS=as good as new" in ready.data.split(b"\n")
            assert ready.fds == ()
        with manager.link.receive() as barrier:
            assert barrier.data == b"BARRIER=1"
            [end] = barrier.fds
            assert end.kind == "fifo"
            assert is_private(end.fileno())
            wait_until_asleep(notify)
            assert notify.poll() is None
        succeeded(notify)


@needs("systemd-notify")
def test_a_barrier_that_did_not_fit_is_an_error_and_its_pipe_is_closed(manager: Manager) -> None:
    with running(installed("systemd-notify"), "--ready", env=manager.environment) as notify:
        assert manager.link.receive().fds == ()
        with pytest.raises(conduit.Error) as caught:
            manager.link.receive(max_data=len("BARRIER=1") - 1)
        assert caught.value.type is conduit.ErrType.BAD_CTRL_MESG
        assert caught.value.errno == errno.EMSGSIZE
        succeeded(notify)


STORE = """
import ctypes, os, sys
numbers = [int(argument) for argument in sys.argv[1:]]
systemd = ctypes.CDLL("libsystemd.so.0", use_errno=True)
sent = systemd.sd_pid_notify_with_fds(
    0, 0, b"FDSTORE=1\\nFDNAME=kept", (ctypes.c_int * len(numbers))(*numbers), len(numbers)
)
assert sent > 0, os.strerror(-sent)
"""


@pytest.mark.skipif(not ctypes.util.find_library("systemd"), reason="not installed: libsystemd")
def test_what_libsystemd_puts_in_the_store_is_what_a_conduit_puts_there(manager: Manager) -> None:
    numbers = [memory(b"state"), memory(b"more state")]
    command = [sys.executable, "-W", "error", "-c", STORE, *map(str, numbers)]
    with running(*command, env=manager.environment, pass_fds=numbers) as service:
        succeeded(service)
    with Conduit.connect(manager.path, type=socket.SOCK_DGRAM, timeout=LIMIT) as ours:
        ours.transfer(*numbers, data=b"FDSTORE=1\nFDNAME=kept", keep=True)
    for _ in range(2):
        with manager.link.receive() as message:
            assert message.data == b"FDSTORE=1\nFDNAME=kept"
            assert len(message.fds) == 2
            for descriptor, number in zip(message.fds, numbers, strict=True):
                assert same_file(descriptor.fileno(), number)
                assert is_private(descriptor.fileno())
    for number in numbers:
        os.close(number)


@needs("systemd-socket-activate")
def test_a_listener_of_systemd_socket_activate_is_handed_on_with_who_waits_at_it(
    tmp_path: Path,
) -> None:
    settings = ("PYTHON", "LD_", "ASAN_", "UBSAN_", "COVERAGE_")
    kept = [f"--setenv={name}" for name in os.environ if name.startswith(settings)]
    program = python("activated_service.py", str(tmp_path / "next"))
    with conduit.Listener(tmp_path / "next") as successor, reserved_port() as port:
        command = [installed("systemd-socket-activate"), "-l", f"127.0.0.1:{port}"]
        with running(*command, "--fdname=web", *kept, *program) as service:
            assert service.stderr is not None
            said = service.stderr.readline()
            assert said.startswith("Listening on"), said + service.stderr.read()
            # The first to connect is what starts the service.
            with connected(("127.0.0.1", port)) as first:
                with successor.accept(LIMIT) as link:
                    link.timeout = LIMIT
                    with link.receive() as message:
                        assert message.data == b"web"
                        listener = message.fds[0].to_conn()
                with listener:
                    assert succeeded(service) == "1 web\n"
                    assert listener.getsockname() == ("127.0.0.1", port)
                    listener.setblocking(True)
                    conn, _ = listener.accept()
                    with conn:
                        conn.sendall(b"by the successor")
                    assert all_of(first) == b"by the successor"
