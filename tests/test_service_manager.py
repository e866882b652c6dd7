"""conduit.systemd, where the test plays the service manager: the sockets, and the environment."""

from __future__ import annotations

import errno
import gc
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import (
    GENEROUS,
    Call,
    content,
    fill,
    flooding,
    handling,
    in_child,
    interrupt_once_polling,
    is_open,
    is_private,
    memory,
    not_traced,
    open_descriptors,
    run_python,
    same_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import conduit
from conduit import Conduit, Descriptor, Error, ErrType, systemd

DOCS = Path(__file__).parents[1] / "docs"


class Manager:
    """The socket of a service manager, to which ``NOTIFY_SOCKET`` leads."""

    def __init__(self, address: str | bytes) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(GENEROUS)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.bind(address)

    def read(self) -> tuple[str, list[int], int]:
        """The next message: its text, its descriptors, and the pid of its sender."""
        fds, pid = [], 0
        data, controls, _, _ = self.sock.recvmsg(1 << 16, 1 << 12, socket.MSG_CMSG_CLOEXEC)
        for _, kind, value in controls:
            if kind == socket.SCM_RIGHTS:
                fds = [fd for (fd,) in struct.iter_unpack("i", value)]
            else:
                pid, _, _ = struct.unpack("iII", value)
        return data.decode(), fds, pid

    def has_read_all(self) -> bool:
        return not select.select([self.sock], [], [], 0)[0]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    manager = Manager(str(tmp_path / "notify"))
    with manager.sock:
        yield manager


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


def texts(manager: Manager) -> list[str]:
    """All messages that wait, of which none has descriptors."""
    found = []
    while not manager.has_read_all():
        text, fds, _ = manager.read()
        assert fds == []
        found.append(text)
    return found


# notify


def test_notify_sends_one_datagram_whose_sender_is_this_process(manager: Manager) -> None:
    assert systemd.notify("READY=1\nSTATUS=sieben Gäste")
    assert manager.read() == ("READY=1\nSTATUS=sieben Gäste", [], os.getpid())
    assert manager.has_read_all()


def test_notify_speaks_to_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"conduit-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    manager = Manager(f"\0{name}")
    with manager.sock:
        assert systemd.notify("READY=1")
        assert manager.read()[0] == "READY=1"


def test_notify_speaks_to_a_path_that_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xe9"
    monkeypatch.setenv("NOTIFY_SOCKET", os.fsdecode(path))
    manager = Manager(path)
    with manager.sock:
        assert systemd.notify("READY=1")
        assert manager.read()[0] == "READY=1"


def test_items_go_along_and_stay_open_and_the_callers(manager: Manager, tmp_path: Path) -> None:
    fd = memory(b"number")
    with (
        Descriptor(memory(b"Descriptor")) as descriptor,
        open(tmp_path / "file", "w+") as file,
        socket.socket() as sock,
    ):
        file.write("written, not flushed")
        assert systemd.notify("FDSTORE=1", fd, descriptor, file, sock)
        text, arrived, _ = manager.read()
        assert text == "FDSTORE=1"
        assert content(arrived[2]) == b"written, not flushed"
        sent = [fd, descriptor.fileno(), file.fileno(), sock.fileno()]
        for mine, theirs in zip(sent, arrived, strict=True):
            assert same_file(mine, theirs)
            os.close(theirs)
    os.close(fd)


@pytest.mark.parametrize("value", [None, ""])
def test_where_nobody_listens_all_return_false(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert systemd.notify("READY=1") is False
    assert systemd.store("name", 0) is False
    assert systemd.unstore("name") is False
    assert systemd.barrier(GENEROUS) is False


BAD_STATES = ["", "STATUS=a\0b", "STATUS=" + "x" * 4090, "STATUS=" + "ä" * 2045, "STATUS=\udc80"]


@pytest.mark.parametrize("state", BAD_STATES, ids=range(len(BAD_STATES)))
@pytest.mark.usefixtures("nobody")
def test_a_state_that_systemd_would_ignore_is_a_value_error_also_where_nobody_listens(
    state: str,
) -> None:
    with pytest.raises(ValueError):
        systemd.notify(state)


@pytest.mark.usefixtures("nobody")
def test_wrong_types_are_type_errors_also_where_nobody_listens() -> None:
    value: Any
    for value in (b"READY=1", None, {"READY": 1}):
        with pytest.raises(TypeError, match="state is a str"):
            systemd.notify(value)
        with pytest.raises(TypeError, match="name is a str"):
            systemd.store(value, 0)
        with pytest.raises(TypeError, match="name is a str"):
            systemd.unstore(value)
    for value in ("1", b"1"):
        with pytest.raises(TypeError):
            systemd.notify("READY=1", timeout=value)
        with pytest.raises(TypeError):
            systemd.barrier(value)


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
@pytest.mark.usefixtures("nobody")
def test_an_impossible_timeout_is_a_value_error_also_where_nobody_listens(timeout: float) -> None:
    calls: list[Callable[[], object]] = [
        lambda: systemd.notify("READY=1", timeout=timeout),
        lambda: systemd.store("name", 0, timeout=timeout),
        lambda: systemd.unstore("name", timeout=timeout),
        lambda: systemd.barrier(timeout),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="timeout"):
            call()


def test_the_longest_state_is_sent(manager: Manager) -> None:
    state = "STATUS=" + "x" * 4089
    assert systemd.notify(state)
    assert manager.read()[0] == state


@pytest.mark.parametrize("address", ["vsock:2:1234", "notify", "./notify", "unix:/run/notify"])
def test_another_kind_of_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    calls: list[Callable[[], object]] = [
        lambda: systemd.notify("READY=1"),
        lambda: systemd.barrier(GENEROUS),
    ]
    for call in calls:
        with pytest.raises(Error, match=re.escape(repr(address))) as caught:
            call()
        assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EAFNOSUPPORT)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nothing", errno.ENOENT),
        ("dead", errno.ECONNREFUSED),
        ("stream", errno.EPROTOTYPE),
        ("x" * 108, errno.ENAMETOOLONG),
    ],
)
def test_a_socket_that_cannot_be_reached_is_an_error(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "dead"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / name))
    with conduit.Listener(tmp_path / "stream"), pytest.raises(Error) as caught:
        systemd.notify("READY=1")
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, code)


