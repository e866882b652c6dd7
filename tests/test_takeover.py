"""A takeover: the same sockets, one owner at every instant, and a way back from each step."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import os
import queue
import resource
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

import anyio
import pytest
from anyio import to_thread
from helpers import (
    GENEROUS,
    PORTABLE,
    Call,
    borrowed,
    handling,
    in_child,
    is_open,
    is_private,
    needs_descriptors,
    no_more_room,
    not_traced,
    open_descriptors,
    reserved_port,
    room_for,
    run_python,
    wait_until_gone,
)
from sides import NOBODY, beside, is_at_eof, needs_root, public_directory, unshared

import conduit
from conduit import systemd
from conduit.aio import AsyncTakeover
from conduit.errors import Ignoring, TakeoverError, reraise
from conduit.takeover import Takeover, inheritance, protocol, room, sockets, succession, watch
from conduit.takeover.holdings import Holdings
from conduit.takeover.protocol import VERSIONS
from conduit.takeover.talk import Outgoing
from conduit.takeover.talk import Talk as Talker

pytestmark = pytest.mark.slow

PROGRAM = str(Path(__file__).parent / "programs" / "server.py")

SEQPACKET = socket.SOCK_SEQPACKET


class RemoteError(Exception):
    """What a call raised in the other process."""


class Interrupt(Exception):
    """What a signal handler raises."""


class Server:
    """A server in a process of its own, whose calls are those of programs/server.py."""

    def __init__(self, *around: str, fds: Iterable[int] = ()) -> None:
        self.process = subprocess.Popen(
            [*around, sys.executable, "-W", "error", PROGRAM],
            pass_fds=tuple(fds),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def ask(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Begin a call."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, args, kwargs]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for what a call that was begun returns or raises."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError("the server is dead")
        answer = json.loads(line)
        if "error" in answer:
            raise RemoteError(f"{answer['error']}: {answer['says']}")
        return answer["result"]

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.ask(name, *args, **kwargs)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> int:
        """Let it end, and return its exit status."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        return self.process.wait(GENEROUS)


HAS_UVLOOP = find_spec("uvloop") is not None


