"""System calls that fail as they seldom do: a library in front of the system's makes them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import PORTABLE, compiled, run_python

LIBRARY = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *failing = "";
static int error, left;

/* Let so many of the next calls with this name fail. */
void fail(const char *name, int with, int times)
{
    failing = name;
    error = with;
    left = times;
}

static int fails(const char *name)
{
    if (left == 0 || strcmp(name, failing))
        return 0;
    left--;
    errno = error;
    return 1;
}

int socket(int domain, int type, int protocol)
{
    return fails("socket") ? -1 : (int)syscall(SYS_socket, domain, type, protocol);
}

int socketpair(int domain, int type, int protocol, int ends[2])
{
    return fails("socketpair") ? -1 : (int)syscall(SYS_socketpair, domain, type, protocol, ends);
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    return fails("accept") ? -1 : (int)syscall(SYS_accept4, fd, address, size, flags);
}

int accept(int fd, struct sockaddr *address, socklen_t *size)
{
    return accept4(fd, address, size, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return fails("sendmsg") ? -1 : syscall(SYS_sendmsg, fd, message, flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return fails("recvmsg") ? -1 : syscall(SYS_recvmsg, fd, message, flags);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    return fails("poll") ? -1 : (int)syscall(SYS_poll, fds, count, timeout);
}

/* Asked for the process alone, as macOS is: it knows none once the peer has closed. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
    if (option == SO_PEERCRED && *size == sizeof(pid_t) && fails("peer pid"))
        return -1;
    return (int)syscall(SYS_getsockopt, fd, level, option, value, size);
}

/* It is closed, whatever it reports (close(2)). */
int close(int fd)
{
    int closed = (int)syscall(SYS_close, fd);
    return fails("close") ? -1 : closed;
}
"""

PRELUDE = """
import ctypes, os, socket, sys
from errno import *
from conduit import *
fail = ctypes.CDLL(None).fail
def attempt(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Error as error:
        print(type(error).__name__, error.type.name, errorcode[error.errno])
    else:
        print("done")
def null():
    return os.open("/dev/null", os.O_RDWR)
def is_open(number):
    return os.path.exists(f"/proc/self/fd/{number}")
before = os.listdir("/proc/self/fd")
one, other = Conduit.pair()
"""

EPILOGUE = """
one.close()
other.close()
assert os.listdir("/proc/self/fd") == before
"""

Says = Callable[[str], list[str]]


