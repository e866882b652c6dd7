"""Restart real servers under load, and measure what clients notice.

    python benchmarks/restart.py --write docs

It wants the servers: ``pip install --group servers`` in this Python, and nginx, haproxy, nodejs,
golang-go and libserver-starter-perl of Debian; what is not installed has a line that says so. Each
server (``benchmarks/servers.py``) is restarted ten times while clients of both kinds send requests
(``benchmarks/load.py``), in each of these ways:

- *conduit reload*: under `conduit run`.
- *socket held*: something else keeps the listening socket open, as systemd's socket activation
  does; the server is stopped, and started again when it has ended. Connections wait in the socket's
  queue meanwhile, so that what fails is what the server itself had accepted and did not answer.
- *stop and start*: without any of that.

Beside them run the rivals: what some servers, and other tools, do for a restart. A restart comes
0.3 seconds after ten connections in a row have been answered by new processes.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from drawing import Bar, bars
from load import HOST, THINKING, Count
from servers import RIVALS, SERVERS, Rival, Server

PROGRAMS = Path(__file__).resolve().parent.parent / "examples" / "servers"
PATIENCE = 30.0
"""Seconds that nothing takes unless it hangs."""

ENDING = 12.0
"""Seconds that a server has for its end; some wait for connections that are kept."""

RELOAD, TAKEOVER, HELD, STOP = (
    "conduit reload",
    "conduit run again",
    "socket held",
    "stop and start",
)

_CONDUIT = (sys.executable, "-P", "-m", "conduit")


class Result(NamedTuple):
    """What clients noticed of some restarts of a server.

    Attributes:
        server: its name.
        version: of the server, or of the rival.
        way: how it was restarted.
        new: clients with a connection for each request.
        kept: clients that keep their connections.
        trouble: why it could not be measured; then the counts are None.
    """

    server: str
    version: str
    way: str
    new: Count | None
    kept: Count | None
    trouble: str = ""

    @property
    def counts(self) -> list[Count]:
        """Those that are there."""
        return [count for count in (self.new, self.kept) if count is not None]

    @property
    def failed(self) -> int:
        """The requests that failed."""
        return sum(count.failed for count in self.counts)

    @property
    def gap(self) -> float:
        """The longest time without an answer to either kind of clients, in seconds."""
        return max((count.gap for count in self.counts), default=0.0)


class NotMeasuredError(Exception):
    """A server that cannot be measured."""


class Site:
    """A server that runs, in one way, at a port and with a directory of its own.

    Attributes:
        process: the one that was started last.
        directory: for its files.
        stop_signal: tells it to finish.
        port: where it listens.
    """

    def __init__(self, server: Server, way: str, directory: Path, words: str = "") -> None:
        self.process: subprocess.Popen[bytes]
        self.directory = directory
        self.stop_signal = server.stop_signal
        self._server = server
        self._way = way
        # Held to the end, so that the port is nobody else's: where all set SO_REUSEADDR, two may be
        # bound, of which one listens.
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        if way == HELD:
            self._socket.listen(2048)
        self._words = words or (
            server.command if way in (RELOAD, TAKEOVER, HELD) else server.alone or server.command
        )
        if way not in (RELOAD, TAKEOVER, HELD) and not (words or server.alone):
            self._words += " PORT"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._before: dict[str, int] = {}
        self._log = (directory / "log").open("ab")

    def start(self) -> None:
        """Start the server."""
        words = re.sub(r"\bPORT\b", str(self.port), self._words)
        words = re.sub(r"\bPYTHON\b", sys.executable, words)
        command = shlex.split(words.replace("DIRECTORY", str(self.directory)))
        stdin = subprocess.DEVNULL
        if self._way in (RELOAD, TAKEOVER):
            run = [*_CONDUIT, "run", *self._control(), "--listen", f"{HOST}:{self.port}"]
            command = [*run, *shlex.split(self._server.options), "--", *command]
        elif self._way == HELD:
            stdin = self._socket.fileno()
            passing = 'LISTEN_FDS=1 LISTEN_FDNAMES=web LISTEN_PID=$$ exec "$@" 3<&0 0</dev/null'
            command = ["sh", "-c", passing, "sh", *(word.replace("{fd}", "3") for word in command)]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            command,
            cwd=PROGRAMS,
            env={**os.environ, "PATH": path},
            stdin=stdin,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._processes.append(self.process)

    def restart(self) -> None:
        """Restart it, in its way."""
        self.mark()
        if self._way == RELOAD:
            self._do(_CONDUIT, "reload", *self._control())
        elif self._way == TAKEOVER:
            self.start()
        else:
            self.stop()
            self.start()

    def stop(self) -> None:
        """Tell it to finish, and wait until it has."""
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def mark(self) -> None:
        """Note the processes that there are: those that come are new."""
        self._before = {pid: _begun(pid) for pid in os.listdir("/proc") if pid.isdigit()}

    def run(self, words: str) -> None:
        """Run a command of this Python to its end."""
        program, *rest = shlex.split(words.replace("DIRECTORY", str(self.directory)))
        self._do((str(Path(sys.executable).parent / program),), *rest)

    def _do(self, program: Sequence[str], *words: str) -> None:
        command = [*program, *words]
        done = subprocess.run(
            command, stdout=self._log, stderr=self._log, timeout=PATIENCE, check=False
        )
        if done.returncode:
            raise NotMeasuredError(f"{words[0]} failed")

    def await_that(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                raise NotMeasuredError("no new process answers")
            time.sleep(0.01)

    def await_change(self, answers: int = 10) -> None:
        """Wait until so many connections in a row are answered by processes that are new."""
        row = 0

        def enough() -> bool:
            nonlocal row
            process = _ask(self.port)
            # A number may have been another process's before.
            is_new = process and self._before.get(process) != _begun(process)
            row = row + 1 if is_new else 0
            return row >= answers

        self.await_that(enough)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        last = self.process
        last.send_signal(signal.SIGTERM if self._way in (RELOAD, TAKEOVER) else self.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            last.wait(ENDING)
        for process in self._processes:
            # Each had a session of its own, and may have left something behind in it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._log.close()

    def log(self) -> str:
        """What the server and its tools have said."""
        return (self.directory / "log").read_text(errors="replace")

    def _control(self) -> list[str]:
        return ["--control", f"{self.directory}/control"]


def _begun(pid: str) -> int:
    """When a process began, in ticks (proc(5)); 0 if it has ended."""
    try:
        # The name, which may have any bytes, comes before.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def _ask(port: int) -> str:
    """Send one request on a connection of its own; the process that answered, or nothing."""
    try:
        with socket.create_connection((HOST, port), PATIENCE) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := sock.recv(4096):
                answer += data
    except OSError:
        return ""
    if not answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 ")):
        return ""
    return answer.decode().split()[-1]


def measure(
    server: Server,
    way: str,
    restarts: int = 10,
    pause: float = 0.3,
    rival: Rival | None = None,
    thinking: float = THINKING,
) -> Result:
    """Restart a server under load so many times, with a pause in seconds between them."""
    version = (rival or server).version()
    name = rival.server if rival else server.name
    if not version or not server.version():
        return Result(name, "", way, None, None, "not installed")
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="restart-"))
        # nginx's workers have another user.
        os.chmod(directory, 0o755)
        site = Site(server, way, Path(directory), rival.command if rival else "")
        _write_settings(site)
        if server.prepare:
            words = server.prepare.replace("DIRECTORY", directory)
            subprocess.run(shlex.split(words), cwd=PROGRAMS, check=True)
        try:
            site.start()
            stack.callback(site.close)
            site.mark()
            site.await_that(lambda: bool(_ask(site.port)))
            with _load(site.port, thinking) as counts:
                time.sleep(pause)
                for _ in range(restarts):
                    if rival is None:
                        site.restart()
                    else:
                        site.mark()
                        rival.restart(site)
                    if rival is None or rival.name != "no restart":
                        site.await_change()
                    time.sleep(pause)
        except (NotMeasuredError, subprocess.TimeoutExpired) as exc:
            print(site.log()[-2000:], file=sys.stderr)
            return Result(name, version, way, None, None, str(exc))
        new, kept = counts
        return Result(name, version, way, new, kept)


def _write_settings(site: Site) -> None:
    """Write the servers' files with this port and directory in them."""
    for name in ("nginx.conf", "circus.ini"):
        text = (PROGRAMS / name).read_text()
        text = text.replace("8000", str(site.port)).replace("DIRECTORY", str(site.directory))
        (site.directory / name).write_text(text)


