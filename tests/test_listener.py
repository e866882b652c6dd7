"""Listening, connecting, and who is at the other end."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import itertools
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from drivers import TICK, Driver, only_blocking
from helpers import (
    GENEROUS,
    Call,
    borrowed,
    handling,
    in_child,
    interrupt_once_polling,
    is_private,
    memory,
    not_traced,
    open_descriptors,
    room_for,
    send,
)
from sides import NOBODY, beside, is_at_eof, needs_root, public_directory, unshared

from conduit import (
    Conduit,
    Error,
    ErrType,
    Listener,
    Peer,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
    paths,
)
from conduit import peer as peer_module
from conduit.listener import REST

ME = Peer(os.getpid(), os.geteuid(), os.getegid())


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


@pytest.fixture
def public() -> Iterator[str]:
    """A path in a directory that every user can enter, read and write."""
    with public_directory() as directory:
        yield os.path.join(directory, "socket")


def abstract() -> str:
    return f"@conduit-test-{uuid.uuid4()}"


def stale(path: str, kind: int = socket.SOCK_STREAM) -> None:
    """Leave a socket at a path that nobody has open."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)


def fill_backlog(path: str, kind: int) -> list[socket.socket]:
    """Connect to a listener until it takes no more."""
    waiting: list[socket.socket] = []
    while True:
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:
            sock.close()
            return waiting
        waiting.append(sock)


# Connecting and accepting


def test_a_connection_carries_descriptors_between_processes(
    path: str, kind: int, driver: Driver
) -> None:
    with driver.Listener(path, type=kind) as listener:

        def connect() -> None:
            with driver.Conduit.connect(path, type=kind) as link:
                link.transfer(memory(b"inside"), data=b"hello")

        with beside(connect), listener.accept(GENEROUS) as link, link.receive() as message:
            assert message.data == b"hello"
            with message.fds[0].to_file() as file:
                assert file.read() == b"inside"


def test_what_is_made_is_close_on_exec_and_waits(path: str, kind: int, driver: Driver) -> None:
    with (
        driver.Listener(path, type=kind) as listener,
        driver.Conduit.connect(path, type=kind) as client,
        listener.accept() as server,
    ):
        for end in (listener, client, server):
            assert is_private(end.fileno())
        assert os.get_blocking(client.fileno())
        assert os.get_blocking(server.fileno())
        assert client.timeout is None
        assert server.timeout is None


def test_a_connects_timeout_becomes_the_conduits(path: str) -> None:
    with Listener(path), Conduit.connect(path, timeout=0.05, name="mine") as client:
        assert client.timeout == 0.05
        assert client.name == "mine"
        with pytest.raises(TransferTimeoutError, match="mine"):
            client.receive()


def test_any_program_can_connect_and_be_connected_to(path: str, kind: int, driver: Driver) -> None:
    with driver.Listener(path, type=kind) as listener, socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(path)
        number = memory()
        send(sock, [number])
        os.close(number)
        with listener.accept() as link:
            os.close(link.receive_fd())
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)
        sock.listen()
        with driver.Conduit.connect(path, type=kind) as link:
            conn, _ = sock.accept()
            with conn:
                conn.send(b"hello")
                assert link.receive().data == b"hello"


@pytest.mark.parametrize("form", [str, os.fsencode, Path], ids=["str", "bytes", "path"])
def test_a_path_may_have_any_form(path: str, form: Any, driver: Driver) -> None:
    with driver.Listener(form(path)) as listener, driver.Conduit.connect(form(path)) as client:
        assert listener.path == os.fspath(form(path))
        listener.accept().close()
        with pytest.raises(PeerClosedError):
            client.receive()


def test_a_missing_directory_is_named(tmp_path: Path, driver: Driver) -> None:
    with pytest.raises(Error, match=f"the directory '{tmp_path}/gone' does not exist") as caught:
        driver.Listener(f"{tmp_path}/gone/socket")
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.ENOENT)


def test_connecting_to_nothing_says_so(path: str, driver: Driver) -> None:
    with pytest.raises(Error, match="connecting to") as caught:
        driver.Conduit.connect(path)
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.ENOENT)
    stale(path)
    with pytest.raises(Error) as caught:
        driver.Conduit.connect(path)
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.ECONNREFUSED)


def test_connecting_with_another_type_says_so(path: str, driver: Driver) -> None:
    with driver.Listener(path), pytest.raises(Error) as caught:
        driver.Conduit.connect(path, type=socket.SOCK_SEQPACKET)
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EPROTOTYPE)


def test_connecting_without_room_for_a_descriptor_says_so(path: str, driver: Driver) -> None:
    with driver.Listener(path), room_for(0), pytest.raises(Error, match="RLIMIT_NOFILE") as caught:
        driver.Conduit.connect(path)
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EMFILE)


@pytest.mark.hazard("F26")
def test_connecting_to_a_full_backlog_ends_at_the_deadline(
    path: str, kind: int, driver: Driver
) -> None:
    with driver.Listener(path, type=kind, backlog=0) as listener, contextlib.ExitStack() as stack:
        for sock in fill_backlog(path, kind):
            stack.enter_context(sock)
        began = time.monotonic()
        with pytest.raises(TransferTimeoutError):
            driver.Conduit.connect(path, type=kind, timeout=0.05)
        # The clock of a loop may count in whole milliseconds.
        assert time.monotonic() - began >= 0.049
        with pytest.raises(WouldBlockError):
            driver.Conduit.connect(path, type=kind, timeout=0)
        call = Call(driver.Conduit.connect, path, type=kind)
        listener.accept().close()
        call.result().close()


