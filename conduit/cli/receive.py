"""``conduit receive``: take one descriptor, for a command or to copy it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import shutil
import signal
import stat
from typing import NoReturn

from conduit._conduit import Descriptor
from conduit.cli.messages import CommandError
from conduit.listener import Listener

_CHUNK = 1 << 16
"""The most bytes copied at a time."""


def receive(path: str, command: list[str]) -> None:
    """Take one descriptor, for a command that replaces this process, or to copy it."""
    if command and shutil.which(command[0]) is None:
        raise CommandError(f"{command[0]}: command not found", 127)
    with Listener(path) as listener, listener.accept() as conduit:
        listener.close()
        number = conduit.receive_fd()
    with Descriptor(number):
        if command:
            _become(number, command)
        _copy(number)


def _become(number: int, command: list[str]) -> NoReturn:
    os.dup2(number, 0)
    _let_wait()
    # Python ignores these, and what it ignores would stay ignored in COMMAND.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        raise CommandError(f"{command[0]}: {exc.strerror}", 126) from exc


def _let_wait() -> None:
    """Make standard input blocking, without changing the sender's copy.

    Most programs fail at EAGAIN. O_NONBLOCK belongs to the open file description, which the sender
    shares. So the file is reopened through /proc. A socket cannot be reopened, and keeps the flag.
    """
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    if flags & os.O_NONBLOCK:
        with contextlib.suppress(OSError):
            # O_NONBLOCK, so that opening a fifo does not wait for a writer.
            number = os.open("/proc/self/fd/0", (flags & os.O_ACCMODE) | os.O_NONBLOCK)
            fcntl.fcntl(number, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
            os.dup2(number, 0)
            os.close(number)


def _copy(number: int) -> None:
    while data := _read(number):
        while data:
            data = data[_write(data) :]


def _write(data: bytes) -> int:
    while True:
        try:
            return os.write(1, data)
        except BlockingIOError:
            # As in reading: another program's pipe.
            select.select([], [1], [])


def _read(number: int) -> bytes:
    while True:
        try:
            return os.read(number, _CHUNK)
        except BlockingIOError:
            # Its sender made it non-blocking, and may rely on that.
            select.select([number], [], [])
        except OSError as exc:
            # Linux says so of a terminal that nobody holds the other end of, which then is none
            # any more for isatty(3).
            if exc.errno == errno.EIO and stat.S_ISCHR(os.fstat(number).st_mode):
                return b""
            raise