@contextlib.contextmanager
def _load(port: int, thinking: float) -> Iterator[list[Count]]:
    """Send requests meanwhile; the counts of both kinds of clients are there afterwards."""
    counts: list[Count] = []
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("load.py"), str(port), str(thinking)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield counts
        said, _ = process.communicate("enough\n", timeout=PATIENCE)
        counts += [Count(*each) for each in json.loads(said)]
    finally:
        process.kill()
        process.communicate()


def measure_all(
    names: Sequence[str], ways: Sequence[str], restarts: int, pause: float
) -> Iterator[Result]:
    """Measure servers in some ways, all of them if none is named, and the rivals."""
    for server in SERVERS:
        if not names or server.name in names:
            for way in (RELOAD, HELD, STOP):
                if not ways or way in ways:
                    yield measure(server, way, restarts, pause)
    named = {server.name: server for server in SERVERS}
    for name in ("gunicorn", "uvicorn, serve_uvicorn.py"):
        if (not names or name in names) and (not ways or TAKEOVER in ways):
            yield measure(named[name], TAKEOVER, restarts, pause)
    for rival in RIVALS:
        if (not names or rival.server in names) and (not ways or rival.name in ways):
            yield measure(named[rival.server], rival.name, restarts, pause, rival)


def _failures(count: Count) -> str:
    kinds = [
        f"{number} {kind}"
        for kind, number in zip(count._fields[1:5], count[1:5], strict=True)
        if number
    ]
    return f"{count.failed} ({', '.join(kinds)})" if len(kinds) > 1 else ", ".join(kinds) or "0"