def test_too_many_items_are_refused_and_stay_open(manager: Manager) -> None:
    fd = memory()
    with pytest.raises(Error) as caught:
        systemd.notify("FDSTORE=1", *[fd] * (conduit.MAX_FDS + 1))
    assert caught.value.type is ErrType.BAD_CTRL_MESG
    assert manager.has_read_all()
    os.close(fd)


def congest(manager: Manager, address: str) -> int:
    """Send to a manager that does not read until no more goes; how many messages wait."""
    waiting = 0
    with ExitStack() as stack:
        while True:
            # One socket may be full before the manager's queue is (net.unix.max_dgram_qlen).
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            sock.connect(address)
            sent = fill(sock.fileno())
            if not sent:
                return waiting
            waiting += sent


def test_a_manager_that_is_behind_is_waited_for(manager: Manager) -> None:
    waiting = congest(manager, os.environ["NOTIFY_SOCKET"])
    notifying = Call(systemd.notify, "READY=1", timeout=None)
    assert notifying.is_waiting()
    for _ in range(waiting):
        assert manager.read()[0] == "\0"
    assert notifying.result()
    assert manager.read()[0] == "READY=1"


@pytest.mark.parametrize(
    ("timeout", "error"), [(0, conduit.WouldBlockError), (0.05, conduit.TransferTimeoutError)]
)
def test_a_manager_that_stays_behind_is_an_error_and_nothing_was_sent(
    manager: Manager, timeout: float, error: type[Error]
) -> None:
    waiting = congest(manager, os.environ["NOTIFY_SOCKET"])
    fd = memory()
    calls: list[Callable[[], object]] = [
        lambda: systemd.notify("READY=1", timeout=timeout),
        lambda: systemd.store("name", fd, timeout=timeout),
        lambda: systemd.unstore("name", timeout=timeout),
        lambda: systemd.barrier(timeout),
    ]
    for call in calls:
        with pytest.raises(error, match="NOTIFY_SOCKET"):
            call()
    assert is_open(fd)
    os.close(fd)
    assert texts(manager) == ["\0"] * waiting


