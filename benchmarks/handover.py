"""Restart real servers under load, and measure what clients notice.

    python benchmarks/restart.py --table docs/restart.csv --plot docs/restart.svg

It wants uvicorn and gunicorn in this Python, and wrk in the path. Each server is restarted ten
times, by `conduit reload`, by running the line of `conduit run` again, and by stopping it and
starting it again. Meanwhile wrk sends requests on eight connections, a new one for each request
(``Connection: close``), and four threads of a process of its own do the same and note when each of
their requests was answered.

    python benchmarks/restart.py --handover

Measures the handover alone, which the whole does first, and wants none of them: from the
successor's connecting until it is the owner, with some sockets and with state of some size.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import itertools
import json
import mmap
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from conduit import Descriptor
from conduit.takeover import Takeover

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HOST = "127.0.0.1"
PATIENCE = 30.0
"""Seconds that nothing takes unless it hangs."""

WAYS = ("reload", "takeover", "stop and start", "no restart")


class Server(NamedTuple):
    """A server's command, under `conduit run` and alone; PORT stands for the port."""

    under_conduit: Sequence[str]
    alone: Sequence[str]


_CONDUIT = (sys.executable, "-P", "-m", "conduit")
_UVICORN = (sys.executable, "-m", "uvicorn", "--log-level", "warning", "--no-access-log")
_GUNICORN = (sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py")

SERVERS = {
    "uvicorn": Server(
        [sys.executable, "serve_uvicorn.py"], [*_UVICORN, "--port", "PORT", "serve_uvicorn:app"]
    ),
    "gunicorn": Server(
        [*_GUNICORN, "--log-level", "warning", "wsgi_app:app"],
        [*_GUNICORN, "--log-level", "warning", "--bind", f"{HOST}:PORT", "wsgi_app:app"],
    ),
}

# What the example's own shutdown is for.
UNCHANGED = "uvicorn, its own shutdown"
_UNCHANGED = """\
import uvicorn, serve_uvicorn as example
example.Server.shutdown = uvicorn.Server.shutdown
example.main()
"""


class Figures(NamedTuple):
    """What clients noticed.

    Attributes:
        served: requests that were answered with 200: wrk's and the recorder's.
        failed: connections refused, reset or ended without an answer, and answers other than
            200: wrk's and the recorder's. While a server is down, each client tries again.
        longest_gap: seconds between two answers to the recorder, at most.
        versions: processes that answered the recorder.
    """

    served: int
    failed: int
    longest_gap: float
    versions: int


def missing() -> str:
    """What this machine lacks to run; empty if nothing."""
    lacks = [name for name in SERVERS if importlib.util.find_spec(name) is None]
    lacks += [] if shutil.which("wrk") else ["wrk"]
    return f"not installed: {', '.join(lacks)}" if lacks else ""


def measure(server: Server, way: str, restarts: int, pause: float) -> Figures:
    """Restart a server under load so many times, with a pause in seconds between them.

    With the way "no restart" it only pauses, to show what the load itself does.
    """
    with tempfile.TemporaryDirectory(prefix="restart-") as directory, _free_port() as port:
        running = _start(server, way, directory, port)
        try:
            _await_answer(port)
            seconds = int((restarts + 2) * (pause + PATIENCE))
            with _load(port, seconds) as load:
                time.sleep(pause)
                for _ in range(restarts):
                    code = 0
                    if way == "reload":
                        subprocess.run([*_CONDUIT, "reload", *_control(directory)], check=True)
                    elif way == "takeover":
                        old, running = running, _start(server, way, directory, port)
                        code = old.wait(PATIENCE)
                    elif way == "stop and start":
                        running.terminate()
                        code = running.wait(PATIENCE)
                        running = _start(server, way, directory, port)
                        _await_answer(port)
                    if code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
                        raise RuntimeError(f"the old server ended with {code}")
                    time.sleep(pause)
            return load.figures
        finally:
            running.terminate()
            running.wait(PATIENCE)


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
    yield port


def _start(server: Server, way: str, directory: str, port: int) -> subprocess.Popen[bytes]:
    if way in ("reload", "takeover"):
        words = [*_CONDUIT, "run", *_control(directory)]
        words += ["--listen", f"{HOST}:{port}", "--", *server.under_conduit]
    else:
        words = [word.replace("PORT", str(port)) for word in server.alone]
    return subprocess.Popen(words, cwd=EXAMPLES)


def _control(directory: str) -> list[str]:
    return ["--control", f"{directory}/control"]


def _await_answer(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _ask(port):
        if time.monotonic() > deadline:
            raise RuntimeError("the server does not answer")
        time.sleep(0.02)


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
    if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"\n"):
        return ""
    return answer.decode().split()[-1]


class _Load:
    figures: Figures


@contextlib.contextmanager
def _load(port: int, seconds: int) -> Iterator[_Load]:
    """Send requests for a while, and count; ``figures`` is there afterwards."""
    load = _Load()
    wrk = subprocess.Popen(
        [
            *f"wrk --threads 1 --connections 8 --duration {seconds}".split(),
            *("--header", "Connection: close", f"http://{HOST}:{port}/"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    recorder = subprocess.Popen(
        [sys.executable, __file__, "--record", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield load
        wrk.send_signal(signal.SIGINT)
        said, _ = wrk.communicate(timeout=PATIENCE)
        recorded = json.loads(recorder.communicate("enough\n", timeout=PATIENCE)[0])
        served, failed = _read_wrk(said)
        load.figures = Figures(
            served + recorded["served"],
            failed + recorded["failed"],
            recorded["longest_gap"],
            recorded["versions"],
        )
    finally:
        for process in (wrk, recorder):
            process.kill()
            process.communicate()


def _read_wrk(said: str) -> tuple[int, int]:
    """How many requests were served, and how many failed."""
    total = re.search(r"(\d+) requests in", said)
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    if total is None:
        raise RuntimeError(f"wrk said {said!r}")
    bad = int(others[1]) if others else 0
    return int(total[1]) - bad, bad + (sum(map(int, errors.groups())) if errors else 0)


def record(port: int, enough: IO[str], threads: int = 4) -> dict[str, float]:
    """Send requests until a line comes, and note when each was answered."""
    stop = threading.Event()
    answers: list[tuple[float, str]] = []
    failures: list[float] = []

    def ask_on() -> None:
        while not stop.is_set():
            if process := _ask(port):
                answers.append((time.monotonic(), process))
            elif not stop.is_set():
                failures.append(time.monotonic())
                # A client that is refused tries again, but not at once.
                stop.wait(0.005)

    asking = [threading.Thread(target=ask_on) for _ in range(threads)]
    for thread in asking:
        thread.start()
    enough.readline()
    stop.set()
    for thread in asking:
        thread.join()
    times = sorted(when for when, _ in answers)
    return {
        "served": len(times),
        "failed": len(failures),
        "longest_gap": max(b - a for a, b in itertools.pairwise(times)),
        "versions": len({process for _, process in answers}),
    }


def table(results: dict[tuple[str, str], Figures], restarts: int) -> str:
    """The results as a table in Markdown."""
    lines = [
        f"| server, {restarts} restarts | way | requests served | failed | longest gap |",
        "|---|---|---:|---:|---:|",
    ]
    for (name, way), figures in results.items():
        gap = f"{figures.longest_gap * 1000:.0f} ms"
        lines.append(f"| {name} | {way} | {figures.served} | {figures.failed} | {gap} |")
    return "\n".join(lines)


def plot(results: dict[tuple[str, str], Figures]) -> str:
    """The longest gaps and the failures as a drawing in SVG."""
    height, left, width = 34, 240, 680
    longest = max(figures.longest_gap for figures in results.values())
    total = height * len(results) + 50
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="22" font-weight="bold">Longest time without an answer, and failed '
        "requests</text>",
    ]
    for index, ((name, way), figures) in enumerate(results.items()):
        y = 40 + height * index
        bar = max(2.0, figures.longest_gap / longest * (width - left - 210))
        color = {"reload": "#2a7", "takeover": "#2a7", "stop and start": "#c54"}.get(way, "#999")
        out += [
            f'<text x="{left - 10}" y="{y + 17}" text-anchor="end">{name}, {way}</text>',
            f'<rect x="{left}" y="{y}" width="{bar:.1f}" height="24" fill="{color}"/>',
            f'<text x="{left + bar + 8:.1f}" y="{y + 17}">{figures.longest_gap * 1000:.0f} ms, '
            f"{figures.failed} failed</text>",
        ]
    return "\n".join([*out, "</svg>", ""])


class Cargo(NamedTuple):
    """What is handed over.

    Attributes:
        sockets: listening ones, each asked for.
        state: bytes of state.
        kept: whether the state is in memory that is kept and mapped, filled beforehand.
    """

    sockets: int
    state: int = 0
    kept: bool = False

    def __str__(self) -> str:
        if not self.state:
            return f"{self.sockets} socket{'s' * (self.sockets > 1)}"
        how = "kept in memory, `keep` and `take`" if self.kept else "offered, `offer`"
        return f"1 socket, {self.state >> 20} MiB of state {how}"


CARGOES = [
    *map(Cargo, (1, 100, 1000)),
    *(Cargo(1, size << 20, kept) for kept in (False, True) for size in (1, 64)),
]


def hand_over(cargo: Cargo, rounds: int) -> list[float]:
    """Let so many processes take over, one after another; the seconds that each took."""
    with tempfile.TemporaryDirectory(prefix="handover-") as directory:
        command = [sys.executable, "-P", __file__, "--take-over", f"{directory}/control"]
        command += map(str, map(int, cargo))
        processes: list[subprocess.Popen[str]] = []
        seconds = []
        try:
            for _ in range(rounds + 1):
                processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                said = processes[-1].stdout
                assert said is not None
                seconds.append(float(said.readline()))
        finally:
            for process in processes:
                if process is processes[-1]:
                    process.kill()
                process.communicate(timeout=PATIENCE)
        # The first had no predecessor.
        return seconds[1:]


def take_over(control: str, cargo: Cargo) -> None:
    """Take over, print the seconds that it took, and serve until somebody follows."""
    begin = time.perf_counter()
    with Takeover(control) as takeover, contextlib.ExitStack() as stack:
        for index in range(cargo.sockets):
            stack.enter_context(takeover.listen(HOST, 0, name=f"listener {index}"))
        memory = takeover.take("memory")
        if memory is not None:
            stack.enter_context(mmap.mmap(memory.fileno(), cargo.state))
        takeover.ready()
        seconds = time.perf_counter() - begin
        if takeover.predecessor is not None:
            assert len(takeover.state) == (0 if cargo.kept else cargo.state)
        if cargo.kept:
            with memory or Descriptor(os.memfd_create("state")) as fd:
                if memory is None:
                    os.write(fd.fileno(), bytes(cargo.state))
                takeover.keep("memory", fd)
        else:
            takeover.offer(bytes(cargo.state))
        print(seconds, flush=True)
        takeover.wait()


def handover_table(results: dict[Cargo, list[float]]) -> str:
    """The seconds of each takeover as a table in Markdown."""
    lines = ["| handed over | median | fastest |", "|---|---:|---:|"]
    for cargo, seconds in results.items():
        median, fastest = (1000 * each for each in (statistics.median(seconds), min(seconds)))
        lines.append(f"| {cargo} | {median:.1f} ms | {fastest:.1f} ms |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write what is asked for."""
    parser = argparse.ArgumentParser(description="Restart real servers under load.")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--pause", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--table", type=Path, metavar="FILE.csv")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument("--handover", action="store_true", help="measure the handover alone")
    parser.add_argument("--rounds", type=int, default=11, help="handovers of each kind")
    parser.add_argument("--take-over", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        print(json.dumps(record(options.record, sys.stdin)))
        return
    if options.take_over:
        control, sockets, state, kept = options.take_over
        take_over(control, Cargo(int(sockets), int(state), kept == "1"))
        return
    lacks = "" if options.handover else missing()
    if lacks:
        sys.exit(lacks)
    print(handover_table({cargo: hand_over(cargo, options.rounds) for cargo in CARGOES}))
    if options.handover:
        return
    print()
    results = {
        (name, way): measure(server, way, options.restarts, options.pause)
        for name, server in SERVERS.items()
        for way in WAYS
    }
    unchanged = Server([sys.executable, "-c", _UNCHANGED], [])
    results[UNCHANGED, "takeover"] = measure(unchanged, "takeover", options.restarts, options.pause)
    print(table(results, options.restarts))
    if options.table:
        with options.table.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["server", "way", *Figures._fields])
            writer.writerows([*key, *figures] for key, figures in results.items())
    if options.plot:
        options.plot.write_text(plot(results))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
