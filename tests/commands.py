"""What the tests of the command line run: `conduit`, and a COMMAND that does what it is told."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helpers import GENEROUS

# Writes what it was given as a line of JSON to a Unix socket, then does what that says.
COMMAND = """
import json, os, select, signal, socket, stat, sys
report = socket.socket(socket.AF_UNIX)
report.connect(sys.argv[1])
count = int(os.environ["LISTEN_FDS"])
names = []
for number in range(3, 3 + count):
    with socket.socket(fileno=os.dup(number)) as sock:
        names.append([sock.type, sock.getsockname()])
others = [n for n in range(3 + count, 300) if n != report.fileno()]
def is_socket(number):
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False
# Polled: a handler of Python's would not run while a read that began just before it waits.
came, comes = os.pipe()
os.set_blocking(comes, False)
signal.set_wakeup_fd(comes)
for number in (1, 2, 3, 10, 12, 15, 21, 22, 28):
    signal.signal(number, lambda *_: None)
def words():
    rest = b""
    while True:
        ready = select.select([report, came], [], [])[0]
        if came in ready:
            for number in os.read(came, 100):
                report.sendall(json.dumps({"signal": number}).encode() + b"\\n")
        if report in ready:
            new = report.recv(4096)
            if not new:
                return
            *lines, rest = (rest + new).split(b"\\n")
            yield from map(json.loads, lines)
report.sendall(json.dumps({
    "pid": os.getpid(),
    "group": os.getpgid(0),
    "listen": {k: v for k, v in os.environ.items() if k.startswith("LISTEN_")},
    "names": names,
    "other_sockets": [n for n in others if is_socket(n)],
    "inheritable": all(os.get_inheritable(n) for n in range(3, 3 + count)),
    "arguments": sys.argv[2:],
}).encode() + b"\\n")
for word in words():
    if word == "ready":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"STATUS=here\\nREADY=1", os.environ["NOTIFY_SOCKET"])
    elif word == "accept":
        with socket.socket(fileno=os.dup(3)) as sock:
            sock.accept()[0].sendall(b"hello")
    elif word == "fork":
        if os.fork() == 0:
            signal.set_wakeup_fd(-1)
            report.sendall(json.dumps({"child": os.getpid()}).encode() + b"\\n")
            while True:
                signal.pause()
    elif isinstance(word, list):
        if word[1] != signal.SIGKILL:
            signal.signal(word[1], signal.SIG_DFL)
        os.kill(os.getpid(), word[1])
    else:
        sys.exit(word)
"""


class Command:
    """COMMAND, seen from here: what it says and what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines = sock.makefile()
        self.start = self.hear()

    def hear(self) -> Any:
        """The next thing it says; EOFError if it is gone."""
        line = self.lines.readline()
        if not line:
            raise EOFError
        return json.loads(line)

    def tell(self, word: object) -> None:
        self.sock.sendall(json.dumps(word).encode() + b"\n")

    def close(self) -> None:
        self.lines.close()
        self.sock.close()


class Run:
    """One `conduit run`, started by another program if there is one."""

    def __init__(
        self,
        words: list[str],
        environment: dict[str, str] | None = None,
        around: Sequence[str] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [*around, sys.executable, "-P", "-m", "conduit", *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def await_line(self, text: str) -> str:
        """Read its standard error up to a line with a text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return line
        raise EOFError(text)

    def end(self) -> tuple[int, str]:
        """Await its end: its exit code, and the last line of its standard error."""
        _, said = self.process.communicate(timeout=GENEROUS)
        assert "Traceback" not in said
        return self.process.returncode, (said.splitlines() or [""])[-1]


class Bench:
    """A directory in which runs follow each other."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.reports = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.reports.bind(str(directory / "reports"))
        self.reports.listen()
        self.reports.settimeout(GENEROUS)
        self.unix = str(directory / "server")
        reports = str(directory / "reports")
        self.server = [sys.executable, "-c", COMMAND, reports, "--", "x y"]

    def run(
        self,
        *options: str,
        command: list[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        words = ["run", "--control", str(self.directory / "control"), *options]
        if not any(option.startswith("--listen") for option in options):
            words += ["--listen", self.unix]
        if command is None:
            command = self.server
        run = Run([*words, "--", *command], environment)
        self.stack.callback(self._end, run)
        return run

    def command(self) -> Command:
        """The COMMAND that was started last."""
        sock = self.reports.accept()[0]
        sock.settimeout(GENEROUS)
        command = Command(sock)
        self.stack.callback(command.close)
        return command

    def serve(self, *options: str) -> tuple[Run, Command]:
        """A run that serves."""
        run = self.run(*options)
        command = self.command()
        command.tell("ready")
        run.await_line("serves")
        return run, command

    def assert_serves(self, command: Command) -> None:
        """A new connection is accepted by this COMMAND."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(GENEROUS)
            client.connect(self.unix)
            command.tell("accept")
            assert client.recv(10) == b"hello"

    def _end(self, run: Run) -> None:
        run.process.kill()
        run.process.communicate()


def await_gone(pid: int) -> None:
    try:
        number = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([number], [], [], GENEROUS)[0]
    finally:
        os.close(number)


def conduit_says(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "conduit", *words],
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
        **options,
    )


def python(code: str) -> list[str]:
    # -P: 3.13.0 fails its own imports where the current directory is gone.
    return [sys.executable, "-P", "-c", code]


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_listening(path: Path) -> bool:
    """Whether a socket that is bound at a path listens: its flags are SO_ACCEPTCON then.

    Other sockets of the machine, those of tests beside this one too, may have any bytes for a name.
    """
    lines = Path("/proc/net/unix").read_bytes().splitlines()
    end = b" " + os.fsencode(path)
    return any(line.endswith(end) and line.split()[3] == b"00010000" for line in lines)


def await_that(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GENEROUS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