@pytest.fixture(scope="session", autouse=True)
def a_loop_of_uvloop_has_run() -> None:
    """Let uvloop open the descriptors that it keeps for ever."""
    if HAS_UVLOOP:
        anyio.run(anyio.lowlevel.checkpoint, backend_options={"use_uvloop": True})


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Start a server, by a command that runs another if there is one."""
    servers: list[Server] = []

    def start_one(*around: str, fds: Iterable[int] = ()) -> Server:
        servers.append(Server(*around, fds=fds))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "takeover.sock")


@pytest.fixture
def running(start: Callable[[], Server], path: str) -> Server:
    """A server that has started afresh and is ready, with a socket named http."""
    server = start()
    assert server.call("enter", path, timeout=GENEROUS) is None
    server.call("listen", "http", "127.0.0.1", 0)
    server.call("offer", "state")
    assert server.call("ready") == []
    return server


class Talk:
    """The protocol, spoken by hand."""

    def __init__(self, link: conduit.Conduit) -> None:
        self.link = link
        self.link.timeout = GENEROUS
        self.channel = conduit.Channel(link)

    @classmethod
    def to(cls, path: str) -> Talk:
        return cls(conduit.Conduit.connect(path, type=SEQPACKET))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.link.close()

    def say(self, kind: str, **fields: Any) -> None:
        self.channel.send({"kind": kind, **fields}, keep=True)

    def hello(self, *versions: Any) -> None:
        self.say("hello", versions=versions or VERSIONS)

    def hear(self) -> dict[str, Any]:
        """Receive a message, and close what is in it."""
        with self.channel.receiving() as heard:
            return dict(heard)

    def hear_all_until(self, kind: str) -> None:
        while self.hear()["kind"] != kind:
            pass


def served_by(address: Any, server: Server) -> None:
    """Check that a connection is served by this server."""
    with socket.create_connection(tuple(address), GENEROUS) as client:
        server.call("accept", "http")
        assert client.recv(100) == b"%d" % server.pid


def address_of(server: Server) -> list[Any]:
    address: list[Any] = server.call("address", "http")
    return address


def identity(sock: socket.socket) -> tuple[int, bytes]:
    return os.fstat(sock.fileno()).st_ino, sock.getsockopt(socket.SOL_SOCKET, 57, 8)


def readable(number: int) -> bool:
    return bool(select.select([number], [], [], 0)[0])


def take_over(server: Server, path: str) -> list[Any]:
    """Let a server become the successor, with the socket named http; return its identity."""
    assert server.call("enter", path) is not None
    found: list[Any] = server.call("listen", "http", "127.0.0.1", 0)
    assert server.call("ready") == []
    return found


# A fresh start, and what is kept.


def test_a_fresh_start_has_no_predecessor(path: str) -> None:
    with Takeover(path) as takeover:
        assert takeover.predecessor is None
        assert takeover.state == b""
        with takeover.listen("127.0.0.1", 0, name="http") as sock:
            assert sock.getsockname()[1]
        assert takeover.ready() == ()
        assert takeover.wait(0) is False
        assert repr(takeover) == f"<conduit.takeover.Takeover {path!r}>"


def test_a_path_may_be_an_object_and_bytes(tmp_path: Path) -> None:
    for path in (tmp_path / "one", os.fsencode(tmp_path / "two")):
        with Takeover(path) as old:
            old.ready()
            with Takeover(path) as new:
                new.ready()
                assert old.wait(GENEROUS)


def test_the_control_socket_is_open_to_its_user_only(path: str) -> None:
    with Takeover(path):
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_successor_has_the_very_same_sockets(
    start: Callable[[], Server], path: str, tmp_path: Path
) -> None:
    wanted: list[tuple[list[Any], dict[str, int]]] = [
        (["tcp", "127.0.0.1", 0], {}),
        (["tcp 6", "::1", 0], {}),
        (["udp", "127.0.0.1", 0], {"type": socket.SOCK_DGRAM}),
        (["unix", str(tmp_path / "unix")], {}),
        (["packets", str(tmp_path / "packets")], {"type": SEQPACKET}),
        (["datagrams", str(tmp_path / "datagrams")], {"type": socket.SOCK_DGRAM}),
        (["abstract", f"@{tmp_path}"], {}),
    ]
    old, new = start(), start()
    old.call("enter", path)
    first = [old.call("listen", *args, **kwargs) for args, kwargs in wanted]
    old.call("ready")
    assert new.call("enter", path) == old.pid
    assert [new.call("listen", *args, **kwargs) for args, kwargs in wanted] == first
    assert old.call("wait", 0) is False
    assert new.call("ready") == []
    assert old.call("wait", GENEROUS) is True
    assert old.call("close") == [[], []]
    for name in ("unix", "packets", "datagrams"):
        assert os.path.exists(tmp_path / name)
    assert new.call("close") == [[], []]
    for name in ("unix", "packets", "datagrams", "takeover.sock"):
        assert not os.path.exists(tmp_path / name)


def test_a_fresh_unix_socket_has_the_mode_asked_for(path: str, tmp_path: Path) -> None:
    with Takeover(path) as takeover:
        takeover.listen(str(tmp_path / "unix"), mode=0o620).close()
        assert os.stat(tmp_path / "unix").st_mode & 0o777 == 0o620


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_fresh_datagram_socket_receives_and_its_path_goes_with_it(
    path: str, tmp_path: Path, abstract: bool
) -> None:
    place = f"@{tmp_path}" if abstract else f"{tmp_path}/unix"
    address = place.replace("@", "\0")
    with Takeover(path) as takeover:
        with takeover.listen(place, type=socket.SOCK_DGRAM) as sock:
            takeover.ready()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.sendto(b"hello", address)
            sock.settimeout(GENEROUS)
            assert sock.recv(100) == b"hello"
            assert os.path.exists(place) is not abstract
    assert os.listdir(tmp_path) == []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
            client.sendto(b"hello", address)


def test_what_waits_in_the_queue_is_served_by_the_successor(
    start: Callable[[], Server], running: Server, path: str
) -> None:
    address = address_of(running)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(tuple(address), GENEROUS))
            for _ in range(20)
        ]
        new = start()
        take_over(new, path)
        assert running.call("wait", GENEROUS)
        running.kill()
        for client in clients:
            new.call("accept", "http")
            assert client.recv(100) == b"%d" % new.pid


def test_datagrams_that_wait_are_received_by_the_successor(path: str) -> None:
    with Takeover(path) as old:
        with old.listen("127.0.0.1", 0, name="u", type=socket.SOCK_DGRAM) as sock:
            address = sock.getsockname()
            old.ready()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"early", address)
            with Takeover(path) as new:
                with new.listen("127.0.0.1", 0, name="u", type=socket.SOCK_DGRAM) as kept:
                    new.ready()
                    assert kept.recv(100) == b"early"


def test_socket_options_and_the_blocking_mode_are_kept(path: str) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="http") as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 12345)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 7)
        sock.setblocking(False)
        old.ready()
        with Takeover(path) as new, new.listen("127.0.0.1", 0, name="http") as kept:
            for level, option in [
                (socket.SOL_SOCKET, socket.SO_RCVBUF),
                (socket.SOL_SOCKET, socket.SO_REUSEADDR),
                (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT),
            ]:
                assert kept.getsockopt(level, option) == sock.getsockopt(level, option)
            assert kept.gettimeout() == 0.0
            assert is_private(kept.fileno())


def test_sockets_are_close_on_exec(path: str) -> None:
    with Takeover(path) as takeover, takeover.listen("127.0.0.1", 0) as sock:
        assert is_private(sock.fileno())
        assert is_private(takeover.fileno())


def test_a_name_is_the_address_unless_given(path: str, tmp_path: Path) -> None:
    unix = str(tmp_path / "unix")
    with Takeover(path) as old:
        with old.listen("127.0.0.1", 0), old.listen(unix):
            old.ready()
            with Takeover(path) as new:
                assert new.ready() == ("127.0.0.1:0", unix)


def test_a_name_is_taken_once(path: str) -> None:
    with Takeover(path) as takeover, takeover.listen("127.0.0.1", 0, name="http"):
        with pytest.raises(ValueError, match="'http' already"):
            takeover.listen("127.0.0.1", 0, name="http")


def test_a_name_has_255_bytes_at_most(path: str) -> None:
    with Takeover(path) as takeover:
        takeover.listen("127.0.0.1", 0, name="é" * 127).close()
        with pytest.raises(ValueError, match="255 bytes"):
            takeover.listen("127.0.0.1", 0, name="é" * 128)


def test_any_names_and_paths_fit(path: str, tmp_path: Path) -> None:
    directory = tmp_path / ("\1" * (100 - len(str(tmp_path))))
    directory.mkdir()
    places = {f"{number:03}" + "\1" * 252: f"{directory}/{number}" for number in range(150)}
    with Takeover(path) as old, contextlib.ExitStack() as stack:
        for name, place in places.items():
            stack.enter_context(old.listen(place, name=name))
        old.ready()
        with Takeover(path) as new:
            for name, place in places.items():
                stack.enter_context(new.listen(place, name=name))
            assert new.ready() == ()


def test_another_address_under_the_same_name_is_a_fresh_socket(path: str) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="http") as sock:
        old.ready()
        with Takeover(path) as new, new.listen("127.0.0.2", 0, name="http") as fresh:
            assert fresh.getsockname()[0] == "127.0.0.2"
            assert identity(fresh) != identity(sock)
            assert new.ready() == ("http",)
            assert new.dropped == ("http",)
            with socket.create_connection(sock.getsockname(), GENEROUS) as client:
                sock.close()
                assert old.wait(GENEROUS)
                old.close()
                # Nobody owns the queue that it is in.
                with pytest.raises(ConnectionResetError):
                    client.recv(1)


@pytest.mark.parametrize("change", ["port", "type", "family", "to unix", "from unix"])
def test_a_change_of_any_part_of_the_address_is_a_fresh_socket(
    path: str, tmp_path: Path, change: str
) -> None:
    unix = str(tmp_path / "unix")
    with Takeover(path) as old, contextlib.ExitStack() as stack:
        if change == "from unix":
            sock = stack.enter_context(old.listen(unix, name="x"))
        else:
            sock = stack.enter_context(old.listen("127.0.0.1", 0, name="x"))
        old.ready()
        new = stack.enter_context(Takeover(path))
        if change == "port":
            with reserved_port() as port:
                fresh = new.listen("127.0.0.1", port, name="x")
        elif change == "type":
            fresh = new.listen("127.0.0.1", 0, name="x", type=socket.SOCK_DGRAM)
        elif change == "family":
            fresh = new.listen("::1", 0, name="x")
        elif change == "to unix":
            fresh = new.listen(unix, name="x")
        else:
            fresh = new.listen("127.0.0.1", 0, name="x")
        stack.enter_context(fresh)
        assert identity(fresh) != identity(sock)
        assert new.ready() == ("x",)


def test_the_port_that_the_system_chose_may_be_named(path: str) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="http") as sock:
        old.ready()
        port = sock.getsockname()[1]
        with Takeover(path) as new, new.listen("127.0.0.1", port, name="http") as kept:
            assert identity(kept) == identity(sock)


def test_sockets_not_asked_for_are_closed_when_the_successor_is_ready_and_named(
    path: str,
) -> None:
    with Takeover(path) as old, contextlib.ExitStack() as stack:
        for name in "abc":
            stack.enter_context(old.listen("127.0.0.1", 0, name=name))
        old.ready()
        with Takeover(path) as new:
            stack.enter_context(new.listen("127.0.0.1", 0, name="b"))
            assert not new.dropped
            assert new.ready() == ("a", "c")
            assert new.dropped == ("a", "c")
            with Takeover(path) as third:
                assert third.ready() == ("b",)


def test_of_threads_that_listen_at_once_one_takes_what_was_passed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Call[socket.socket]] = []
    came = threading.Event()

    def listen_fds() -> tuple[conduit.Descriptor, ...]:
        if calls:
            came.set()
            return ()
        calls.append(Call(takeover.listen, "127.0.0.1", 0, name="two"))
        # It comes here as well, unless it waits for this one.
        came.wait(0.2)
        return tuple(conduit.Descriptor(sock.detach(), sock_name) for sock_name, sock in given)

    given = [(name, socket.create_server(("127.0.0.1", 0))) for name in ("one", "two")]
    ports = [sock.getsockname()[1] for _, sock in given]
    monkeypatch.setattr(systemd, "listen_fds", listen_fds)
    with Takeover(path, thread=False) as takeover:
        with takeover.listen("127.0.0.1", 0, name="one") as one:
            with calls[0].result() as two:
                assert [sock.getsockname()[1] for sock in (one, two)] == ports


def test_the_path_of_a_dropped_socket_is_removed(path: str, tmp_path: Path) -> None:
    with Takeover(path) as old, old.listen(f"{tmp_path}/old", name="http"):
        old.ready()
        with Takeover(path) as new, new.listen(f"{tmp_path}/new", name="http"):
            assert os.path.exists(f"{tmp_path}/old")
            assert new.ready() == ("http",)
            assert not os.path.exists(f"{tmp_path}/old")
            assert old.wait(GENEROUS)
            old.close()
            assert os.path.exists(f"{tmp_path}/new")
    assert not os.path.exists(f"{tmp_path}/new")


def test_a_dropped_abstract_socket_is_closed_and_no_file_removed(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # In the current directory, to which the name would be relative if it were a path.
    monkeypatch.chdir(tmp_path)
    file = Path(f"@{uuid.uuid4()}")
    file.write_text("another's")
    with Takeover(path) as old, old.listen(f"{file}/name", name="x") as sock:
        old.ready()
        with Takeover(path) as new:
            assert new.ready() == ("x",)
            assert old.wait(GENEROUS)
            address = sock.getsockname()
            sock.close()
            with socket.socket(socket.AF_UNIX) as client:
                with pytest.raises(ConnectionRefusedError):
                    client.connect(address)
    assert file.read_text() == "another's"
    assert caplog.messages == []


@pytest.mark.parametrize("drop", [False, True])
def test_what_others_put_in_the_place_of_an_inherited_socket_stays(
    path: str, tmp_path: Path, drop: bool
) -> None:
    place = tmp_path / "place"
    with Takeover(path) as old, old.listen(str(place)):
        old.ready()
        with Takeover(path) as new:
            place.unlink()
            place.write_text("another's")
            if not drop:
                new.listen(str(place)).close()
            new.ready()
    assert place.read_text() == "another's"


@needs_root
def test_paths_that_may_not_be_removed_any_more_do_not_keep_it_from_closing() -> None:
    def serve_and_drop_privileges() -> None:
        with tempfile.TemporaryDirectory() as directory:
            with Takeover(f"{directory}/control") as takeover:
                takeover.listen(f"{directory}/unix").close()
                takeover.ready()
                os.chmod(directory, 0o755)
                os.seteuid(NOBODY)
            os.seteuid(0)
            assert threading.active_count() == 1
            assert sorted(os.listdir(directory)) == ["control", "unix"]

    with beside(serve_and_drop_privileges):
        pass


@needs_root
def test_a_path_that_may_not_be_looked_at_any_more_is_handed_over() -> None:
    def take_over_and_drop_privileges() -> None:
        with tempfile.TemporaryDirectory() as directory:
            unix, control = f"{directory}/unix", f"@{directory}/control"
            allow = lambda _: True  # noqa: E731
            with Takeover(control, allow=allow) as old, old.listen(unix) as sock:
                old.ready()
                with Takeover(control, allow=allow) as new:
                    os.seteuid(NOBODY)
                    with new.listen(unix) as same:
                        assert identity(same) == identity(sock)
                        new.ready()
                    os.seteuid(0)
                    assert old.wait(GENEROUS)

    with beside(take_over_and_drop_privileges):
        pass


@pytest.mark.parametrize("blocking", [True, False])
def test_a_default_timeout_does_not_reach_through_a_socket_that_was_passed(
    blocking: bool, default_timeout: None
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        fds = [conduit.Descriptor(os.dup(sock.fileno()), "x") for sock in (one, two)]
        for sock in (one, two):
            os.set_blocking(sock.fileno(), blocking)
        socket.setdefaulttimeout(5)
        host, port = two.getsockname()
        found = sockets.passed(fds, "y", host, port, socket.SOCK_STREAM)
        assert found is not None
        with found:
            assert found.getsockname() == two.getsockname()
            assert found.gettimeout() == (None if blocking else 0)
            assert [os.get_blocking(sock.fileno()) for sock in (one, two)] == [blocking, blocking]
        [left] = fds
        left.close()


def test_a_default_timeout_does_not_reach_through_a_socket_that_is_handed_over(
    path: str, default_timeout: None
) -> None:
    made = socket.create_server(("127.0.0.1", 0))
    with made, made.dup() as seen, Takeover(path) as old:
        blocked: list[bool] = []
        given = socket.socket.settimeout

        def settimeout(sock: socket.socket, timeout: float | None) -> None:
            blocked.append(os.get_blocking(seen.fileno()))
            given(sock, timeout)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "settimeout", settimeout)
            socket.setdefaulttimeout(5)
            old.adopt(made, "x")
            old.ready()
            with Takeover(path) as new, new.adopt(made, "x") as same:
                new.ready()
                assert same.gettimeout() is None
                assert old.wait(GENEROUS)
        # Nor for the moment until a timeout is set.
        assert all(blocked)
        assert os.get_blocking(seen.fileno())


@pytest.mark.parametrize("timeout", [30 * 86400, math.inf, threading.TIMEOUT_MAX])
@pytest.mark.parametrize("thread", [True, False])
def test_a_wait_may_be_as_long_as_there_is_time(path: str, timeout: float, thread: bool) -> None:
    with Takeover(path, thread=thread) as takeover:
        takeover.ready()
        call = Call(takeover.wait, timeout)
        assert call.is_waiting()
        takeover.close()
        assert call.result() is False


def test_a_path_has_the_same_bytes_for_a_successor_of_another_encoding(
    start: Callable[..., Server], path: str, tmp_path: Path
) -> None:
    ascii_only = ["env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"]
    unix, name = f"{tmp_path}/ë", "wëb"
    with Takeover(path) as old, old.listen(unix) as one, old.listen("127.0.0.1", 0, name=name):
        old.ready()
        server = start(*ascii_only)
        assert server.call("enter", path) == os.getpid()
        # As that one writes these bytes.
        place = os.fsencode(unix).decode("ascii", "surrogateescape")
        [inode, _], _ = server.call("listen", place, place)
        assert inode == os.fstat(one.fileno()).st_ino
        server.call("listen", name, "127.0.0.1", 0)
        assert server.call("ready") == []
        assert old.wait(GENEROUS)


def test_what_was_not_open_when_it_was_announced_is_none_of_its_own(path: str) -> None:
    def child() -> None:
        lowest = os.dup(0)
        os.close(lowest)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(lowest - 2))
        with Takeover(path, thread=False) as takeover:
            # By now that is a descriptor of its own.
            assert is_open(lowest)
            for _ in range(2):
                with pytest.raises(conduit.Error, match=f"descriptor {lowest} is not open"):
                    takeover.listen("127.0.0.1", 0)
            del os.environ["LISTEN_FDS"]
            takeover.listen("127.0.0.1", 0).close()

    assert in_child(child) == 0


def test_nothing_keeps_a_dropped_socket_open_once_it_is_handed_over(path: str) -> None:
    with Takeover(path) as old, contextlib.ExitStack() as stack:
        sock = stack.enter_context(old.listen("127.0.0.1", 0, name="http"))
        address = sock.getsockname()
        old.ready()
        new = stack.enter_context(Takeover(path))
        new.ready()
        assert old.wait(GENEROUS)
        with socket.create_connection(address, GENEROUS) as client:
            sock.close()
            # Nobody owns the queue that it is in.
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_a_socket_that_there_was_no_room_for_can_be_asked_for_again(path: str) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="http") as sock:
        old.ready()
        with Takeover(path) as new:
            with no_more_room(), pytest.raises(conduit.Error, match="Too many open files"):
                new.listen("127.0.0.1", 0, name="http")
            with new.listen("127.0.0.1", 0, name="http") as kept:
                assert identity(kept) == identity(sock)
            assert new.ready() == ()


def test_an_address_that_is_taken_is_an_error_with_its_errno(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Takeover(path) as takeover:
        with pytest.raises(conduit.Error, match="Address already in use") as caught:
            takeover.listen("127.0.0.1", taken.getsockname()[1], name="http")
        assert caught.value.errno == 98
        takeover.listen("127.0.0.1", 0, name="http").close()


def test_a_host_that_nobody_knows_is_an_error(path: str) -> None:
    with Takeover(path) as takeover:
        with pytest.raises(conduit.Error, match="listening as"):
            takeover.listen("no such host", 0)


def test_a_thousand_listeners_are_taken_over(start: Callable[[], Server], path: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1000, (hard - 100) // 2)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count + 100), hard))
    try:
        old, new = start(), start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    old.call("enter", path)
    old.call("listen_to_many", count)
    old.call("ready")
    assert new.call("enter", path) == old.pid
    new.call("listen_to_many", count)
    assert new.call("identities") == old.call("identities")
    assert new.call("ready") == []
    assert old.call("wait", GENEROUS) is True
    assert old.call("close") == [[], []]
    assert new.call("close") == [[], []]


@pytest.mark.parametrize("size", [0, 1, 32 * 1024, 32 * 1024 + 1, 10_000_000])
def test_state_of_any_size_is_taken_over(path: str, size: int) -> None:
    state = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with Takeover(path) as old:
        old.offer(state)
        old.ready()
        with Takeover(path) as new:
            assert new.state == state


@pytest.mark.parametrize("why", ["unknown", "forbidden"])
def test_much_state_is_taken_over_where_no_file_is_in_memory(
    path: str, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def refuse(name: str, flags: int) -> int:
        raise PermissionError(errno.EPERM, "a policy")

    if why == "unknown":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refuse)
    state = os.urandom(1_000_000)
    with Takeover(path) as old:
        old.offer(state)
        old.ready()
        with Takeover(path) as new:
            assert new.state == state


def test_state_is_what_was_offered_last(path: str) -> None:
    with Takeover(path) as old:
        old.offer(b"early")
        old.ready()
        old.offer(b"\n{late\n}\0")
        with Takeover(path) as new:
            assert new.state == b"\n{late\n}\0"


def test_a_chain_of_five_takeovers_keeps_the_socket_and_the_path(
    start: Callable[[], Server], running: Server, path: str
) -> None:
    address = address_of(running)
    inode = os.stat(path).st_ino
    found = running.call("identities")["http"]
    owner = running
    for _ in range(5):
        successor = start()
        assert successor.call("enter", path) == owner.pid
        assert successor.call("listen", "http", "127.0.0.1", 0)[0] == found
        assert successor.call("ready") == []
        assert owner.call("wait", GENEROUS)
        assert owner.call("close") == [[], []]
        owner.kill()
        served_by(address, successor)
        assert os.stat(path).st_ino == inode
        owner = successor
    assert owner.call("close") == [[], []]
    assert not os.path.exists(path)


def test_an_abstract_control_socket_is_taken_over(
    start: Callable[[], Server], tmp_path: Path
) -> None:
    path = f"@{tmp_path}/control"
    old, new, third = start(), start(), start()
    old.call("enter", path)
    found = old.call("listen", "http", "127.0.0.1", 0)
    old.call("ready")
    assert take_over(new, path) == found
    assert old.call("close") == [[], []]
    assert take_over(third, path) == found


# Sockets made elsewhere, descriptors of any kind, and the state of the last moment.


def test_an_adopted_socket_is_the_predecessors_if_it_has_one_of_that_name(path: str) -> None:
    with Takeover(path) as old, socket.create_server(("127.0.0.1", 0)) as made:
        assert old.adopt(made, "http") is made
        old.ready()
        with Takeover(path) as new:
            spare = socket.create_server(("127.0.0.1", 0))
            with new.adopt(spare, "http") as kept:
                assert identity(kept) == identity(made)
                assert spare.fileno() == -1
                assert new.ready() == ()
            with Takeover(path) as third, third.listen("127.0.0.1", 0, name="http") as same:
                assert identity(same) == identity(made)


def test_what_cannot_be_adopted_stays_the_callers(path: str) -> None:
    with Takeover(path) as takeover, socket.create_server(("127.0.0.1", 0)) as made:
        takeover.listen("127.0.0.1", 0, name="http").close()
        with pytest.raises(ValueError, match="'http' already"):
            takeover.adopt(made, "http")
        with pytest.raises(ValueError, match="255 bytes"):
            takeover.adopt(made, "x" * 256)
        with (
            no_more_room(),
            pytest.raises(conduit.Error, match="adopting 'x': this process has no room") as caught,
        ):
            takeover.adopt(made, "x")
        assert caught.value.errno == errno.EMFILE
        assert takeover.adopt(made, "x") is made


def test_an_adopted_unix_socket_is_found_by_its_address(path: str, tmp_path: Path) -> None:
    place = str(tmp_path / "unix")
    with socket.socket(socket.AF_UNIX) as made, Takeover(path) as old:
        made.bind(place)
        made.listen()
        old.adopt(made, "x")
        old.ready()
        with Takeover(path) as new, new.listen(place, name="x") as kept:
            assert identity(kept) == identity(made)
            with pytest.raises(conduit.Error, match="listening as 'y'"):
                new.listen("127.0.0.1", made.fileno(), name="y", type=socket.SOCK_SEQPACKET)
            assert new.ready() == ()


def test_any_descriptor_is_kept_for_the_successor(path: str) -> None:
    out, into = os.pipe()
    with tempfile.TemporaryFile() as file, Takeover(path) as old, open(out, "rb") as reading:
        file.write(b"content")
        file.flush()
        old.keep("file", file)
        old.keep("pipe", into)
        os.close(into)
        assert old.names == ()
        assert old.take("file") is None
        old.ready()
        with Takeover(path) as new:
            assert new.names == ("file", "pipe")
            taken = new.take("file")
            assert taken is not None
            with taken:
                assert taken.name == "file"
                assert taken.is_same_file(file)
                assert is_private(taken.fileno())
            assert list(new.names) == ["pipe"]
            assert new.take("file") is None
            new.ready()
            with new.take("pipe") or open(os.devnull) as pipe:
                os.write(pipe.fileno(), b"said")
            assert reading.read() == b"said"


def test_what_was_kept_under_a_name_is_replaced_and_let_go_of(path: str) -> None:
    with Takeover(path) as old:
        for _ in range(2):
            out, into = os.pipe()
            old.keep("pipe", into)
            os.close(into)
            old.keep("pipe", 0)
            assert is_at_eof(out)
        old.keep("pipe", None)
        old.keep("pipe", None)
        old.ready()
        with Takeover(path) as new:
            assert new.names == ()


def test_what_cannot_be_kept_is_an_error(path: str) -> None:
    with Takeover(path) as takeover:
        with pytest.raises(ValueError, match="255 bytes"):
            takeover.keep("x" * 256, 0)
        with (
            no_more_room(),
            pytest.raises(conduit.Error, match="keeping 'x': this process has no room"),
        ):
            takeover.keep("x", 0)
        with open(os.devnull) as file:
            pass
        with pytest.raises(conduit.Error, match="no descriptor"):
            takeover.keep("x", file)
        with Conduits() as (one, _):
            one.close()
            with pytest.raises(conduit.Error, match="closed"):
                takeover.keep("x", one)


@contextlib.contextmanager
def Conduits() -> Iterator[tuple[conduit.Conduit, conduit.Conduit]]:  # noqa: N802
    one, other = conduit.Conduit.pair()
    with one, other:
        yield one, other


def test_what_is_not_taken_is_closed_with_the_takeover(path: str) -> None:
    out, into = os.pipe()
    with Takeover(path) as old:
        old.keep("pipe", into)
        os.close(into)
        old.ready()
        with Takeover(path) as new:
            new.ready()
            assert old.wait(GENEROUS)
            assert new.names == ("pipe",)
    assert is_at_eof(out)


def test_much_that_is_kept_is_taken_over(path: str) -> None:
    with Takeover(path) as old:
        names = [f"{number:03}" + "\1" * 252 for number in range(60)]
        for name in names:
            old.keep(name, 0)
        old.ready()
        with Takeover(path) as new:
            assert list(new.names) == names


def test_what_comes_while_a_successor_starts_reaches_it_when_it_is_ready(path: str) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="early") as early:
        old.keep("same", 0)
        old.keep("changed", 0)
        old.offer(b"early")
        old.ready()
        with Takeover(path) as new:
            with old.listen("127.0.0.1", 0, name="late") as late:
                old.keep("late", late)
                old.keep("changed", early)
                old.offer(b"late")
                assert new.state == b"early"
                assert new.ready() == ("early",)
                assert old.wait(GENEROUS)
                assert new.state == b"late"
                assert sorted(new.names) == ["changed", "late", "same"]
                with new.take("changed") or early as changed:
                    assert os.path.sameopenfile(changed.fileno(), early.fileno())
                with new.listen("127.0.0.1", 0, name="late") as kept:
                    assert identity(kept) == identity(late)


def test_a_function_is_asked_for_the_state_when_the_successor_is_ready(path: str) -> None:
    asked: list[str] = []

    def state() -> bytes:
        asked.append("old")
        return b"x" * 100_000

    with Takeover(path) as old:
        old.offer(state)
        old.ready()
        Takeover(path).close()
        free(path)
        with Takeover(path) as new:
            assert new.state == b""
            assert not asked
            new.ready()
            assert new.state == b"x" * 100_000
            assert asked == ["old"]


def test_a_function_that_fails_leaves_the_predecessor_serving(path: str) -> None:
    with Takeover(path) as old:
        old.offer(lambda: bytes(1 // 0))
        old.ready()
        with Takeover(path) as new, pytest.raises(TakeoverError, match="division"):
            new.ready()
        assert not old.wait(0)
        old.offer(b"later")
        free(path)
        with Takeover(path) as new:
            new.ready()
            assert new.state == b"later"


def test_what_a_newer_predecessor_adds_is_ignored(path: str) -> None:
    with conduit.Listener(path, type=SEQPACKET) as control:
        entering = Call(Takeover, path)
        with Talk(control.accept(GENEROUS)) as talk, socket.create_server(("127.0.0.1", 0)) as sock:
            assert talk.hear()["kind"] == "hello"
            talk.say("hint", of=sock)
            talk.say("welcome", version=1, since=3)
            row = {"name": "http", "tls": {"alpn": ["h2"]}}
            talk.say("sockets", sockets=[{**row, "socket": sock}], more=sock)
            for _ in range(2):
                talk.say("items", items=[{**row, "fd": sock}])
            talk.say("control", socket=control, since=3)
            with entering.result() as successor:
                assert successor.names == ("http",)
                with successor.listen("127.0.0.1", 0, name="http") as kept:
                    assert identity(kept) == identity(sock)


# What the service manager passed.


@contextlib.contextmanager
def passed(*items: tuple[str, socket.socket | int]) -> Iterator[None]:
    """Stand for `listen_fds` in a process that was started with descriptors."""
    fds = [conduit.Descriptor(os.dup(i if isinstance(i, int) else i.fileno()), n) for n, i in items]

    def listen_fds() -> tuple[conduit.Descriptor, ...]:
        given = tuple(fds)
        fds.clear()
        return given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systemd, "listen_fds", listen_fds)
        yield
    for fd in fds:
        fd.close()


def test_what_the_service_manager_passed_is_used_by_name_or_address(
    path: str, tmp_path: Path
) -> None:
    place = str(tmp_path / "unix")
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        three = stack.enter_context(socket.socket(socket.AF_UNIX))
        three.bind(place)
        three.listen()
        stack.enter_context(
            passed(
                ("stored", 0), ("http", udp), ("http", one), ("unknown", three), ("unknown", two)
            )
        )
        takeover = stack.enter_context(Takeover(path))
        for wanted, args, name in (
            (one, ("127.0.0.1", 1), "http"),
            (two, two.getsockname(), "other"),
            (three, (place,), None),
        ):
            with takeover.listen(*args, name=name) as sock:
                assert identity(sock) == identity(wanted)
        with takeover.listen("127.0.0.1", 0, name="fresh", type=socket.SOCK_DGRAM) as fresh:
            assert fresh.type == socket.SOCK_DGRAM
        takeover.ready()
        with Takeover(path) as new:
            assert set(new.ready()) == {"http", "other", place, "fresh"}
    assert os.path.exists(place)


def test_an_address_that_a_drained_server_still_has_is_tried_again(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()
    resolve = sockets.resolve

    def resolve_and_tell(*args: Any) -> Any:
        tried.set()
        return resolve(*args)

    monkeypatch.setattr(sockets, "resolve", resolve_and_tell)
    monkeypatch.setattr(protocol, "GREETING", GENEROUS)
    with reserved_port() as port, Takeover(path) as old:
        taken = socket.create_server(("127.0.0.1", port))
        old.ready()
        with taken, Takeover(path) as new:
            call = Call(new.listen, "127.0.0.1", port, name="http")
            assert tried.wait(GENEROUS)
            taken.close()
            with call.result() as sock:
                assert sock.getsockname()[1] == port


def test_an_address_that_stays_taken_is_an_error_in_the_end(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Takeover(path) as old:
        old.ready()
        with Takeover(path) as new, pytest.raises(conduit.Error, match="already in use"):
            # Only now: on a busy machine the greeting takes longer.
            monkeypatch.setattr(protocol, "GREETING", 0.15)
            new.listen("127.0.0.1", taken.getsockname()[1], name="http")


def test_the_predecessors_address_under_another_name_is_an_error_at_once(path: str) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="one") as sock:
        old.ready()
        with Takeover(path) as new, pytest.raises(conduit.Error, match="already in use"):
            new.listen("127.0.0.1", sock.getsockname()[1], name="two")


def test_an_address_is_tried_again_though_the_predecessor_died_before_it_sent_anything(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "GREETING", GENEROUS)
    with reserved_port() as port, socket.create_server(("127.0.0.1", port)) as taken:
        with conduit.Listener(path, type=SEQPACKET) as control:
            entering = Call(Takeover, path)
            control.accept(GENEROUS).close()
        with entering.result() as new:
            assert new.predecessor is None
            call = Call(new.listen, "127.0.0.1", port, name="http")
            assert call.is_waiting()
            taken.close()
            call.result().close()


def test_an_address_that_a_worker_of_a_killed_server_has_is_tried_again(
    start: Callable[..., Server], running: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "GREETING", GENEROUS)
    with reserved_port() as port:
        running.call("listen", "late", "127.0.0.1", port)
        running.call("fork")
        running.process.kill()
        running.process.wait(GENEROUS)
        with Takeover(path) as new:
            assert new.predecessor is None
            call = Call(new.listen, "127.0.0.1", port, name="late")
            assert call.is_waiting()
            # The worker ends with its standard input.
            running.end()
            call.result().close()


# Which socket is meant: names of several addresses, scopes, network namespaces.


@pytest.fixture
def name_service(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of names, for this process."""
    names: dict[str, list[str]] = {}
    getaddrinfo = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return [
            found
            for address in names.get(host, [host])
            for found in getaddrinfo(address, *args, **kwargs)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


def test_a_name_of_one_address_is_that_address(
    path: str, name_service: dict[str, list[str]]
) -> None:
    name_service["server"] = ["127.0.0.1", "127.0.0.1"]
    with Takeover(path) as old, old.listen("server", 0, name="http") as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        old.ready()
        with Takeover(path) as new, new.listen("127.0.0.1", 0, name="http") as kept:
            assert identity(kept) == identity(sock)


def test_a_name_of_several_addresses_is_an_error_that_names_them(
    path: str, name_service: dict[str, list[str]]
) -> None:
    name_service["server"] = ["::1", "127.0.0.1"]
    with Takeover(path) as takeover:
        says = "'server' is several addresses, ::1, 127.0.0.1: listen at each, under a name"
        with pytest.raises(conduit.Error, match=says) as caught:
            takeover.listen("server", 0)
        assert caught.value.errno == errno.EINVAL
        assert takeover.ready() == ()
        with Takeover(path) as new:
            assert new.ready() == ()


def in_network(*commands: str) -> list[str]:
    """What runs a command in a network namespace of its own, that has addresses."""
    steps = ["ip link set lo up", "ip addr add fe80::1/64 dev lo nodad", *commands]
    script = "\n".join([*steps, 'exec "$@"'])
    # A user who is not root is one in a namespace of users.
    user = ["--map-root-user"] if os.geteuid() else []
    return unshared("--net", *user, "sh", "-ec", script, "sh")


# What runs a command with a descriptor, whose number is given first, as a service manager does.
ACTIVATED = [
    *(sys.executable, "-c"),
    "import os, sys; os.dup2(int(sys.argv[1]), 3);"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='http');"
    "os.execv(sys.argv[2], sys.argv[2:])",
]