# The store


@pytest.mark.parametrize("poll", [True, False])
def test_store_sends_a_descriptor_with_its_name(manager: Manager, poll: bool) -> None:
    with open(__file__, "rb") as file:
        assert systemd.store("state of today", file, poll=poll)
        text, [fd], _ = manager.read()
        assert same_file(fd, file.fileno())
        os.close(fd)
    expected = ["FDSTORE=1", "FDNAME=state of today"]
    assert text.split("\n") == (expected if poll else [*expected, "FDPOLL=0"])


def test_unstore_sends_the_name_alone(manager: Manager) -> None:
    assert systemd.unstore("state")
    assert manager.read() == ("FDSTOREREMOVE=1\nFDNAME=state", [], os.getpid())


@pytest.mark.parametrize("name", ["a", "x" * 255, " ", "app/one@2.socket", "~!?=\\\"'"])
def test_a_name_is_printable_ascii(manager: Manager, name: str) -> None:
    assert systemd.unstore(name)
    assert manager.read()[0] == f"FDSTOREREMOVE=1\nFDNAME={name}"


@pytest.mark.parametrize("name", ["", "a:b", "a\nFDPOLL=0", "a\0", "\x7f", "ä", "x" * 256])
@pytest.mark.usefixtures("nobody")
def test_what_is_no_name_is_a_value_error_also_where_nobody_listens(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        systemd.store(name, 0)
    with pytest.raises(ValueError, match="name"):
        systemd.unstore(name)


# The barrier


def test_a_barrier_ends_when_the_manager_closes_what_came_with_it(manager: Manager) -> None:
    waiting = Call(systemd.barrier, GENEROUS)
    text, [end], _ = manager.read()
    assert text == "BARRIER=1"
    assert waiting.is_waiting()
    os.close(end)
    assert waiting.result() is True


def test_a_barrier_may_wait_for_ever(manager: Manager) -> None:
    waiting = Call(systemd.barrier, None)
    _, [end], _ = manager.read()
    assert waiting.is_waiting()
    os.close(end)
    assert waiting.result() is True


def test_what_the_manager_writes_does_not_end_a_barrier(manager: Manager) -> None:
    waiting = Call(systemd.barrier, GENEROUS)
    _, [end], _ = manager.read()
    os.write(end, b"not yet")
    assert waiting.is_waiting()
    os.close(end)
    assert waiting.result() is True


@pytest.mark.parametrize(
    ("timeout", "error"), [(0, conduit.WouldBlockError), (0.05, conduit.TransferTimeoutError)]
)
def test_a_barrier_that_is_not_reached_in_time_is_an_error(
    manager: Manager, timeout: float, error: type[Error]
) -> None:
    started = time.monotonic()
    with pytest.raises(error, match="the service manager has not come to it") as caught:
        systemd.barrier(timeout)
    assert timeout <= time.monotonic() - started < GENEROUS / 2
    assert caught.value.type is ErrType.FAILED_TRANSFER
    text, [end], _ = manager.read()
    assert text == "BARRIER=1"
    os.close(end)


def test_a_barrier_ends_at_its_deadline_whatever_the_manager_writes(manager: Manager) -> None:
    begun = time.monotonic()
    waiting = Call(systemd.barrier, 0.2)
    _, [end], _ = manager.read()
    with socket.socket(fileno=end) as there, flooding(there, b"not yet"):
        with pytest.raises(conduit.TransferTimeoutError):
            waiting.result()
        assert 0.2 <= time.monotonic() - begun < GENEROUS


class Alarm(conduit.TransferTimeoutError):
    """An exception that barrier() raises too, by its class."""


def test_what_a_signal_handler_raises_ends_a_barrier_and_stays_itself(manager: Manager) -> None:
    def handler(*_: Any) -> None:
        raise Alarm("the program's own")

    with handling(signal.SIGUSR1, handler):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(Alarm, match="the program's own"):
            systemd.barrier(GENEROUS)
        interrupting.result()
    _, [end], _ = manager.read()
    os.close(end)


def test_other_threads_run_while_a_barrier_waits(manager: Manager) -> None:
    def answer() -> None:
        _, [end], _ = manager.read()
        os.close(end)

    thread = threading.Thread(target=answer)
    thread.start()
    assert systemd.barrier(GENEROUS)
    thread.join()


# The watchdog

OURS = "this process's"
"""Stands for the pid of the process that is asked."""


def test_without_a_watchdog_there_is_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    assert systemd.watchdog_interval() is None


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("20000000", OURS, 20.0),
        ("20000000", "", 20.0),
        ("1", OURS, 1e-6),
        ("20000000", "1", None),
        ("", OURS, None),
    ],
)
def test_the_interval_of_the_watchdog_is_that_of_this_process(
    usec: str, pid: str, interval: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == OURS else pid)
    assert systemd.watchdog_interval() == interval
    assert os.environ["WATCHDOG_USEC"] == usec


