"""A receiver whose descriptor table is full, and descriptors withheld for other reasons."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import is_open, memory, room_for, run_python, send, stdin_closed
from sides import ALL_KINDS, beside, close_all, files, identity, is_at_eof, wait_until_process_polls

from conduit import Conduit, Error, ErrType

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]


def assert_no_room(caught: Error) -> None:
    assert caught.type is ErrType.BAD_CTRL_MESG
    assert caught.errno == errno.EMFILE
    assert "RLIMIT_NOFILE" in str(caught)
    assert "closed" in str(caught)


@pytest.mark.hazard("R1")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("count", [3, 253])
@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_message_there_is_no_room_for_is_an_error_and_all_of_it_is_closed(
    wired: Wired, room: int, count: int
) -> None:
    link, peer = wired
    out, into = os.pipe()
    send(peer, [into] * count, b"lost")
    os.close(into)
    with room_for(room), pytest.raises(Error) as caught:
        link.receive()
    assert_no_room(caught.value)
    assert is_at_eof(out)


@pytest.mark.hazard("R1")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("room", [0, 1, 2])
def test_the_conduit_works_on_with_what_there_is_room_for(wired: Wired, room: int) -> None:
    link, peer = wired
    number = memory()
    send(peer, [number] * 3, b"lost")
    with room_for(room):
        with pytest.raises(Error) as caught:
            link.receive()
        assert_no_room(caught.value)
        for fitting in range(room + 1):
            send(peer, [number] * fitting, b"fits")
            with link.receive() as message:
                assert message.data == b"fits"
                assert len(message.fds) == fitting
        link.transfer(data=b"answer")
        assert peer.recv(10) == b"answer"
    send(peer, [number] * 3, b"later")
    with link.receive() as message:
        assert len(message.fds) == 3
    os.close(number)


@pytest.mark.hazard("E31", "R1")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_room_that_is_only_among_the_standard_streams_is_none(wired: Wired, count: int) -> None:
    link, peer = wired
    out, into = os.pipe()
    send(peer, [into] * count, b"lost")
    os.close(into)
    # All of them arrive, the first under the number 0, for which there is no other.
    with room_for(count), stdin_closed(), pytest.raises(Error) as caught:
        link.receive()
    assert_no_room(caught.value)
    assert is_at_eof(out)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("call", ["receive_fd", "receive_file", "receive_conn"])
def test_a_plain_transfer_there_is_no_room_for_is_the_same_error(wired: Wired, call: str) -> None:
    link, peer = wired
    number = memory()
    send(peer, [number])
    with room_for(0):
        with pytest.raises(Error) as caught:
            getattr(link, call)()
        assert_no_room(caught.value)
    send(peer, [number])
    os.close(link.receive_fd())
    os.close(number)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_there_is_room_for_exactly_what_fits(wired: Wired) -> None:
    link, peer = wired
    number = memory()
    send(peer, [number] * 253)
    with room_for(253), link.receive() as message:
        assert len(message.fds) == 253
    os.close(number)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_receive_that_waits_with_a_full_table_reports_the_same(ends: Ends) -> None:
    one, other = ends

    def receive_without_room() -> None:
        one.close()
        with room_for(0):
            with pytest.raises(Error) as caught:
                other.receive()
            assert_no_room(caught.value)
            other.transfer(data=b"lost it")
            message = other.receive()
            assert (message.data, message.fds) == (b"only bytes", ())
            other.transfer(data=b"fine")
        with other.receive() as message:
            assert len(message.fds) == 3

    numbers = files(3)
    with beside(receive_without_room) as pid:
        wait_until_process_polls(pid)
        one.transfer(*numbers, keep=True)
        assert one.receive().data == b"lost it"
        one.transfer(data=b"only bytes")
        assert one.receive().data == b"fine"
        one.transfer(*numbers)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("room", [1, 2])
def test_waiting_leaves_the_last_room_to_what_arrives(ends: Ends, room: int) -> None:
    one, other = ends

    def receive_into_the_last_room() -> None:
        one.close()
        with room_for(room):
            os.close(other.receive_fd())

    with beside(receive_into_the_last_room) as pid:
        wait_until_process_polls(pid)
        one.transfer_fd(memory())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_waiting_with_a_full_table_honours_the_deadline(ends: Ends) -> None:
    _, other = ends
    other.timeout = 0.05
    with room_for(0), pytest.raises(TimeoutError):
        other.receive()


@pytest.mark.parametrize("kind", ALL_KINDS[:1])
def test_a_sender_that_waits_and_has_no_room_sends_nothing_and_keeps_all(ends: Ends) -> None:
    one, other = ends
    one.timeout = 0
    queued = 0
    with pytest.raises(BlockingIOError):
        while True:
            one.transfer(data=b"x")
            queued += 1
    one.timeout = None
    numbers = files(3)
    with room_for(2):
        with pytest.raises(Error) as caught:
            one.transfer(*numbers, data=b"payload")
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.errno == errno.EMFILE
        assert caught.value.sent == 0
    assert all(is_open(number) for number in numbers)
    while queued:
        queued -= len(other.receive().data)
    one.transfer(*numbers, data=b"payload")
    with other.receive() as message:
        assert message.data == b"payload"
        assert len(message.fds) == 3


def test_a_limit_lowered_below_what_is_open_leaves_no_room(wired: Wired) -> None:
    link, peer = wired
    number = memory()
    send(peer, [number])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Error) as caught:
            link.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_no_room(caught.value)
    os.close(number)


WITHHOLDING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Withholds the last descriptor of each message as a security policy does: cutting the control
 * message, or, as Linux 7.3 can, leaving an errno in its place. */
ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
    ssize_t (*real)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");
    ssize_t got = real(fd, msg, flags);
    struct cmsghdr *head = got < 0 ? NULL : CMSG_FIRSTHDR(msg);
    int last, denied = -13;
    if (!head || head->cmsg_type != SCM_RIGHTS)
        return got;
    unsigned char *place = (unsigned char *)head + head->cmsg_len - sizeof last;
    memcpy(&last, place, sizeof last);
    close(last);
    if (getenv("WITHHOLD_BY_ERRNO")) {
        memcpy(place, &denied, sizeof denied);
    } else {
        head->cmsg_len -= sizeof last;
        msg->msg_flags |= MSG_CTRUNC;
    }
    return got;
}
"""

