"""What an object holds is never lost: the receiver goes on where the program was, or it stays."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import ctypes
import fileinput
import gzip
import http.client
import io
import itertools
import lzma
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import handling, not_traced

from conduit import Conduit, DescriptorTypeError, Error, ErrType, WouldBlockError

Ends = tuple[Conduit, Conduit]

LINES = b"".join(b"line %d\n" % i for i in range(3000))


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, other = Conduit.pair(type=socket.SOCK_SEQPACKET)
    with one, other:
        one.timeout = other.timeout = 0
        yield one, other


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines"
    path.write_bytes(LINES)
    return path


def assert_refused(ends: Ends, file: Any, match: str) -> None:
    """Nothing of it leaves, moved or shared, and it stays open."""
    for keep in (False, True):
        with pytest.raises(Error, match=match) as caught:
            ends[0].transfer_file(file, keep=keep)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert not isinstance(caught.value, DescriptorTypeError)
        with pytest.raises(WouldBlockError):
            ends[1].receive_fd()
        assert file.fileno() >= 0


# Something without an offset: a pipe, a socket, a terminal


def pipe() -> tuple[int, int]:
    return os.pipe()


def socket_pair() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def terminal() -> tuple[int, int]:
    master, slave = os.openpty()
    return slave, master


SOURCES = pytest.mark.parametrize("make", [pipe, socket_pair, terminal])


@SOURCES
def test_a_reader_that_holds_nothing_is_moved(
    ends: Ends, make: Callable[[], tuple[int, int]]
) -> None:
    source, feed = make()
    reader = open(source, "rb")
    os.write(feed, b"one\n")
    assert reader.readline() == b"one\n"
    os.write(feed, b"two\n")
    ends[0].transfer_file(reader)
    with ends[1].receive_file("rb") as arrived:
        assert arrived.readline() == b"two\n"
    os.close(feed)


@SOURCES
def test_a_reader_that_holds_something_stays_and_keeps_it(
    ends: Ends, make: Callable[[], tuple[int, int]]
) -> None:
    source, feed = make()
    os.set_blocking(source, False)
    with open(source, "rb") as reader:
        # Both lines at once, also from a terminal, which gives one a read.
        os.write(feed, b"one\ntwo\n" if make is not terminal else b"one two\n")
        first, rest = reader.read(4), b"two\n"
        assert first.rstrip() == b"one"
        assert_refused(ends, reader, r"holds 4 bytes that were read ahead.*data=file.peek")
        assert vars(reader.raw).keys() == {"name"}
        assert reader.readline() == rest
        ends[0].transfer_file(reader)
        os.close(ends[1].receive_fd())
    os.close(feed)


def test_what_a_reader_holds_can_be_sent_along_as_the_error_says(ends: Ends) -> None:
    source, feed = pipe()
    os.write(feed, b"one\ntwo\n")
    with open(source, "rb") as file:
        file.readline()
        ends[0].transfer(os.dup(file.fileno()), data=file.peek())
    with ends[1].receive() as message:
        assert message.data == b"two\n"
    os.close(feed)


def test_the_output_of_a_child_that_was_read_ahead_stays(ends: Ends) -> None:
    child = subprocess.Popen(["printf", r"one\ntwo\n"], stdout=subprocess.PIPE)
    child.wait()
    assert child.stdout is not None
    with child.stdout as file:
        assert file.readline() == b"one\n"
        assert_refused(ends, file, "holds 4 bytes")
        assert file.read() == b"two\n"


def test_a_file_of_a_socket_that_was_read_ahead_stays(ends: Ends) -> None:
    one, other = socket.socketpair()
    with one, other, one.makefile("rb") as file:
        other.sendall(b"one\ntwo\n")
        assert file.readline() == b"one\n"
        assert_refused(ends, file, "holds 4 bytes")
        assert file.readline() == b"two\n"
        ends[0].transfer_file(file)
        with ends[1].receive_conn() as arrived:
            other.sendall(b"three")
            assert arrived.recv(64) == b"three"


def test_a_file_that_goes_both_ways_and_was_read_ahead_stays(ends: Ends) -> None:
    one, other = socket.socketpair()
    with other:
        ends[0].transfer_conn(one)
        with ends[1].receive_file() as file:
            other.sendall(b"one\ntwo\n")
            assert file.readline() == b"one\n"
            assert_refused(ends, file, "holds 4 bytes")
            assert file.readline() == b"two\n"


def test_a_text_file_over_a_pipe_is_moved_before_anything_was_read(ends: Ends) -> None:
    source, feed = pipe()
    os.write(feed, b"one\n")
    ends[0].transfer_file(open(source, encoding="utf-8"))
    with ends[1].receive_file("r") as arrived:
        assert arrived.readline() == "one\n"
    os.close(feed)


@pytest.mark.parametrize("written", ["one\ntwo\n", "one\n"])
def test_a_text_file_over_a_pipe_that_was_read_from_stays(ends: Ends, written: str) -> None:
    source, feed = pipe()
    os.write(feed, written.encode())
    with open(source, encoding="utf-8") as file:
        assert file.readline() == "one\n"
        assert_refused(ends, file, "read in binary")
        os.close(feed)
        assert "one\n" + file.read() == written


def test_a_text_file_over_a_pipe_is_moved_at_its_end(ends: Ends) -> None:
    source, feed = pipe()
    os.write(feed, b"one\n")
    os.close(feed)
    file = open(source, encoding="utf-8")
    assert list(file) == ["one\n"]
    ends[0].transfer_file(file)
    os.close(ends[1].receive_fd())


def test_a_text_file_that_waits_for_the_rest_of_a_character_stays(ends: Ends) -> None:
    source, feed = pipe()
    os.set_blocking(source, False)
    os.write(feed, "ä".encode()[:1])
    with open(source, encoding="utf-8") as file:
        with pytest.raises((UnicodeDecodeError, TypeError, BlockingIOError)):
            file.read(1)
        assert_refused(ends, file, "may hold text")
    os.close(feed)


@pytest.mark.parametrize("device", ["/dev/urandom", "/dev/zero"])
@pytest.mark.parametrize("mode", ["rb", "r"])
def test_a_device_that_says_offset_0_whatever_was_read_is_refused_when_read_ahead(
    ends: Ends, device: str, mode: str
) -> None:
    with open(device, mode, encoding=None if "b" in mode else "latin-1") as file:
        file.read(10)
        assert_refused(ends, file, "read ahead")
    ends[0].transfer_file(open(device, mode))
    os.close(ends[1].receive_fd())


def test_events_of_inotify_that_were_read_ahead_are_not_lost(ends: Ends, tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    number = libc.inotify_init()
    assert libc.inotify_add_watch(number, os.fsencode(tmp_path), 0x100) > 0  # IN_CREATE
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    with open(number, "rb") as reader:
        # It says offset 0, whatever was read, and is no device.
        assert reader.tell() == 0
        assert b"one" in reader.read(32)
        assert_refused(ends, reader, "holds 32 bytes that were read ahead")
        assert b"two" in reader.read(32)
        ends[0].transfer_file(reader)
    os.close(ends[1].receive_fd())


def test_another_thread_and_a_handler_read_on_while_a_reader_is_looked_at(
    ends: Ends,
) -> None:
    """The raw file says to nobody else that nothing has come."""
    source, feed = pipe()
    with open(source, "rb") as reader:
        raw: Any = reader.raw
        seen: list[Any] = []

        def trace(frame: Any, event: str, argument: Any) -> Any:
            if frame.f_code.co_name == "_read_ahead" and "readinto" in vars(raw) and not seen:
                os.write(feed, b"handler")
                seen.append(raw.readinto(target := bytearray(64)))
                seen.append(bytes(target[:7]))
                os.write(feed, b"thread")
                thread = threading.Thread(target=lambda: seen.append(raw.readinto(bytearray(64))))
                thread.start()
                thread.join()
            return trace

        tracing = sys.gettrace()
        sys.settrace(trace)
        try:
            ends[0].transfer_file(reader, keep=True)
        finally:
            sys.settrace(tracing)
        assert seen == [7, b"handler", 6]
        os.close(ends[1].receive_fd())
    os.close(feed)


def test_a_raw_file_that_somebody_has_changed_is_not_trusted(ends: Ends) -> None:
    source, feed = pipe()
    with open(source, "rb") as reader:
        raw: Any = reader.raw
        raw.readinto = lambda buffer: 0
        assert_refused(ends, reader, "bytes of its own")
        assert raw.readinto(bytearray(1)) == 0
    os.close(feed)


# Readers with a buffer that no method shows


def opened_codec(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return codecs.open(str(path), encoding="utf-8")


class OwnBuffer:
    """A third party's reader."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "rb", buffering=0)
        self.ahead = b""

    def fileno(self) -> int:
        return self.file.fileno()

    def readline(self) -> bytes:
        self.ahead = self.ahead or self.file.read(4096)
        line, self.ahead = self.ahead.split(b"\n", 1)
        return line

    def close(self) -> None:
        self.file.close()


