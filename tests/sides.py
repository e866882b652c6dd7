"""Processes that a test runs beside itself, as this user or as another."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest
from helpers import GENEROUS, fork_among_threads, handling, memory

NOBODY = 65534

SETGID, SETUID, SYS_ADMIN = 6, 7, 21
"""Capabilities, from Linux's capability.h. A root in a container may lack them."""


def is_capable(*capabilities: int) -> bool:
    """Whether this process has all of some capabilities."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    return all(effective >> capability & 1 for capability in capabilities)


may_change_user = is_capable(SETGID, SETUID)

needs_root = pytest.mark.skipif(
    not may_change_user, reason="only root (CAP_SETUID) can run a process of another user"
)

ALL_KINDS = [
    pytest.param(socket.SOCK_STREAM, id="stream"),
    pytest.param(socket.SOCK_SEQPACKET, id="seqpacket"),
    pytest.param(socket.SOCK_DGRAM, id="dgram"),
]

PACKET_KINDS = ALL_KINDS[1:]


@contextlib.contextmanager
def beside(function: Callable[[], None], *, user: int | None = None) -> Iterator[int]:
    """Run a function in a forked child for as long as the block, and see that it returns there.

    With ``user``, the child is a process of that user and of no group of ours. A child that fails
    ends the block, which may be waiting for it.
    """
    pid = fork_among_threads()
    if not pid:
        status = 1
        try:
            signal.alarm(int(GENEROUS))
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    try:
        with ended_by_failure_of(pid):
            yield pid
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert_succeeded(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def assert_succeeded(status: int) -> None:
    assert status == 0, f"the other process ended with {status}; its standard error says why"


@contextlib.contextmanager
def ended_by_failure_of(pid: int) -> Iterator[None]:
    """Fail in the block, wherever it waits, once a child process has failed."""

    def look(*_: object) -> None:
        # A process forked in the block has this handler, and not this child.
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            # A child that a signal ended has its number here, which is no success either.
            assert_succeeded(ended.si_status if ended else 0)

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread runs signal handlers.
        return
    with handling(signal.SIGCHLD, look):
        look()
        yield


def wait_until_process_polls(pid: int) -> None:
    """Return once another process of one thread sleeps in poll(2), or has ended."""
    asleep = 0
    while asleep < 100:
        with open(f"/proc/{pid}/wchan") as wchan, open(f"/proc/{pid}/stat") as stat:
            where, state = wchan.read(), stat.read().rpartition(")")[2].split()[0]
        if "poll" in where or state == "Z":
            return
        # A kernel that does not tell where a process sleeps still tells that it does.
        asleep = asleep + 1 if where in ("", "0") and state == "S" else 0
        os.sched_yield()


def unshared(*words: str) -> list[str]:
    """What runs a command by unshare(1), with these words before it; a skip where none can."""
    around = ["unshare", *words]
    try:
        subprocess.run([*around, "true"], check=True, capture_output=True, timeout=GENEROUS)
    except (OSError, subprocess.CalledProcessError) as exc:
        said = getattr(exc, "stderr", b"").decode().strip()
        pytest.skip(f"no such namespace: {said or exc}")
    return around


@contextlib.contextmanager
def public_directory() -> Iterator[str]:
    """A directory that every user can enter, read and write."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o777)
        yield path


def identity(number: int) -> tuple[int, int]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino


def files(count: int) -> list[int]:
    """So many new files in memory, each with its place in the list as content."""
    return [memory(b"%d" % place) for place in range(count)]


def close_all(numbers: list[int]) -> None:
    for number in numbers:
        os.close(number)


def is_at_eof(pipe: int) -> bool:
    """Whether nobody holds the writing end of a pipe any more; closes the reading one."""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False
    finally:
        os.close(pipe)
