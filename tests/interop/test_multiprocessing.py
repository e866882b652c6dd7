"""Another process with multiprocessing, which passes descriptors in its own way."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from helpers import content, is_private, memory
from multiprocessing_forms import FORMS
from peers import LIMIT, plugged, python, running, succeeded

import conduit
from conduit import Conduit

form = pytest.mark.parametrize("form", FORMS)
"""The multiprocessing of either generation: the peer takes this Python's own, or plays one."""


@contextmanager
def peer(task: str, form: str = "this Python") -> Iterator[tuple[Conduit, subprocess.Popen[str]]]:
    with plugged() as (link, theirs):
        number = theirs.fileno()
        command = python("multiprocessing_peer.py", task, str(number), form)
        with running(*command, pass_fds=[number]) as process:
            theirs.close()
            yield link, process


def acknowledge(link: Conduit) -> None:
    """Say that what came has arrived. One that does not wait for that may have closed its end."""
    with suppress(conduit.PeerClosedError):
        link.transfer(data=b"A")


def received_by_peer(link: Conduit) -> None:
    """Wait until the peer has acknowledged what it received, or, if it never does, has closed."""
    with suppress(conduit.PeerClosedError):
        assert link.receive(max_data=1).data == b"A"


@form
def test_the_handle_of_send_handle_arrives_in_receive_file(form: str) -> None:
    with peer("send", form) as (link, process):
        with link.receive_file() as file:
            acknowledge(link)
            assert is_private(file.fileno())
            assert file.read() == b"through multiprocessing"
        succeeded(process)
        with pytest.raises(conduit.PeerClosedError):
            link.receive_file()


def test_a_peer_that_waits_for_no_acknowledgement_may_be_gone_before_it_is_sent() -> None:
    with peer("send", "before 3.14") as (link, process):
        with link.receive_file() as file:
            succeeded(process)
            acknowledge(link)
            assert file.read() == b"through multiprocessing"


@form
def test_recv_handle_takes_a_descriptor_that_comes_with_its_count(form: str) -> None:
    with peer("receive", form) as (link, process):
        reader, writer = os.pipe()
        link.transfer(writer, data=bytes([1]))
        received_by_peer(link)
        link.close()
        with open(reader, "rb") as file:
            assert file.read() == b"written by multiprocessing"
        succeeded(process)


@form
def test_recv_handle_refuses_a_plain_transfer_which_does_not_tell_the_count(form: str) -> None:
    with peer("receive", form) as (link, process):
        reader, writer = os.pipe()
        link.transfer_fd(writer)
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 1
        assert "AssertionError: Len is" in err
        os.close(reader)


@form
def test_all_descriptors_of_sendfds_arrive_in_order_with_their_count(form: str) -> None:
    with peer("sends", form) as (link, process):
        with link.receive() as message:
            acknowledge(link)
            assert message.data == bytes([5])
            contents = [content(descriptor.fileno()) for descriptor in message.fds]
        assert contents == [b"file %d" % turn for turn in range(5)]
        succeeded(process)


@form
def test_recvfds_takes_all_descriptors_of_a_transfer_in_order(form: str) -> None:
    with peer("receives", form) as (link, process):
        numbers = [memory() for _ in range(5)]
        link.transfer(*numbers, data=bytes([5]), keep=True)
        received_by_peer(link)
        link.close()
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
