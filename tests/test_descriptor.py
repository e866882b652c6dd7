"""One descriptor that an object owns."""

from __future__ import annotations

import copy
import ctypes
import errno
import gc
import io
import os
import pickle
import select
import socket
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    PORTABLE,
    Call,
    content,
    drain,
    fill,
    in_child,
    is_open,
    is_private,
    memory,
    open_descriptors,
    same_file,
    waits,
)
from sides import identity, is_at_eof

import conduit
from conduit import (
    Channel,
    Conduit,
    Descriptor,
    DescriptorTypeError,
    Error,
    ErrType,
    Listener,
    Message,
    PeerClosedError,
    Reader,
    aio,
    objects,
)
from conduit._handle import Handle
from conduit.aio import (
    AsyncChannel,
    AsyncConduit,
    AsyncListener,
    AsyncReader,
    AsyncTakeover,
)
from conduit.takeover import Takeover

Ends = tuple[Conduit, Conduit]


def test_closing_closes_the_number_and_a_second_time_does_nothing() -> None:
    number = memory()
    descriptor = Descriptor(number)
    assert descriptor.fileno() == number
    assert not descriptor.closed
    descriptor.close()
    assert descriptor.closed
    assert not is_open(number)
    reused = os.dup(0)
    descriptor.close()
    os.close(reused)
    assert reused == number


def test_leaving_it_as_a_context_manager_closes_it() -> None:
    with Descriptor(memory()) as descriptor:
        number = descriptor.fileno()
    assert descriptor.closed
    assert not is_open(number)


@pytest.mark.hazard("Y5")
def test_dropping_it_open_closes_it_and_warns() -> None:
    out, into = os.pipe()
    with pytest.warns(ResourceWarning, match=rf"unclosed <?conduit\.Descriptor {into}\b"):
        Descriptor(into)
    assert is_at_eof(out)


def test_dropping_it_closed_warns_nobody() -> None:
    Descriptor(memory()).close()
    gc.collect()


def test_a_detached_number_is_the_callers() -> None:
    number = memory()
    descriptor = Descriptor(number)
    assert descriptor.detach() == number
    assert descriptor.closed
    descriptor.close()
    del descriptor
    assert is_open(number)
    os.close(number)


@pytest.mark.parametrize("use", ["fileno", "detach", "to_file", "to_conn"])
def test_a_closed_one_has_nothing_to_give(use: str) -> None:
    descriptor = Descriptor(memory())
    descriptor.close()
    with pytest.raises(Error, match="closed") as caught:
        getattr(descriptor, use)()
    assert caught.value.type is ErrType.NO_FD


def test_a_closed_one_has_no_kind() -> None:
    descriptor = Descriptor(memory())
    descriptor.close()
    with pytest.raises(Error) as caught:
        _ = descriptor.kind
    assert caught.value.type is ErrType.NO_FD


def test_a_number_closed_elsewhere_is_reported_once() -> None:
    descriptor = Descriptor(memory())
    os.close(descriptor.fileno())
    with pytest.raises(Error) as caught:
        _ = descriptor.kind
    assert caught.value.errno == errno.EBADF
    with pytest.raises(Error) as caught:
        descriptor.close()
    assert caught.value.type is ErrType.FAILED_CLOSE
    assert caught.value.errno == errno.EBADF
    descriptor.close()
    assert descriptor.closed


@pytest.mark.parametrize("wrong", [1.5, True, "3", None, b"3"])
def test_only_an_int_is_a_number(wrong: Any) -> None:
    with pytest.raises(DescriptorTypeError) as caught:
        Descriptor(wrong)
    assert caught.value.type is ErrType.NO_FD


@pytest.mark.parametrize("wrong", [-1, 1 << 31, 1 << 80])
def test_only_a_possible_number_is_taken(wrong: int) -> None:
    with pytest.raises(Error) as caught:
        Descriptor(wrong)
    assert caught.value.type is ErrType.NO_FD


def directory() -> int:
    return os.open("/", os.O_RDONLY)


def fifo() -> int:
    out, into = os.pipe()
    os.close(into)
    return out


def unix_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def epoll() -> int:
    poller = select.epoll()
    number = os.dup(poller.fileno())
    poller.close()
    return number


def symlink() -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "link")
        os.symlink("anywhere", path)
        return os.open(path, os.O_PATH | os.O_NOFOLLOW)


def made_by(function: str, *arguments: Any) -> int:
    number: int = getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments)
    assert number >= 0, os.strerror(ctypes.get_errno())
    return number