def test_a_full_backlog_and_an_empty_one_are_named(path: str) -> None:
    with Listener(path, backlog=0) as listener, contextlib.ExitStack() as stack:
        with pytest.raises(WouldBlockError, match="no connection is pending"):
            listener.accept(0)
        for sock in fill_backlog(path, socket.SOCK_STREAM):
            stack.enter_context(sock)
        with pytest.raises(TransferTimeoutError, match="backlog"):
            Conduit.connect(path, timeout=0.01)
        with pytest.raises(WouldBlockError, match="backlog"):
            Conduit.connect(path, timeout=0)


@not_traced
def test_a_signal_handler_that_raises_ends_a_connect(path: str) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with Listener(path, backlog=0), contextlib.ExitStack() as stack:
        for sock in fill_backlog(path, socket.SOCK_STREAM):
            stack.enter_context(sock)
        with handling(signal.SIGALRM, interrupt):
            interrupting = interrupt_once_polling(signal.SIGALRM)
            with pytest.raises(KeyboardInterrupt):
                Conduit.connect(path)
            interrupting.result()


@not_traced
@pytest.mark.filterwarnings("ignore:unclosed <conduit.Conduit:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_while_a_listener_is_made_leaves_nothing_at_its_path(path: str) -> None:
    """Whichever line it comes at: each in turn raises, as a signal handler may."""
    due = 0

    def make() -> Listener | None:
        lines = itertools.count()

        def interrupt(frame: FrameType, event: str, argument: object) -> Any:
            if frame.f_code.co_filename not in (inspect.getfile(Listener), paths.__file__):
                return None
            if event == "line" and next(lines) == due:
                raise KeyboardInterrupt
            return interrupt

        sys.settrace(interrupt)
        try:
            return Listener(path)
        except KeyboardInterrupt:
            return None
        finally:
            sys.settrace(None)

    # In a thread of its own, with which goes what CPython 3.11 keeps of an exception that came
    # as it left the handling of another.
    while (listener := Call(make).result()) is None:
        assert not os.path.lexists(path)
        due += 1
    listener.close()
    assert due > 20


@pytest.mark.parametrize("wrong", [-1, float("nan")])
def test_an_impossible_timeout_is_refused(path: str, wrong: float) -> None:
    with Listener(path) as listener:
        with pytest.raises(ValueError, match="timeout"):
            Conduit.connect(path, timeout=wrong)
        with pytest.raises(ValueError, match="timeout"):
            listener.accept(wrong)


def test_an_accept_ends_at_its_deadline(path: str, kind: int, driver: Driver) -> None:
    with driver.Listener(path, type=kind) as listener:
        began = time.monotonic()
        with pytest.raises(TransferTimeoutError):
            listener.accept(0.05)
        assert time.monotonic() - began >= 0.049
        with pytest.raises(WouldBlockError):
            listener.accept(0)
        with driver.Conduit.connect(path, type=kind):
            listener.accept(0).close()


def test_an_accept_waits_for_a_connection(path: str, kind: int, driver: Driver) -> None:
    with driver.Listener(path, type=kind) as listener:
        call = Call(listener.accept)
        assert call.is_waiting()
        with driver.Conduit.connect(path, type=kind), call.result() as link:
            assert link.peer == ME


def test_closing_wakes_every_accept(path: str, kind: int, driver: Driver) -> None:
    listener = driver.Listener(path, type=kind)
    calls = [Call(listener.accept) for _ in range(3)]
    for call in calls:
        assert call.is_waiting()
    listener.close()
    for call in calls:
        with pytest.raises(Error, match="closed") as caught:
            call.result()
        assert caught.value.type is ErrType.NO_FD
    with pytest.raises(Error, match="closed"):
        listener.accept()


def test_a_signal_handler_that_raises_ends_an_accept(path: str) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with Listener(path) as listener, handling(signal.SIGUSR1, interrupt):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            listener.accept()
        interrupting.result()
        with Conduit.connect(path):
            listener.accept().close()


@pytest.mark.hazard("G7")
def test_an_accept_without_room_says_so_rests_and_the_peer_goes_on_waiting(
    path: str, kind: int, driver: Driver
) -> None:
    with (
        driver.Listener(path, type=kind) as listener,
        driver.Conduit.connect(path, type=kind) as client,
    ):
        client.transfer(data=b"patient")
        began = time.monotonic()
        with room_for(0), pytest.raises(Error, match="RLIMIT_NOFILE") as caught:
            listener.accept()
        assert time.monotonic() - began > REST - TICK, "who accepts in a loop is not to spin"
        assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EMFILE)
        with listener.accept() as server:
            assert server.receive().data == b"patient"


def test_a_listener_can_be_polled(path: str, driver: Driver) -> None:
    with driver.Listener(path) as listener:
        waiting = Call(lambda: listener.accept(GENEROUS))
        with driver.Conduit.connect(path):
            waiting.result().close()
        listener.close()
        with pytest.raises(Error) as caught:
            listener.fileno()
        assert caught.value.type is ErrType.NO_FD


# Who is there


def test_the_peer_of_a_pair_is_its_maker() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        one, other = Conduit.pair(type=kind)
        with one, other:
            assert one.peer == other.peer == ME