@pytest.mark.parametrize(
    ("usec", "pid"),
    [("0", OURS), ("-1", OURS), ("1.5", OURS), (str(2**64 - 1), OURS), ("1000", "x")],
)
def test_a_watchdog_that_is_none_is_an_error(
    usec: str, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == OURS else pid)
    with pytest.raises(Error, match="WATCHDOG_") as caught:
        systemd.watchdog_interval()
    assert (caught.value.type, caught.value.errno) == (ErrType.UNKNOWN, errno.EINVAL)


# listen_fds

VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


def in_activated_child(
    function: Callable[[], None], contents: list[bytes], /, **variables: str | None
) -> None:
    """Run a function in a child that has files of these contents from descriptor 3 on, and no more.

    The variables are those of the environment without ``LISTEN_``; PID is right unless given.
    """

    def child() -> None:
        # What this process has open is the parent's, and so are its objects.
        gc.disable()
        os.closerange(3, max(open_descriptors()) + 1)
        for text in contents:
            os.set_inheritable(memory(text), True)
        for name, value in {"PID": str(os.getpid()), **variables}.items():
            if value is not None:
                os.environ[f"LISTEN_{name}"] = value
        function()

    for name in VARIABLES:
        assert name not in os.environ
    assert in_child(child) == 0


def left() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def test_the_descriptors_have_their_names_are_private_and_are_told_of_once() -> None:
    def child() -> None:
        fds = systemd.listen_fds()
        assert [each.name for each in fds] == ["web", "admin", "web"]
        assert [each.fileno() for each in fds] == [3, 4, 5]
        assert [content(each.fileno()) for each in fds] == [b"one", b"two", b"three"]
        assert all(is_private(each.fileno()) for each in fds)
        assert left() == {}
        assert "LISTEN_FDS" not in os.popen("env").read()
        assert systemd.listen_fds() == ()
        for each in fds:
            each.close()
        assert not any(map(is_open, (3, 4, 5)))

    in_activated_child(child, [b"one", b"two", b"three"], FDS="3", FDNAMES="web:admin:web")


@pytest.mark.parametrize(
    ("count", "given", "names"),
    [
        (2, None, ["unknown", "unknown"]),
        (1, "", ["unknown"]),
        (2, ":", ["unknown", "unknown"]),
        (2, "web:", ["web", "unknown"]),
        (1, "a b=c", ["a b=c"]),
    ],
)
def test_a_descriptor_without_a_name_is_unknown(
    count: int, given: str | None, names: list[str]
) -> None:
    def child() -> None:
        fds = systemd.listen_fds()
        assert [each.name for each in fds] == names
        for each in fds:
            each.close()

    in_activated_child(child, [b""] * count, FDS=str(count), FDNAMES=given)