# A second link, on which the same address is another one.
TWO_LINKS = [
    "ip tuntap add mode tap name link0",
    "ip link set link0 up",
    "ip addr add fe80::1/64 dev link0 nodad",
]


def test_the_same_address_on_another_link_is_a_fresh_socket(path: str) -> None:
    # In one process, so that both are in one namespace.
    code = """if True:
        import sys
        from conduit.takeover import Takeover
        path = sys.argv[1]
        with Takeover(path) as old, old.listen("fe80::1%lo", 0, name="x") as sock:
            port = sock.getsockname()[1]
            old.ready()
            with Takeover(path) as new, new.listen("fe80::1%link0", port, name="x") as fresh:
                assert fresh.getsockname() != sock.getsockname(), fresh.getsockname()
                assert new.ready() == ("x",)
                with Takeover(path) as third, third.listen("fe80::1%link0", 0, name="x") as same:
                    assert same.getsockname() == fresh.getsockname()
                    assert third.ready() == ()
    """
    done = subprocess.run(
        [*in_network(*TWO_LINKS), sys.executable, "-P", "-W", "error", "-c", code, path],
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_same_address_in_another_network_namespace_is_a_fresh_socket(
    start: Callable[..., Server], path: str, tmp_path: Path
) -> None:
    old, new, third = start(), start(*in_network()), start()
    old.call("enter", path)
    unix = str(tmp_path / "unix")
    wanted: dict[str, tuple[Any, ...]] = {
        "http": ("127.0.0.1", 0),
        "abstract": (f"@{tmp_path}",),
        "unix": (unix,),
    }
    first = {name: old.call("listen", name, *args)[0] for name, args in wanted.items()}
    old.call("ready")
    assert new.call("enter", path) == old.pid
    second = {name: new.call("listen", name, *args)[0] for name, args in wanted.items()}
    assert {name for name in wanted if first[name] == second[name]} == {"unix"}
    assert sorted(new.call("ready")) == ["abstract", "http"]
    assert old.call("wait", GENEROUS)
    old.call("close")
    assert os.path.exists(unix)
    assert third.call("enter", path) == new.pid
    assert third.call("listen", "http", "127.0.0.1", 0)[0] != second["http"]


def test_a_socket_of_the_predecessors_own_network_namespace_is_not_this_ones(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="http") as sock:
        old.ready()
        monkeypatch.setattr(sockets, "own_namespace", lambda: b"another")
        with Takeover(path) as new:
            with new.listen("127.0.0.1", 0, name="http") as fresh:
                assert identity(fresh) != identity(sock)


def test_what_the_service_manager_opened_in_another_network_namespace_is_handed_on(
    start: Callable[..., Server], path: str
) -> None:
    around = in_network()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        # As a manager starts a service that has a network of its own.
        old = start(*around, *ACTIVATED, str(sock.fileno()), fds=[sock.fileno()])
        address = list(sock.getsockname())
    new, third = start(*around), start()
    old.call("enter", path)
    found = old.call("listen", "http", "127.0.0.1", 1)
    assert found[1] == address
    old.call("ready")
    for successor in (new, third):
        assert successor.call("enter", path) is not None
        assert successor.call("listen", "http", *address) == found
        assert successor.call("ready") == []


def test_where_the_system_does_not_tell_namespaces_apart_all_are_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_SO_NETNS_COOKIE", 9999)
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="http") as sock:
        assert sockets.namespace_of(sock) == b""
        old.ready()
        with Takeover(path) as new, new.listen("127.0.0.1", 0, name="http") as kept:
            assert identity(kept) == identity(sock)


# Room for many.