def test_the_peers_of_a_connection_know_each_other_across_processes(
    path: str, kind: int, driver: Driver
) -> None:
    with driver.Listener(path, type=kind) as listener:
        parent = os.getpid()

        def connect() -> None:
            with driver.Conduit.connect(path, type=kind) as link:
                assert link.peer == Peer(parent, os.getuid(), os.getgid())
                link.transfer(data=b"right")

        with beside(connect) as child, listener.accept(GENEROUS) as link:
            assert link.peer == Peer(child, os.getuid(), os.getgid())
            assert link.receive().data == b"right"


@needs_root
def test_the_peer_of_another_user_is_known_by_its_user_and_group(
    public: str, kind: int, driver: Driver
) -> None:
    with driver.Listener(public, type=kind, mode=0o666, allow=lambda peer: True) as listener:

        def connect() -> None:
            with driver.Conduit.connect(public, type=kind) as link:
                assert link.peer.uid == 0
                link.transfer(data=b"nobody")

        with beside(connect, user=NOBODY) as child, listener.accept(GENEROUS) as link:
            assert link.peer == Peer(child, NOBODY, NOBODY)
            assert link.receive().data == b"nobody"


def test_a_socket_that_is_not_connected_has_no_peer() -> None:
    with (
        socket.socket(socket.AF_UNIX) as sock,
        Conduit.from_conn(sock) as link,
        pytest.raises(Error) as caught,
    ):
        _ = link.peer
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert caught.value.errno == errno.ENOTCONN


def test_a_closed_conduit_has_no_peer() -> None:
    one, other = Conduit.pair()
    with other:
        one.close()
        with pytest.raises(Error) as caught:
            _ = one.peer
    assert caught.value.type is ErrType.NO_FD


# Who may come in


@pytest.mark.slow
@pytest.mark.hazard("S5")
@needs_root
def test_no_other_user_gets_in_at_any_instant_of_a_listeners_making(public: str) -> None:
    attempts, report = os.pipe()
    watched, stop = os.pipe()
    directory = os.path.dirname(public)

    def intrude() -> None:
        os.close(stop)
        os.set_blocking(watched, False)
        os.set_blocking(report, False)
        while True:
            with contextlib.suppress(BlockingIOError):
                if os.read(watched, 1) == b"":
                    return
            for name in [*os.listdir(directory), "socket"]:
                found = os.path.join(directory, name)
                for target in (found, os.path.join(found, "s")):
                    with socket.socket(socket.AF_UNIX) as sock:
                        sock.setblocking(False)
                        refusal = sock.connect_ex(target)
                    assert refusal not in (0, errno.EAGAIN), f"got in at {target}"
                    if refusal == errno.EACCES and target == public:
                        with contextlib.suppress(BlockingIOError):
                            os.write(report, b".")

    before = os.umask(0)
    try:
        with beside(intrude, user=NOBODY):
            os.close(report)
            os.close(watched)
            # It has tried often, at a socket that was there, when it has reported so often.
            seen = 0
            while seen < 2000:
                for _ in range(10):
                    Listener(public).close()
                with Listener(public):
                    seen += (got := len(os.read(attempts, 1000)))
                    assert got, "the intruder got in, or failed"
            os.close(stop)
    finally:
        os.umask(before)
    os.close(attempts)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o700])
def test_the_socket_has_the_mode_that_was_asked_for_whatever_the_umask(
    path: str, mode: int
) -> None:
    for umask in (0, 0o077, 0o777):
        before = os.umask(umask)
        try:
            listener = Listener(path, mode=mode)
        finally:
            os.umask(before)
        with listener:
            assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_it_has_its_mode_without_proc_as_well(path: str) -> None:
    code = """if 1:
        import os, stat, sys
        from conduit import Listener
        os.umask(0o022)
        with Listener(sys.argv[1], mode=0o666):
            print(oct(stat.S_IMODE(os.stat(sys.argv[1]).st_mode)), oct(os.umask(0)))
    """
    if "LD_PRELOAD" in os.environ:
        pytest.skip("a sanitizer needs /proc")
    hide = 'mount -t tmpfs none /proc; exec "$@"'
    around = [*unshared("--mount"), "/bin/sh", "-euc", hide, "sh"]
    words = [*around, sys.executable, "-P", "-c", code, path]
    said = subprocess.run(words, capture_output=True, text=True, timeout=GENEROUS, check=False)
    assert (said.stdout, said.stderr) == ("0o666 0o22\n", "")


def test_only_this_user_may_connect_unless_something_else_was_asked_for(
    path: str, driver: Driver
) -> None:
    with driver.Listener(path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@needs_root
def test_the_mode_keeps_other_users_out(public: str, driver: Driver) -> None:
    with driver.Listener(public, allow=lambda peer: True) as listener:

        def connect() -> None:
            with pytest.raises(Error) as caught:
                driver.Conduit.connect(public)
            assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EACCES)

        with beside(connect, user=NOBODY):
            pass
        with pytest.raises(WouldBlockError):
            listener.accept(0)


