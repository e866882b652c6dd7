"""Python's file and socket objects: how they leave, and how they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import io
import os
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from helpers import GENEROUS, PORTABLE, is_open, memory, run_python, same_file, waits

import conduit
from conduit import Conduit, Descriptor, Error, ErrType, objects

Ends = tuple[Conduit, Conduit]

LINES = "erste Zeile\nzweite, mit Umläuten: äöü€\n" + "noch eine\n" * 3000


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Which type carries an object makes no difference to it."""
    one, other = Conduit.pair(type=socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines"
    path.write_bytes(LINES.encode())
    return path


def rest(link: Conduit) -> bytes:
    """What the receiver of a file reads."""
    with link.receive_file() as arrived:
        data: bytes = arrived.read()
    return data


# Files that leave


@pytest.mark.hazard("P3")
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 1500, 3002])
def test_the_receiver_of_a_text_file_goes_on_where_the_program_was(
    ends: Ends, lines: Path, count: int, keep: bool
) -> None:
    with open(lines, encoding="utf-8") as file:
        read = "".join(file.readline() for _ in range(count))
        ends[0].transfer_file(file, keep=keep)
        assert file.closed is not keep
        assert (read + rest(ends[1]).decode()) == LINES


@pytest.mark.parametrize("count", [1, 17, 30, 35])
def test_the_receiver_goes_on_between_characters_of_several_bytes(
    ends: Ends, lines: Path, count: int
) -> None:
    with open(lines, encoding="utf-8") as file:
        read = file.read(count)
        ends[0].transfer_file(file)
    assert read + rest(ends[1]).decode() == LINES


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-be", "latin-1", "cp1252"])
def test_the_receiver_goes_on_in_other_encodings(ends: Ends, tmp_path: Path, encoding: str) -> None:
    text = LINES.replace("€", "EUR")
    (tmp_path / "f").write_bytes(text.encode(encoding))
    with open(tmp_path / "f", encoding=encoding) as file:
        read = file.readline() + file.read(5)
        ends[0].transfer_file(file)
    with ends[1].receive_file("r", encoding=encoding) as arrived:
        assert read + arrived.read() == text


def test_the_receiver_goes_on_between_lines_that_end_in_two_bytes(
    ends: Ends, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"one\r\ntwo\r\nthree\r\n" * 1000)
    with open(tmp_path / "f", encoding="ascii") as file:
        assert [file.readline(), file.readline()] == ["one\n", "two\n"]
        ends[0].transfer_file(file)
    assert rest(ends[1]).startswith(b"three\r\none\r\n")


def test_a_text_file_read_to_the_middle_of_what_is_decoded_at_once_stays(
    ends: Ends, tmp_path: Path
) -> None:
    # One run of base64, whose bytes are no character's alone.
    (tmp_path / "f").write_bytes("äöü, more".encode("utf-7"))
    with open(tmp_path / "f", encoding="utf-7") as file:
        first = file.read(1)
        with pytest.raises(Error, match="decodes at once") as caught:
            ends[0].transfer_file(file)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.errno == errno.ESPIPE
        assert first + file.read(3) == "äöü,"
        ends[0].transfer_file(file)
    assert rest(ends[1]) == b" more"


@pytest.mark.parametrize(
    ("encoding", "newline", "text"),
    [
        ("utf-8", None, "a\r"),
        ("utf-8", "", "a\r"),
        ("utf-8", "", "a\r\ra"),
        ("utf-16", "", "a\r"),
        ("iso2022_jp", "\n", "日本語"),
    ],
)
def test_a_text_file_whose_decoder_keeps_something_back_stays(
    ends: Ends, tmp_path: Path, encoding: str, newline: str | None, text: str
) -> None:
    (tmp_path / "f").write_bytes(text.encode(encoding))
    with open(tmp_path / "f", encoding=encoding, newline=newline) as file:
        first = file.read(max(text.find("\ra"), 1))
        with pytest.raises(Error, match="decodes at once") as caught:
            ends[0].transfer_file(file)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert first + file.read() == (text.replace("\r", "\n") if newline is None else text)
        ends[0].transfer_file(file)
    assert rest(ends[1]) == b""