@contextlib.contextmanager
def soft_limit(limit: int) -> Iterator[None]:
    """Start processes with a soft limit of open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@needs_descriptors(1000)
def test_more_sockets_than_the_soft_limit_has_room_for_are_opened_and_taken_over(
    start: Callable[..., Server], path: str
) -> None:
    with soft_limit(64):
        old, new = start(), start()
    old.call("enter", path)
    old.call("listen_to_many", 200)
    old.call("ready")
    assert new.call("enter", path) == old.pid
    assert new.call("limit") < 1000
    new.call("listen_to_many", 200)
    assert new.call("identities") == old.call("identities")
    assert new.call("ready") == []


@needs_descriptors(2048)
@pytest.mark.parametrize("what", ["keep", "adopt"])
def test_descriptors_beyond_the_soft_limit_are_kept(path: str, what: str) -> None:
    with Takeover(path) as takeover, socket.socket() as sock:
        with room_for(0):
            takeover.adopt(sock, "x") if what == "adopt" else takeover.keep("x", sock)


def test_one_descriptor_of_each_socket_is_kept(path: str) -> None:
    with Takeover(path) as old:
        before = len(open_descriptors())
        for name in "abc":
            old.listen("127.0.0.1", 0, name=name).close()
        assert len(open_descriptors()) == before + 3
        old.ready()
        with Takeover(path) as new:
            before = len(open_descriptors())
            kept = [new.listen("127.0.0.1", 0, name=name) for name in "abc"]
            # What had come is the caller's, and a duplicate of each is kept.
            assert len(open_descriptors()) == before + 3
            for sock in kept:
                sock.close()
            assert len(open_descriptors()) == before


@needs_descriptors(6000)
def test_the_table_of_descriptors_is_large_enough_before_they_come() -> None:
    def prepare() -> None:
        before = len(open_descriptors())
        room.make_room(5000)
        assert len(open_descriptors()) == before
        status = Path("/proc/self/status").read_text()
        assert int(status.partition("FDSize:")[2].split()[0]) >= 5000

    assert in_child(prepare) == 0


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 4096, 1024, 1500])
def test_the_soft_limit_is_doubled_up_to_the_hard_one(
    hard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(1024, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    room.make_room(1 << 11)
    most = 4096 if hard == resource.RLIM_INFINITY else hard
    assert limits[-1] == (most, hard)


def test_a_limit_of_the_system_below_the_hard_one_is_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 20))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    room.make_room(15)
    with pytest.raises(OSError, match="Too many") as caught:
        room.with_room(lambda: os.dup(too_many()))
    assert caught.value.errno == errno.EMFILE


def too_many() -> int:
    raise OSError(errno.EMFILE, "Too many open files")


def test_where_the_system_does_not_tell_what_is_open_all_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_proc(_: object) -> list[str]:
        raise FileNotFoundError("no /proc here")

    limits = [(1024, 2048)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    monkeypatch.setattr(os, "listdir", no_proc)
    room.make_room(1)
    assert limits[-1] == (2048, 2048)


# Who may come, and when.


def test_one_that_is_not_ready_refuses_at_once(path: str) -> None:
    with Takeover(path):
        with pytest.raises(TakeoverError, match="it is not ready itself yet"):
            Takeover(path)


def test_a_second_takeover_is_refused_at_once_and_may_come_later(
    start: Callable[[], Server], running: Server, path: str
) -> None:
    second, third = start(), start()
    second.call("enter", path)
    with pytest.raises(RemoteError, match=r"TakeoverError: .*another takeover is under way"):
        third.call("enter", path)
    second.kill()
    free(path)
    take_over(third, path)


def free(path: str) -> None:
    """Return once no takeover is under way any more."""
    while True:
        with Talk.to(path) as talk:
            talk.hello(0)
            reason = talk.hear()["reason"]
            if "under way" not in reason:
                return


def expire(takeover: Takeover) -> None:
    """Let the time of all who are connected be over, to one whose thread answers."""
    for session in takeover._succession._sessions.copy().values():
        session.deadline = 0.0
    # It is asleep until the deadline that was.
    Talk.to(str(takeover.path)).link.close()


def test_another_version_of_the_protocol_is_refused(running: Server, path: str) -> None:
    for versions in ([], [0, 2], None, 1, "1", [[1]], {"1": 1}):
        with Talk.to(path) as talk:
            talk.say("hello", versions=versions)
            answer = talk.hear()
            assert answer["kind"] == "refused"
            assert "speaks version 1 of the protocol" in answer["reason"]
            assert (answer["version"], answer["versions"]) == (1, [1])
            assert answer["pid"] == running.pid
    with Talk.to(path) as talk:
        talk.say("hello", versions=[1, 2], features=["x"])
        assert talk.hear() == {
            "kind": "welcome",
            "version": 1,
            "pid": running.pid,
            "descriptors": 1,
        }


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0", b"\n", b"{" * 1000])
def test_garbage_is_refused_and_harms_nothing(
    start: Callable[[], Server], running: Server, path: str, garbage: bytes
) -> None:
    with Talk.to(path) as talk, open(os.devnull) as extra:
        talk.link.transfer(extra, data=garbage, keep=True)
        assert talk.hear()["kind"] == "refused"
        with pytest.raises(conduit.PeerClosedError):
            talk.hear()
    take_over(start(), path)


@pytest.mark.parametrize(
    "garbage", [None, [], "kind", {}, {"kind": "ready"}, {"kind": ["hello"]}, {"kind": "hello"}]
)
def test_a_message_that_means_nothing_is_refused_and_harms_nothing(
    start: Callable[[], Server], running: Server, path: str, garbage: Any
) -> None:
    with Talk.to(path) as talk:
        talk.channel.send(garbage)
        assert talk.hear()["kind"] == "refused"
        with pytest.raises(conduit.PeerClosedError):
            talk.hear()
    take_over(start(), path)


def test_an_answer_to_who_is_allowed_may_fail(path: str) -> None:
    answers: list[bool] = []
    with Takeover(path, allow=lambda peer: answers.pop()) as old:
        old.ready()
        with pytest.raises(TakeoverError, match="is not allowed"):
            Takeover(path)
        answers.append(True)
        with Takeover(path) as new:
            new.ready()
            assert old.wait(GENEROUS)


def test_no_room_for_the_state_is_told_and_leaves_the_predecessor_serving(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memfd_create(name: str, flags: int) -> int:
        raise OSError(24, "Too many open files")

    with Takeover(path) as old:
        old.offer(bytes(1_000_000))
        old.ready()
        with monkeypatch.context() as patched:
            patched.setattr(os, "memfd_create", memfd_create)
            with pytest.raises(TakeoverError, match="Too many open files"):
                Takeover(path)
        Takeover(path).close()
        assert not old.wait(0)


def test_who_comes_when_there_is_no_room_is_answered_once_there_is(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(succession.log, "warning", lambda text, exc: warnings.put(str(exc)))
    with Takeover(path) as takeover, socket.socket(socket.AF_UNIX, SEQPACKET) as sock:
        takeover.ready()
        with room_for(0):
            sock.connect(path)
            assert "RLIMIT_NOFILE" in warnings.get(timeout=GENEROUS)
        with Talk(conduit.Conduit.from_conn(sock)) as talk:
            talk.hello(0)
            assert talk.hear()["kind"] == "refused"


def test_one_that_was_refused_and_goes_on_sending_keeps_nobody_waiting() -> None:
    ours, theirs = conduit.Conduit.pair(type=SEQPACKET)
    talk = Talker(ours, protocol.Side.PREDECESSOR)
    with theirs, contextlib.closing(talk):
        for _ in range(40):
            theirs.transfer(data=b"more")
        talk.drain()
        with ours.receive() as message:
            assert message.data == b"more"
        theirs.close()
        with pytest.raises(conduit.PeerClosedError):
            for _ in range(40):
                talk.drain()


def test_a_silent_client_keeps_nobody_waiting(
    start: Callable[[], Server], running: Server, path: str
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(conduit.Conduit.connect(path, type=SEQPACKET))
        take_over(start(), path)
        assert running.call("wait", GENEROUS)
        assert running.call("close") == [[], []]


def test_a_client_that_goes_at_once_harms_nothing(
    start: Callable[[], Server], running: Server, path: str
) -> None:
    for _ in range(50):
        conduit.Conduit.connect(path, type=SEQPACKET).close()
    take_over(start(), path)


def test_one_that_has_handed_over_sends_nobody_away(path: str) -> None:
    with Takeover(path) as old, Talk.to(path) as talk:
        old.ready()
        with Takeover(path) as new:
            new.ready()
            with pytest.raises(conduit.PeerClosedError):
                talk.hello()
                talk.hear()


def test_a_successor_may_come_as_soon_as_one_is_ready(path: str) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(Takeover(path)).ready()
        for _ in range(100):
            stack.enter_context(Takeover(path)).ready()


@needs_root
def test_another_user_cannot_reach_the_path() -> None:
    with public_directory() as directory:
        control = f"{directory}/control"

        def intrude() -> None:
            with pytest.raises(conduit.Error, match=r"EACCES|Permission denied"):
                Takeover(control)

        with Takeover(control) as takeover:
            takeover.ready()
            with beside(intrude, user=NOBODY):
                pass


@needs_root
def test_another_user_is_not_admitted_where_there_is_no_mode(tmp_path: Path) -> None:
    path = f"@{tmp_path}"

    def intrude() -> None:
        with pytest.raises(TakeoverError, match=r"refuses: Peer\(.*uid=65534.* is not allowed"):
            Takeover(path)

    with Takeover(path) as takeover, takeover.listen("127.0.0.1", 0):
        takeover.ready()
        with beside(intrude, user=NOBODY):
            pass
        Takeover(path).close()


def test_who_is_not_allowed_is_not_taken_over_from(path: str) -> None:
    with Takeover(path, timeout=GENEROUS) as old:
        old.ready()
        with pytest.raises(TakeoverError, match=r"is served by Peer.*not allowed"):
            Takeover(path, allow=lambda peer: False)
        Takeover(path, allow=lambda peer: peer.pid == os.getpid()).close()
        assert old.wait(0) is False


def test_something_else_at_the_path_is_an_error_and_stays(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("content")
    with pytest.raises(conduit.Error):
        Takeover(other)
    assert other.read_text() == "content"
    with pytest.raises(conduit.Error) as caught:
        Takeover(tmp_path / "no" / "directory")
    assert caught.value.errno == 2


def test_a_socket_of_another_type_at_the_path_is_an_error_and_stays(path: str) -> None:
    with conduit.Listener(path) as other:
        with pytest.raises(conduit.Error, match="connecting to") as caught:
            Takeover(path)
        assert caught.value.errno == errno.EPROTOTYPE
        with conduit.Conduit.connect(path):
            other.accept(GENEROUS).close()


def test_a_stale_path_is_replaced(start: Callable[[], Server], running: Server, path: str) -> None:
    running.kill()
    os.utime(path, (1, 1))
    with Takeover(path) as takeover:
        assert takeover.predecessor is None
        assert os.stat(path).st_mtime > 1
        takeover.ready()
    assert not os.path.exists(path)


def test_of_many_that_start_at_once_one_owns_the_path(path: str) -> None:
    barrier = threading.Barrier(8)

    def enter() -> Takeover | None:
        barrier.wait()
        try:
            return Takeover(path)
        except TakeoverError as exc:
            assert "not ready itself yet" in str(exc)
            return None

    calls = [Call(enter) for _ in range(8)]
    entered = [takeover for call in calls if (takeover := call.result()) is not None]
    assert len(entered) == 1
    entered[0].close()
    assert not os.path.exists(path)


def before_listening(
    monkeypatch: pytest.MonkeyPatch, happens: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    """Let something happen just before the next time that a free path is listened at, and end."""

    def listen(*args: Any, **kwargs: Any) -> conduit.Listener:
        monkeypatch.undo()
        with happens():
            return conduit.Listener(*args, **kwargs)

    monkeypatch.setattr(inheritance, "Listener", listen)


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_who_was_faster_to_listen_is_the_predecessor(
    path: str, abstract: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"@{path}" if abstract else path
    with contextlib.ExitStack() as stack:

        @contextlib.contextmanager
        def start_first() -> Iterator[None]:
            first = stack.enter_context(Takeover(path))
            stack.enter_context(first.listen("127.0.0.1", 0, name="http"))
            first.ready()
            yield

        before_listening(monkeypatch, start_first)
        with Takeover(path) as second:
            assert second.predecessor is not None
            assert second.ready() == ("http",)


def test_the_place_of_who_was_faster_to_listen_and_to_end_is_free(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_listening(monkeypatch, lambda: Takeover(path))
    with Takeover(path) as takeover:
        assert takeover.predecessor is None
        takeover.ready()
        with Takeover(path) as new:
            assert new.predecessor is not None


def test_a_name_at_which_somebody_never_listens_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "GREETING", 0.05)
    with socket.socket(socket.AF_UNIX, SEQPACKET) as sock:
        sock.bind(f"\0{tmp_path}")
        with pytest.raises(conduit.Error, match="listening at") as caught:
            Takeover(f"@{tmp_path}")
    assert caught.value.errno == errno.EADDRINUSE


# Rollback: the successor fails.

STEPS_OF_A_SUCCESSOR: list[tuple[str, str, str]] = [
    ("before", "send", "hello"),
    ("after", "send", "hello"),
    ("after", "receive", "welcome"),
    ("after", "receive", "sockets"),
    ("after", "receive", "state"),
    ("after", "receive", "control"),
    ("before", "send", "received"),
    ("after", "send", "received"),
    ("before", "send", "ready"),
    ("after", "send", "ready"),
    ("after", "receive", "confirmed"),
    ("before", "send", "done"),
]


@pytest.mark.parametrize("step", STEPS_OF_A_SUCCESSOR, ids=" ".join)
def test_a_successor_killed_at_any_step_leaves_the_predecessor_serving(
    start: Callable[[], Server], running: Server, path: str, step: tuple[str, str, str]
) -> None:
    address = address_of(running)
    inode = os.stat(path).st_ino
    found = running.call("identities")["http"]
    successor, later = start(), start()
    successor.call("fail_at", *step)
    with pytest.raises(EOFError):
        take_over(successor, path)
    assert successor.end() == -signal.SIGKILL
    free(path)
    assert running.call("wait", 0) is False
    served_by(address, running)
    assert os.stat(path).st_ino == inode
    assert take_over(later, path)[0] == found
    assert running.call("wait", GENEROUS) is True
    assert running.call("close") == [[], []]
    served_by(address, later)


def test_a_successor_that_fails_is_named_by_its_pid(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Takeover(path) as old:
        old.ready()
        # It is a successor once it has its welcome.
        with Takeover(path):
            pass
        free(path)
    assert f"a takeover by pid {os.getpid()} failed, and this process goes on" in caplog.text


def test_a_successor_killed_after_its_last_word_has_taken_over(
    start: Callable[[], Server], running: Server, path: str
) -> None:
    successor = start()
    successor.call("fail_at", "after", "send", "done")
    with pytest.raises(EOFError):
        take_over(successor, path)
    assert running.call("wait", GENEROUS) is True


STEPS_BY_HAND = [
    "connected",
    "hello",
    "welcome",
    "sockets",
    "state",
    "control",
    "received",
    "ready",
    "confirmed",
]


def go_to(talk: Talk, step: str) -> None:
    """Speak as a successor up to a step."""
    if step == "connected":
        return
    talk.hello()
    if step == "hello":
        return
    for kind in ("welcome", "sockets", "state", "control"):
        assert talk.hear()["kind"] == kind
        if step == kind:
            return
    talk.say("received")
    if step == "received":
        return
    talk.say("ready")
    if step == "confirmed":
        assert talk.hear()["kind"] == "confirmed"


@pytest.mark.parametrize("step", STEPS_BY_HAND)
@pytest.mark.parametrize("how", ["no", "closes", "hangs"])
def test_a_successor_that_says_no_closes_or_hangs_leaves_the_predecessor_serving(
    path: str, step: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its thread may be about to note the deadline that `expire` has just moved.
    old = Takeover(path, timeout=10)
    with old, old.listen("127.0.0.1", 0, name="x") as sock:
        old.offer(b"state")
        old.ready()
        with Talk.to(path) as talk:
            go_to(talk, step)
            if how == "no":
                talk.say("refused", reason="no")
                with contextlib.suppress(conduit.PeerClosedError):
                    talk.hear_all_until("refused")
            elif how == "closes":
                talk.link.close()
            else:
                monkeypatch.setattr(old._succession, "timeout", 0.0)
                monkeypatch.setattr(protocol, "GREETING", 0.0)
                expire(old)
                talk.hear_all_until("refused")
                with pytest.raises(conduit.PeerClosedError):
                    talk.hear()
        monkeypatch.undo()
        free(path)
        assert old.wait(0) is False
        assert not readable(old.fileno())
        with Takeover(path) as new, new.listen("127.0.0.1", 0, name="x") as kept:
            assert identity(kept) == identity(sock)
            new.ready()
            assert old.wait(GENEROUS)


@needs_descriptors(2500)
def test_a_successor_that_reads_nothing_is_given_up_at_the_deadline(path: str) -> None:
    with Takeover(path, timeout=0.05) as old, contextlib.ExitStack() as stack:
        for number in range(1000):
            stack.enter_context(old.listen(f"@{path}{number}", name=f"{number} {'x' * 250}"))
        old.offer(bytes(30_000))
        old.ready()
        with Talk.to(path) as talk:
            talk.hello()
            free(path)
        assert not old.wait(0)


def test_a_successor_that_fails_before_it_is_ready_leaves_the_predecessor_serving(
    path: str,
) -> None:
    with Takeover(path) as old:
        old.ready()
        with pytest.raises(ZeroDivisionError), Takeover(path):
            1 / 0  # noqa: B018
        free(path)
        assert os.path.exists(path)
        with Takeover(path) as new:
            new.ready()
            assert old.wait(GENEROUS)
        assert not os.path.exists(path)


def test_one_that_is_ready_too_late_is_told_so_and_owns_nothing(path: str) -> None:
    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            expire(old)
            free(path)
            with pytest.raises(TakeoverError, match=r"the other side refuses: .*deadline passed"):
                new.ready()
            assert old.wait(0) is False
        with Takeover(path) as later:
            later.ready()
            assert old.wait(GENEROUS)


def test_one_that_failed_to_take_over_does_not_when_it_tries_again(path: str) -> None:
    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            expire(old)
            free(path)
            for _ in range(2):
                with pytest.raises(TakeoverError):
                    new.ready()


@contextlib.contextmanager
def about_to_follow(path: str) -> Iterator[tuple[Takeover, Talk]]:
    """A successor that waits for ready(), and its predecessor, spoken by hand."""
    with conduit.Listener(path, type=SEQPACKET) as control:
        entering = Call(Takeover, path)
        with Talk(control.accept(GENEROUS)) as talk:
            assert talk.hear() == {"kind": "hello", "versions": [1], "pid": os.getpid()}
            talk.say("welcome", version=1)
            talk.say("control", socket=control)
            assert talk.hear()["kind"] == "received"
            with entering.result() as successor:
                yield successor, talk


def test_a_successor_whose_last_word_comes_too_late_is_told_so(path: str) -> None:
    with about_to_follow(path) as (successor, talk):
        call = Call(successor.ready)
        assert talk.hear()["kind"] == "ready"
        with borrowed(talk.link.fileno()) as sock:
            sock.shutdown(socket.SHUT_RD)
        talk.say("confirmed")
        assert call.is_waiting()
        talk.say("refused", reason="too late")
        with pytest.raises(TakeoverError, match="too late"):
            call.result()


def test_what_a_predecessor_says_after_its_end_is_closed_and_means_nothing(path: str) -> None:
    out, into = os.pipe()
    with about_to_follow(path) as (successor, talk):
        call = Call(successor.ready)
        assert talk.hear()["kind"] == "ready"
        talk.say("confirmed")
        assert talk.hear()["kind"] == "done"
        with open(into, "wb") as file:
            talk.say("sockets", sockets=[{"name": "x", "socket": file}])
        assert call.result() == ()
        assert successor.predecessor_line is None
        assert is_at_eof(out)
        assert not successor.wait(0)


def test_a_predecessor_that_stops_answering_stays_the_owner(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with about_to_follow(path) as (successor, _):
        monkeypatch.setattr(protocol, "GREETING", 0.05)
        with pytest.raises(TakeoverError, match=r"does not hand over: .*deadline passed"):
            successor.ready()


# The predecessor fails.

STEPS_OF_A_PREDECESSOR: list[tuple[str, str, str]] = [
    ("after", "receive", "hello"),
    ("after", "send", "welcome"),
    ("after", "send", "sockets"),
    ("after", "send", "state"),
    ("after", "send", "control"),
    ("after", "receive", "received"),
    ("after", "receive", "ready"),
    ("after", "send", "confirmed"),
    ("after", "receive", "done"),
    ("after", "send", "over"),
]


@pytest.mark.parametrize("step", STEPS_OF_A_PREDECESSOR, ids=" ".join)
def test_a_predecessor_killed_at_any_step_leaves_the_successor_what_came(
    start: Callable[[], Server], running: Server, path: str, step: tuple[str, str, str]
) -> None:
    address = address_of(running)
    found = running.call("identities")["http"]
    successor, third = start(), start()
    is_early = step[2] in ("hello", "welcome")
    running.call("fail_at", *step)
    assert successor.call("enter", path) == (None if is_early else running.pid)
    if step[2] in ("hello", "welcome", "sockets", "state", "control", "received"):
        assert running.process.wait(GENEROUS) == -signal.SIGKILL
    got, name = successor.call("listen", "http", *address)
    assert (got == found) != is_early
    assert name == address
    assert successor.call("ready") == []
    assert running.process.wait(GENEROUS) == -signal.SIGKILL
    served_by(address, successor)
    assert third.call("enter", path) is not None
    assert third.call("listen", "http", *address)[0] == got
    assert third.call("ready") == []
    assert successor.call("wait", GENEROUS) is True
    assert successor.call("close") == [[], []]
    served_by(address, third)
    assert third.call("close") == [[], []]
    assert not os.path.exists(path)


# Either side is stopped, and goes on when the other has given it up, or has gone on without it.


def stop_at(server: Server, step: tuple[str, str, str]) -> None:
    """Have a server stopped at a step of its next takeover."""
    server.call("fail_at", *step, signal.SIGSTOP)


def wait_until_stopped(server: Server) -> None:
    os.waitid(os.P_PID, server.pid, os.WSTOPPED | os.WNOWAIT)


def resume(server: Server) -> None:
    server.process.send_signal(signal.SIGCONT)


def give_up(server: Server) -> None:
    """Have a server refuse the one who is connected to it, for being late."""
    while not server.call("conversations"):
        pass
    server.call("give_up_after", 0.0)
    while not all(server.call("conversations")):
        pass


def ask_to_follow(server: Server, path: str) -> None:
    """Begin what `take_over` does."""
    server.ask("enter", path)
    server.ask("listen", "http", "127.0.0.1", 0)
    server.ask("ready")


def outcome(server: Server) -> str:
    """Why a server that was asked to follow does not; empty if it does."""
    says = ""
    for _ in range(3):
        try:
            server.answer()
        except RemoteError as exc:
            says = says or str(exc)
    return says


@contextlib.contextmanager
def connections(server: Server) -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A connection that a server has accepted, and some that wait in the queue."""
    address = tuple(address_of(server))
    with contextlib.ExitStack() as stack:
        held, *waiting = [
            stack.enter_context(socket.create_connection(address, GENEROUS)) for _ in range(4)
        ]
        server.call("hold", "http")
        yield held, waiting