class PushedBack(io.BufferedReader):
    """A subclass with a buffer of its own."""

    def readline(self, size: int | None = -1) -> bytes:
        return super().readline(size)


class RawWithBuffer(io.FileIO):
    def readinto(self, buffer: Any) -> int | None:
        return super().readinto(buffer)


@pytest.mark.parametrize(
    "make",
    [
        opened_codec,
        lambda path: codecs.getreader("utf-8")(open(path, "rb")),
        lambda path: fileinput.input([str(path)]),
        OwnBuffer,
        lambda path: PushedBack(io.FileIO(path)),
        lambda path: io.BufferedReader(RawWithBuffer(path)),
        lambda path: io.TextIOWrapper(PushedBack(io.FileIO(path)), encoding="utf-8"),
        RawWithBuffer,
    ],
    ids=["codecs.open", "StreamReader", "fileinput", "own", "sub", "raw", "text", "bare"],
)
def test_a_reader_of_another_kind_is_refused(
    ends: Ends, lines: Path, make: Callable[[Path], Any]
) -> None:
    file = make(lines)
    with contextlib.closing(file):
        first = file.readline()
        assert_refused(ends, file, "bytes of its own.*os.dup")
        assert first


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
@pytest.mark.parametrize("mode", ["rb", "wb"])
def test_a_compressed_file_is_refused(ends: Ends, tmp_path: Path, module: Any, mode: str) -> None:
    """One that writes ends with bytes that its ``close()`` writes, behind the receiver's back."""
    (tmp_path / "f").write_bytes(module.compress(LINES))
    with module.open(tmp_path / "f", mode) as file:
        assert_refused(ends, file, "bytes of its own")