def test_the_receiver_goes_on_in_a_text_that_shifts_where_it_does_not(
    ends: Ends, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes("日本\nplain\n日本".encode("iso2022_jp"))
    with open(tmp_path / "f", encoding="iso2022_jp") as file:
        assert file.readline() == "日本\n"
        ends[0].transfer_file(file)
    assert rest(ends[1]).decode("iso2022_jp") == "plain\n日本"


def test_a_file_of_proc_which_has_no_end_is_read_on(ends: Ends) -> None:
    whole = Path("/proc/version").read_bytes()
    for mode in ("r", "rb"):
        with open("/proc/version", mode) as file:
            file.read(1)
            ends[0].transfer_file(file)
        assert rest(ends[1]) == whole[1:]


def test_a_closed_file_over_another_has_no_descriptor(ends: Ends, tmp_path: Path) -> None:
    file = gzip.open(tmp_path / "f", "wb")
    file.close()
    with pytest.raises(Error, match="has no descriptor") as caught:
        ends[0].transfer_file(file)
    assert caught.value.type is ErrType.NO_FD


def test_the_receiver_goes_on_after_a_mark_that_says_nothing(ends: Ends, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes("first\nsecond".encode("utf-8-sig"))
    with open(tmp_path / "f", encoding="utf-8-sig") as file:
        assert file.readline() == "first\n"
        ends[0].transfer_file(file)
    with ends[1].receive_file("r", encoding="utf-8-sig") as arrived:
        assert arrived.read() == "second"


@pytest.mark.parametrize("newline", [None, "\n"])
@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_text_file_read_beyond_the_byte_order_mark_stays_until_its_end(
    ends: Ends, tmp_path: Path, encoding: str, order: str, newline: str | None
) -> None:
    (tmp_path / "f").write_bytes("\ufefffirst\nsecond".encode(f"{encoding}-{order}"))
    with open(tmp_path / "f", encoding=encoding, newline=newline) as file:
        assert file.readline() == "first\n"
        with pytest.raises(Error, match=f"{encoding}, decodes at once") as caught:
            ends[0].transfer_file(file)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert file.read() == "second"
        file.seek(0)
        ends[0].transfer_file(file)
    with ends[1].receive_file("r", encoding=encoding) as arrived:
        assert arrived.read() == "first\nsecond"


def test_a_text_file_whose_decoder_is_too_large_to_tell_stays(ends: Ends, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes("한국어 more".encode("iso2022_kr"))
    with open(tmp_path / "f", encoding="iso2022_kr") as file:
        first = file.read(1)
        with pytest.raises(Error, match="iso2022_kr") as caught:
            ends[0].transfer_file(file)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert first + file.read() == "한국어 more"


def test_a_text_file_written_to_the_middle_of_a_shift_stays(ends: Ends, tmp_path: Path) -> None:
    with open(tmp_path / "f", "w", encoding="iso2022_jp") as file:
        file.write("日本")
        with pytest.raises(Error, match="newline"):
            ends[0].transfer_file(file)
        file.write("\n")
        ends[0].transfer_file(file)
    with ends[1].receive_file("w", encoding="iso2022_jp") as arrived:
        arrived.write("plain")
    assert (tmp_path / "f").read_text(encoding="iso2022_jp") == "日本\nplain"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_text_written_after_a_byte_order_mark_goes_on(
    ends: Ends, tmp_path: Path, encoding: str
) -> None:
    with open(tmp_path / "f", "w", encoding=encoding) as file:
        file.write("one ")
        ends[0].transfer_file(file)
    with ends[1].receive_file("w", encoding=encoding) as arrived:
        arrived.write("two")
    assert (tmp_path / "f").read_text(encoding=encoding) == "one two"


def test_a_text_file_under_iteration_cannot_tell_its_position_and_stays(
    ends: Ends, lines: Path
) -> None:
    with open(lines, encoding="utf-8") as file:
        first = next(file)
        with pytest.raises(Error, match="next") as caught:
            ends[0].transfer_file(file)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert first + file.read() == LINES


def test_a_text_file_whose_iteration_ended_is_moved(ends: Ends, lines: Path) -> None:
    with open(lines, encoding="utf-8") as file:
        assert "".join(file) == LINES
        ends[0].transfer_file(file)
    assert rest(ends[1]) == b""


@pytest.mark.parametrize("size", [0, 1, 100, 8191, 8192, 8193, 1 << 20])
def test_the_receiver_of_a_binary_file_goes_on_where_the_program_was(
    ends: Ends, lines: Path, size: int
) -> None:
    with open(lines, "rb") as file:
        read = file.read(size)
        ends[0].transfer_file(file)
        assert file.closed
    assert read + rest(ends[1]) == LINES.encode()


def test_a_shared_reader_and_its_receiver_have_one_offset(ends: Ends, lines: Path) -> None:
    with open(lines, "rb") as file:
        file.readline()
        ends[0].transfer_file(file, keep=True)
        with ends[1].receive_file(buffering=0, mode="rb") as arrived:
            second = arrived.read(len("zweite"))
            assert second == b"zweite"
        assert file.read(4) == b", mi", "nothing that was read ahead stands in between"


def test_an_unbuffered_file_is_sent_as_it_is(ends: Ends, lines: Path) -> None:
    with open(lines, "rb", buffering=0) as file:
        file.seek(6)
        ends[0].transfer_file(file)
    assert rest(ends[1]) == LINES.encode()[6:]


@pytest.mark.hazard("P3")
@pytest.mark.parametrize("mode", ["w", "wb", "a", "ab", "x", "xb", "w+", "w+b"])
def test_what_was_not_written_yet_is_there_before_the_file_arrives(
    ends: Ends, tmp_path: Path, mode: str
) -> None:
    with open(tmp_path / "new", mode) as file:
        file.write(b"held back" if "b" in mode else "held back")
        assert (tmp_path / "new").read_bytes() == b""
        ends[0].transfer_file(file)
    assert (tmp_path / "new").read_bytes() == b"held back"
    with ends[1].receive_file() as arrived:
        arrived.write(b", and more")
    assert (tmp_path / "new").read_bytes() == b"held back, and more"


def test_an_appended_file_stays_one(ends: Ends, lines: Path) -> None:
    with open(lines, "ab") as file:
        ends[0].transfer_file(file)
    with ends[1].receive_file("ab") as arrived:
        arrived.write(b"appended")
    assert lines.read_bytes() == LINES.encode() + b"appended"


@pytest.mark.parametrize("mode", ["a", "ab", "a+", "a+b"])
def test_a_file_received_for_appending_appends(ends: Ends, lines: Path, mode: str) -> None:
    ends[0].transfer_fd(os.open(lines, os.O_RDWR))
    with ends[1].receive_file(mode) as arrived:
        arrived.write(b"appended" if "b" in mode else "appended")
    assert lines.read_bytes() == LINES.encode() + b"appended"


@pytest.mark.parametrize("mode", ["a", "ab"])
def test_a_pipe_received_for_appending_is_written_to(ends: Ends, mode: str) -> None:
    reader, writer = os.pipe()
    ends[0].transfer_fd(writer)
    with ends[1].receive_file(mode) as arrived:
        arrived.write(b"appended" if "b" in mode else "appended")
    with open(reader, "rb") as end:
        assert end.read() == b"appended"


@pytest.mark.parametrize("keep", [False, True])
def test_a_file_that_reads_and_writes_is_positioned_too(
    ends: Ends, lines: Path, keep: bool
) -> None:
    with open(lines, "r+b") as file:
        assert file.read(6) == b"erste "
        file.write(b"ZEILE")
        assert file.read(1) == b"\n"
        ends[0].transfer_file(file, keep=keep)
        with ends[1].receive_file() as arrived:
            assert arrived.read(6) == b"zweite"
    assert lines.read_bytes().startswith(b"erste ZEILE\nzweite")


def test_a_text_file_that_reads_and_writes_is_positioned_too(ends: Ends, lines: Path) -> None:
    with open(lines, "r+", encoding="utf-8") as file:
        assert file.readline() == "erste Zeile\n"
        ends[0].transfer_file(file)
    assert rest(ends[1]).decode().startswith("zweite")


def test_a_temporary_file_is_moved(ends: Ends) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"one two")
        file.seek(0)
        file.read(4)
        ends[0].transfer_file(file)
        assert file.closed
    assert rest(ends[1]) == b"two"


def test_a_named_temporary_file_is_moved_and_its_name_removed(ends: Ends) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"one two")
        file.seek(0)
        file.read(4)
        ends[0].transfer_file(file)
        assert not os.path.exists(file.name)
    assert rest(ends[1]) == b"two"


@pytest.mark.parametrize("mode", ["w+b", "w+"])
@pytest.mark.parametrize("rolled", [False, True])
def test_a_spooled_temporary_file_is_moved(ends: Ends, rolled: bool, mode: str) -> None:
    file: Any = tempfile.SpooledTemporaryFile(mode=mode)
    with file:
        file.write(b"one two" if "b" in mode else "one two")
        if rolled:
            file.rollover()
        file.seek(0)
        file.read(4)
        ends[0].transfer_file(file)
    assert rest(ends[1]) == b"two"


def test_a_pipe_end_is_moved_and_what_it_held_back_is_written(ends: Ends) -> None:
    reader, writer = os.pipe()
    with open(writer, "wb") as out:
        out.write(b"through the pipe")
        ends[0].transfer_file(out)
    ends[0].transfer_file(open(reader, "rb"))
    arrived_writer, arrived_reader = ends[1].receive_file(), ends[1].receive_file()
    with arrived_writer, arrived_reader:
        assert (arrived_writer.mode, arrived_reader.mode) == ("wb", "rb")
        arrived_writer.write(b" and through again")
        arrived_writer.close()
        assert arrived_reader.read() == b"through the pipe and through again"


def test_a_file_that_does_not_own_its_number_leaves_it_to_the_owner(
    ends: Ends, lines: Path
) -> None:
    number = os.open(lines, os.O_RDONLY)
    file = open(number, "rb", closefd=False)
    ends[0].transfer_file(file)
    assert file.closed
    assert is_open(number)
    os.close(number)
    assert rest(ends[1]) == LINES.encode()


def test_a_file_that_cannot_be_flushed_stays_here(ends: Ends) -> None:
    file = open("/dev/full", "wb")
    file.write(b"no room")
    with pytest.raises(Error) as caught:
        ends[0].transfer_file(file)
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value.__cause__, OSError)
    assert not file.closed
    with contextlib.suppress(OSError):
        file.close()
    assert file.closed
    ends[0].timeout = ends[1].timeout = 0
    with pytest.raises(conduit.WouldBlockError):
        ends[1].receive_fd()