def test_descriptors_beyond_the_number_are_left_alone() -> None:
    def child() -> None:
        [one] = systemd.listen_fds()
        one.close()
        assert is_open(4)
        assert not is_private(4)

    in_activated_child(child, [b"ours", b"another's"], FDS="1")


@pytest.mark.parametrize(
    "variables",
    [
        {"PID": "1", "FDS": "2", "FDNAMES": "a:b"},
        {"PID": "1", "FDS": "lies", "FDNAMES": "are no matter"},
        {"PID": None, "FDS": "2"},
        {"PID": "", "FDS": "2"},
        {"FDS": None},
        {"FDS": ""},
        {"FDS": "0", "FDNAMES": ""},
        {"FDS": "2", "PIDFDID": "1"},
    ],
    ids=str,
)
def test_nothing_is_taken_that_is_not_meant_for_this_process(
    variables: dict[str, str | None],
) -> None:
    def child() -> None:
        if variables.get("PIDFDID") and own_pidfd_id() is None:
            return
        assert systemd.listen_fds() == ()
        assert left() == {}
        assert is_open(3) and not is_private(3)
        assert is_open(4) and not is_private(4)

    in_activated_child(child, [b"one", b"two"], **variables)


def own_pidfd_id() -> int | None:
    """What LISTEN_PIDFDID is for this process; None before Linux 6.9, which has no such thing."""
    with Descriptor(os.pidfd_open(os.getpid())) as one, Descriptor(os.pidfd_open(1)) as other:
        if one.is_same_file(other) or os.path.sameopenfile(one.fileno(), other.fileno()):
            return None
        return os.fstat(one.fileno()).st_ino


def test_what_is_meant_for_this_very_process_is_taken() -> None:
    def child() -> None:
        os.environ["LISTEN_PIDFDID"] = str(own_pidfd_id() or 7)
        [one] = systemd.listen_fds()
        one.close()
        assert left() == {}

    in_activated_child(child, [b"one"], FDS="1")


@pytest.mark.parametrize("why", ["no pidfd_open", "no pidfs", "no room"])
def test_where_a_pidfd_tells_nothing_the_pid_decides(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child() -> None:
        if why == "no pidfd_open":
            monkeypatch.delattr(os, "pidfd_open")
        elif why == "no pidfs":
            monkeypatch.setattr(os, "pidfd_open", lambda _: os.eventfd(0))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
        [one] = systemd.listen_fds()
        one.close()

    in_activated_child(child, [b"one"], FDS="1", PIDFDID="7")


LIES = [
    {"PID": "x", "FDS": "2"},
    {"PID": "-1", "FDS": "2"},
    {"PIDFDID": "x", "FDS": "2"},
    *(
        {"FDS": number}
        for number in ("x", "-1", "+2", " 2", "2 ", "2.0", "0x2", "1_0", "²", "٢", "9" * 5000)
    ),
    *({"FDS": number} for number in ("3", "1000000", str(2**31), str(2**64 - 1), "9" * 20)),
    *({"FDS": "2", "FDNAMES": names} for names in ("a", "a:b:c", "a:b:")),
]


@pytest.mark.parametrize("variables", LIES, ids=range(len(LIES)))
def test_an_environment_that_lies_is_an_error_and_changes_nothing(
    variables: dict[str, str | None],
) -> None:
    def child() -> None:
        before = left()
        for _ in range(2):
            with pytest.raises(Error, match="LISTEN_") as caught:
                systemd.listen_fds()
            if "not open" in str(caught.value):
                assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.EBADF)
                assert "descriptor 5 is not open" in str(caught.value)
            else:
                assert (caught.value.type, caught.value.errno) == (ErrType.UNKNOWN, errno.EINVAL)
            assert left() == before
            for fd, text in ((3, b"one"), (4, b"two")):
                assert content(fd) == text
                assert not is_private(fd)

    in_activated_child(child, [b"one", b"two"], **variables)