def assert_owned_by(
    owner: Server,
    path: str,
    holder: Server,
    clients: tuple[socket.socket, list[socket.socket]],
    third: Server,
) -> None:
    """Check that one process alone is followed, and that each connection is answered."""
    held, waiting = clients
    holder.call("answer_held")
    assert held.recv(100) == b"%d" % holder.pid
    for client in waiting:
        owner.call("accept", "http")
        assert client.recv(100) == b"%d" % owner.pid
    address = address_of(owner)
    assert owner.call("wait", 0) is False
    assert third.call("enter", path) == owner.pid
    assert third.call("listen", "http", "127.0.0.1", 0)[1] == address
    assert third.call("ready") == []
    assert owner.call("wait", GENEROUS) is True
    served_by(address, third)


@pytest.mark.parametrize("step", STEPS_OF_A_SUCCESSOR, ids=" ".join)
def test_a_successor_that_was_stopped_and_given_up_owns_nothing(
    start: Callable[..., Server], running: Server, path: str, step: tuple[str, str, str]
) -> None:
    successor, third = start(), start()
    stop_at(successor, step)
    with connections(running) as clients:
        ask_to_follow(successor, path)
        wait_until_stopped(successor)
        give_up(running)
        running.call("give_up_after", GENEROUS)
        resume(successor)
        assert "TakeoverError" in outcome(successor)
        assert_owned_by(running, path, running, clients, third)


@pytest.mark.parametrize("step", STEPS_OF_A_SUCCESSOR, ids=" ".join)
def test_a_successor_that_was_stopped_while_another_followed_owns_nothing(
    start: Callable[..., Server], running: Server, path: str, step: tuple[str, str, str]
) -> None:
    successor, other, third = start(), start(), start()
    stop_at(successor, step)
    with connections(running) as clients:
        ask_to_follow(successor, path)
        wait_until_stopped(successor)
        give_up(running)
        running.call("give_up_after", GENEROUS)
        take_over(other, path)
        assert running.call("wait", GENEROUS) is True
        running.call("answer_held")
        running.call("close")
        resume(successor)
        assert "TakeoverError" in outcome(successor)
        assert clients[0].recv(100) == b"%d" % running.pid
        for client in clients[1]:
            other.call("accept", "http")
            assert client.recv(100) == b"%d" % other.pid
        assert third.call("enter", path) == other.pid


def test_a_successor_that_is_stopped_after_its_last_word_is_the_owner(
    start: Callable[..., Server], running: Server, path: str
) -> None:
    successor, third = start(), start()
    stop_at(successor, ("after", "send", "done"))
    with connections(running) as clients:
        ask_to_follow(successor, path)
        wait_until_stopped(successor)
        assert running.call("wait", GENEROUS) is True
        resume(successor)
        assert outcome(successor) == ""
        assert_owned_by(successor, path, running, clients, third)


LAST_WORDS = ["confirmed", "done", "over"]
"""Where a predecessor that is stopped has said, or heard, what makes its successor the owner."""


@pytest.mark.parametrize("step", STEPS_OF_A_PREDECESSOR, ids=" ".join)
def test_a_predecessor_that_was_stopped_is_the_owner_unless_it_has_confirmed(
    start: Callable[..., Server], running: Server, path: str, step: tuple[str, str, str]
) -> None:
    successor, third = start(), start()
    successor.call("give_up_once_stopped", running.pid)
    stop_at(running, step)
    with connections(running) as clients:
        ask_to_follow(successor, path)
        wait_until_stopped(running)
        says = outcome(successor)
        if step[2] in LAST_WORDS:
            assert says == ""
            # It serves meanwhile.
            successor.call("accept", "http")
            assert clients[1].pop(0).recv(100) == b"%d" % successor.pid
            resume(running)
            assert running.call("wait", GENEROUS) is True
        else:
            assert "does not hand over" in says
            resume(running)
        owner = successor if step[2] in LAST_WORDS else running
        owner.call("give_up_after", GENEROUS)
        assert_owned_by(owner, path, running, clients, third)


@pytest.mark.parametrize("word", LAST_WORDS)
def test_a_predecessor_that_was_stopped_while_the_line_went_on_owns_nothing(
    start: Callable[..., Server], running: Server, path: str, word: str
) -> None:
    successor, third = start(), start()
    successor.call("give_up_once_stopped", running.pid)
    step = next(step for step in STEPS_OF_A_PREDECESSOR if step[2] == word)
    stop_at(running, step)
    with connections(running) as clients:
        ask_to_follow(successor, path)
        wait_until_stopped(running)
        assert outcome(successor) == ""
        successor.call("give_up_after", GENEROUS)
        take_over(third, path)
        assert successor.call("wait", GENEROUS) is True
        assert successor.call("close") == [[], []]
        resume(running)
        assert running.call("wait", GENEROUS) is True
        running.call("answer_held")
        assert running.call("close") == [[], []]
        assert clients[0].recv(100) == b"%d" % running.pid
        for client in clients[1]:
            third.call("accept", "http")
            assert client.recv(100) == b"%d" % third.pid
        served_by(address_of(third), third)
        assert os.path.exists(path)


def test_a_predecessor_killed_among_its_sockets_leaves_those_that_came(
    start: Callable[[], Server], path: str
) -> None:
    old, new = start(), start()
    old.call("enter", path)
    old.call("listen_to_many", 250)
    old.call("ready")
    old.call("fail_at", "after", "send", "sockets")
    new.call("enter", path)
    assert old.process.wait(GENEROUS) == -signal.SIGKILL
    dropped = new.call("ready")
    assert 0 < len(dropped) < 250
    assert dropped == [f"listener {index}" for index in range(len(dropped))]


def test_a_predecessor_that_ends_the_conversation_before_it_stops_listening_is_dead(
    path: str,
) -> None:
    with conduit.Listener(path, type=SEQPACKET) as control:
        entering = Call(Takeover, path)
        for _ in range(2):
            with Talk(control.accept(GENEROUS)) as talk:
                assert talk.hear()["kind"] == "hello"
    with entering.result() as successor:
        assert successor.predecessor is None
        with pytest.raises(TakeoverError, match="not ready itself yet"):
            Takeover(path)
        successor.ready()
    assert not os.path.exists(path)


def test_a_predecessor_that_never_says_a_word_is_given_up(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "GREETING", 0.05)
    with conduit.Listener(path, type=SEQPACKET) as control:
        entering = Call(Takeover, path)
        answering = Call(close_each_from, control)
        # The second, if this process has to wait for its turn.
        with pytest.raises((conduit.PeerClosedError, TakeoverError)):
            entering.result()
    with pytest.raises(conduit.Error, match="closed"):
        answering.result()


def close_each_from(control: conduit.Listener) -> None:
    while True:
        control.accept().close()


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "sockets"},
        {"kind": "sockets", "sockets": {"a": 1}},
        {"kind": "sockets", "sockets": [{"name": "x"}]},
        {"kind": "sockets", "sockets": [["x", None, None]]},
        {"kind": "sockets", "sockets": [{"socket": "FD"}]},
        {"kind": "sockets", "sockets": [{"name": ["x"], "socket": "FD"}]},
        {"kind": "sockets", "sockets": [{"name": "x", "socket": "FD"}]},
        {"kind": "sockets", "sockets": [{"name": "x", "socket": 5}]},
        {"kind": "sockets", "sockets": [{"name": "x", "socket": "SOCKET", "path": 5}]},
        {"kind": "sockets", "sockets": [{"name": "x", "socket": "SOCKET", "path": "/a\0b"}]},
        {"kind": "sockets", "sockets": [{"name": "x", "socket": "SOCKET", "path": "/\ud800"}]},
        {"kind": "sockets", "sockets": [{"name": "x", "socket": "SOCKET", "inode": 7}]},
        {"kind": "items", "items": [{"name": "x"}]},
        {"kind": "items", "items": [{"name": 1, "fd": "FD"}]},
        {"kind": "state"},
        {"kind": "state", "file": 5},
        {"kind": "state", "file": "SOCKET", "x": "FD"},
        {"kind": "control"},
        {"kind": "control", "socket": "FD"},
        {"kind": "control", "socket": "SOCKET"},
        {"kind": "welcome"},
        {"kind": "confirmed", "x": "FD"},
        {"kind": "refused"},
        {},
        [],
        None,
        "x" * (1 << 21),
    ],
    ids=lambda message: str(message)[:60],
)
def test_a_predecessor_that_talks_nonsense_is_an_error(path: str, message: Any) -> None:
    def filled(obj: Any) -> Any:
        if isinstance(obj, dict):
            return {key: filled(value) for key, value in obj.items()}
        if isinstance(obj, list):
            return [filled(value) for value in obj]
        return {"FD": no_socket, "SOCKET": sock}.get(obj, obj) if isinstance(obj, str) else obj

    with (
        conduit.Listener(path, type=SEQPACKET) as control,
        open(os.devnull) as no_socket,
        socket.create_server(("127.0.0.1", 0)) as sock,
    ):
        entering = Call(Takeover, path)
        with Talk(control.accept(GENEROUS)) as talk:
            assert talk.hear()["kind"] == "hello"
            talk.say("welcome", version=1)
            talk.channel.send(filled(message), keep=True)
            with pytest.raises(TakeoverError):
                entering.result()
        assert os.path.exists(path)


def test_an_inode_that_is_no_integer_is_nonsense() -> None:
    # As JSON may have it: 9e999.
    row = {"name": "x", "socket": None, "inode": [math.inf, 1]}
    with pytest.raises(TakeoverError, match="malformed"):
        Holdings(b"").receive("sockets", {"sockets": [row]})


def test_what_a_dead_predecessor_and_the_next_one_both_had_is_the_next_ones(path: str) -> None:
    def say_sockets(talk: Talk, name: str) -> tuple[int, bytes]:
        assert talk.hear()["kind"] == "hello"
        with socket.create_server(("127.0.0.1", 0)) as sock:
            talk.say("welcome", version=1)
            talk.say("sockets", sockets=[{"name": name, "socket": sock}])
            return identity(sock)

    with conduit.Listener(path, type=SEQPACKET) as control:
        entering = Call(Takeover, path)
        with Talk(control.accept(GENEROUS)) as talk:
            say_sockets(talk, "x")
        with Talk(control.accept(GENEROUS)) as talk:
            second = say_sockets(talk, "x")
            talk.say("control", socket=control)
            with entering.result() as successor:
                with successor.listen("127.0.0.1", 0, name="x") as sock:
                    assert identity(sock) == second


@pytest.mark.parametrize("step", STEPS_BY_HAND)
def test_a_predecessor_that_closes_in_the_middle_leaves_all_to_one_that_received_all(
    path: str, tmp_path: Path, step: str
) -> None:
    unix = str(tmp_path / "unix")
    with Takeover(path) as old, old.listen(unix, name="x"), Talk.to(path) as talk:
        old.offer(b"state")
        old.ready()
        go_to(talk, step)
        old.close()
        with pytest.raises(conduit.PeerClosedError):
            talk.hear_all_until("refused")
        follows = STEPS_BY_HAND.index(step) >= STEPS_BY_HAND.index("received")
        assert os.path.exists(path) is follows
        assert os.path.exists(unix) is follows


def test_a_successor_that_received_too_little_starts_over_with_what_came(
    path: str, tmp_path: Path
) -> None:
    unix = str(tmp_path / "unix")
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        gone = stack.enter_context(socket.socket(socket.AF_UNIX))
        gone.bind(unix)
        inode = os.stat(unix)
        os.unlink(unix)
        control = stack.enter_context(conduit.Listener(path, type=SEQPACKET))
        entering = Call(Takeover, path)
        with Talk(control.accept(GENEROUS)) as talk:
            assert talk.hear()["kind"] == "hello"
            with borrowed(talk.link.fileno()) as sock:
                sock.shutdown(socket.SHUT_RD)
            talk.say("welcome", version=1)
            row = {"name": "u", "path": unix, "inode": [inode.st_dev, inode.st_ino]}
            rows = [{"name": "t", "socket": tcp}, {**row, "socket": gone}]
            talk.say("sockets", sockets=rows)
            talk.say("control", socket=control)
            control.close()
        new = stack.enter_context(entering.result())
        assert new.predecessor is not None
        with new.listen("127.0.0.1", 0, name="t") as kept, new.listen(unix, name="u") as fresh:
            assert identity(kept) == identity(tcp)
            assert identity(fresh) != identity(gone)
            assert new.ready() == ("u",)
        assert new.predecessor_line is None
        with Takeover(path) as third:
            assert third.ready() == ("t", "u")
    assert os.listdir(tmp_path) == []


def test_a_successor_is_the_owner_when_the_predecessor_closes_first(path: str) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="x") as sock:
        old.ready()
        with Takeover(path) as new, new.listen("127.0.0.1", 0, name="x") as kept:
            old.close()
            new.ready()
            assert identity(kept) == identity(sock)
            with Takeover(path) as third:
                assert third.ready() == ("x",)
                assert new.wait(GENEROUS)
    assert not os.path.exists(path)


# Ends.


def test_the_path_is_removed_at_the_end_unless_somebody_follows(path: str) -> None:
    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            new.ready()
            assert old.wait(GENEROUS)
            old.close()
            assert os.path.exists(path)
        assert not os.path.exists(path)


def test_the_path_of_another_is_not_removed(path: str) -> None:
    with Takeover(path) as takeover:
        takeover.ready()
        os.unlink(path)
        Path(path).write_text("another's")
    assert Path(path).read_text() == "another's"


def test_closing_twice_is_fine(path: str) -> None:
    takeover = Takeover(path)
    takeover.close()
    takeover.close()


def test_after_close_nothing_can_be_asked_for(path: str) -> None:
    with Takeover(path) as takeover:
        pass
    for call in (takeover.ready, lambda: takeover.listen("127.0.0.1", 0)):
        with pytest.raises(conduit.Error, match="is closed") as caught:
            call()
        assert caught.value.type is conduit.ErrType.NO_FD
    assert takeover.wait() is False
    assert takeover.fileno() == -1


def test_close_ends_the_wait_of_another_thread(path: str) -> None:
    with Takeover(path) as takeover:
        takeover.ready()
        waiting = Call(takeover.wait)
    assert waiting.result() is False


def test_close_does_not_unsay_that_somebody_follows(path: str) -> None:
    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            new.ready()
            assert old.wait(GENEROUS)
    assert old.wait() is True


def test_one_that_is_closed_while_it_hands_over_is_followed(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_close = conduit.Listener.close
    closing: list[Call[None]] = []

    def close_first(control: conduit.Listener, *, unlink: bool = True) -> None:
        if not closing:
            closing.append(Call(old.close))
            while not old.closed:
                os.sched_yield()
        real_close(control, unlink=unlink)

    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            monkeypatch.setattr(conduit.Listener, "close", close_first)
            new.ready()
            closing[0].result()
            assert old.wait() is True
            assert os.path.exists(path)
            monkeypatch.undo()
    assert caplog.messages == []


# The line that stays open.


def test_a_conduit_between_the_two_is_open_until_the_old_one_closes(path: str) -> None:
    with Takeover(path) as old:
        assert old.successor is None
        assert old.predecessor_line is None
        old.ready()
        with Takeover(path) as new:
            assert new.predecessor_line is None
            new.ready()
            assert old.wait(GENEROUS)
            down, up = old.successor, new.predecessor_line
            assert down is not None
            assert up is not None
            assert (down.timeout, up.timeout) == (None, None)
            with socket.create_server(("127.0.0.1", 0)) as sock:
                down.transfer(sock, data=b"here", keep=True)
                with up.receive() as message:
                    assert message.data == b"here"
                    assert message.fds[0].is_same_file(sock)
            up.transfer(data=b"thanks")
            assert down.receive().data == b"thanks"
            with Takeover(path) as third:
                third.ready()
                assert new.wait(GENEROUS)
                assert new.successor is not None
            old.close()
            assert down.closed
            with pytest.raises(conduit.PeerClosedError):
                up.receive()
        assert up.closed


def test_to_be_ready_a_second_time_does_nothing(path: str) -> None:
    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="http"):
        old.ready()
        with Takeover(path) as new:
            assert new.ready() == ("http",)
            assert new.ready() == ("http",)
            assert new.dropped == ("http",)
            assert old.wait(GENEROUS)
            old.ready()
            with Takeover(path) as third:
                third.ready()
                assert new.wait(GENEROUS)