def test_a_file_that_could_not_be_sent_reads_on(ends: Ends, lines: Path) -> None:
    ends[1].close()
    with open(lines, encoding="utf-8") as file:
        first = file.readline()
        with pytest.raises(conduit.PeerClosedError):
            ends[0].transfer_file(file)
        assert first + file.read() == LINES


def test_a_closed_file_is_no_fd(ends: Ends, lines: Path) -> None:
    with open(lines) as file:
        pass
    for keep in (False, True):
        with pytest.raises(Error) as caught:
            ends[0].transfer_file(file, keep=keep)
        assert caught.value.type is ErrType.NO_FD
        assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("make", [io.BytesIO, io.StringIO])
def test_a_file_in_memory_is_no_fd(ends: Ends, make: Callable[[], Any]) -> None:
    with pytest.raises(Error) as caught:
        ends[0].transfer_file(make())
    assert caught.value.type is ErrType.NO_FD


class Odd:
    """An object that answers fileno() with anything."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def fileno(self) -> Any:
        return self.answer

    def close(self) -> None:
        raise AssertionError("it was not sent")


@pytest.mark.parametrize("answer", [None, "3", 2.0, True, -1, 2**31, 2**64])
def test_an_odd_fileno_is_no_fd(ends: Ends, answer: Any) -> None:
    for call in (ends[0].transfer_file, ends[0].transfer_conn, Conduit.from_file):
        with pytest.raises(Error) as caught:
            call(Odd(answer))
        assert caught.value.type is ErrType.NO_FD
        assert isinstance(caught.value, TypeError) is not (type(answer) is int)


@pytest.mark.parametrize("thing", [object(), None, 3, "f", b"f"])
def test_an_object_without_fileno_is_no_fd(ends: Ends, thing: Any) -> None:
    for call in (ends[0].transfer_file, ends[0].transfer_conn, Conduit.from_file):
        with pytest.raises(conduit.DescriptorTypeError) as caught:
            call(thing)
        assert caught.value.type is ErrType.NO_FD


def test_an_object_without_close_can_only_be_shared(ends: Ends) -> None:
    class Bare:
        def fileno(self) -> int:
            return number

    number = memory(b"bare")
    with pytest.raises(conduit.DescriptorTypeError, match="keep=True"):
        ends[0].transfer_conn(Bare())
    ends[0].transfer_conn(Bare(), keep=True)
    assert rest(ends[1]) == b"bare"
    assert is_open(number)
    os.close(number)


# Files that arrive


@pytest.mark.parametrize(
    ("flags", "cls", "mode"),
    [
        (os.O_RDONLY, io.BufferedReader, "rb"),
        (os.O_WRONLY, io.BufferedWriter, "wb"),
        (os.O_RDWR, io.BufferedRandom, "rb+"),
    ],
)
def test_without_a_mode_a_file_is_binary_and_allows_what_the_descriptor_does(
    ends: Ends, lines: Path, flags: int, cls: type[Any], mode: str
) -> None:
    ends[0].transfer_fd(os.open(lines, flags))
    with ends[1].receive_file() as arrived:
        assert type(arrived) is cls
        assert arrived.mode == mode
        assert arrived.readable() == ("r" in mode)
        assert arrived.writable() == (mode != "rb")
    assert lines.read_bytes() == LINES.encode(), "nothing was truncated"


@pytest.mark.parametrize(
    ("mode", "cls"),
    [
        ("r", io.TextIOWrapper),
        ("w", io.TextIOWrapper),
        ("a", io.TextIOWrapper),
        ("x", io.TextIOWrapper),
        ("rt", io.TextIOWrapper),
        ("r+", io.TextIOWrapper),
        ("rb", io.BufferedReader),
        ("wb", io.BufferedWriter),
        ("ab", io.BufferedWriter),
        ("xb", io.BufferedWriter),
        ("r+b", io.BufferedRandom),
        ("w+b", io.BufferedRandom),
        ("+br", io.BufferedRandom),
    ],
)
def test_with_a_mode_a_file_is_what_open_makes_and_nothing_is_truncated(
    ends: Ends, lines: Path, mode: str, cls: type[Any]
) -> None:
    ends[0].transfer_fd(os.open(lines, os.O_RDWR))
    with ends[1].receive_file(mode) as arrived:
        assert type(arrived) is cls
    assert lines.read_bytes() == LINES.encode()


def test_a_file_has_the_name_it_was_given(ends: Ends, lines: Path) -> None:
    for mode in (None, "r", "rb"):
        ends[0].transfer_fd(os.open(lines, os.O_RDONLY))
        with ends[1].receive_file(mode, name="the log") as arrived:
            assert arrived.name == "the log"
    for mode in (None, "r", "rb"):
        ends[0].transfer_fd(os.open(lines, os.O_RDONLY))
        with ends[1].receive_file(mode) as arrived:
            assert arrived.name == arrived.fileno()


def test_text_arguments_are_those_of_open(ends: Ends, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes("ä\r\nb".encode("latin-1"))
    ends[0].transfer_fd(os.open(path, os.O_RDONLY))
    with ends[1].receive_file("r", encoding="latin-1", newline="") as arrived:
        assert (arrived.encoding, arrived.read()) == ("latin-1", "ä\r\nb")
    ends[0].transfer_fd(os.open(path, os.O_RDONLY))
    with ends[1].receive_file("r", 1, "utf-8", "replace") as arrived:
        assert arrived.line_buffering
        assert arrived.errors == "replace"
        assert arrived.read() == "�\nb"
        assert arrived.mode == "r"


def test_buffering_is_that_of_open(ends: Ends, lines: Path) -> None:
    ends[0].transfer_fd(os.open(lines, os.O_RDONLY))
    with ends[1].receive_file("rb", 0) as raw:
        assert type(raw) is io.FileIO
        assert raw.read(5) == b"erste"
    ends[0].transfer_fd(os.open(lines, os.O_RDONLY))
    with ends[1].receive_file("rb", 4) as arrived:
        assert arrived.read(1) == b"e"
        assert os.lseek(arrived.fileno(), 0, os.SEEK_CUR) == 4


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("q",), ValueError),
        (("",), ValueError),
        (("rw",), ValueError),
        (("rbt",), ValueError),
        (("rr",), ValueError),
        ((5,), TypeError),
        (("r", 0), ValueError),
        (("rb", -1, "utf-8"), ValueError),
        (("rb", -1, None, "strict"), ValueError),
        (("rb", -1, None, None, "\n"), ValueError),
        ((None, -1, "utf-8"), ValueError),
        (("r", -1, "no such encoding"), LookupError),
        (("r", -1, "utf-8", None, "wrong"), ValueError),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_received(
    ends: Ends, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    ends[0].transfer_fd(memory(b"still there"))
    with pytest.raises(error) as caught:
        ends[1].receive_file(*arguments)
    assert not isinstance(caught.value, Error)
    assert rest(ends[1]) == b"still there"


@pytest.mark.hazard("T4")
@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (os.O_RDONLY, "w"),
        (os.O_RDONLY, "r+b"),
        (os.O_RDONLY, "ab"),
        (os.O_WRONLY, "r"),
        (os.O_WRONLY, "rb"),
        (os.O_WRONLY, "w+b"),
    ],
)
def test_a_mode_the_descriptor_does_not_allow_is_a_bad_clone(
    ends: Ends, lines: Path, flags: int, mode: str
) -> None:
    ends[0].transfer_fd(os.open(lines, flags))
    with pytest.raises(Error) as caught:
        ends[1].receive_file(mode)
    assert caught.value.type is ErrType.BAD_CLONE
    assert repr(mode) in str(caught.value)
    assert lines.read_bytes() == LINES.encode()


@pytest.mark.hazard("B11")
def test_a_directory_is_no_file(ends: Ends, tmp_path: Path) -> None:
    for mode in (None, "r", "rb"):
        ends[0].transfer_fd(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
        with pytest.raises(Error) as caught:
            ends[1].receive_file(mode)
        assert caught.value.type is ErrType.BAD_CLONE
        assert caught.value.errno == errno.EISDIR


@pytest.mark.hazard("B11")
@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="this system has no O_PATH")
def test_a_descriptor_that_only_names_a_file_is_no_file_but_travels(
    ends: Ends, lines: Path
) -> None:
    number = os.open(lines, os.O_PATH)
    ends[0].transfer_fd(number, keep=True)
    with pytest.raises(Error, match="O_PATH") as caught:
        ends[1].receive_file()
    assert caught.value.type is ErrType.BAD_CLONE
    ends[0].transfer_fd(number, keep=True)
    arrived = ends[1].receive_fd()
    assert same_file(arrived, number)
    os.close(arrived)
    os.close(number)


def test_a_socket_arrives_as_a_file_that_reads_and_writes(ends: Ends) -> None:
    one, other = socket.socketpair()
    with other:
        ends[0].transfer_conn(one)
        with ends[1].receive_file() as arrived:
            assert arrived.readable()
            assert arrived.writable()
            assert not arrived.seekable()
            assert arrived.fileno() >= 0
            other.sendall(b"question\n")
            assert arrived.readline() == b"question\n"
            arrived.write(b"answer\n")
            arrived.flush()
            assert other.recv(64) == b"answer\n"
            arrived.write(b"at the close")
        assert arrived.closed
        assert other.recv(64) == b"at the close"
        assert other.recv(64) == b""


def test_a_file_that_goes_both_ways_can_be_sent_on(ends: Ends) -> None:
    one, other = socket.socketpair()
    with other:
        ends[0].transfer_conn(one)
        arrived = ends[1].receive_file(name="both ways")
        assert arrived.name == "both ways"
        assert arrived.mode == "rb+"
        arrived.write(b"held back")
        ends[1].transfer_file(arrived)
        assert arrived.closed
        with ends[0].receive_file() as again:
            again.write(b", and more")
        assert other.recv(64, socket.MSG_WAITALL) == b"held back, and more"


def test_a_terminal_arrives_as_a_file_in_text_and_in_binary(ends: Ends) -> None:
    master, slave = os.openpty()
    ends[0].transfer_fd(slave)
    with ends[1].receive_file("r+", encoding="utf-8") as arrived:
        assert arrived.isatty()
        assert arrived.line_buffering
        os.write(master, "wörter\n".encode())
        assert arrived.readline() == "wörter\n"
        with open(master, "rb", closefd=False) as screen:
            # The terminal may give the end of the line by itself.
            assert screen.readline() == "wörter\r\n".encode(), "the echo"
            arrived.write("zurück\n")
            assert screen.readline() == "zurück\r\n".encode()
        ends[0].transfer_fd(master)
        with ends[1].receive_file() as terminal:
            arrived.write("to the other end\n")
            assert terminal.readline() == b"to the other end\r\n"


def test_a_received_file_can_be_sent_on(ends: Ends, lines: Path) -> None:
    ends[0].transfer_fd(os.open(lines, os.O_RDONLY))
    arrived = ends[1].receive_file("r", encoding="utf-8")
    assert arrived.readline() == "erste Zeile\n"
    ends[1].transfer_file(arrived)
    assert rest(ends[0]).decode().startswith("zweite")


@pytest.fixture
def file_waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a file over a descriptor that does not wait is about to wait itself."""
    event, wait = threading.Event(), objects.WaitingFile._wait

    def watched(file: objects.WaitingFile, events: int) -> None:
        event.set()
        wait(file, events)

    monkeypatch.setattr(objects.WaitingFile, "_wait", watched)
    return event