number = st.one_of(st.integers(-2, 6).map(str), st.text(st.characters(codec="ascii"), max_size=3))


@pytest.mark.slow
@settings(deadline=None, derandomize=True, database=None)
@given(fds=number, names=st.text("ab:", max_size=6), pid=st.sampled_from([None, "1", "x"]))
def test_whatever_the_environment_says_all_is_taken_or_nothing(
    fds: str, names: str, pid: str | None
) -> None:
    if "\0" in fds:
        return

    def child() -> None:
        try:
            taken = systemd.listen_fds()
        except Error:
            taken = ()
        assert [each.fileno() for each in taken] == list(range(3, 3 + len(taken)))
        assert len(taken) in ({0} if pid else {0, int(fds) if fds.isdigit() else 0})
        for each in taken:
            each.close()
        assert [is_open(fd) for fd in (3, 4, 5)] == [fd >= 3 + len(taken) for fd in (3, 4, 5)]

    variables: dict[str, str | None] = {"FDS": fds, "FDNAMES": names}
    if pid:
        variables["PID"] = pid
    in_activated_child(child, [b"one", b"two", b"three"], **variables)


def test_an_environment_that_cannot_be_cleared_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stuck(dict[str, str]):
        def __delitem__(self, name: str) -> None:
            if name == "LISTEN_FDNAMES":
                raise KeyError(name)
            super().__delitem__(name)

    def child() -> None:
        before = left()
        monkeypatch.setattr(os, "environ", Stuck(os.environ))
        with pytest.raises(KeyError):
            systemd.listen_fds()
        assert left() == before
        assert is_open(3) and is_open(4)

    in_activated_child(child, [b"one", b"two"], FDS="2", FDNAMES="a:b")


class Strike(BaseException):
    """What a handler raises."""


@not_traced
def test_wherever_a_handler_raises_all_is_taken_or_nothing() -> None:
    def child(line: int) -> bool:
        """Raise at that line of the call; whether it had so many."""
        before, passed = left(), 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal passed
            if frame.f_code.co_filename != systemd.__file__:
                return None
            if event == "line":
                passed += 1
                if passed == line:
                    raise Strike
            return trace

        sys.settrace(trace)
        try:
            taken = systemd.listen_fds()
        except Strike:
            sys.settrace(None)
            assert left() == before
            assert [content(fd) for fd in (3, 4)] == [b"one", b"two"]
            return True
        finally:
            sys.settrace(None)
        for each in taken:
            each.close()
        assert left() == {}
        return False

    def all_lines() -> None:
        warnings.simplefilter("error")
        line = 1
        while child(line):
            line += 1
        assert line > 20

    in_activated_child(all_lines, [b"one", b"two"], FDS="2", FDNAMES="a:b")


def test_a_listening_socket_becomes_a_listener_whose_path_stays(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        bound.listen()

        def child() -> None:
            os.dup2(bound.fileno(), 100)
            os.closerange(3, 100)
            os.dup2(100, 3)
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
            [descriptor] = systemd.listen_fds()
            with descriptor:
                listener = conduit.Listener.from_conn(descriptor, path)
            with listener.accept(GENEROUS) as link:
                link.transfer(data=b"welcome")
            listener.close(unlink=False)

        answer: Call[int] = Call(in_child, child)
        with Conduit.connect(path, timeout=GENEROUS) as link:
            link.timeout = GENEROUS
            assert link.receive().data == b"welcome"
        assert answer.result() == 0
    assert path.is_socket()


# The documentation


EXAMPLES = re.findall(
    r"^```python\n(.*?)^```$", (DOCS / "systemd.md").read_text(), re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.usefixtures("nobody")
def test_each_example_of_the_documentation_runs_outside_of_systemd_too(example: str) -> None:
    done = run_python(example)
    assert (done.returncode, done.stderr) == (0, "")