def block_device() -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "device")
        try:
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 0))
        except PermissionError:
            pytest.skip("only root can make a block device")
        return os.open(path, os.O_PATH)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: os.open(__file__, os.O_RDONLY), "regular file"),
        (symlink, "symlink"),
        (memory, "memfd"),
        (directory, "directory"),
        (fifo, "fifo"),
        (unix_socket, "socket"),
        (lambda: os.open("/dev/null", os.O_RDONLY), "character device"),
        (block_device, "block device"),
        (epoll, "epoll"),
        (lambda: os.eventfd(0), "eventfd"),
        (lambda: os.pidfd_open(os.getpid()), "pidfd"),
        (lambda: made_by("timerfd_create", 1, 0), "timerfd"),
        (lambda: made_by("inotify_init"), "inotify"),
        (lambda: made_by("signalfd", -1, bytes(128), 0), "signalfd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_knows_what_kind_it_is_also_on_arrival(make: Callable[[], int], kind: str) -> None:
    number = make()
    one, other = Conduit.pair()
    with one, other, Descriptor(number) as descriptor:
        assert descriptor.kind == kind
        one.transfer(descriptor, keep=True)
        with other.receive() as message:
            assert message.fds[0].kind == kind


def test_a_file_made_of_it_owns_the_number(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    descriptor = Descriptor(os.open(tmp_path / "file", os.O_RDONLY))
    number = descriptor.fileno()
    with descriptor.to_file("r", encoding="ascii", name="given") as file:
        assert descriptor.closed
        assert file.fileno() == number
        assert file.name == "given"
        assert file.read() == "text"
    assert not is_open(number)


@pytest.mark.parametrize(
    ("flags", "mode", "cls"),
    [
        (os.O_RDONLY, "rb", io.BufferedReader),
        (os.O_WRONLY, "wb", io.BufferedWriter),
        (os.O_RDWR, "rb+", io.BufferedRandom),
    ],
)
def test_the_mode_is_what_the_descriptor_allows_and_nothing_is_truncated(
    tmp_path: Path, flags: int, mode: str, cls: type[io.IOBase]
) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    with Descriptor(os.open(path, flags)).to_file() as file:
        assert file.mode == mode
        assert isinstance(file, cls)
    assert path.read_text() == "text"


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (os.O_RDONLY, "w"),
        (os.O_RDONLY, "wb"),
        (os.O_RDONLY, "a"),
        (os.O_RDONLY, "r+"),
        (os.O_WRONLY, "r"),
        (os.O_WRONLY, "rb"),
        (os.O_WRONLY, "w+b"),
    ],
)
def test_a_mode_it_does_not_allow_is_an_error_and_it_stays_owned(
    tmp_path: Path, flags: int, mode: str
) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    with Descriptor(os.open(path, flags)) as descriptor:
        with pytest.raises(Error, match=r"not open for (reading|writing), .*" + f"'{mode[0]}") as e:
            descriptor.to_file(mode)
        assert e.value.type is ErrType.BAD_CLONE
        assert e.value.errno == errno.EACCES
        assert not descriptor.closed
        assert is_open(descriptor.fileno())
    assert path.read_text() == "text"


@pytest.mark.hazard("P6b")
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH], ids=["directory", "path-only"])
def test_what_can_be_no_file_is_an_error_and_it_stays_owned(flags: int) -> None:
    with Descriptor(os.open("/", flags)) as descriptor:
        with pytest.raises(Error) as caught:
            descriptor.to_file()
        assert caught.value.type is ErrType.BAD_CLONE
        assert is_open(descriptor.fileno())


@pytest.mark.parametrize(
    ("arguments", "cls"),
    [
        ({"mode": "rw"}, ValueError),
        ({"mode": "q"}, ValueError),
        ({"mode": 3}, TypeError),
        ({"mode": "r", "buffering": 0}, ValueError),
        ({"mode": "r", "encoding": "klingon"}, LookupError),
        ({"mode": "rb", "encoding": "ascii"}, ValueError),
        ({"mode": "r", "newline": "x"}, ValueError),
    ],
)
def test_arguments_that_open_refuses_are_refused_and_it_stays_owned(
    arguments: dict[str, Any], cls: type[Exception]
) -> None:
    with Descriptor(memory()) as descriptor:
        with pytest.raises(cls):
            descriptor.to_file(**arguments)
        assert is_open(descriptor.fileno())