@needs_root
def test_another_user_is_refused_by_default_before_a_byte_is_read_and_the_accept_goes_on(
    public: str, kind: int, caplog: pytest.LogCaptureFixture, driver: Driver
) -> None:
    with driver.Listener(public, type=kind, mode=0o666) as listener:
        out, into = os.pipe()
        sent, tell = os.pipe()

        def intrude() -> None:
            os.close(out)
            with driver.Conduit.connect(public, type=kind) as link:
                link.transfer(into, data=b"let me in")
                os.close(tell)
                with pytest.raises(PeerClosedError):
                    link.receive()

        with beside(intrude, user=NOBODY) as child:
            os.close(into)
            os.close(tell)
            assert os.read(sent, 1) == b""
            call = Call(listener.accept)
            # Nobody holds what it sent any more once it is refused.
            assert os.read(out, 1) == b""
            assert call.is_waiting()
            with driver.Conduit.connect(public, type=kind) as client, call.result() as link:
                assert link.peer == ME
                client.transfer(data=b"mine")
                assert link.receive().data == b"mine"
        os.close(out)
        os.close(sent)
    refusals = [record for record in caplog.records if record.name == "conduit"]
    assert [record.levelno for record in refusals] == [logging.WARNING]
    assert f"uid={NOBODY}" in refusals[0].getMessage()
    assert f"pid={child}" in refusals[0].getMessage()
    assert public in refusals[0].getMessage()


@needs_root
def test_root_is_admitted_by_default_and_so_is_the_same_user(public: str, driver: Driver) -> None:
    os.chmod(os.path.dirname(public), 0o777)
    parent = os.getpid()

    def listen() -> None:
        with Listener(public) as listener:
            with driver.Conduit.connect(public) as own, listener.accept() as link:
                assert link.peer.uid == NOBODY
                own.close()
            ready.transfer(data=b"ready")
            with listener.accept() as link:
                assert link.peer.pid == parent
                assert link.peer.uid == 0
                link.transfer(data=b"welcome")

    ready, waiting = Conduit.pair()
    with ready, waiting, beside(listen, user=NOBODY):
        assert waiting.receive().data == b"ready"
        with driver.Conduit.connect(public) as link:
            assert link.peer.uid == NOBODY
            assert link.receive().data == b"welcome"


def test_allow_decides_who_is_admitted(
    path: str, kind: int, caplog: pytest.LogCaptureFixture, driver: Driver
) -> None:
    asked = []

    def allow(peer: Peer) -> bool:
        asked.append(peer)
        return len(asked) == 3

    with driver.Listener(path, type=kind, allow=allow) as listener:
        clients = []
        for name in (b"first", b"second", b"third"):
            clients.append(driver.Conduit.connect(path, type=kind))
            clients[-1].transfer(data=name)
        with listener.accept(GENEROUS) as link:
            assert link.receive().data == b"third"
            for client in clients[:2]:
                with pytest.raises(PeerClosedError):
                    client.receive()
            for client in clients:
                client.close()
    assert asked == [ME] * 3
    assert len(caplog.records) == 2


@pytest.mark.hazard("G2", "R5b")
def test_what_a_refused_peer_sent_is_closed(path: str, kind: int, driver: Driver) -> None:
    out, into = os.pipe()
    with (
        driver.Listener(path, type=kind, allow=lambda peer: False) as listener,
        driver.Conduit.connect(path, type=kind) as client,
    ):
        client.transfer(into, data=b"x" * 1000)
        with pytest.raises(WouldBlockError):
            listener.accept(0)
        assert is_at_eof(out)


def test_an_allow_whose_answer_must_be_awaited_admits_nobody(path: str, driver: Driver) -> None:
    async def allow(peer: Peer) -> bool:
        return False

    wrong: Any = allow
    with driver.Listener(path, allow=wrong) as listener, driver.Conduit.connect(path) as client:
        with pytest.raises(TypeError, match="coroutine"):
            listener.accept()
        with pytest.raises(PeerClosedError):
            client.receive()


def test_an_answer_that_can_be_awaited_but_not_closed_admits_nobody(path: str) -> None:
    class Answer:
        def __await__(self) -> Any: ...

    wrong: Any = lambda peer: Answer()  # noqa: E731
    with Listener(path, allow=wrong) as listener, Conduit.connect(path) as client:
        with pytest.raises(TypeError, match="coroutine"):
            listener.accept()
        with pytest.raises(PeerClosedError):
            client.receive()


