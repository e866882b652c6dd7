"""What the tests with real peers share: programs that may be missing, children that end."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conduit import Conduit, Descriptor, Reader

HERE = Path(__file__).parent

LIMIT = 20.0
"""Seconds that nothing takes unless it hangs; less than the fixture that ends a hanging run."""


def find(program: str) -> str | None:
    """Where a program is installed; servers are often not on a user's path."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which(program, path=path)


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test, or all of a module, where a program is not installed."""
    missing = [program for program in programs if find(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def _has_name() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


needs_name = pytest.mark.skipif(
    not _has_name(), reason="this user has no name (passwd(5)), without which it does not run"
)


def installed(program: str) -> str:
    path = find(program)
    assert path is not None
    return path


def built(name: str, directory: Path) -> str:
    """Compile a program in C of this directory, and return where it is."""
    path = directory / name
    options = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [installed("cc"), *options, "-o", path, HERE / f"{name}.c"], check=True, timeout=LIMIT
    )
    return str(path)


def python(script: str, *args: str) -> list[str]:
    """The command that runs a script of this directory."""
    return [sys.executable, "-W", "error", str(HERE / script), *args]


@contextlib.contextmanager
def running(*command: str, **kwargs: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that is ended, with all of its process group, when the block is left.

    Where the block fails, what the program complained of is shown with it.
    """
    kwargs = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **kwargs,
    }
    with subprocess.Popen(command, text=True, start_new_session=True, **kwargs) as process:
        try:
            yield process
        except BaseException:
            end(process)
            if process.stderr is not None and not process.stderr.closed:
                sys.stderr.write(process.stderr.read())
            raise
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    # Its number is its own until somebody has waited for it.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def succeeded(process: subprocess.Popen[str]) -> str:
    """Wait for a program that ends well; what it printed."""
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    return out


def wait_until_asleep(process: subprocess.Popen[str]) -> None:
    """Return once a program waits for something, or has ended."""
    while True:
        with open(f"/proc/{process.pid}/stat") as stat:
            state = stat.read().rpartition(")")[2].split()[0]
        if state in "SZ":
            return
        os.sched_yield()


@contextlib.contextmanager
def plugged() -> Iterator[tuple[Conduit, socket.socket]]:
    """A conduit, and the end of its stream that a program is to inherit; close that once it has."""
    mine, theirs = socket.socketpair()
    with mine, theirs, Conduit.from_conn(mine) as link:
        mine.close()
        link.timeout = LIMIT
        yield link, theirs


@contextlib.contextmanager
def served() -> Iterator[socket.socket]:
    """A TCP listener on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener


def accepted(listener: socket.socket) -> socket.socket:
    conn, _ = listener.accept()
    conn.settimeout(LIMIT)
    return conn


def connected(address: Any) -> socket.socket:
    return socket.create_connection(address, timeout=LIMIT)


def all_of(sock: socket.socket) -> bytes:
    """Everything up to the end of a stream."""
    with sock.makefile("rb") as file:
        return file.read()


class Lines:
    """JSON objects, one a line, over a stream that carries descriptors with some of them."""

    def __init__(self, link: Conduit) -> None:
        self._link = link
        self._reader = Reader(link)

    def next(self) -> tuple[Any, tuple[Descriptor, ...]]:
        """The next object, and the descriptors that came up to its end."""
        line = self._reader.receive_until(b"\n")
        return json.loads(line), self._reader.take_fds(self._reader.pending)

    def send(self, value: object, *items: socket.socket) -> None:
        self._link.transfer(*items, data=json.dumps(value).encode() + b"\n")