RECEIVING = r"""
import os, socket, conduit
near, far = socket.socketpair()
with near, far, conduit.Conduit.from_conn(near) as link:
    out, into = os.pipe()
    socket.send_fds(far, [b"x"], [into, into, into])
    os.close(into)
    before = len(os.listdir("/proc/self/fd"))
    try:
        link.receive()
    except conduit.Error as error:
        print(error.type.name, error.errno, error)
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.read(out, 1) == b""
    far.send(b"next")
    assert link.receive().data == b"next"
"""


@pytest.mark.hazard("A7", "K2")
@pytest.mark.parametrize("how", [{}, {"WITHHOLD_BY_ERRNO": "1"}], ids=["cut", "errno"])
def test_a_descriptor_withheld_by_a_policy_is_told_apart_from_a_full_table(
    tmp_path: Path, how: dict[str, str]
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the system withhold a descriptor")
    source, library = tmp_path / "withholding.c", tmp_path / "withholding.so"
    source.write_text(WITHHOLDING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    preloaded = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    environment: dict[str, Any] = dict(os.environ, LD_PRELOAD=preloaded, **how)
    run = run_python(RECEIVING, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("BAD_CTRL_MESG None ")
    assert "security policy" in run.stdout
    assert "closed" in run.stdout
    assert "RLIMIT_NOFILE" not in run.stdout


def test_what_is_received_with_little_room_is_what_was_sent(ends: Ends) -> None:
    one, other = ends
    numbers = files(5)
    expected = [identity(number) for number in numbers]
    one.transfer(*numbers, keep=True)
    with room_for(5), other.receive() as message:
        assert [identity(fd.fileno()) for fd in message.fds] == expected
    close_all(numbers)
