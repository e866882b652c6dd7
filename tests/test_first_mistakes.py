"""What a newcomer gets wrong first is answered with the call, or the word, that is right."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from conduit import Channel, Conduit, Descriptor, DescriptorTypeError, ErrType, Listener, Reader
from conduit.aio import AsyncChannel, AsyncConduit, AsyncListener, AsyncReader, AsyncTakeover
from conduit.cli.addresses import parse_address
from conduit.takeover import Takeover


@pytest.fixture
def link() -> Iterator[Conduit]:
    ours, theirs = Conduit.pair()
    with ours, theirs:
        yield ours


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def message(call: Callable[[Any], object], argument: object) -> str:
    with pytest.raises(DescriptorTypeError) as caught:
        call(argument)
    assert caught.value.type is ErrType.NO_FD
    return str(caught.value)


def test_socket_in_place_of_a_number_names_the_call_for_sockets(
    link: Conduit, sock: socket.socket
) -> None:
    assert message(Conduit, sock).endswith("; for a socket, use Conduit.from_conn")
    assert message(Descriptor, sock).endswith("; for a socket, use Descriptor(sock.detach())")
    assert message(link.transfer_fd, sock).endswith("; for a socket, use transfer_conn")


def test_file_in_place_of_a_number_names_the_call_for_files(link: Conduit) -> None:
    with open(os.devnull, "rb") as file:
        assert message(Conduit, file).endswith("; for a file, use Conduit.from_file")
        assert message(link.transfer_fd, file).endswith("; for a file, use transfer_file")
        hint = "; for a file, use Descriptor(os.dup(file.fileno()))"
        assert message(Descriptor, file).endswith(hint)
        assert not file.closed


@pytest.mark.parametrize("path", ["/path", pathlib.Path("/path")])
def test_path_in_place_of_a_number_names_what_takes_one(link: Conduit, path: object) -> None:
    assert message(Conduit, path).endswith("; for a path, use Conduit.connect")
    assert message(Conduit.from_conn, path).endswith("; for a path, use Conduit.connect")
    assert "transfer_file(open(path))" in message(link.transfer_fd, path)
    assert "transfer_file(open(path))" in message(link.transfer_file, path)
    assert "os.open(path" in message(Descriptor, path)


def test_number_in_place_of_an_object_names_the_call_for_numbers(link: Conduit) -> None:
    for call in link.transfer_file, link.transfer_conn:
        assert message(call, 3).endswith("; for the number of a descriptor, use transfer_fd")
    for make in Conduit.from_conn, Conduit.from_file:
        assert message(make, 3).endswith("; for the number of a Unix socket, use Conduit(fd)")


def test_async_calls_name_the_right_call_too(link: Conduit, sock: socket.socket) -> None:
    async def main() -> None:
        async with AsyncConduit.from_conn(link) as there:
            for method, argument, name in (
                ("transfer_conn", 3, "transfer_fd"),
                ("transfer_file", 3, "transfer_fd"),
                ("transfer_fd", sock, "transfer_conn"),
            ):
                with pytest.raises(DescriptorTypeError, match=f"use {name}$"):
                    await getattr(there, method)(argument)

    anyio.run(main)


def test_what_transfer_does_not_take_names_what_does(link: Conduit, sock: socket.socket) -> None:
    assert message(link.transfer, b"bytes").endswith("; for bytes, use transfer(data=...)")
    assert message(link.transfer, [sock]).endswith("; for several at once, use transfer(*items)")
    assert "transfer(data=text.encode())" in message(link.transfer, "text")


@pytest.mark.parametrize("value", [None, object(), 1.5, {}])
def test_what_no_call_takes_gets_no_advice(link: Conduit, value: object) -> None:
    assert "use" not in message(Conduit, value)
    assert "use" not in message(link.transfer_fd, value)
    assert "use" not in message(link.transfer_conn, value)


def test_message_does_not_repeat_a_long_argument(link: Conduit) -> None:
    assert len(message(link.transfer, b"x" * 100_000)) < 250
    assert len(message(Conduit, b"x" * 100_000)) < 250


@pytest.mark.parametrize("address", [8000, ("localhost", 8000), None])
@pytest.mark.parametrize("call", [Conduit.connect, Listener, Takeover])
def test_tcp_address_in_place_of_a_path_is_told_to_be_one(
    call: Callable[[Any], object], address: object
) -> None:
    with pytest.raises(TypeError, match=r"a Unix socket has a path .* a TCP socket is made with"):
        call(address)


def test_file_name_in_place_of_a_mode_is_told_to_be_one(link: Conduit) -> None:
    with pytest.raises(ValueError, match=r"invalid mode: '/etc/motd'.* goes to name="):
        link.receive_file("/etc/motd")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("8000", "write :8000"),
        ("web=8000", "write :8000"),
        ("run/web.sock", "write ./run/web.sock"),
        ("http://localhost:8000/", "write only localhost:8000, without http://"),
        ("web=http://localhost:8000", "write only localhost:8000, without http://"),
        ("unix:///run/web.sock", "write only /run/web.sock, without unix://"),
        ("unix:/run/web.sock", "write only /run/web.sock, without unix:"),
        ("tcp:localhost:80", "write only localhost:80, without tcp:"),
    ],
)
def test_address_in_another_form_is_answered_with_the_right_one(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"{hint}$"):
        parse_address(text)


@pytest.mark.parametrize("text", ["localhost", "70000", "http://", "unix:", ""])
def test_address_that_is_none_in_any_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_a_timeout_that_nothing_would_keep_cannot_be_set(
    link: Conduit, tmp_path: pathlib.Path
) -> None:
    """A Conduit has one. A Channel and a Reader wait as long as it, the rest as their loop says."""

    async def mistaken() -> None:
        with Channel(Conduit.from_conn(link)) as channel, Listener(tmp_path / "one") as listener:
            ours, theirs = AsyncConduit.pair()
            async with (
                ours,
                AsyncChannel(theirs) as async_channel,
                AsyncListener(tmp_path / "other") as async_listener,
                AsyncReader(ours) as reader,
            ):
                waiting: list[Any] = [channel, Reader(link), listener, ours]
                waiting += [async_channel, async_listener, reader, AsyncTakeover(tmp_path / "t")]
                for each in waiting:
                    with pytest.raises(AttributeError, match="has no attribute 'timeout'"):
                        each.timeout = 5

    anyio.run(mistaken)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "conduit", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_send_of_a_missing_file_is_told_in_words(tmp_path: pathlib.Path) -> None:
    missing = str(tmp_path / "missing")
    result = command("send", str(tmp_path / "s"), missing)
    assert result.returncode == 1
    assert result.stderr == f"conduit: opening {missing}: No such file or directory\n"


def test_listen_with_a_port_alone_suggests_the_colon() -> None:
    result = command("run", "--control", "./control", "--listen", "8000", "--", "true")
    assert result.returncode == 2
    assert result.stderr.endswith("; for a port on every address, write :8000\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--control", "./control", "--listen", ":8000", "true"),
        ("receive", "./socket", "cat", "file"),
    ],
)
def test_command_without_dashes_is_told_where_it_stands(arguments: tuple[str, ...]) -> None:
    result = command(*arguments)
    assert result.returncode == 2
    assert result.stderr.endswith("; COMMAND comes after --\n")


def test_unknown_option_is_refused_without_that_advice() -> None:
    result = command("receive", "./socket", "--other")
    assert result.returncode == 2
    assert result.stderr.endswith("unrecognized arguments: --other\n")
