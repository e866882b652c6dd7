"""A real systemd for a test, with the test's units only, and services that the test commands."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from peers import HERE, LIMIT, find, python
from sides import SYS_ADMIN, is_capable

from conduit import Conduit, Descriptor, Listener, PeerClosedError

TOOLS = ("unshare", "nsenter", "mount", "systemctl")

SYSTEMD = "/lib/systemd/systemd"

REFUSED = 75
"""The status of the script where the system does not allow it."""

PASSED_ON = ("PYTHON", "LD_", "ASAN_", "UBSAN_", "COVERAGE_")
"""Beginnings of the variables that a Python of ours needs."""


def reason_against() -> str | None:
    """Why there can be no real systemd here, as far as it shows before one is started."""
    missing = [tool for tool in TOOLS if find(tool) is None]
    if not os.access(SYSTEMD, os.X_OK):
        missing.append("systemd")
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() or not is_capable(SYS_ADMIN):
        return "only root (CAP_SYS_ADMIN) can start a systemd of its own"
    return None


def version() -> int:
    """That of systemd; 0 if there is none."""
    try:
        told = subprocess.run([SYSTEMD, "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return 0
    return int(told.stdout.split()[1].partition("~")[0])


class Service:
    """A process of `real_service.py`, which does what it is told.

    Attributes:
        hello: what it found when it started.
        pid: as this process sees it.
    """

    def __init__(self, link: Conduit) -> None:
        self._link = link
        self.pid = link.peer.pid
        self.hello: dict[str, Any] = self._answer()

    def call(self, name: str, *args: Any) -> Any:
        """Let it call a function, and return what that returned."""
        self._link.transfer(data=json.dumps([name, *args]).encode())
        return self._answer()

    def wait_until_gone(self) -> None:
        with pytest.raises(PeerClosedError):
            self._link.receive()

    def _answer(self) -> Any:
        with self._link.receive() as message:
            return json.loads(message.data)


class Systemd:
    """A systemd that runs, as process 1 of its namespaces.

    Attributes:
        directory: where its units and their sockets are, in there and here.
    """

    def __init__(
        self, directory: Path, pid: int, listener: Listener, stack: contextlib.ExitStack
    ) -> None:
        self.directory = directory
        self._pid, self._listener, self._stack = pid, listener, stack

    def command(self, *words: str) -> list[str]:
        """The command that runs another in its namespaces."""
        return [
            "nsenter",
            f"--target={self._pid}",
            "-m",
            "-r",
            "-u",
            "-i",
            "-n",
            "-p",
            "-C",
            *words,
        ]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in its namespaces."""
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=LIMIT, check=False
        )

    def run(self, *words: str) -> str:
        """Run a command in its namespaces, which must end well, and return what it prints."""
        done = self.call(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def service(self) -> Service:
        """Wait for a service that has started."""
        link = self._stack.enter_context(self._listener.accept(LIMIT))
        link.timeout = LIMIT
        return Service(link)


@contextlib.contextmanager
def booted(units: Mapping[str, str], *, own_network: bool = True) -> Iterator[Systemd]:
    """A systemd with these units, by file name, until the block is left; else the test is skipped.

    In a unit, ``@SERVICE@`` is the command of a `Service`, and ``@DIR@`` a directory for sockets.
    Unless it has a network of its own, its services are reached at addresses of this machine.
    What went wrong in there is shown with a block that fails.
    """
    if reason := reason_against():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        # Not pytest's own, whose paths may be too long for a socket.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conduit-")))
        write_units(directory, units)
        listener = stack.enter_context(Listener(directory / "control", type=socket.SOCK_SEQPACKET))
        notices = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notices.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notices.bind(str(directory / "notify"))
        boot = stack.enter_context(
            subprocess.Popen(
                [
                    HERE / "systemd_in_namespaces.sh",
                    directory,
                    *(["--net"] if own_network else []),
                ],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # What kills this process and its group is not to keep that from cleaning up.
                start_new_session=True,
            )
        )
        try:
            pid = pid_once_ready(notices, boot)
            yield Systemd(directory, pid, listener, stack)
        except BaseException:
            for name in ("messages", "output"):
                with contextlib.suppress(FileNotFoundError):
                    sys.stderr.write((directory / name).read_text(errors="replace"))
            raise
        finally:
            if boot.returncode is None:
                boot.communicate()


def pid_once_ready(notices: socket.socket, boot: subprocess.Popen[str]) -> int:
    """Wait until it has booted, and return the pid of its process 1 here."""
    with Descriptor(os.pidfd_open(boot.pid)) as end:
        while True:
            ready, _, _ = select.select([notices.fileno(), end.fileno()], [], [], LIMIT)
            assert ready, "it does not boot"
            if end.fileno() in ready:
                _, complaint = boot.communicate()
                assert boot.returncode == REFUSED, complaint
                pytest.skip(f"no systemd of its own: {complaint.splitlines()[-1]}")
            data, controls, _, _ = notices.recvmsg(4096, socket.CMSG_SPACE(12))
            if b"READY=1" in data.split(b"\n"):
                [(_, _, credentials)] = controls
                return int.from_bytes(credentials[:4], sys.byteorder)


def write_units(directory: Path, units: Mapping[str, str]) -> None:
    places = directory / "units"
    (places / "service.d").mkdir(parents=True)
    for target in ("default", "basic", "sysinit", "shutdown"):
        (places / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    command = " ".join([*python("real_service.py"), str(directory / "control")])
    for name, text in units.items():
        filled = text.replace("@SERVICE@", command).replace("@DIR@", str(directory))
        (places / name).write_text(filled)
    variables = [
        f"Environment={quoted(f'{name}={value}')}"
        for name, value in os.environ.items()
        if name.startswith(PASSED_ON)
    ]
    output = f"StandardOutput=append:{directory}/output"
    (places / "service.d" / "all.conf").write_text("\n".join(["[Service]", output, *variables, ""]))


def quoted(text: str) -> str:
    """A word as systemd reads it in a unit."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