def conduit_table(results: Sequence[Result]) -> str:
    """Each server under `conduit run`, and what it loses by itself, in Markdown."""
    lines = [
        "| server | requests | failed: new connections | kept | sent again | longest gap | "
        "its own shutdown loses: new connections | kept |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    alone = {each.server: each for each in results if each.way == HELD}
    for each in results:
        if each.way not in (RELOAD, TAKEOVER):
            continue
        title = f"{each.server} {each.version}".strip()
        title += ", line run again" if each.way == TAKEOVER else ""
        if not each.counts:
            lines.append(f"| {title} | {each.trouble} | | | | | | |")
            continue
        new, kept = each.counts
        held = alone.get(each.server)
        own = ["", ""] if held is None else [_failures(count) for count in held.counts]
        lines.append(
            f"| {title} | {new.answered + kept.answered} | {_failures(new)} | {_failures(kept)} | "
            f"{kept.again} | {1000 * each.gap:.0f} ms | {' | '.join(own or ['?', '?'])} |"
        )
    return "\n".join(lines)


def rivals_table(results: Sequence[Result]) -> str:
    """The other ways, in Markdown."""
    lines = [
        "| server | way | requests | failed: new connections | kept | sent again | longest gap |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for each in results:
        if each.way in (RELOAD, TAKEOVER):
            continue
        if not each.counts:
            lines.append(f"| {each.server} | {each.way} | {each.trouble} | | | | |")
            continue
        new, kept = each.counts
        lines.append(
            f"| {each.server} | {each.way} | {new.answered + kept.answered} | {_failures(new)} | "
            f"{_failures(kept)} | {kept.again} | {1000 * each.gap:.0f} ms |"
        )
    return "\n".join(lines)


def lines() -> str:
    """What is typed for each server, in Markdown."""
    out = []
    for server in SERVERS:
        note = f": {server.note}" if server.note else ""
        out.append(f"**{server.name}**{note}\n\n```\n{server.line()}\n```\n")
    return "\n".join(out).rstrip()


_LONGEST_BAR = 1.5
"""Seconds; what took longer has a bar as long as this."""

_KINDS = {RELOAD: "ours", TAKEOVER: "ours", HELD: "fourth", STOP: "other"}


def plot(results: Sequence[Result]) -> str:
    """The longest gaps and the failures as a drawing in SVG."""
    shown = [each for each in results if each.counts]
    order = list(dict.fromkeys(each.server for each in shown))
    shown.sort(key=lambda each: order.index(each.server))
    rows = [
        Bar(
            each.way.replace("`", ""),
            # One that hangs is not to hide the others.
            min(_LONGEST_BAR, each.gap),
            f"{1000 * each.gap:.0f} ms" + (f", {each.failed} failed" if each.failed else ""),
            _KINDS.get(each.way, "third"),
            each.server,
        )
        for each in shown
    ]
    return str(bars("Longest time without an answer, and failed requests", rows))


def write(directory: Path, results: Sequence[Result], machine: str) -> None:
    """Write restart.csv, restart.svg, and the parts of restart.md that stand between marks."""
    with (directory / "restart.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        fields = [f"{kind}_{field}" for kind in ("new", "kept") for field in Count._fields]
        writer.writerow(["server", "version", "way", "trouble", *fields])
        writer.writerows(
            [each.server, each.version, each.way, each.trouble]
            + [value for count in each.counts for value in count]
            for each in results
        )
    (directory / "restart.svg").write_text(plot(results))
    page = directory / "restart.md"
    text = page.read_text()
    for name, content in (
        ("conduit", conduit_table(results)),
        ("rivals", rivals_table(results)),
        ("lines", lines()),
        ("machine", machine),
    ):
        before, mark, after = text.partition(f"<!-- {name} -->\n")
        _, end, after = after.partition("<!-- end -->")
        text = f"{before}{mark}{content}\n{end}{after}"
    page.write_text(text)


def _is_busy() -> bool:
    """Whether something else runs now: a tenth of a processor in two seconds (proc_stat(5))."""

    def used() -> int:
        user, nice, system = Path("/proc/stat").read_text().split()[1:4]
        return int(user) + int(nice) + int(system)

    before, seconds = used(), 2
    time.sleep(seconds)
    return used() - before > 0.1 * seconds * os.sysconf("SC_CLK_TCK")


def describe_machine() -> str:
    """Where it is measured, in a sentence, told before anything is."""
    processors = len(os.sched_getaffinity(0))
    busy = " Other things ran on it meanwhile." if _is_busy() else ""
    release = platform.release().partition("-")[0]
    return f"CPython {platform.python_version()}, Linux {release}, {processors} processors.{busy}"


def main() -> None:
    """Measure, print the tables, and write what is asked for."""
    parser = argparse.ArgumentParser(description="Restart real servers under load.")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.3, metavar="SECONDS")
    parser.add_argument("--server", action="append", default=[], help="only this one, and rivals")
    parser.add_argument("--way", action="append", default=[], help="only this one")
    parser.add_argument("--write", type=Path, metavar="DIRECTORY", help="restart.md and its files")
    options = parser.parse_args()
    machine = describe_machine()
    results = []
    for each in measure_all(options.server, options.way, options.restarts, options.pause):
        results.append(each)
        told = "; ".join(map(str, each.counts)) or each.trouble
        print(f"{each.server} {each.version}, {each.way}: {told}", file=sys.stderr, flush=True)
    print(conduit_table(results), rivals_table(results), sep="\n\n")
    if options.write:
        write(options.write, results, machine)


if __name__ == "__main__":
    main()
