"""A program in C with plain sendmsg(2) and recvmsg(2), compiled by the test."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers import content, is_private, memory
from peers import LIMIT, built, needs, running, succeeded

import conduit
from conduit import Conduit

pytestmark = [
    needs("cc"),
    pytest.mark.parametrize(
        "kind",
        [
            pytest.param(socket.SOCK_STREAM, id="stream"),
            pytest.param(socket.SOCK_SEQPACKET, id="seqpacket"),
        ],
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return built("c_peer", tmp_path_factory.mktemp("c"))


@contextmanager
def peer(program: str, task: str, kind: int) -> Iterator[tuple[Conduit, subprocess.Popen[str]]]:
    mine, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with mine, theirs, Conduit.from_conn(mine) as link:
        mine.close()
        link.timeout = LIMIT
        number = theirs.fileno()
        with running(program, task, str(number), pass_fds=[number]) as process:
            theirs.close()
            yield link, process


def test_one_descriptor_with_a_nul_byte_is_a_plain_transfer(program: str, kind: int) -> None:
    with peer(program, "one", kind) as (link, process):
        with link.receive_file("r") as file:
            assert file.read() == "file 0"
            assert is_private(file.fileno())
        succeeded(process)
        with pytest.raises(conduit.PeerClosedError):
            link.receive_file()


@pytest.mark.parametrize(
    ("task", "data", "count"),
    [
        ("most", b"as many as go\0", 253),
        ("split", b"three control messages\0", 6),
        ("credentials", b"credentials in between\0", 6),
    ],
)
@pytest.mark.parametrize("wanted", [False, True], ids=["plain", "with-credentials"])
def test_all_descriptors_arrive_in_order_however_many_control_messages_carried_them(
    program: str, kind: int, task: str, data: bytes, count: int, wanted: bool
) -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with mine, theirs, Conduit.from_conn(mine) as link:
        # The receiver's own wish for credentials costs it no descriptor.
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, wanted)
        link.timeout = LIMIT
        number = theirs.fileno()
        with running(program, task, str(number), pass_fds=[number]) as process:
            with link.receive() as message:
                assert message.data == data
                assert len(message.fds) == count
                for turn, descriptor in enumerate(message.fds):
                    assert content(descriptor.fileno()) == b"file %d" % turn
                    assert is_private(descriptor.fileno())
            succeeded(process)


def test_several_control_messages_are_several_descriptors_to_receive_fd(
    program: str, kind: int
) -> None:
    with peer(program, "split", kind) as (link, process):
        with pytest.raises(conduit.Error) as caught:
            link.receive_fd()
        assert caught.value.type is conduit.ErrType.BAD_CTRL_MESG
        succeeded(process)


def test_what_is_transferred_comes_in_one_control_message_each(program: str, kind: int) -> None:
    with peer(program, "take", kind) as (link, process):
        assert process.stdout is not None
        numbers = [memory() for _ in range(conduit.MAX_FDS)]
        link.transfer_fd(numbers[0], keep=True)
        assert process.stdout.readline() == "1 bytes, 1 control messages, 1 descriptors, flags 0\n"
        assert content(numbers[0]) == b"0 in C"
        link.transfer(*numbers[1:4], data=b"three", keep=True)
        assert process.stdout.readline() == "5 bytes, 1 control messages, 3 descriptors, flags 0\n"
        assert [content(number) for number in numbers[1:4]] == [b"0 in C", b"1 in C", b"2 in C"]
        link.transfer(*numbers, keep=True)
        assert process.stdout.readline() == (
            f"1 bytes, 1 control messages, {len(numbers)} descriptors, flags 0\n"
        )
        link.transfer(data=b"none")
        assert process.stdout.readline() == "4 bytes, 0 control messages, 0 descriptors, flags 0\n"
        link.close()
        assert succeeded(process) == ""
        for number in numbers:
            os.close(number)