def test_an_allow_that_raises_refuses_that_peer_and_the_accept_goes_on(
    path: str, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [True]

    def allow(peer: Peer) -> bool:
        if answers:
            raise ZeroDivisionError("of its own")
        return True

    with driver.Listener(path, allow=allow) as listener:
        with driver.Conduit.connect(path) as client:
            with pytest.raises(TimeoutError):
                listener.accept(0.1)
            with pytest.raises(PeerClosedError):
                client.receive()
        answers.clear()
        with driver.Conduit.connect(path), listener.accept(GENEROUS):
            pass
    assert "of its own" in caplog.text


@only_blocking
def test_what_a_signal_handler_raises_in_allow_stays_itself(path: str, driver: Driver) -> None:
    def handler(*_: object) -> None:
        raise ZeroDivisionError

    def allow(peer: Peer) -> bool:
        signal.raise_signal(signal.SIGUSR1)
        return True

    with (
        driver.Listener(path, allow=allow) as listener,
        driver.Conduit.connect(path),
        handling(signal.SIGUSR1, handler),
        pytest.raises(ZeroDivisionError),
    ):
        listener.accept(GENEROUS)


@only_blocking
def test_a_refusal_is_none_the_less_one_where_no_module_can_be_read(
    path: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "logging", None)
    with driver.Listener(path, allow=lambda peer: False) as listener, driver.Conduit.connect(path):
        with pytest.raises(TimeoutError):
            listener.accept(0.05)


def test_a_loop_over_a_listener_accepts_one_after_the_other(path: str, driver: Driver) -> None:
    with driver.Listener(path) as listener:
        for count, (client, server) in enumerate(
            zip((driver.Conduit.connect(path) for _ in range(3)), listener, strict=False)
        ):
            with client, server:
                client.transfer(data=b"%d" % count)
                assert server.receive().data == b"%d" % count


@pytest.mark.parametrize(
    ("maps", "me", "admitted"),
    [
        ("0 0 4294967295", 65534, True),
        ("0 0 4294967295", 1000, False),
        ("65534 100000 1", 65534, False),
        (None, 65534, False),
    ],
)
def test_the_overflow_uid_is_nobodys_unless_all_users_are_mapped(
    maps: str | None, me: int, admitted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if maps is not None:
        (tmp_path / "uid_map").write_text(maps)
    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr("builtins.open", lambda *_, **__: (tmp_path / "uid_map").open("rb"))
    monkeypatch.setattr(peer_module, "sys", SimpleNamespace(platform="linux"))
    assert peer_module.same_user_or_root(Peer(1, 65534, 65534)) is admitted


@needs_root
def test_leaving_after_rights_were_given_up_leaves_the_path(path: str) -> None:
    def drop() -> None:
        with Listener(path):
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    assert in_child(drop) == 0
    assert os.path.exists(path)
    os.unlink(path)


def test_a_listener_at_another_path_leaves_what_is_at_this_one(path: str, driver: Driver) -> None:
    with driver.Listener(path) as there, driver.Listener(path + "2") as other:
        driver.Listener.from_conn(other, path).close()
        with driver.Conduit.connect(path):
            there.accept().close()


def test_a_path_stays_for_who_listens_at_it_further(path: str, kind: int, driver: Driver) -> None:
    first = driver.Listener(path, type=kind)
    with driver.Listener.from_conn(first, path, allow=lambda peer: False) as second:
        first.close(unlink=False)
        assert first.closed
        with Conduit.connect(path, type=kind) as link:
            with pytest.raises(TransferTimeoutError):
                second.accept(0.05)
            with pytest.raises(PeerClosedError):
                link.receive()
    assert not os.path.exists(path)


@pytest.mark.parametrize("what", ["quiet", "tcp", "no socket"])
def test_what_does_not_listen_at_a_path_is_no_listener(
    path: str, what: str, driver: Driver
) -> None:
    with driver.Listener(path) as there, contextlib.ExitStack() as stack:
        family = socket.AF_INET if what == "tcp" else socket.AF_UNIX
        sock = stack.enter_context(socket.socket(family))
        if what == "tcp":
            sock.listen()
        elif what != "no socket":
            sock.bind(path + "2")
        with open("/dev/null") as null, pytest.raises(Error) as caught:
            driver.Listener.from_conn(null if what == "no socket" else sock, path)
        assert caught.value.type is ErrType.BAD_CLONE
        with Conduit.connect(path):
            there.accept().close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + "2")


def test_a_socket_that_was_bound_with_a_relative_address_is_taken(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("socket")
        sock.listen()
        with Listener.from_conn(sock, "socket") as listener, Conduit.connect(path):
            listener.accept().close()
    assert not os.path.exists(path)


def test_refusing_for_longer_than_the_deadline_ends_with_the_deadline(path: str) -> None:
    with Listener(path, allow=lambda peer: time.monotonic() < began) as listener:
        began = 0.0
        with Conduit.connect(path):

            def allow_slowly(peer: Peer) -> bool:
                while time.monotonic() < began + 0.05:
                    os.sched_yield()
                return False

            listener._allow = allow_slowly
            began = time.monotonic()
            with pytest.raises(TransferTimeoutError):
                listener.accept(0.05)


def test_a_stream_of_strangers_does_not_keep_an_accept_beyond_its_deadline(path: str) -> None:
    strangers = []

    def allow(peer: Peer) -> bool:
        # The next one is there before this one is refused.
        assert time.monotonic() < long_over, "it goes on and on"
        strangers.append(Conduit.connect(path))
        strangers.pop(0).close()
        return False

    with Listener(path, allow=allow) as listener:
        strangers.append(Conduit.connect(path))
        long_over = time.monotonic() + 10
        with pytest.raises(TransferTimeoutError, match="refused"):
            listener.accept(0.05)
        strangers.pop().close()


# Where it listens


def test_the_path_is_there_while_it_listens_and_gone_afterwards(
    path: str, kind: int, driver: Driver
) -> None:
    with driver.Listener(path, type=kind) as listener:
        assert stat.S_ISSOCK(os.lstat(path).st_mode)
        assert os.listdir(os.path.dirname(path)) == ["socket"]
        assert not listener.closed
    assert listener.closed
    assert os.listdir(os.path.dirname(path)) == []
    listener.close()


@pytest.mark.hazard("S3")
@pytest.mark.parametrize("left", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_stale_socket_of_any_type_is_replaced(
    path: str, kind: int, left: int, driver: Driver
) -> None:
    stale(path, left)
    with driver.Listener(path, type=kind) as listener, driver.Conduit.connect(path, type=kind):
        listener.accept().close()
        assert os.listdir(os.path.dirname(path)) == ["socket"]


def test_the_path_of_a_killed_process_is_replaced(path: str) -> None:
    ready, waiting = Conduit.pair()

    def listen() -> None:
        with Listener(path):
            ready.transfer(data=b"ready")
            os._exit(0)

    with ready, waiting, beside(listen):
        waiting.receive()
    assert os.path.exists(path)
    with Listener(path) as listener, Conduit.connect(path):
        listener.accept().close()


def refuses(path: str, kind: int = socket.SOCK_STREAM) -> None:
    """See that listening at a path is refused, for somebody or something is there, and stays."""
    before = os.lstat(path)
    with pytest.raises(Error, match="listening at") as caught:
        Listener(path, type=kind)
    assert caught.value.type is ErrType.NO_FD
    assert caught.value.errno == errno.EADDRINUSE
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(os.path.dirname(path)) == ["socket"]


@pytest.mark.hazard("S3")
def test_a_live_listener_is_not_replaced(path: str, kind: int, driver: Driver) -> None:
    with driver.Listener(path, type=kind) as listener:
        refuses(path, kind)
        with driver.Conduit.connect(path, type=kind), listener.accept() as link:
            assert link.peer == ME


def test_a_live_listener_with_a_full_backlog_is_not_replaced(path: str, kind: int) -> None:
    with Listener(path, type=kind, backlog=0), contextlib.ExitStack() as stack:
        for sock in fill_backlog(path, kind):
            stack.enter_context(sock)
        refuses(path, kind)


@pytest.mark.parametrize("other", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_live_socket_of_any_type_is_not_replaced(path: str, kind: int, other: int) -> None:
    with socket.socket(socket.AF_UNIX, other) as sock:
        sock.bind(path)
        if other != socket.SOCK_DGRAM:
            sock.listen()
        refuses(path, kind)


@needs_root
def test_a_live_listener_one_may_not_connect_to_is_not_replaced(public: str) -> None:
    with Listener(public), beside(lambda: refuses(public), user=NOBODY):
        pass


@pytest.mark.parametrize("what", ["file", "directory", "fifo", "link", "dangling-link"])
def test_what_is_no_socket_is_not_replaced(path: str, what: str, tmp_path: Path) -> None:
    match what:
        case "file":
            Path(path).write_text("precious")
        case "directory":
            os.mkdir(path)
        case "fifo":
            os.mkfifo(path)
        case "link":
            os.symlink("/dev/null", path)
        case _:
            os.symlink("nowhere", path)
    refuses(path)


def test_what_fails_leaves_nothing_behind(path: str) -> None:
    before = open_descriptors()
    for place, kind in (
        (path, socket.SOCK_DGRAM),
        (os.path.join(path, "socket"), socket.SOCK_STREAM),
        (path, 12345),
    ):
        with pytest.raises(Error) as caught:
            Listener(place, type=kind)
        assert caught.value.type is ErrType.NO_FD
        assert caught.value.errno is not None
        assert os.listdir(os.path.dirname(path)) == []
        assert open_descriptors() == before


def test_listening_without_room_for_a_descriptor_says_so_and_leaves_nothing(path: str) -> None:
    for room in range(3):
        with room_for(room):
            try:
                Listener(path).close()
            except Error as exc:
                assert exc.errno == errno.EMFILE
                assert "RLIMIT_NOFILE" in str(exc)
        assert os.listdir(os.path.dirname(path)) == []


def test_only_its_own_socket_is_removed(path: str, driver: Driver) -> None:
    first = driver.Listener(path)
    os.unlink(path)
    with driver.Listener(path) as second:
        first.close()
        with driver.Conduit.connect(path):
            second.accept().close()


def test_something_else_at_its_path_is_not_removed(path: str) -> None:
    with Listener(path):
        os.unlink(path)
        Path(path).write_text("precious")
    assert Path(path).read_text() == "precious"


def test_a_path_that_is_gone_already_is_no_failure(path: str) -> None:
    with Listener(path):
        os.unlink(path)
    with Listener(path):
        shutil.rmtree(os.path.dirname(path))


def test_a_forked_child_that_closes_it_leaves_the_path_alone(path: str) -> None:
    with Listener(path) as listener:
        assert in_child(listener.close) == 0
        with Conduit.connect(path):
            listener.accept(GENEROUS).close()


def test_a_relative_path_is_removed_wherever_the_process_has_gone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(os.path.dirname(path))
    with Listener("socket") as listener:
        assert listener.path == "socket"
        with Conduit.connect("socket"):
            listener.accept().close()
        monkeypatch.chdir("/")
    assert not os.path.exists(path)


@pytest.mark.slow
@pytest.mark.parametrize("racers", [2, 5])
def test_of_racing_listeners_at_a_stale_path_exactly_one_wins(path: str, racers: int) -> None:
    starting = [Conduit.pair(type=socket.SOCK_SEQPACKET) for _ in range(racers)]

    def race(mine: Conduit) -> None:
        while mine.receive().data == b"go":
            try:
                listener = Listener(path)
            except Error as exc:
                assert exc.errno is not None
                mine.transfer(data=b"%d" % exc.errno)
                assert mine.receive().data == b"done"
            else:
                with listener:
                    mine.transfer(data=b"won")
                    assert mine.receive().data == b"done"
            mine.transfer(data=b"closed")

    with contextlib.ExitStack() as stack:
        pids = []
        for ours, theirs in starting:
            stack.enter_context(ours)
            stack.enter_context(theirs)
            pids.append(stack.enter_context(beside(functools.partial(race, theirs))))
        for _ in range(200):
            stale(path)
            for ours, _theirs in starting:
                ours.transfer(data=b"go")
            answers = [ours.receive().data for ours, _ in starting]
            assert sorted(answers) == [b"%d" % errno.EADDRINUSE] * (racers - 1) + [b"won"]
            with Conduit.connect(path) as client:
                assert client.peer.pid == pids[answers.index(b"won")]
            assert os.listdir(os.path.dirname(path)) == ["socket"]
            for ours, _theirs in starting:
                ours.transfer(data=b"done")
            assert [ours.receive().data for ours, _ in starting] == [b"closed"] * racers
            assert os.listdir(os.path.dirname(path)) == []
        for ours, _theirs in starting:
            ours.transfer(data=b"end")


def before(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    happens: Callable[[], object],
    skip: int = 0,
) -> None:
    """Let something happen just before the next call of a function, or a later one."""
    real = getattr(module, name)
    calls = itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == skip:
            monkeypatch.setattr(module, name, real)
            happens()
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)


def lock_of(path: str) -> bytes:
    """The name by which processes of this user that would bind at a path lock each other out."""
    directory, name = os.path.split(os.fsencode(path))
    status = os.stat(directory)
    return b"\0conduit %x:%x %b" % (status.st_dev, status.st_ino, name[-50:])


def assert_listens(path: str) -> None:
    """See that a listener can be made at a path, and is the only thing there."""
    with Listener(path) as listener, Conduit.connect(path):
        listener.accept().close()
        assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


def assert_taken(path: str, why: str) -> None:
    """See that a listener is refused a path, and leaves nothing of its own."""
    with pytest.raises(Error, match=why) as caught:
        Listener(path)
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EADDRINUSE)
    assert not [name for name in os.listdir(os.path.dirname(path)) if name.startswith(".")]


@contextlib.contextmanager
def locked(path: str, backlog: int | None = 10) -> Iterator[socket.socket]:
    """Hold the lock of a path meanwhile; with no backlog, bound only."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as lock:
        lock.bind(lock_of(path))
        if backlog is not None:
            lock.listen(backlog)
        yield lock


def test_a_place_where_another_is_about_to_listen_is_left_to_it(path: str) -> None:
    stale(path)
    with locked(path):
        assert_taken(path, "about to listen")
        assert os.listdir(os.path.dirname(path)) == ["socket"]
    assert_listens(path)


def test_a_lock_whose_holder_nobody_can_ask_keeps_no_one_for_long(path: str) -> None:
    """As any user could hold it."""
    stale(path)
    with locked(path, 0), contextlib.ExitStack() as stack:
        for sock in fill_backlog(os.fsdecode(lock_of(path)), socket.SOCK_SEQPACKET):
            stack.enter_context(sock)
        assert_listens(path)


def test_a_lock_that_does_not_listen_is_none(path: str) -> None:
    """As what a forked child keeps of one, or a stranger binds."""
    stale(path)
    with locked(path, None):
        assert_listens(path)


@needs_root
def test_a_lock_of_another_user_is_none(public: str) -> None:
    ready, waiting = Conduit.pair()

    def hold() -> None:
        with locked(public):
            ready.transfer(data=b"held")
            # Until the other end is closed.
            with contextlib.suppress(PeerClosedError):
                ready.receive()

    stale(public)
    with ready, contextlib.ExitStack() as stack:
        with waiting:
            stack.enter_context(beside(hold, user=NOBODY))
            waiting.receive()
            assert_listens(public)
            waiting.shutdown()


def test_a_lock_that_is_let_go_of_while_one_looks_is_taken(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(path) as lock:
        before(monkeypatch, paths, "_holder", lock.close)
        assert_listens(path)


def test_a_name_that_cannot_be_bound_is_an_error(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "refused")

    with monkeypatch.context() as patch, pytest.raises(Error) as caught:
        patch.setattr(socket.socket, "bind", refuse, raising=False)
        Listener(path)
    assert caught.value.errno == errno.EACCES
    assert_listens(path)


@pytest.mark.parametrize("name", ["lstat", "unlink"])
def test_a_path_that_vanishes_once_something_was_found_there_is_free(
    path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale(path)
    unlink = os.unlink
    before(monkeypatch, os, name, lambda: unlink(path))
    assert_listens(path)


@pytest.mark.parametrize(("name", "skip"), [("lstat", 0), ("lstat", 1)])
def test_who_begins_to_listen_while_a_stale_socket_is_replaced_stays(
    path: str, name: str, skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale(path)
    # As one that was left long ago, whose inode the other's may be.
    os.utime(path, (1, 1))
    with socket.socket(socket.AF_UNIX) as other:

        def listen() -> None:
            os.unlink(path)
            other.bind(path)
            other.listen()

        before(monkeypatch, os, name, listen, skip)
        assert_taken(path, "listens there")
        # Nobody else listens here.
        Conduit.connect(path).close()


def test_who_begins_to_listen_once_a_stale_socket_is_gone_stays(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale(path)
    with socket.socket(socket.AF_UNIX) as other:
        unlink = os.unlink

        def listen(*args: Any) -> None:
            monkeypatch.setattr(os, "unlink", unlink)
            unlink(*args)
            other.bind(path)
            other.listen()

        monkeypatch.setattr(os, "unlink", listen)
        assert_taken(path, "listens there")
        Conduit.connect(path).close()


def test_the_mode_reaches_nothing_that_another_puts_at_the_path(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.touch(0o600)

    def swap() -> None:
        os.rename(path, path + ".moved")
        os.rename(victim, path)

    umask = os.umask(0o077)
    try:
        before(monkeypatch, os, "open", swap)
        listener = Listener(path, mode=0o666)
    finally:
        os.umask(umask)
    with listener:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    # It is not its own.
    assert os.path.exists(path)


def test_without_linux_the_umask_gives_the_mode(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    umask = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(paths, "sys", SimpleNamespace(platform="darwin"))
            stale(path)
            with Listener(path, mode=0o660):
                assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
                assert os.umask(0) == 0
    finally:
        os.umask(umask)


def test_a_socket_is_adopted_though_its_path_cannot_be_looked_at(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{directory}/s")
        sock.listen()
        directory.rename(tmp_path / "moved")
        directory.touch()
        with Listener.from_conn(sock, f"{directory}/s") as listener:
            assert not listener.closed
    assert os.listdir(tmp_path / "moved") == ["s"]


def test_its_address_is_its_absolute_path(
    path: str, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(os.path.dirname(path))
    with Listener("socket", type=kind) as listener, borrowed(listener.fileno()) as sock:
        assert sock.getsockname() == path
        with Conduit.connect(path, type=kind) as link, borrowed(link.fileno()) as client:
            assert client.getpeername() == path
            listener.accept().close()


# Names and lengths


def test_an_abstract_name_has_no_file(
    kind: int, monkeypatch: Any, tmp_path: Path, driver: Driver
) -> None:
    monkeypatch.chdir(tmp_path)
    name = abstract()
    with (
        driver.Listener(name, type=kind) as listener,
        driver.Conduit.connect(name, type=kind) as client,
    ):
        with listener.accept() as link:
            assert link.peer == client.peer == ME
        assert os.listdir() == []
    with pytest.raises(Error) as caught:
        driver.Conduit.connect(name, type=kind)
    assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.hazard("E18")
def test_a_live_abstract_name_is_not_replaced(driver: Driver) -> None:
    name = abstract()
    with driver.Listener(name):
        with pytest.raises(Error) as caught:
            driver.Listener(name)
        assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EADDRINUSE)


@pytest.mark.hazard("E18")
@needs_root
def test_an_abstract_name_admits_by_default_nobody_else(
    caplog: pytest.LogCaptureFixture, driver: Driver
) -> None:
    name = abstract()

    out, into = os.pipe()

    def intrude() -> None:
        os.close(out)
        with driver.Conduit.connect(name) as link:
            os.close(into)
            with pytest.raises(PeerClosedError):
                link.receive()

    with driver.Listener(name) as listener, beside(intrude, user=NOBODY):
        os.close(into)
        # It waits to be accepted, in front of the next.
        assert os.read(out, 1) == b""
        with driver.Conduit.connect(name), listener.accept() as link:
            assert link.peer == ME
    os.close(out)
    assert f"uid={NOBODY}" in caplog.text


@pytest.mark.parametrize("length", [107, 108])
def test_an_abstract_name_may_be_as_long_as_the_system_takes(length: int) -> None:
    name = (abstract() + "x" * 200)[:length]
    with Listener(name) as listener, Conduit.connect(name):
        listener.accept().close()


def test_an_abstract_name_longer_than_that_is_refused() -> None:
    name = (abstract() + "x" * 200)[:109]
    for call in (Listener, Conduit.connect):
        with pytest.raises(Error) as caught:
            call(name)
        assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.ENAMETOOLONG)


@pytest.mark.parametrize("name", [1, 50])
def test_a_path_of_107_bytes_is_fine_however_long_its_directory_is(
    tmp_path: Path, kind: int, name: int
) -> None:
    with public_directory() as directory:
        deep = os.path.join(directory, "d" * (107 - len(directory) - 2 - name))
        os.mkdir(deep)
        path = os.path.join(deep, "s" * name)
        assert len(path) == 107
        with Listener(path, type=kind) as listener, Conduit.connect(path, type=kind):
            listener.accept().close()
        assert os.listdir(deep) == []
        stale(path)
        with Listener(path, type=kind):
            pass
        os.rmdir(deep)


@pytest.mark.hazard("S4")
def test_a_path_of_108_bytes_is_refused(tmp_path: Path) -> None:
    with public_directory() as directory:
        path = os.path.join(directory, "s" * (108 - len(directory) - 1))
        for call in (Listener, Conduit.connect):
            with pytest.raises(Error) as caught:
                call(path)
            assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.ENAMETOOLONG)
        assert os.listdir(directory) == []


def test_a_path_with_a_nul_byte_is_refused_and_not_cut_off_there(path: str) -> None:
    with Listener(path):
        for call in (Listener, Conduit.connect):
            with pytest.raises(ValueError, match="null"):
                call(path + "\0more")


def test_it_says_what_it_is(path: str) -> None:
    with Listener(path) as listener:
        assert repr(listener) == f"<conduit.Listener {path!r}>"
    assert repr(listener) == f"<conduit.Listener {path!r} closed>"