def test_no_thread_is_left_after_close(path: str) -> None:
    before = threading.active_count()
    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new, Talk.to(path), Talk.to(path):
            new.ready()
    assert threading.active_count() <= before


def test_fileno_is_readable_when_wait_returns_and_not_before(path: str) -> None:
    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            assert not old.wait(0)
            assert not readable(old.fileno())
            new.ready()
            assert readable_soon(old.fileno())
            assert old.wait(0)
            assert old.wait()
            assert not readable(new.fileno())


def readable_soon(number: int) -> bool:
    return bool(select.select([number], [], [], GENEROUS)[0])


def test_wait_returns_in_a_thread_that_waits_already(path: str) -> None:
    with Takeover(path) as old:
        old.ready()
        waiting = Call(old.wait)
        with Takeover(path) as new:
            assert waiting.thread.is_alive()
            new.ready()
            assert waiting.result() is True


def test_a_forked_child_holds_nothing_but_the_sockets_and_removes_nothing(
    path: str, tmp_path: Path
) -> None:
    place = f"{tmp_path}/unix"

    def look() -> None:
        assert takeover.closed
        # What the conversation in this test waits with is its own.
        left = {
            number: name
            for number, name in open_descriptors().items()
            if number not in before and not name.startswith(wakers)
        }
        assert set(left) == {sock.fileno()}, left
        with pytest.raises(conduit.Error):
            takeover.ready()
        assert takeover.wait() is False
        takeover.close()

    wakers = "pipe:" if PORTABLE else "anon_inode:[eventfd]"
    before = set(open_descriptors())
    with Takeover(path) as takeover, takeover.listen(place, name="x") as sock:
        takeover.ready()
        with Talk.to(path) as talk:
            go_to(talk, "sockets")
            before.add(talk.link.fileno())
            with beside(look):
                pass
        assert os.path.exists(place)
        free(path)
        with Takeover(path) as new:
            assert new.ready() == ("x",)


def test_workers_that_outlive_their_server_keep_nobody_from_following(
    start: Callable[[], Server], running: Server, path: str
) -> None:
    new, third = start(), start()
    address = address_of(running)
    new.call("enter", path)
    new.call("listen", "http", *address)
    running.call("fork")
    running.process.kill()
    running.process.wait(GENEROUS)
    assert new.call("ready") == []
    third.call("enter", path)
    third.call("listen", "http", *address)
    new.call("fork")
    new.process.kill()
    new.process.wait(GENEROUS)
    third.process.kill()
    third.process.wait(GENEROUS)
    with Takeover(path) as fourth:
        assert fourth.predecessor is None