def test_a_socket_made_of_it_owns_the_number() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = Descriptor(near.detach())
    number = descriptor.fileno()
    with far, descriptor.to_conn() as conn:
        assert descriptor.closed
        assert conn.fileno() == number
        assert (conn.family, conn.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        conn.send(b"hello")
        assert far.recv(10) == b"hello"
    assert not is_open(number)


@pytest.mark.hazard("P5")
@pytest.mark.parametrize("blocking", [True, False])
def test_a_sockets_timeout_tells_the_truth_and_changes_nothing(
    default_timeout: None, blocking: bool
) -> None:
    near, far = socket.socketpair()
    near.setblocking(blocking)
    socket.setdefaulttimeout(7)
    with far, Descriptor(near.detach()).to_conn() as conn:
        assert conn.gettimeout() == (None if blocking else 0.0)
        assert waits(conn.fileno()) is blocking


@pytest.mark.hazard("P6")
@pytest.mark.parametrize("make", [memory, directory, fifo, epoll])
def test_what_is_no_socket_makes_none_and_stays_owned(make: Callable[[], int]) -> None:
    with Descriptor(make()) as descriptor:
        with pytest.raises(Error, match="not a socket") as caught:
            descriptor.to_conn()
        assert caught.value.type is ErrType.BAD_CLONE
        assert caught.value.errno == errno.ENOTSOCK
        assert not descriptor.closed
        assert is_open(descriptor.fileno())


def test_after_a_failure_it_can_still_become_what_it_is() -> None:
    descriptor = Descriptor(memory(b"text"))
    with pytest.raises(Error):
        descriptor.to_conn()
    with descriptor.to_file() as file:
        assert file.read() == b"text"


def test_it_goes_on_to_a_third_process_as_it_came() -> None:
    one, other = Conduit.pair()
    number = memory()
    with one, other:
        one.transfer(number, keep=True)
        with other.receive() as message:
            other.transfer(*message.fds)
            assert message.fds[0].closed
        with one.receive() as back:
            assert same_file(back.fds[0].fileno(), number)
            assert is_private(back.fds[0].fileno())
    os.close(number)


def test_it_says_what_it_is() -> None:
    with Descriptor(memory()) as descriptor:
        assert repr(descriptor) == f"<conduit.Descriptor {descriptor.fileno()}>"
    assert repr(descriptor) == "<conduit.Descriptor closed>"


@pytest.mark.parametrize(
    ("buffering", "refusal"),
    [("x", TypeError), (None, TypeError), (1.5, TypeError), (1 << 31, ValueError)],
)
def test_an_impossible_buffering_takes_nothing(buffering: Any, refusal: type[Exception]) -> None:
    one, other = Conduit.pair()
    with one, other, Descriptor(memory(b"inside")) as descriptor:
        with pytest.raises(refusal):
            descriptor.to_file("rb", buffering)
        assert not descriptor.closed
        one.transfer(descriptor)
        with pytest.raises(refusal):
            other.receive_file("rb", buffering)
        with other.receive_file() as file:
            assert file.read() == b"inside"


@pytest.mark.parametrize("how", ["transfer_file", "transfer_conn", "transfer"])
@pytest.mark.parametrize("keep", [True, False])
def test_every_call_that_sends_an_object_sends_it(kind: int, how: str, keep: bool) -> None:
    one, other = Conduit.pair(type=kind)
    with one, other, Descriptor(memory(b"inside")) as descriptor:
        getattr(one, how)(descriptor, keep=keep)
        assert descriptor.closed is not keep
        with other.receive() as message:
            assert [content(fd.fileno()) for fd in message.fds] == [b"inside"]


# Used by a call meanwhile


moved_files: list[tuple[int, int]] = []


@pytest.fixture
def sent_by_another(
    kind: int, moved: bool
) -> Iterator[tuple[Descriptor, Call[None], Conduit, int]]:
    """A Descriptor of a socket that a thread waits to send, and how to let it go on."""
    one, other = Conduit.pair(type=kind)
    with one, other:
        queued = fill(one.fileno())
        mine, peer = socket.socketpair()
        with peer:
            moved_files.append(identity(mine.fileno()))
            descriptor = Descriptor(mine.detach())
            sending = Call(one.transfer, descriptor, keep=not moved)
            assert sending.is_waiting()
            yield descriptor, sending, other, queued
            descriptor.close()


Sent = tuple[Descriptor, Call[None], Conduit, int]


def let_go_on(sent: Sent) -> None:
    """Let the thread send, and see that what arrives is the socket that it was given."""
    _, sending, other, queued = sent
    drain(other.fileno(), queued)
    sending.result()
    with other.receive() as message, message.fds[0].to_conn() as conn:
        assert conn.send(b"x") == 1


@pytest.mark.parametrize("moved", [True])
@pytest.mark.parametrize("use", ["fileno", "detach", "to_file", "to_conn"])
def test_what_another_thread_moves_looks_closed_and_is_not_given_away(
    sent_by_another: Sent, use: str
) -> None:
    descriptor = sent_by_another[0]
    assert descriptor.closed
    with pytest.raises(Error, match="another call is using") as caught:
        getattr(descriptor, use)()
    assert caught.value.type is ErrType.NO_FD
    let_go_on(sent_by_another)
    assert descriptor.closed
    with pytest.raises(Error, match="is closed"):
        descriptor.fileno()


@pytest.mark.parametrize("moved", [False])
def test_what_another_thread_shares_can_be_given_away_and_arrives(sent_by_another: Sent) -> None:
    with sent_by_another[0].to_conn() as conn:
        assert conn.fileno() >= 0
        let_go_on(sent_by_another)
    assert sent_by_another[0].closed


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_closed_while_another_thread_sends_it_arrives(sent_by_another: Sent) -> None:
    descriptor = sent_by_another[0]
    descriptor.close()
    descriptor.close()
    assert descriptor.closed
    let_go_on(sent_by_another)
    assert descriptor.closed


@pytest.mark.parametrize("moved", [True])
@pytest.mark.parametrize("closed", [False, True])
def test_what_another_thread_could_not_move_is_open_again_unless_it_was_closed(
    sent_by_another: Sent, closed: bool
) -> None:
    descriptor, sending, other, _ = sent_by_another
    if closed:
        descriptor.close()
    other.close()
    with pytest.raises(PeerClosedError):
        sending.result()
    assert descriptor.closed is closed
    if not closed:
        with descriptor.to_conn() as conn:
            assert conn.fileno() >= 0


@pytest.mark.parametrize("moved", [True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_forked_child_has_nothing_of_what_a_thread_of_the_parent_moves(
    sent_by_another: Sent, closed: bool
) -> None:
    descriptor = sent_by_another[0]
    if closed:
        descriptor.close()

    def child() -> None:
        assert descriptor.closed
        descriptor.close()
        with Descriptor.__new__(Descriptor) as fresh:
            assert fresh.closed
        # What the moving message held is closed as the child begins.
        assert moved_files[-1] not in [
            identity(number) for number in open_descriptors() if is_open(number)
        ]

    assert in_child(child) == 0
    let_go_on(sent_by_another)


def test_a_descriptor_is_initialised_once() -> None:
    with Descriptor(memory()) as descriptor:
        number = descriptor.fileno()
        with pytest.raises(Error, match="initialised before") as caught:
            descriptor.__init__(number)
        assert caught.value.type is ErrType.NO_FD
        assert descriptor.fileno() == number
        assert is_open(number)
    with pytest.raises(Error, match="initialised before"):
        descriptor.__init__(number)


def test_a_number_that_is_taken_over_is_close_on_exec() -> None:
    number = memory()
    os.set_inheritable(number, True)
    with Descriptor(number):
        assert is_private(number)


def test_a_socket_whose_making_is_interrupted_at_its_end_stays_the_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill_socket = objects.fill_socket

    def fill_and_raise(sock: socket.socket, number: int) -> None:
        fill_socket(sock, number)
        raise KeyboardInterrupt

    mine, peer = socket.socketpair()
    with peer, Descriptor(mine.detach()) as descriptor:
        number = descriptor.fileno()
        with monkeypatch.context() as patch:
            patch.setattr("conduit._conduit.fill_socket", fill_and_raise)
            with pytest.raises(KeyboardInterrupt):
                descriptor.to_conn()
        gc.collect()
        assert descriptor.fileno() == number
        with descriptor.to_conn() as sock:
            sock.send(b"x")
        assert peer.recv(2) == b"x"


class Closing:
    """An object with a descriptor, which ends another one as it is asked for its own."""

    def __init__(self, descriptor: Descriptor, then: Callable[[], object]) -> None:
        self.descriptor = descriptor
        self.then = then
        self.fd = memory(b"its own")

    def fileno(self) -> int:
        if not self.descriptor.closed:
            self.descriptor.close()
            self.then()
        return self.fd


def test_a_shared_descriptor_closed_under_its_message_is_sent_and_then_closed(ends: Ends) -> None:
    one, other = ends
    descriptor = Descriptor(memory(b"shared"))
    fd = descriptor.fileno()
    closing = Closing(descriptor, lambda: content(fd))
    one.transfer(descriptor, closing, keep=True)
    assert not is_open(fd)
    with other.receive() as message:
        assert [content(each.fileno()) for each in message.fds] == [b"shared", b"its own"]
    os.close(closing.fd)


def test_a_child_closes_what_was_closed_under_a_message_of_its_parent(ends: Ends) -> None:
    one, other = ends
    descriptor = Descriptor(memory(b"shared"))
    fd = descriptor.fileno()
    statuses = []

    def look() -> None:
        assert not is_open(fd)
        assert descriptor.closed

    closing = Closing(descriptor, lambda: statuses.append(in_child(look)))
    one.transfer(descriptor, closing, keep=True)
    assert statuses == [0]
    other.receive().close()
    os.close(closing.fd)


@pytest.mark.parametrize("make", [Descriptor.to_file, Descriptor.to_conn])
def test_a_descriptor_that_was_closed_elsewhere_becomes_no_object(
    make: Callable[[Descriptor], object],
) -> None:
    descriptor = Descriptor(memory())
    os.close(descriptor.fileno())
    with pytest.raises(Error) as caught:
        make(descriptor)
    assert caught.value.type is ErrType.BAD_CLONE
    assert caught.value.errno == errno.EBADF
    descriptor.detach()


def test_a_warning_that_is_an_error_is_reported_where_it_cannot_be_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type)
    )
    descriptor = Descriptor(memory())
    fd = descriptor.fileno()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        del descriptor
        gc.collect()
    assert reported == [ResourceWarning]
    assert not is_open(fd)


# Names, and duplicates


def test_a_descriptor_has_the_name_it_is_given() -> None:
    with Descriptor(memory(), "log") as named, Descriptor(memory()) as other:
        assert (named.name, other.name) == ("log", "")
        assert repr(named) == f"<conduit.Descriptor 'log' {named.fileno()}>"
    assert named.name == "log"
    with pytest.raises(TypeError, match="a name is a str"):
        Descriptor(0, 1)  # type: ignore[arg-type]


def test_duplicates_are_the_same_file_and_a_file_opened_twice_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    one = Descriptor(os.open(path, os.O_RDONLY))
    with one, Descriptor(os.dup(one.fileno())) as twin, Descriptor(os.open(path, 0)) as anew:
        assert one.is_same_file(one)
        assert one.is_same_file(twin)
        assert twin.is_same_file(one)
        assert one.is_same_file(twin.fileno())
        for number in (-1, 1 << 31):
            with pytest.raises(Error, match="no descriptor") as caught:
                one.is_same_file(number)
            assert caught.value.type is ErrType.NO_FD
        if not PORTABLE:
            assert not one.is_same_file(anew)
    with pytest.raises(Error) as caught:
        one.is_same_file(twin)
    assert caught.value.type is ErrType.NO_FD


def test_a_closed_descriptor_is_the_same_as_none() -> None:
    with Descriptor(memory()) as one, Descriptor(memory()) as other:
        other.close()
        for this, that in ((one, other), (other, one)):
            with pytest.raises(Error) as caught:
                this.is_same_file(that)
            assert caught.value.type is ErrType.NO_FD
    with Descriptor(memory()) as one, socket.socket() as sock:
        assert not one.is_same_file(sock)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_has_a_descriptor_is_neither_copied_nor_pickled(
    tmp_path: Path, duplicate: Callable[[object], object]
) -> None:
    with ExitStack() as stack:
        one, other = map(stack.enter_context, Conduit.pair())
        descriptor = stack.enter_context(Descriptor(memory()))
        listener = stack.enter_context(Listener(tmp_path / "listener"))
        takeover = stack.enter_context(Takeover(tmp_path / "takeover"))
        link, there = AsyncConduit(other), AsyncListener(tmp_path / "other")
        stack.callback(there.close)
        owners = [
            *(one, descriptor, listener, Message(b"", [descriptor]), Reader(one), Channel(one)),
            *(takeover, link, there, AsyncReader(link), AsyncChannel(link)),
            AsyncTakeover(tmp_path / "takeover"),
        ]
        modules = (conduit, conduit.takeover, aio)
        public = [getattr(module, name) for module in modules for name in module.__all__]
        assert {type(owner) for owner in owners} == {
            each
            for each in public
            if isinstance(each, type) and each.__module__.startswith("conduit.")
            if (hasattr(each, "close") or hasattr(each, "aclose"))
            if not (each is Handle or each.__name__.startswith("_"))
        }
        for owner in owners:
            with pytest.raises(TypeError, match=r"conduit\.multiprocessing"):
                duplicate(owner)
