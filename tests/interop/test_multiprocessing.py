"""Another process with multiprocessing, which passes descriptors in its own way."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers import content, is_private, memory
from peers import LIMIT, plugged, python, running, succeeded

import conduit
from conduit import Conduit


@contextmanager
def peer(task: str) -> Iterator[tuple[Conduit, subprocess.Popen[str]]]:
    with plugged() as (link, theirs):
        number = theirs.fileno()
        command = python("multiprocessing_peer.py", task, str(number))
        with running(*command, pass_fds=[number]) as process:
            theirs.close()
            yield link, process


def test_the_handle_of_send_handle_arrives_in_receive_file() -> None:
    with peer("send") as (link, process):
        with link.receive_file() as file:
            assert is_private(file.fileno())
            assert file.read() == b"through multiprocessing"
        succeeded(process)
        with pytest.raises(conduit.PeerClosedError):
            link.receive_file()


def test_recv_handle_takes_a_descriptor_that_comes_with_its_count() -> None:
    with peer("receive") as (link, process):
        reader, writer = os.pipe()
        link.transfer(writer, data=bytes([1]))
        with open(reader, "rb") as file:
            assert file.read() == b"written by multiprocessing"
        succeeded(process)


def test_recv_handle_refuses_a_plain_transfer_which_does_not_tell_the_count() -> None:
    with peer("receive") as (link, process):
        reader, writer = os.pipe()
        link.transfer_fd(writer)
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 1
        assert "AssertionError: Len is" in err
        os.close(reader)


def test_all_descriptors_of_sendfds_arrive_in_order_with_their_count() -> None:
    with peer("sends") as (link, process):
        with link.receive() as message:
            assert message.data == bytes([5])
            contents = [content(descriptor.fileno()) for descriptor in message.fds]
        assert contents == [b"file %d" % turn for turn in range(5)]
        succeeded(process)


def test_recvfds_takes_all_descriptors_of_a_transfer_in_order() -> None:
    with peer("receives") as (link, process):
        numbers = [memory() for _ in range(5)]
        link.transfer(*numbers, data=bytes([5]), keep=True)
        succeeded(process)
        assert [content(number) for number in numbers] == [
            b"written %d" % turn for turn in range(5)
        ]
        for number in numbers:
            os.close(number)


def test_what_came_by_a_conduit_can_be_pickled_to_a_worker_and_moved_on_again() -> None:
    with peer("relay") as (link, process):
        one, other = socket.socketpair()
        number = memory()
        with other:
            link.transfer(one, number, keep=True)
            one.close()
            with link.receive() as message:
                assert pickle.loads(message.data) == "moved"
                sock, _ = message.fds
                with sock.to_conn() as conn:
                    conn.sendall(b", and here")
            succeeded(process)
            with other.makefile("rb") as stream:
                assert stream.read() == b"by the worker, and back, and here"
        assert content(number) == b"by the worker, and back"
        os.close(number)