@pytest.mark.parametrize("in_memory", [True, False])
def test_state_that_cannot_be_written_is_told_and_leaves_the_predecessor_serving(
    path: str, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    with Takeover(path) as old:
        old.offer(b"state")
        old.ready()
        with monkeypatch.context() as patched:
            if in_memory:
                patched.setattr(os, "memfd_create", lambda *_: os.open("/dev/full", os.O_RDWR))
            else:
                patched.delattr(os, "memfd_create")
                full = partial(open, "/dev/full", "r+b")
                patched.setattr(tempfile, "TemporaryFile", full)
            with pytest.raises(TakeoverError, match="No space left"):
                Takeover(path)
        with Takeover(path) as new:
            assert new.state == b"state"


def test_state_that_ends_too_early_is_an_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Takeover(path) as old:
        old.offer(b"state")
        old.ready()
        monkeypatch.setattr(os, "pread", lambda *_: b"")
        with pytest.raises(TakeoverError, match="ends after 0 of 5 bytes"):
            Takeover(path)


def test_without_room_to_take_over_nothing_is_said_and_it_can_be_done_again(path: str) -> None:
    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            with (
                room_for(0),
                pytest.raises(conduit.Error, match="taking over: this process has no room"),
            ):
                new.ready()
            assert not old.wait(0)
            new.ready()
            assert old.wait(GENEROUS)


def test_without_room_for_what_it_watches_with_it_leaves_nothing_behind(path: str) -> None:
    for count in range(4):
        with no_more_room(count), pytest.raises(conduit.Error, match="Too many open files"):
            Takeover(path)


def test_what_is_opened_once_somebody_follows_or_it_is_closed_is_not_kept(path: str) -> None:
    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            new.ready()
            assert old.wait(GENEROUS)
            old.listen("127.0.0.1", 0, name="x").close()
            out, into = os.pipe()
            old.keep("x", into)
            os.close(into)
            assert is_at_eof(out)
            assert not old._own.sockets


def test_a_control_socket_that_fails_to_close_is_told_in_the_log(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real_close = conduit.Listener.close

    def close(control: conduit.Listener, *, unlink: bool = True) -> None:
        real_close(control, unlink=unlink)
        raise conduit.Error("it does not close")

    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            monkeypatch.setattr(conduit.Listener, "close", close)
            new.ready()
            assert old.wait(GENEROUS)
    assert set(caplog.messages) == {"it does not close"}


def test_a_successor_that_is_gone_after_its_last_word_has_no_line(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Takeover(path, thread=False) as old:
        old.ready()
        with Talk.to(path) as talk, Talk.to(path) as another:
            go_on_until_confirmed(talk, old)
            talk.say("done")
            another.hello()
            with borrowed(talk.link.fileno()) as sock:
                sock.shutdown(socket.SHUT_RD)
            old.step()
            assert old.wait(0)
            assert old.successor is None
            with pytest.raises(conduit.PeerClosedError):
                another.hear()
    assert "gone already" in caplog.text
    os.unlink(path)


def test_a_last_word_that_has_come_counts_when_the_deadline_passes_or_it_is_closed(
    path: str,
) -> None:
    for is_closed in (False, True):
        with Takeover(path, thread=False, timeout=GENEROUS) as old:
            old.ready()
            with Talk.to(path) as talk:
                go_on_until_confirmed(talk, old)
                talk.say("hint")
                talk.say("done")
                if is_closed:
                    old.close()
                    assert old.wait(0)
                else:
                    session = old._succession._chosen
                    assert session is not None
                    old._succession._expire(session)
                    assert old.wait(0)
                talk.hear_all_until("over")
        os.unlink(path)


def test_what_follows_the_last_word_and_is_no_refusal_is_too_late_to_matter(path: str) -> None:
    with about_to_follow(path) as (successor, talk):
        call = Call(successor.ready)
        assert talk.hear()["kind"] == "ready"
        talk.say("confirmed")
        assert talk.hear()["kind"] == "done"
        talk.say("refused", reason="too late")
        with pytest.raises(TakeoverError, match="too late"):
            call.result()


def test_a_thread_that_fails_to_answer_goes_on(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = succession.Succession.step

    def fail_once(*args: Any) -> None:
        monkeypatch.undo()
        raise ValueError("once")

    with Takeover(path) as old:
        monkeypatch.setattr(succession.Succession, "step", fail_once)
        old.ready()
        Talk.to(path).link.close()
        while "once" not in caplog.text:
            Talk.to(path).link.close()
        assert succession.Succession.step is step
        with Takeover(path) as new:
            new.ready()
            assert old.wait(GENEROUS)


def test_one_that_does_not_go_once_it_was_refused_is_closed_in_the_end(path: str) -> None:
    with Takeover(path, thread=False) as old:
        with Talk.to(path) as talk:
            talk.hello()
            step_as_long_as_there_is_something_to_do(old)
            talk.hear_all_until("refused")
            for session in old._succession._sessions.values():
                session.deadline = 0
            old.step()
            assert not old._succession._sessions


def test_many_messages_of_one_are_heard_in_several_steps(path: str) -> None:
    with Takeover(path, thread=False) as old:
        with Talk.to(path) as talk:
            for _ in range(40):
                talk.say("hint")
            talk.hello()
            step_as_long_as_there_is_something_to_do(old)
            assert "not ready" in talk.hear()["reason"]


def test_what_is_asked_for_while_ready_waits_is_not_dropped(path: str) -> None:
    def state() -> bytes:
        new.listen("127.0.0.1", 0, name="x").close()
        return b""

    with Takeover(path) as old, old.listen("127.0.0.1", 0, name="x"):
        old.offer(state)
        old.ready()
        with Takeover(path) as new:
            assert new.ready() == ()


def test_what_cannot_be_used_of_the_service_manager_is_an_error(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen_fds() -> tuple[conduit.Descriptor, ...]:
        raise conduit.Error("the environment lies")

    monkeypatch.setattr(systemd, "listen_fds", listen_fds)
    with Takeover(path) as takeover:
        takeover.step()
        with pytest.raises(conduit.Error, match="the environment lies"):
            takeover.listen("127.0.0.1", 0)


def test_an_interrupt_while_it_is_made_stays_itself_and_leaves_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(selectors, "DefaultSelector", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Takeover(path)


def test_a_child_forked_while_it_enters_closes_its_copies(path: str) -> None:
    takeover = Takeover.__new__(Takeover)
    takeover._prepare(path, 1, None, False)
    takeover._close_in_child()
    assert takeover.closed
    takeover._poll(None, 0, GENEROUS)


def test_a_successor_waits_until_there_is_room_for_what_it_says(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = Talker.flush

    def flush_later(talk: Talker) -> int:
        monkeypatch.undo()
        return select.POLLOUT

    with Takeover(path, thread=False) as old:
        old.ready()
        with stepping(old):
            monkeypatch.setattr(Talker, "flush", flush_later)
            with Takeover(path) as new:
                assert Talker.flush is flush
                new.ready()


def test_accepting_while_it_is_closed_is_no_failure(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def admit(control: conduit.Listener, timeout: float | None = None) -> None:
        old.close()
        raise conduit.Error("it is closed")

    with Takeover(path, thread=False) as old, Talk.to(path):
        monkeypatch.setattr(conduit.Listener, "admit", admit)
        old.step()
        assert old.closed
    assert caplog.messages == []


def test_closing_in_a_step_leaves_the_rest_of_the_step(path: str) -> None:
    def allow(peer: conduit.Peer) -> bool:
        asked.append(peer)
        if len(asked) > 1:
            old.close()
        return True

    asked: list[conduit.Peer] = []
    with Takeover(path, thread=False, allow=allow) as old:
        old.ready()
        with Talk.to(path) as talk:
            step_as_long_as_there_is_something_to_do(old)
            with Talk.to(path):
                talk.hello()
                old.step()
            assert old.closed
            with pytest.raises(conduit.PeerClosedError):
                talk.hear()


def test_it_hands_over_while_there_is_no_room_for_others(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "PAUSE", GENEROUS)
    with Takeover(path, thread=False) as old, socket.socket(socket.AF_UNIX, SEQPACKET) as sock:
        old.ready()
        with Talk.to(path) as talk:
            go_on_until_confirmed(talk, old)
            with room_for(0):
                sock.connect(path)
                old.step()
            talk.say("done")
            old.step()
            assert old.wait(0)
            talk.hear_all_until("over")
    os.unlink(path)


# One path for takeovers and for whatever else a server answers.


def test_who_comes_for_something_else_is_the_guests_to_answer(path: str) -> None:
    def guest(link: conduit.Conduit, message: dict[str, Any]) -> None:
        with link:
            guests.append(message["kind"])
            link.transfer(data=b"answer")

    guests: list[str] = []
    with Takeover(path, thread=False) as old:
        old._receive_guests(guest)
        with Talk.to(path) as talk:
            talk.say("status", more=1)
            step_as_long_as_there_is_something_to_do(old)
            assert talk.link.receive().data == b"answer"
        # In a takeover that has begun, it means nothing.
        old.ready()
        with Talk.to(path) as talk:
            go_on_until_confirmed(talk, old)
            talk.say("status")
            talk.say("done")
            old.step()
            talk.hear_all_until("over")
    assert guests == ["status"]
    os.unlink(path)


def test_a_guest_who_is_not_allowed_is_refused(path: str) -> None:
    with Takeover(path, thread=False, allow=lambda _: False) as old:
        old._receive_guests(lambda *_: pytest.fail("a guest"))
        with Talk.to(path) as talk:
            talk.say("status")
            step_as_long_as_there_is_something_to_do(old)
            assert talk.hear()["kind"] == "refused"


# Without a thread: the program's own loop calls step().


@contextlib.contextmanager
def stepping(takeover: Takeover) -> Iterator[None]:
    """A loop that calls step() whenever there is something to do, until one serves."""
    ended = threading.Event()

    def loop() -> None:
        while not (ended.is_set() or takeover.wait(0)):
            if select.select([takeover.fileno()], [], [], 0.01)[0]:
                takeover.step()

    call = Call(loop)
    try:
        yield
    finally:
        ended.set()
        call.result()


def test_without_a_thread_the_program_answers_successors(path: str) -> None:
    before = threading.active_count()
    with Takeover(path, thread=False) as old, old.listen("127.0.0.1", 0, name="http") as sock:
        old.offer(lambda: b"state")
        old.step()
        old.ready()
        assert threading.active_count() <= before
        assert is_private(old.fileno())
        assert not readable(old.fileno())
        with stepping(old), Takeover(path, thread=False) as new:
            with new.listen("127.0.0.1", 0, name="http") as kept:
                assert identity(kept) == identity(sock)
            assert new.ready() == ()
            assert new.state == b"state"
            assert readable_soon(old.fileno())
            assert old.wait(GENEROUS)
            assert old.successor is not None
            with stepping(new), Takeover(path) as third:
                third.ready()
        old.close()
        assert old.fileno() == -1
        old.step()
    assert threading.active_count() <= before


def test_without_a_thread_waiting_answers_successors(path: str) -> None:
    with Takeover(path, thread=False) as old:
        old.ready()
        assert old.wait(0.01) is False
        waiting = Call(old.wait)
        with Takeover(path) as new:
            new.ready()
            assert waiting.result() is True


def test_a_step_while_another_is_under_way_does_nothing(path: str) -> None:
    def allow(peer: conduit.Peer) -> bool:
        old.step()
        steps.append(old.wait(0))
        return True

    steps: list[bool] = []
    with Takeover(path, thread=False, allow=allow) as old:
        old.ready()
        with stepping(old), Takeover(path) as new:
            new.ready()
    assert steps == [False]


def test_without_a_thread_a_deadline_that_has_passed_is_noticed_by_a_step(path: str) -> None:
    with Takeover(path, thread=False, timeout=0.05) as old:
        old.ready()
        with Talk.to(path) as talk:
            talk.hello()
            step_as_long_as_there_is_something_to_do(old)
            assert talk.hear()["kind"] == "welcome"
            while old._succession._chosen is not None:
                old.step()
            talk.hear_all_until("refused")


@needs_descriptors(2500)
def test_a_step_does_not_wait_for_one_that_reads_nothing(path: str) -> None:
    with Takeover(path, thread=False) as old, contextlib.ExitStack() as stack:
        for number in range(1000):
            stack.enter_context(old.listen(f"@{path}{number}", name=f"{number} {'x' * 250}"))
        old.ready()
        with Talk.to(path) as talk:
            talk.hello()
            step_as_long_as_there_is_something_to_do(old)
            names: list[str] = []
            while len(names) < 1000:
                with talk.channel.receiving() as message:
                    names += [row["name"] for row in message.get("sockets", ())]
                step_as_long_as_there_is_something_to_do(old)
            while (kind := talk.hear()["kind"]) != "control":
                assert kind == "sockets"
            talk.say("received")
            step_as_long_as_there_is_something_to_do(old)
            assert old._succession._chosen is not None
            assert old._succession._chosen.talk.conversation.received


def step_as_long_as_there_is_something_to_do(takeover: Takeover) -> None:
    while readable(takeover.fileno()):
        takeover.step()


def go_on_until_confirmed(talk: Talk, old: Takeover) -> None:
    """Speak as a successor until only its last word is left, to one that is driven by steps."""
    talk.hello()
    step_as_long_as_there_is_something_to_do(old)
    talk.hear_all_until("control")
    talk.say("received")
    talk.say("ready")
    step_as_long_as_there_is_something_to_do(old)
    talk.hear_all_until("confirmed")


def test_a_program_that_chose_no_thread_forks_without_a_warning(path: str) -> None:
    code = """
import os, sys
from conduit.takeover import Takeover
with Takeover(sys.argv[1], thread=False) as takeover:
    takeover.ready()
    pid = os.fork()
    if not pid:
        assert takeover.closed
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.path.exists(sys.argv[1])
"""
    done = run_python(code, path)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_room_for_a_thread_nothing_is_left_behind(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(conduit.Error, match="no room for the thread") as caught:
        Takeover(path)
    assert caught.value.errno == errno.EAGAIN
    assert not os.path.exists(path)
    with Takeover(path, thread=False):
        assert os.path.exists(path)


AT_EACH_LINE = """
import gc, logging, os, signal, socket, sys, tempfile, threading
import conduit
from conduit.takeover import Takeover, takeover

logging.disable()

def fds():
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)}

def strike_at(place, handler):
    # Where SIGTERM came, once it has: at one of the lines of the package that this thread runs.
    lines, struck = 0, []

    def trace(frame, event, arg):
        return look if "conduit/takeover/" in frame.f_code.co_filename else None

    def look(frame, event, arg):
        nonlocal lines
        lines += event == "line"
        if lines == place and not struck:
            struck.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            sys.settrace(None)
            signal.raise_signal(signal.SIGTERM)
        return look

    signal.signal(signal.SIGTERM, handler)
    signal.alarm(20)
    sys.settrace(trace)
    return struck

def at_each_line(attempt, step, least):
    # Each in a process of its own. An attempt returns what is wrong; None past the last line.
    for place in range(int(sys.argv[-1]), 4000, step):
        pid = os.fork()
        if not pid:
            wrong = attempt(place)
            if wrong:
                print(*wrong, flush=True)
            os._exit(8 if wrong is None else bool(wrong))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 8:
            sys.exit(0 if place > least else "so few lines")
        if status:
            sys.exit(f"a handler at line {place} ended with {status}")
    sys.exit("there is no end")
"""

CLOSED_BY_A_HANDLER = """
THREAD = sys.argv[1] == "thread"

def attempt(place):
    directory = tempfile.mkdtemp()
    path = directory + "/control"
    before = fds()
    old = Takeover(path, thread=THREAD)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    struck = strike_at(place, lambda *_: old.close())
    try:
        with old.listen("127.0.0.1", 0, name="x"):
            old.keep("x", 0)
            old.ready()
            if not THREAD:
                client.connect(path)
                client.send(b"nonsense")
            old.wait(0.01)
            old.step()
            old.wait(0.01)
    except OSError:
        # It is closed, and says so.
        pass
    sys.settrace(None)
    old.close()
    client.close()
    left = fds() - before
    if not struck:
        return None
    return [struck, os.listdir(directory), left] if left or os.listdir(directory) else []

at_each_line(attempt, 4, 40)
"""


@not_traced
@pytest.mark.parametrize("first", range(1, 5))
@pytest.mark.parametrize("driver_of_it", ["thread", "step"])
def test_a_handler_may_close_it_at_any_line(driver_of_it: str, first: int) -> None:
    code = AT_EACH_LINE + CLOSED_BY_A_HANDLER
    done = run_python(code, driver_of_it, str(first), timeout=3 * GENEROUS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SUCCESSOR_INTERRUPTED = """
THREAD, CLOSES = sys.argv[1] == "thread", sys.argv[2] == "closes"

# As a handler of SIGALRM raises it that makes a deadline; much raises its base as well.
class Interrupt(TimeoutError):
    pass

def attempt(place):
    directory = tempfile.mkdtemp()
    path, unix = directory + "/control", directory + "/unix"
    before = fds()
    old = Takeover(path)
    socks = [old.listen(unix), old.listen(directory + "/other")]
    old.offer(lambda: b"state")
    old.ready()
    new, failure = None, None

    def strike(*_):
        if not CLOSES:
            raise Interrupt
        for each in list(takeover._open):
            if each is not old:
                each.close()

    # What strikes as an object ends can be raised nowhere.
    ended = []
    sys.unraisablehook = lambda what: ended.append(what.exc_type)
    struck = strike_at(place, strike)
    try:
        new = Takeover(path, thread=THREAD)
        socks.append(new.listen(unix))
        new.ready()
        new.wait(0)
        new.step()
        new.close()
    except BaseException as exc:
        failure = exc
    sys.settrace(None)
    if not struck:
        return None
    expected = (conduit.Error, type(None)) if CLOSES else Interrupt
    as_expected = isinstance(failure, expected) or Interrupt in ended
    if new is not None:
        new.close()
    old.close()
    # What they use is closed as they end.
    for each in threading.enumerate():
        if each is not threading.current_thread():
            each.join(10)
    # What the failure refers to is closed with it; a selector refers to itself.
    said, failure = repr(failure), None
    gc.collect()
    for sock in socks:
        sock.close()
    hidden = [name for name in os.listdir(directory) if name.startswith(".")]
    left = fds() - before
    return [struck, said, hidden, left] if hidden or left or not as_expected else []

at_each_line(attempt, 9, 400)
"""


@not_traced
@pytest.mark.parametrize("first", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (4, 7))])
@pytest.mark.parametrize("strike", ["closes", pytest.param("raises", marks=pytest.mark.long)])
@pytest.mark.parametrize("driver_of_it", ["thread", "step"])
def test_a_handler_may_strike_at_any_line_of_a_successor(
    driver_of_it: str, strike: str, first: int
) -> None:
    code = AT_EACH_LINE + SUCCESSOR_INTERRUPTED
    done = run_python(code, driver_of_it, strike, str(first), timeout=3 * GENEROUS)
    assert (done.returncode, done.stdout) == (0, "")


@not_traced
def test_a_handler_that_strikes_as_a_descriptor_comes_into_use_leaves_it_in_no_use() -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    with handling(signal.SIGALRM, interrupt):
        for _ in range(500):
            ours, theirs = conduit.Conduit.pair()
            with theirs:
                with pytest.raises(Interrupt):
                    signal.setitimer(signal.ITIMER_REAL, 20e-6)
                    while True:
                        watch.has_ended(ours)
                ours.close()
                # It would be open until the object ends.
                assert watch.has_ended(theirs)


def test_a_handler_that_strikes_after_the_last_word_is_heard_and_this_is_the_owner(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Takeover(path, thread=False) as old:
        old.ready()
        with stepping(old):
            new = Takeover(path)
        with new:
            talk = new._inheritance.talk
            assert talk is not None

            def poll(*wait: object) -> None:
                if talk.conversation.state is protocol.State.DONE:
                    raise Interrupt
                old.step()

            monkeypatch.setattr(new, "_poll", poll)
            with pytest.raises(Interrupt):
                new.ready()
            assert new.ready() == ()
            monkeypatch.undo()
            assert old.wait(GENEROUS)
            with Takeover(path) as third:
                third.ready()
                assert new.wait(GENEROUS)


def test_a_handler_that_strikes_as_the_last_word_leaves_is_late_and_this_is_the_owner(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Outgoing.step

    def strike(message: Outgoing, channel: conduit.Channel) -> int:
        events = step(message, channel)
        if message.message["kind"] == "done":
            raise Interrupt
        return events

    with Takeover(path) as old:
        old.ready()
        with Takeover(path) as new:
            monkeypatch.setattr(Outgoing, "step", strike)
            with pytest.raises(Interrupt):
                new.ready()
            monkeypatch.undo()
            assert old.wait(GENEROUS)
            assert new.ready() == ()
            with Takeover(path) as third:
                third.ready()
                assert new.wait(GENEROUS)


def test_a_message_that_a_handler_interrupts_leaves_once() -> None:
    ours, theirs = conduit.Conduit.pair(type=socket.SOCK_SEQPACKET)
    with conduit.Channel(theirs) as channel:
        talk = Talker(ours, protocol.Side.PREDECESSOR)
        talk._outbox.append(Outgoing({"kind": "a"}, True))
        talk._outbox.append(Outgoing({"kind": "b"}, True))
        # As a strike in `flush` leaves it, before the message is taken out.
        assert talk._outbox[0].step(talk._channel) == 0
        assert talk.flush() == 0
        assert [channel.receive(), channel.receive()] == [{"kind": "a"}, {"kind": "b"}]
        talk.close()
        with pytest.raises(conduit.PeerClosedError):
            channel.receive()


def test_a_handlers_exception_is_not_taken_for_a_failure_of_the_system() -> None:
    def interrupt(*_: object) -> None:
        raise TimeoutError

    with handling(signal.SIGUSR1, interrupt):
        with pytest.raises(TimeoutError) as caught, Ignoring(OSError):
            signal.raise_signal(signal.SIGUSR1)
        assert type(caught.value) is TimeoutError
        with pytest.raises(TimeoutError) as caught:
            try:
                signal.raise_signal(signal.SIGUSR1)
            except OSError as exc:
                reraise(exc, "anything")
        assert type(caught.value) is TimeoutError


def test_a_line_that_is_made_while_it_is_closed_is_closed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = Talker.flush

    def close_it(talk: Talker) -> int:
        if talk.conversation.state is protocol.State.OVER:
            old.close()
        return flush(talk)

    with Takeover(path) as old:
        old.ready()
        monkeypatch.setattr(Talker, "flush", close_it)
        with Takeover(path) as new:
            new.ready()
            assert old._thread is not None
            old._thread.join(GENEROUS)
            assert old.successor is not None
            assert old.successor.closed


def test_a_handlers_exception_in_a_step_stays_itself(path: str) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    def allow(peer: conduit.Peer) -> bool:
        signal.raise_signal(signal.SIGUSR1)
        return True

    def state() -> bytes:
        signal.raise_signal(signal.SIGUSR1)
        return b"state"

    with handling(signal.SIGUSR1, interrupt), Takeover(path, thread=False, allow=allow) as old:
        old.offer(state)
        old.ready()
        with Talk.to(path) as talk:
            talk.hello()
            with pytest.raises(Interrupt):
                old.step()
            with pytest.raises(conduit.PeerClosedError):
                talk.hear()
        old._succession._allow = lambda peer: True
        with Talk.to(path) as talk:
            talk.hello()
            step_as_long_as_there_is_something_to_do(old)
            talk.hear_all_until("control")
            talk.say("received")
            talk.say("ready")
            with pytest.raises(Interrupt):
                step_as_long_as_there_is_something_to_do(old)
        assert not old.wait(0)


def test_a_function_of_the_programs_may_close_it(path: str) -> None:
    def allow(peer: conduit.Peer) -> bool:
        old.close()
        return True

    with Takeover(path, allow=allow) as old:
        old.ready()
        with Talk.to(path) as talk:
            with pytest.raises(conduit.PeerClosedError):
                talk.hello()
                talk.hear()
    assert no_thread_is_left()


def test_closing_does_not_wait_for_a_function_of_the_programs(path: str) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def allow(peer: conduit.Peer) -> bool:
        asked.set()
        return may_answer.wait(GENEROUS)

    with Takeover(path, allow=allow) as old:
        old.ready()
        with Talk.to(path) as talk:
            assert asked.wait(GENEROUS)
            old.close()
            may_answer.set()
            with pytest.raises(conduit.PeerClosedError):
                talk.hear()
    assert no_thread_is_left()


def test_state_that_is_asked_for_while_it_is_closed_goes_nowhere(path: str) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def state() -> bytes:
        asked.set()
        assert may_answer.wait(GENEROUS)
        return b"state"

    with Takeover(path) as old:
        old.offer(state)
        old.ready()
        with Takeover(path) as new:
            call = Call(new.ready)
            assert asked.wait(GENEROUS)
            old.close()
            may_answer.set()
            assert call.result() == ()
            assert not old.wait(0)
            assert os.path.exists(path)
    assert no_thread_is_left()


def test_an_allow_that_cannot_answer_is_told_in_the_log_and_the_answering_goes_on(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def allow(peer: conduit.Peer) -> bool:
        return True

    with Takeover(path, allow=allow) as old:  # type: ignore[arg-type]
        old.ready()
        for _ in range(2):
            with Talk.to(path) as talk, pytest.raises(conduit.PeerClosedError):
                talk.hello()
                talk.hear()
    assert "cannot be a coroutine function" in caplog.text


@needs_descriptors(600)
def test_the_oldest_of_many_that_say_nothing_makes_room(path: str) -> None:
    with Takeover(path) as old, contextlib.ExitStack() as stack:
        old.ready()
        first = stack.enter_context(Talk.to(path))
        first.hello()
        assert first.hear()["kind"] == "welcome"
        silent = [stack.enter_context(Talk.to(path)) for _ in range(200)]
        with pytest.raises(conduit.PeerClosedError):
            silent[0].hear()
        assert len(old._succession._sessions) <= succession._MOST
        first.hear_all_until("control")
        first.say("received")
        first.say("ready")
        first.hear_all_until("confirmed")
        first.say("done")
        first.hear_all_until("over")
        assert old.wait(GENEROUS)


GEVENT = """
from gevent import monkey
monkey.patch_all()
import os, sys, gevent
from conduit.takeover import Takeover

thread = sys.argv[2] == "thread"

def drive(takeover):
    while not (takeover.closed or takeover.wait(0)):
        gevent.socket.wait_read(takeover.fileno(), timeout=1, timeout_exc=TimeoutError)
        takeover.step()

with Takeover(sys.argv[1], thread=thread) as old, old.listen("127.0.0.1", 0, name="http") as sock:
    old.ready()
    if not thread:
        # With warnings as errors. There is no thread, of which from 3.12 on a fork would warn.
        if os.fork() == 0:
            os._exit(0)
        driving = gevent.spawn(drive, old)
    beats = []
    gevent.spawn(lambda: [beats.append(1) or gevent.sleep(0.01) for _ in range(1000)])
    with Takeover(sys.argv[1], thread=thread) as new:
        with new.listen("127.0.0.1", 0, name="http") as kept:
            assert kept.getsockname() == sock.getsockname()
            new.ready()
            if not thread:
                driving.join(20)
            assert old.wait(20)
            before = len(beats)
            assert new.wait(0.1) is False
            assert len(beats) > before
"""


@pytest.mark.parametrize("driver", ["thread", "step"])
def test_with_gevent_a_takeover_blocks_no_greenlet(path: str, driver: str) -> None:
    pytest.importorskip("gevent")
    done = run_python(GEVENT, path, driver)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_watched_has_a_number_where_gevent_has_put_a_selector_without_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_original(module: str, name: str) -> Any:
        return getattr(sys.modules[module], f"real_{name}")

    real = selectors.DefaultSelector
    monkeypatch.setattr(selectors, "real_DefaultSelector", real, raising=False)
    monkeypatch.setattr(selectors, "DefaultSelector", object)
    monkey = ModuleType("gevent.monkey")
    monkeypatch.setattr(monkey, "get_original", get_original, raising=False)
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    with Takeover(path, thread=False) as takeover:
        assert is_open(takeover.fileno())
        assert isinstance(takeover._succession._selector, real)


def test_a_program_that_answers_by_itself_may_fork(path: str) -> None:
    # From 3.12 on, a fork beside a thread is a DeprecationWarning, and here an error.
    program = """
import os, sys, threading
from conduit.takeover import Takeover

with Takeover(sys.argv[1], thread=False) as old, old.listen("127.0.0.1", 0):
    old.ready()
    assert threading.active_count() == 1
    if (pid := os.fork()) == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    done = run_python(program, path)
    assert (done.returncode, done.stderr) == (0, "")


# The wire where there are no packets: a stream, each message with its length before it.


@pytest.fixture
def on_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inheritance, "TYPE", socket.SOCK_STREAM)


@pytest.mark.usefixtures("on_a_stream")
def test_on_a_stream_a_successor_has_sockets_and_state(path: str) -> None:
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(Takeover(path))
        names = [f"socket {number}" for number in range(150)]
        mine = [stack.enter_context(old.listen("127.0.0.1", 0, name=name)) for name in names]
        for state in (b"", b"\n" * 20_000, b"x" * 1_000_000):
            old.offer(state)
            old.ready()
            new = stack.enter_context(Takeover(path))
            assert new.state == state
            got = [stack.enter_context(new.listen("127.0.0.1", 0, name=name)) for name in names]
            assert list(map(identity, got)) == list(map(identity, mine))
            new.ready()
            assert old.wait(GENEROUS)
            old = new


@pytest.mark.usefixtures("on_a_stream")
@pytest.mark.parametrize(
    "end",
    [b"", b"\0\0\0", b"\0\0\0\5{", b"\0\0\0\2{}", b"\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n"],
)
def test_on_a_stream_a_successor_that_stops_in_a_message_harms_nothing(
    path: str, end: bytes
) -> None:
    with Takeover(path) as old:
        old.ready()
        with conduit.Conduit.connect(path) as link:
            if end:
                with open(os.devnull) as extra:
                    link.transfer(extra, data=end, keep=True)
        with Takeover(path) as new:
            new.ready()
            assert old.wait(GENEROUS)


# On an event loop.

LOOPS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(
        ("asyncio", {"use_uvloop": True}),
        id="uvloop",
        marks=pytest.mark.skipif(not HAS_UVLOOP, reason="not installed: uvloop"),
    ),
    pytest.param(("trio", {}), id="trio"),
]

Loop = tuple[Literal["asyncio", "trio"], dict[str, Any]]


def run(loop: Loop, function: Callable[[], Any]) -> None:
    async def limited() -> None:
        with anyio.fail_after(GENEROUS):
            await function()

    anyio.run(limited, backend=loop[0], backend_options=loop[1])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_takeover_is_awaited(path: str, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncTakeover(path) as old:
            assert old.takeover.predecessor is None
            with await old.listen("127.0.0.1", 0, name="http") as sock:
                assert await old.ready() == ()
                old.takeover.offer(b"state")
                followed = anyio.Event()

                async def watch() -> None:
                    await old.wait()
                    followed.set()

                async with anyio.create_task_group() as tasks, AsyncTakeover(path) as new:
                    tasks.start_soon(watch)
                    assert new.takeover.state == b"state"
                    with await new.listen("127.0.0.1", 0, name="http") as kept:
                        assert identity(kept) == identity(sock)
                    await anyio.lowlevel.checkpoint()
                    assert not followed.is_set()
                    assert await new.ready() == ()
                    await followed.wait()
                    await old.wait()

    run(loop, main)
    assert not os.path.exists(path)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_awaited_takeover_that_is_refused_raises(path: str, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncTakeover(path):
            with pytest.raises(TakeoverError, match="not ready itself yet"):
                async with AsyncTakeover(path):
                    raise AssertionError

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_waiting_for_a_successor_can_be_cancelled(path: str, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncTakeover(path) as takeover:
            await takeover.ready()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await takeover.wait()
            assert scope.cancelled_caught

    run(loop, main)


def test_an_async_takeover_is_entered_first(path: str) -> None:
    takeover = AsyncTakeover(path)
    with pytest.raises(RuntimeError, match="async with"):
        _ = takeover.takeover


@pytest.mark.parametrize("loop", LOOPS)
def test_an_async_takeover_that_was_not_entered_has_nothing_to_close(path: str, loop: Loop) -> None:
    async def main() -> None:
        takeover = AsyncTakeover(path)
        await takeover.aclose()
        async with takeover:
            assert not takeover.takeover.closed
        assert takeover.takeover.closed

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_aclose_ends_the_wait_of_another_task(path: str, loop: Loop) -> None:
    async def main() -> None:
        results: list[bool] = []

        async def wait(takeover: AsyncTakeover) -> None:
            results.append(await takeover.wait())

        async with anyio.create_task_group() as tasks, AsyncTakeover(path) as takeover:
            await takeover.ready()
            tasks.start_soon(wait, takeover)
            await anyio.wait_all_tasks_blocked()
        assert results == [False]
        await wait(takeover)
        assert results == [False, False]
        await takeover.aclose()

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_many_tasks_may_wait_and_aclose_ends_them_all(path: str, loop: Loop) -> None:
    async def main() -> None:
        results: list[bool] = []

        async def wait() -> None:
            results.append(await takeover.wait())

        async with anyio.create_task_group() as tasks:
            takeover = AsyncTakeover(path)
            async with takeover:
                await takeover.ready()
                tasks.start_soon(wait)
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                # One more begins when it is closing already.
                tasks.start_soon(takeover.aclose)
                tasks.start_soon(wait)
        assert results == [False] * 3

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS[:2])
def test_closing_cancelled_by_asyncio_itself_closes(path: str, loop: Loop) -> None:
    async def main() -> None:
        takeover = AsyncTakeover(path)
        await takeover.__aenter__()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await takeover.aclose()
        assert takeover.takeover.closed

    run(loop, main)
    assert not os.path.exists(path)


@pytest.mark.parametrize("loop", LOOPS)
def test_entering_can_be_cancelled_and_leaves_nothing_behind(path: str, loop: Loop) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter)
            with Talk(await to_thread.run_sync(control.accept, GENEROUS)) as talk:
                await to_thread.run_sync(talk.hear)
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(hear_the_end, talk)

    async def enter() -> None:
        async with AsyncTakeover(path):
            raise AssertionError

    def hear_the_end(talk: Talk) -> None:
        with pytest.raises(conduit.PeerClosedError):
            talk.hear()

    with conduit.Listener(path, type=SEQPACKET) as control:
        run(loop, main)
    assert no_thread_is_left()


def no_thread_is_left() -> bool:
    """Wait until no thread of a takeover runs any more."""
    while any("takeover" in thread.name for thread in threading.enumerate()):
        os.sched_yield()
    return True


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("last", ["ready", "done"])
def test_ready_can_be_cancelled_until_its_last_word(path: str, loop: Loop, last: str) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            control = stack.enter_context(conduit.Listener(path, type=SEQPACKET))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                talk = stack.enter_context(Talk(await to_thread.run_sync(control.accept, GENEROUS)))
                await to_thread.run_sync(speak, control, talk)
                tasks.cancel_scope.cancel()
        assert outcome == ["cancelled" if last == "ready" else "owner"]

    def speak(control: conduit.Listener, talk: Talk) -> None:
        talk.hear()
        talk.say("welcome", version=1)
        talk.say("control", socket=control)
        talk.hear_all_until("ready")
        if last == "done":
            talk.say("confirmed")
            assert talk.hear()["kind"] == "done"

    async def follow() -> None:
        async with AsyncTakeover(path) as takeover:
            try:
                assert await takeover.ready() == ()
                outcome.append("owner")
            except anyio.get_cancelled_exc_class():
                outcome.append("cancelled")
                raise

    outcome: list[str] = []
    run(loop, main)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_cancelled_before_it_begins_does_nothing(path: str, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncTakeover(path) as takeover:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await takeover.ready()
            assert scope.cancelled_caught
            with anyio.CancelScope() as scope:
                scope.cancel()
                await takeover.listen("127.0.0.1", 0, name="x")
            assert scope.cancelled_caught
            (await takeover.listen("127.0.0.1", 0, name="x")).close()
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with AsyncTakeover(f"{path}2"):
                    raise AssertionError
            assert scope.cancelled_caught

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_closing_what_an_async_takeover_is_about_ends_its_waits(path: str, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncTakeover(path) as takeover, anyio.create_task_group() as tasks:
            await takeover.ready()

            async def wait() -> None:
                assert await takeover.wait() is False

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            takeover.takeover.close()

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_async_takeover_hands_over_all_that_a_blocking_one_does(path: str, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncTakeover(path) as old:
            with socket.create_server(("127.0.0.1", 0)) as made:
                old.adopt(made, "http")
                old.keep("made", made)
                old.offer(lambda: b"state")
                await old.ready()
                async with AsyncTakeover(path) as new:
                    with new.adopt(socket.socket(), "http") as kept:
                        assert identity(kept) == identity(made)
                    assert new.names == ("made",)
                    with new.take("made") or kept as taken:
                        assert os.fstat(taken.fileno()) == os.fstat(made.fileno())
                    await new.ready()
                    assert new.state == b"state"
                    assert await old.wait()

    run(loop, main)


# Addresses


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), GENEROUS).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no IPv6")


@needs_ipv6
@pytest.mark.parametrize("host", ["", "::"])
def test_every_address_is_of_both_families_and_is_handed_over(path: str, host: str) -> None:
    with Takeover(path) as old:
        with old.listen(host, 0, name="http") as sock:
            port = sock.getsockname()[1]
            assert connects("127.0.0.1", port)
            assert connects("::1", port)
            old.ready()
            with Takeover(path) as new, new.listen(host, port, name="http") as same:
                assert os.path.samestat(os.fstat(same.fileno()), os.fstat(sock.fileno()))
                new.ready()
                assert old.wait(GENEROUS)


@needs_ipv6
def test_every_address_of_each_family_can_be_had_side_by_side(path: str) -> None:
    with Takeover(path) as takeover, reserved_port("::") as port:
        with takeover.listen("0.0.0.0", port, name="four"):
            with takeover.listen("::", port, name="six") as six:
                assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                assert connects("127.0.0.1", port)
                assert connects("::1", port)


def test_without_ipv6_every_address_is_of_ipv4(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with Takeover(path) as takeover, takeover.listen("", 0, name="http") as sock:
        assert sock.family == socket.AF_INET
        assert connects("127.0.0.1", sock.getsockname()[1])


# Servers that remove the path of their socket when they close.


def test_a_path_that_the_predecessor_removes_is_put_back_while_it_drains(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unix = str(tmp_path / "unix")
    with Takeover(path) as old, old.listen(unix) as sock:
        old.ready()
        with Takeover(path) as new, new.listen(unix) as kept:
            new.ready()
            assert old.wait(GENEROUS)
            for _ in range(2):
                os.unlink(unix)
                wait_until_there(unix)
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(unix)
                    kept.accept()[0].close()
            assert f"has been put back: {unix}" in caplog.text
            sock.close()
            old.close()
            wait_until_gone(tmp_path / f".unix.{os.getpid()}")
            assert sorted(os.listdir(tmp_path)) == ["takeover.sock", "unix"]
    assert os.listdir(tmp_path) == []


def wait_until_there(path: str) -> None:
    while not os.path.exists(path):
        os.sched_yield()


def test_a_path_that_is_removed_at_the_predecessors_very_end_is_put_back(
    path: str, tmp_path: Path
) -> None:
    unix = str(tmp_path / "unix")
    with Takeover(path) as old, old.listen(unix):
        old.ready()
        with Takeover(path, thread=False) as new, new.listen(unix) as kept:
            new.ready()
            assert old.wait(GENEROUS)
            os.unlink(unix)
            old.close()
            new.step()
            assert sorted(os.listdir(tmp_path)) == ["takeover.sock", "unix"]
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(unix)
                kept.accept()[0].close()
            # It is nobody's to remove by now but an administrator's.
            os.unlink(unix)
            new.step()
            assert not os.path.exists(unix)


def test_what_else_is_at_a_path_by_then_stays(path: str, tmp_path: Path) -> None:
    unix = tmp_path / "unix"
    with Takeover(path) as old, old.listen(str(unix)):
        old.ready()
        with Takeover(path, thread=False) as new, new.listen(str(unix)):
            new.ready()
            assert old.wait(GENEROUS)
            unix.unlink()
            unix.write_text("another's")
            new.step()
            assert unix.read_text() == "another's"
    assert os.listdir(tmp_path) == ["unix"]


def test_a_path_that_is_not_the_sockets_or_cannot_have_a_second_name_is_left_alone(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "conduit.takeover")
    with Takeover(path) as old, old.listen(f"{tmp_path}/one"), old.listen(f"{tmp_path}/two"):
        old.ready()
        with Takeover(path) as new, new.listen(f"{tmp_path}/one"), new.listen(f"{tmp_path}/two"):
            os.unlink(tmp_path / "one")
            (tmp_path / "one").write_text("another's")
            (tmp_path / f".two.{os.getpid()}").mkdir()
            new.ready()
            assert "two could not be put back if the predecessor removed it" in caplog.text
            assert f"{tmp_path}/one could" not in caplog.text
    assert sorted(os.listdir(tmp_path)) == [f".two.{os.getpid()}", "one"]


def test_a_second_name_that_a_killed_process_left_is_replaced(path: str, tmp_path: Path) -> None:
    unix, left = str(tmp_path / "unix"), tmp_path / f".unix.{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(left))
    with Takeover(path) as old, old.listen(unix):
        old.ready()
        with Takeover(path) as new, new.listen(unix):
            new.ready()
            assert left.samefile(unix)
    assert os.listdir(tmp_path) == []


def test_a_takeover_that_fails_leaves_no_second_names(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unix = str(tmp_path / "unix")
    with Takeover(path) as old, old.listen(unix):
        old.ready()
        with Takeover(path) as new, new.listen(unix):
            monkeypatch.setattr(Talker, "say", lambda *_: os.close(-1))
            with pytest.raises(OSError, match="Bad file"):
                new.ready()
            monkeypatch.undo()
            assert sorted(os.listdir(tmp_path)) == ["takeover.sock", "unix"]


def test_a_line_that_the_program_closed_is_no_reason_to_go_on_watching(
    path: str, tmp_path: Path
) -> None:
    unix = str(tmp_path / "unix")
    with Takeover(path) as old, old.listen(unix):
        old.ready()
        with Takeover(path, thread=False) as new, new.listen(unix):
            new.ready()
            assert new.predecessor_line is not None
            new.predecessor_line.close()
            new.step()
            assert sorted(os.listdir(tmp_path)) == ["takeover.sock", "unix"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="servers of asyncio remove it from 3.13 on")
@pytest.mark.parametrize("loop", LOOPS[:2])
def test_a_unix_server_of_an_event_loop_does_not_take_its_successors_path(
    path: str, tmp_path: Path, loop: Loop
) -> None:
    unix = str(tmp_path / "unix")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def ask() -> bytes:
        reader, writer = await asyncio.open_unix_connection(unix)
        writer.write(b"hello\n")
        said = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return said

    async def main() -> None:
        async with AsyncTakeover(path) as old:
            first = await asyncio.start_unix_server(answer, sock=await old.listen(unix))
            await old.ready()
            async with AsyncTakeover(path) as new:
                second = await asyncio.start_unix_server(answer, sock=await new.listen(unix))
                await new.ready()
                assert await old.wait()
                first.close()
                await first.wait_closed()
                await old.aclose()
                await asyncio.to_thread(wait_until_there, unix)
                assert await ask() == b"hello\n"
                second.close()
                await second.wait_closed()

    run(loop, main)


TMPFILES = shutil.which("systemd-tmpfiles")


@pytest.mark.skipif(TMPFILES is None, reason="not installed: systemd-tmpfiles")
def test_systemd_tmpfiles_leaves_the_paths_of_sockets_alone(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    directory.mkdir()
    kinds = {"stream": socket.SOCK_STREAM, "datagrams": socket.SOCK_DGRAM}
    (tmp_path / "clean.conf").write_text(f"d {directory} 0700 - - am:10d\n")

    def clean() -> list[str]:
        for file in directory.iterdir():
            os.utime(file, (0, 0))
        assert TMPFILES is not None
        subprocess.run([TMPFILES, "--clean", tmp_path / "clean.conf"], check=True)
        return sorted(os.listdir(directory))

    with contextlib.ExitStack() as stack:
        stack.enter_context(conduit.Listener(directory / "listener"))
        stack.enter_context(conduit.Conduit.bind(directory / "bound"))
        old = stack.enter_context(Takeover(directory / "control"))
        for name, kind in kinds.items():
            stack.enter_context(old.listen(str(directory / name), type=kind))
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(os.fspath(directory / "stale"))
        (directory / "file").write_text("")
        alive = ["bound", "control", "datagrams", "listener", "stream"]
        assert clean() == alive
        old.ready()
        with Takeover(directory / "control") as new:
            for name, kind in kinds.items():
                stack.enter_context(new.listen(str(directory / name), type=kind))
            new.ready()
            assert old.wait(GENEROUS)
            old.close()
            assert clean() == alive


def test_a_relative_path_is_the_same_wherever_one_goes(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    monkeypatch.chdir(one)
    with Takeover(path) as takeover, takeover.listen("name\udce9") as sock:
        assert sock.getsockname() == os.path.join(one, "name\udce9")
        monkeypatch.chdir(other)
        takeover.ready()
    assert os.listdir(one) == os.listdir(other) == []


def test_where_the_directory_is_gone_a_relative_path_is_an_error(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with Takeover(path) as takeover:
        monkeypatch.chdir(gone)
        gone.rmdir()
        with pytest.raises(conduit.Error, match="current directory is not to be found") as caught:
            takeover.listen("name")
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(conduit.Error, match="current directory is not to be found"):
            Takeover("name")