@pytest.mark.parametrize("mode", [None, "rb", "r"])
def test_a_buffered_file_over_a_descriptor_that_does_not_wait_waits(
    ends: Ends, file_waits: threading.Event, mode: str | None
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    ends[0].transfer_fd(reader)
    with ends[1].receive_file(mode) as arrived:
        lines = []
        thread = threading.Thread(target=lambda: lines.extend([arrived.readline(), arrived.read()]))
        thread.start()
        assert file_waits.wait(GENEROUS)
        os.write(writer, b"one\ntwo")
        os.write(writer, b" three")
        os.close(writer)
        thread.join()
        assert lines == (["one\n", "two three"] if mode == "r" else [b"one\n", b"two three"])
        assert not waits(arrived.fileno()), "the flag is the sender's as well"
        if mode != "r":
            ends[1].transfer_file(arrived)
            os.close(ends[0].receive_fd())


def test_a_buffered_file_waits_in_writing_as_well(ends: Ends, file_waits: threading.Event) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    ends[0].transfer_fd(writer)
    sent = os.urandom(1 << 20)
    with ends[1].receive_file() as arrived, open(reader, "rb") as end:

        def write() -> None:
            with contextlib.suppress(BlockingIOError), arrived:
                arrived.write(sent)

        thread = threading.Thread(target=write)
        thread.start()
        assert file_waits.wait(GENEROUS)
        assert end.read() == sent
        thread.join()


def test_an_unbuffered_file_over_a_descriptor_that_does_not_wait_reads_none(ends: Ends) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    ends[0].transfer_fd(reader)
    with ends[1].receive_file(buffering=0) as arrived:
        assert type(arrived) is io.FileIO
        assert arrived.read(1) is None
    os.close(writer)


# Sockets


def inet6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


SOCKETS = [
    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    (socket.AF_UNIX, socket.SOCK_STREAM, 0),
    (socket.AF_UNIX, socket.SOCK_DGRAM, 0),
    (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
]


@pytest.mark.hazard("P5")
@pytest.mark.parametrize("default", [None, 0.0, 7.0])
@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize(("family", "kind", "proto"), SOCKETS)
def test_a_socket_arrives_as_what_it_is_and_with_the_truth_about_waiting(
    ends: Ends,
    default_timeout: None,
    family: int,
    kind: int,
    proto: int,
    waiting: bool,
    default: float | None,
) -> None:
    if family == socket.AF_INET6 and not inet6():
        pytest.skip("no IPv6 here")
    with socket.socket(family, kind) as sock:
        sock.setblocking(waiting)
        socket.setdefaulttimeout(default)
        ends[0].transfer_conn(sock, keep=True)
        with ends[1].receive_conn() as arrived:
            assert type(arrived) is socket.socket
            assert (arrived.family, arrived.type, arrived.proto) == (family, kind, proto)
            assert arrived.gettimeout() == (None if waiting else 0.0)
            assert waits(arrived.fileno()) is waiting
        assert waits(sock.fileno()) is waiting, "the flag is the sender's as well"


def test_a_socket_with_a_timeout_is_non_blocking_on_arrival(ends: Ends) -> None:
    with socket.socket() as sock:
        sock.settimeout(5)
        ends[0].transfer_conn(sock, keep=True)
        with ends[1].receive_conn() as arrived:
            assert arrived.gettimeout() == 0.0
        assert sock.gettimeout() == 5


def test_a_listener_accepts_on_arrival(ends: Ends) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    ends[0].transfer_conn(listener)
    with ends[1].receive_conn() as arrived, socket.create_connection(address) as client:
        assert arrived.getsockname() == address
        server, _ = arrived.accept()
        with server:
            server.sendall(b"welcome")
            assert client.recv(64) == b"welcome"


@pytest.mark.skipif(PORTABLE, reason="without SO_DOMAIN only the name tells the family")
def test_a_socket_whose_name_cannot_be_asked_arrives(ends: Ends) -> None:
    for family, kind in ((44, socket.SOCK_RAW), (38, socket.SOCK_SEQPACKET)):  # AF_XDP, AF_ALG
        with contextlib.suppress(OSError):
            sock = socket.socket(family, kind)
            break
    else:
        pytest.skip("neither AF_XDP nor AF_ALG here")
    ends[0].transfer_conn(sock)
    with ends[1].receive_conn() as arrived:
        assert (arrived.family, arrived.type) == (family, kind)


@pytest.mark.hazard("P6b")
def test_what_is_no_socket_is_a_bad_clone_and_closed(ends: Ends) -> None:
    reader, writer = os.pipe()
    ends[0].transfer_fd(writer)
    with pytest.raises(Error) as caught:
        ends[1].receive_conn()
    assert caught.value.type is ErrType.BAD_CLONE
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.hazard("P9")
def test_a_tls_socket_is_refused_and_told_why(ends: Ends) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with accepted, context.wrap_socket(plain, do_handshake_on_connect=False) as secure:
        for call in (
            ends[0].transfer_conn,
            ends[0].transfer_file,
            lambda sock: ends[0].transfer_conn(sock, keep=True),
            Conduit.from_conn,
        ):
            with pytest.raises(conduit.DescriptorTypeError, match="TLS") as caught:
                call(secure)
            assert caught.value.type is ErrType.NO_FD
        assert secure.fileno() >= 0
    ends[1].timeout = 0
    with pytest.raises(conduit.WouldBlockError):
        ends[1].receive_conn()


@pytest.mark.hazard("P9")
def test_a_file_over_a_tls_socket_is_refused_too(ends: Ends) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    one, other = socket.socketpair()
    with other, context.wrap_socket(one, do_handshake_on_connect=False) as secure:
        for buffering in (0, -1):
            with secure.makefile("rb", buffering=buffering) as file:
                with pytest.raises(conduit.DescriptorTypeError, match="TLS"):
                    ends[0].transfer_file(file)


@pytest.mark.hazard("P9")
def test_a_tls_socket_of_pyopenssl_is_refused(ends: Ends) -> None:
    openssl = pytest.importorskip("OpenSSL.SSL")
    one, other = socket.socketpair()
    with one, other:
        secure = openssl.Connection(openssl.Context(openssl.TLS_METHOD), one)
        for keep in (False, True):
            with pytest.raises(conduit.DescriptorTypeError, match="TLS"):
                ends[0].transfer_conn(secure, keep=keep)


@pytest.mark.hazard("P9")
def test_a_tls_socket_of_gevent_is_refused() -> None:
    pytest.importorskip("gevent.ssl")
    program = """
import gevent.socket, gevent.ssl, conduit
context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
one, other = gevent.socket.socketpair()
secure = context.wrap_socket(one, do_handshake_on_connect=False)
for keep in (False, True):
    try:
        conduit.Conduit.pair()[0].transfer_conn(secure, keep=keep)
    except conduit.DescriptorTypeError as exc:
        print(exc)
"""
    # In a process of its own: its hub stays open.
    done = run_python(program)
    assert done.stdout.count("TLS") == 2, done.stderr


@pytest.mark.anyio
async def test_the_socket_of_an_event_loops_transport_is_shared_but_not_moved(
    ends: Ends, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    if anyio_backend[0] == "trio":
        pytest.skip("trio's sockets are the program's own")
    one, other = socket.socketpair()
    one.setblocking(False)
    _, writer = await asyncio.open_connection(sock=one)
    ends[1].timeout = 0
    with other, contextlib.closing(writer):
        sock = writer.get_extra_info("socket")
        with pytest.raises(conduit.DescriptorTypeError, match="keep=True"):
            ends[0].transfer_conn(sock)
        with pytest.raises(conduit.WouldBlockError):
            ends[1].receive_fd()
        ends[0].transfer_conn(sock, keep=True)
        os.close(ends[1].receive_fd())
    await writer.wait_closed()


def test_a_moved_socket_whose_makefile_is_open_is_closed_with_it(ends: Ends) -> None:
    one, other = socket.socketpair()
    with other:
        file: IO[bytes] = one.makefile("rb")
        ends[0].transfer_conn(one)
        with ends[1].receive_conn() as arrived:
            arrived.sendall(b"moved")
            assert other.recv(64) == b"moved"
        file.close()
        assert one.fileno() == -1
        assert other.recv(64) == b""


# What an object holds, by the functions that look


def test_an_object_is_prepared_where_nobody_imported_tempfile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Socket(socket.socket):
        pass

    monkeypatch.delitem(sys.modules, "tempfile")
    with Socket() as sock:
        objects.prepare(sock, keep=False)


def test_a_text_file_over_a_socket_that_holds_nothing_may_go() -> None:
    one, other = socket.socketpair()
    with one, other, one.makefile("r", encoding="utf-8") as text:
        objects.prepare(text, keep=True)


def test_an_offset_that_the_system_does_not_set_is_told() -> None:
    stuck = SimpleNamespace(seek=lambda offset, whence=0: 0)
    with pytest.raises(OSError, match="does not set its offset"):
        objects._drop_read_ahead(stuck, stuck, stuck, 5, 3)


def test_what_has_nothing_behind_its_end_is_left_at_its_end() -> None:
    sought: list[tuple[int, int]] = []

    def seek(offset: int, whence: int = 0) -> None:
        sought.append((offset, whence))
        if whence == os.SEEK_SET:
            raise OSError(errno.EINVAL, "as a block device says")

    objects._leave_buffer(SimpleNamespace(seek=seek), 3)
    assert sought == [(4, os.SEEK_SET), (0, os.SEEK_END)]


def test_a_text_file_at_its_beginning_or_only_written_decodes_from_there(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w", encoding="utf-8") as text:
        assert objects._decodes_from(text, 3)
        assert not objects._has_pending_bytes(text)


def test_text_whose_buffer_holds_more_from_a_pipe_is_refused() -> None:
    source, feed = os.pipe()
    os.write(feed, b"a line\nand what follows")
    os.close(feed)
    with open(source, encoding="utf-8") as text:
        assert text.buffer.peek(1)  # type: ignore[attr-defined]
        with pytest.raises(Error, match="read ahead"):
            objects.prepare(text, keep=True)
        assert text.read() == "a line\nand what follows"


def test_a_raw_file_that_waits_reads_all_and_a_part(file_waits: threading.Event) -> None:
    source, feed = os.pipe()
    os.set_blocking(source, False)
    with objects.WaitingFile(source, "rb") as file:
        reading = threading.Thread(target=lambda: got.append(file.read(3)))
        got: list[bytes] = []
        reading.start()
        assert file_waits.wait(GENEROUS)
        os.write(feed, b"abcdef")
        os.close(feed)
        reading.join()
        assert got == [b"abc"]
        assert file.read(-1) == b"def"


def test_without_proc_a_memfd_is_a_regular_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> str:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    with Descriptor(memory()) as descriptor:
        monkeypatch.setattr(os, "readlink", missing)
        assert descriptor.kind == "regular file"
        monkeypatch.undo()


@pytest.mark.parametrize("how", ["receive_file('r')", "receive().fds[0].to_file('r')"])
def test_a_warning_of_no_encoding_names_the_line_that_opens(how: str) -> None:
    said = run_python(
        f"""
import os, warnings
from conduit import Conduit
warnings.simplefilter("default")
one, other = Conduit.pair()
def receive():
    return other.{how}
with one, other:
    one.transfer_fd(os.open(os.devnull, os.O_RDONLY))
    receive().close()
""",
        env=dict(os.environ, PYTHONWARNDEFAULTENCODING="1"),
    )
    assert "<string>:7: EncodingWarning" in said.stderr