def test_a_member_of_an_archive_has_no_descriptor(ends: Ends, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("member", LINES)
    with zipfile.ZipFile(tmp_path / "f") as archive, archive.open("member") as file:
        with pytest.raises(Error) as caught:
            ends[0].transfer_file(file)
        assert caught.value.type is ErrType.NO_FD


def test_an_http_response_is_refused(ends: Ends) -> None:
    one, other = socket.socketpair()
    with one, other:
        other.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
        response = http.client.HTTPResponse(one)
        with response:
            response.begin()
            assert_refused(ends, response, "HTTPResponse may hold")
            assert response.read() == b"body"


def test_a_subclass_that_leaves_reading_alone_is_trusted(ends: Ends, lines: Path) -> None:
    class Named(io.BufferedReader):
        def title(self) -> str:
            return "named"

    file = Named(io.FileIO(lines))
    assert file.readline() == b"line 0\n"
    ends[0].transfer_file(file)
    with ends[1].receive_file() as arrived:
        assert arrived.readline() == b"line 1\n"


def test_a_writer_of_another_kind_is_flushed(ends: Ends, tmp_path: Path) -> None:
    file = codecs.getwriter("utf-8")(open(tmp_path / "f", "wb"))
    file.write("ä")
    ends[0].transfer_file(file)
    assert (tmp_path / "f").read_text(encoding="utf-8") == "ä"
    os.close(ends[1].receive_fd())


@pytest.mark.parametrize("make", [tempfile.TemporaryFile, tempfile.NamedTemporaryFile])
def test_a_temporary_text_file_goes_on_where_the_program_was(
    ends: Ends, make: Callable[..., Any]
) -> None:
    with make("w+", encoding="utf-8") as file:
        file.write("one\ntwo\n")
        file.seek(0)
        assert file.readline() == "one\n"
        ends[0].transfer_file(file)
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"two\n"


# A signal handler that raises


def read_binary(path: Path) -> Any:
    return open(path, "rb")


def read_text(path: Path) -> Any:
    return open(path, encoding="utf-8")


def read_other_text(path: Path) -> Any:
    return open(path, encoding="cp1252")


def read_and_write(path: Path) -> Any:
    return open(path, "r+b")


def read_and_write_text(path: Path) -> Any:
    return open(path, "r+", encoding="utf-8")


FILES = pytest.mark.parametrize(
    "make", [read_binary, read_text, read_other_text, read_and_write, read_and_write_text]
)


@pytest.fixture
def deadline() -> Iterator[SimpleNamespace]:
    """Whether a signal is to raise, which may come late, by way of another thread."""
    deadline = SimpleNamespace(raises=True)

    def handler(signum: int, frame: Any) -> None:
        if deadline.raises:
            raise TimeoutError("the program's own deadline")

    with handling(signal.SIGALRM, handler):
        yield deadline


def interrupt_at(place: int, call: Callable[[], object]) -> bool:
    """Whether a handler that raises at a place in `objects`, counted from 0, struck in a call.

    Handlers run where a function begins and where a call has returned.
    """
    places = itertools.count()
    struck = False

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal struck
        if (
            event in ("call", "c_return", "c_exception")
            and frame.f_code.co_filename.endswith("objects.py")
            and not struck
            and next(places) == place
        ):
            struck = True
            signal.raise_signal(signal.SIGALRM)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return struck


def sent(ends: Ends) -> bool:
    try:
        os.close(ends[1].receive_fd())
    except WouldBlockError:
        return False
    return True


@FILES
def test_a_handler_that_raises_at_any_place_leaves_the_position(
    ends: Ends, lines: Path, deadline: SimpleNamespace, make: Callable[[Path], Any]
) -> None:
    interrupted = 0
    for place in itertools.count():
        with make(lines) as file:
            first = file.readline()
            try:
                if not interrupt_at(place, partial(ends[0].transfer_file, file)):
                    break
            except TimeoutError as exc:
                assert not isinstance(exc, Error), "what a handler raises stays itself"
            interrupted += 1
            if not sent(ends):
                assert file.tell() == len(first)
                rest = file.read()
                assert (first + rest if "b" in file.mode else (first + rest).encode()) == LINES
    assert sent(ends)
    assert interrupted > 8, "the places in prepare() were met"


def test_a_handler_that_raises_at_any_place_leaves_a_pipe_as_it_was(
    ends: Ends, deadline: SimpleNamespace
) -> None:
    for mode in ("rb", "r"):
        for place in itertools.count():
            source, feed = pipe()
            with open(source, mode) as file:
                try:
                    if not interrupt_at(place, partial(ends[0].transfer_file, file)):
                        break
                except TimeoutError as exc:
                    assert not isinstance(exc, Error)
                if not sent(ends):
                    raw = file.buffer.raw if mode == "r" else file.raw  # type: ignore[attr-defined]
                    assert vars(raw).keys() == {"name"}
                    os.write(feed, b"x\n")
                    assert file.readline() in ("x\n", b"x\n")
            os.close(feed)
        os.close(feed)
        assert place > 8
        assert sent(ends)


@not_traced
@pytest.mark.slow
@FILES
def test_a_rain_of_deadlines_leaves_the_position(
    ends: Ends, lines: Path, deadline: SimpleNamespace, make: Callable[[Path], Any]
) -> None:
    interrupted = 0
    until = time.monotonic() + 1
    while time.monotonic() < until or not interrupted:
        with make(lines) as file:
            first = file.readline()
            try:
                try:
                    deadline.raises = True
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 60e-6))
                    ends[0].transfer_file(file)
                finally:
                    deadline.raises = False
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeoutError as exc:
                assert not isinstance(exc, Error)
                interrupted += 1
            if not sent(ends):
                assert not file.closed
                assert file.tell() == len(first)


@pytest.mark.parametrize("error", [TimeoutError, ValueError, KeyError])
def test_what_a_handler_raises_while_flushing_waits_stays_itself(
    ends: Ends, error: type[Exception]
) -> None:
    source, feed = pipe()
    os.set_blocking(feed, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(feed, bytes(65536))
    os.set_blocking(feed, True)

    def handler(signum: int, frame: Any) -> None:
        raise error("the program's own")

    before = signal.signal(signal.SIGALRM, handler)
    file = open(feed, "wb")
    try:
        file.write(b"x")
        with pytest.raises(error, match="the program's own") as caught:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            ends[0].transfer_file(file)
        assert type(caught.value) is error
        assert not file.closed
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(source)
        with contextlib.suppress(OSError):
            file.close()