@pytest.fixture
def says(tmp_path: Path) -> Says:
    """Run a program with the library, and with two conduits; the lines that it prints."""
    library = compiled(tmp_path, "failing", LIBRARY, "-shared", "-fPIC")
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()

    def run(program: str) -> list[str]:
        done = run_python(
            PRELUDE + program + EPILOGUE,
            str(tmp_path / "s"),
            env=dict(os.environ, LD_PRELOAD=preload),
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


@pytest.mark.hazard("G1")
def test_a_system_without_room_for_files_is_told_apart_from_a_full_process(says: Says) -> None:
    """G1: to provoke ENFILE itself would stop every process of the machine."""
    assert (
        says("""
with Listener(sys.argv[1]) as listener, Conduit.connect(sys.argv[1]):
    for name, call in (
        (b"socketpair", Conduit.pair),
        (b"socket", lambda: Conduit.connect(sys.argv[1])),
        (b"accept", listener.accept),
    ):
        fail(name, ENFILE, 1)
        try:
            call()
        except Error as error:
            print(error.type.name, error.errno, "fs.file-max" in str(error))
    listener.accept().close()
""")
        == [f"NO_FD {errno.ENFILE} True"] * 3
    )


@pytest.mark.hazard("F1")
def test_a_call_that_a_signal_interrupts_is_made_again(says: Says) -> None:
    assert says("""
number = null()
fail(b"sendmsg", EINTR, 3)
attempt(one.transfer_fd, number)
fail(b"recvmsg", EINTR, 3)
with other.receive() as message:
    print(len(message.fds), is_open(number))
fail(b"sendmsg", EINTR, 3)
attempt(one.transfer, data=b"x" * 10)
other.receive()
other.timeout = 0.01
fail(b"poll", EINTR, 3)
attempt(other.receive)
with Listener(sys.argv[1]) as listener, Conduit.connect(sys.argv[1]):
    fail(b"accept", EINTR, 3)
    listener.accept().close()
""") == ["done", "1 True", "done", "TransferTimeoutError FAILED_TRANSFER ETIMEDOUT"]


def test_a_connection_that_ended_before_it_was_accepted_is_passed_over(says: Says) -> None:
    assert says("""
with Listener(sys.argv[1]) as listener, Conduit.connect(sys.argv[1]):
    fail(b"accept", ECONNABORTED, 3)
    listener.accept().close()
    print("accepted")
""") == ["accepted"]


@pytest.mark.hazard("M8")
def test_a_system_out_of_buffers_is_asked_again_until_the_deadline(says: Says) -> None:
    """M8: it tells nobody when it has some again."""
    assert says("""
number = null()
fail(b"sendmsg", ENOBUFS, 3)
attempt(one.transfer_fd, number)
one.timeout = 0.02
number = null()
fail(b"sendmsg", ENOBUFS, 1 << 30)
attempt(one.transfer_fd, number)
assert is_open(number)
fail(b"", 0, 0)
attempt(one.transfer_fd, number)
for _ in range(2):
    other.receive().close()
""") == ["done", "TransferTimeoutError FAILED_TRANSFER ETIMEDOUT", "done"]


def test_a_system_out_of_buffers_is_asked_again_from_a_loop(says: Says) -> None:
    assert says("""
import asyncio
from conduit.aio import AsyncConduit
number = null()
fail(b"sendmsg", ENOBUFS, 9)
asyncio.run(AsyncConduit(one).transfer_fd(number))
assert not is_open(number)
attempt(other.receive().close)
""") == ["done"]


@pytest.mark.hazard("M7")
def test_a_full_table_is_named_where_the_system_calls_it_a_message_too_long(says: Says) -> None:
    assert says("""
fail(b"recvmsg", EMSGSIZE, 1)
attempt(other.receive)
""") == ["Error FAILED_TRANSFER EMFILE"]


def test_a_wait_that_the_system_refuses_is_an_error(says: Says) -> None:
    assert (
        says("""
for _ in range(2):
    fail(b"poll", ENOMEM, 1)
    attempt(other.receive)
number = null()
one.transfer_fd(number, keep=True)
other.receive().close()
os.close(number)
""")
        == ["Error FAILED_TRANSFER ENOMEM"] * 2
    )


def test_a_close_that_fails_is_told_and_closes_all_the_same(says: Says) -> None:
    assert (
        says("""
def failing(function, *args):
    fail(b"close", EIO, 1)
    attempt(function, *args)

mine = [null() for _ in range(6)]
failing(one.transfer_fd, mine[0])
failing(one.transfer, mine[1], mine[2])
failing(Descriptor(mine[3]).close)
failing(one.transfer, mine[4], Descriptor(mine[5]))
assert not any(map(is_open, mine))
messages = [other.receive() for _ in range(3)]
assert [len(message.fds) for message in messages] == [1, 2, 2]
for message in messages:
    failing(message.close)
for end in Conduit.pair():
    failing(end.close)
    assert end.closed
""")
        == ["Error FAILED_CLOSE EIO"] * 9
    )


def test_an_interrupted_close_is_a_close(says: Says) -> None:
    assert (
        says("""
mine = [null() for _ in range(2)]
fail(b"close", EINTR, 4)
attempt(one.transfer_fd, mine[0])
attempt(Descriptor(mine[1]).close)
attempt(other.receive().close)
assert not any(map(is_open, mine))
""")
        == ["done"] * 3
    )


@pytest.mark.skipif(not PORTABLE, reason="here one call tells process, user and group")
def test_a_peer_without_a_process_keeps_its_user(says: Says) -> None:
    assert says("""
mine = (os.getpid(), os.getuid(), os.getgid())
fail(b"peer pid", ENOTCONN, 1)
print(one.peer == (0, *mine[1:]))
print(other.peer == mine)
fail(b"peer pid", EINVAL, 1)
fresh = Conduit.pair()
try:
    fresh[0].peer
except Error as error:
    print(errorcode[error.errno])
for conduit in fresh:
    conduit.close()
""") == ["True", "True", "EINVAL"]
