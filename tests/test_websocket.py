"""examples/websocket: clients stay connected, with their state, while the server is replaced."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from helpers import GENEROUS

pytest.importorskip("wsproto")

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    Request,
    TextMessage,
)

EXAMPLE = Path(__file__).parent.parent / "examples" / "websocket"

# Without coverage, which looks at each line in Python: the tests below have a thousand clients.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}

pytestmark = pytest.mark.slow


class Line:
    """Servers that follow each other."""

    def __init__(self, control: Path) -> None:
        self.control = control
        self.running: list[subprocess.Popen[str]] = []
        self.port = 0

    def start(self, *options: str) -> None:
        """Start a server, which replaces the one that runs."""
        words = [sys.executable, "-W", "error", str(EXAMPLE / "serve.py"), *options]
        server = subprocess.Popen(
            [*words, "--control", str(self.control)],
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.running.append(server)
        assert server.stdout is not None
        self.port = int(server.stdout.readline().split()[-1])

    def wait(self) -> None:
        """Wait until the oldest has ended, which it does when all its connections are gone."""
        assert self.running[0].wait(GENEROUS) == 0
        self.close(self.running.pop(0))

    def deploy(self, *options: str) -> None:
        self.start(*options)
        self.wait()

    def close(self, server: subprocess.Popen[str]) -> None:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path / "control")
    line.start()
    try:
        yield line
        line.running[-1].send_signal(signal.SIGTERM)
        line.wait()
    finally:
        for server in line.running:
            line.close(server)


class Client:
    """A client that does one thing after another."""

    def __init__(self, port: int, path: str = "/path", buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(GENEROUS)
        self.sock.connect(("127.0.0.1", port))
        self.websocket = WSConnection(ConnectionType.CLIENT)
        self.path = path
        self.events: list[Event] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def data(self, *events: Event) -> bytes:
        return b"".join(map(self.websocket.send, events))

    def send(self, *events: Event) -> None:
        self.sock.sendall(self.data(*events))

    def receive(self) -> Event:
        """Receive an event; the end is one, too."""
        while not self.events:
            data = self.sock.recv(65536)
            self.websocket.receive_data(data or None)
            self.events += self.websocket.events()
            if not data and not self.events:
                raise EOFError
        return self.events.pop(0)

    def receive_text(self) -> str:
        event = self.receive()
        assert isinstance(event, TextMessage)
        text = event.data
        while not event.message_finished:
            event = self.receive()
            assert isinstance(event, TextMessage)
            text += event.data
        return text

    def open(self) -> Client:
        self.send(Request(host="localhost", target=self.path))
        self.receive()
        assert self.websocket.state is ConnectionState.OPEN
        return self

    def ask(self, text: str) -> str:
        self.send(TextMessage(text))
        return self.receive_text()


LONG = "long" * 100
"""A message that says its length in two bytes more."""

LONGER = "longer" * 20_000
"""One that says it in eight."""


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        pytest.param("text", 0, id="between two messages"),
        pytest.param("text", 1, id="one byte"),
        pytest.param(LONG, 3, id="half of the length"),
        pytest.param(LONGER, 9, id="most of the length"),
        pytest.param("text", 4, id="some of the mask"),
        pytest.param("text", 8, id="some of the payload"),
        pytest.param(LONGER, 100_000, id="much of the payload"),
    ],
)
def test_a_message_comes_before_and_after_the_server_is_replaced(
    line: Line, text: str, cut: int
) -> None:
    with Client(line.port).open() as client:
        assert client.ask("first") == "/path 1 first"
        data = client.data(TextMessage(text))
        client.sock.sendall(data[:cut])
        line.deploy()
        client.sock.sendall(data[cut:])
        assert client.receive_text() == f"/path 2 {text}"
        line.deploy()
        assert client.ask("last") == "/path 3 last"


def test_a_message_has_a_frame_before_and_one_after_the_server_is_replaced(line: Line) -> None:
    with Client(line.port).open() as client:
        client.send(TextMessage("on", message_finished=False), Ping(b"now"))
        assert client.receive() == Pong(b"now")
        line.deploy()
        client.send(TextMessage("e mess", message_finished=False), Ping(b"then"))
        assert client.receive() == Pong(b"then")
        line.deploy()
        client.send(TextMessage("age"))
        assert client.receive_text() == "/path 1 one message"


@pytest.mark.parametrize("cut", [0, 10])
def test_a_request_comes_before_and_after_the_server_is_replaced(line: Line, cut: int) -> None:
    with Client(line.port) as client:
        data = client.data(Request(host="localhost", target=client.path))
        client.sock.sendall(data[:cut])
        # Answered, so that what was accepted before it has been accepted.
        with Client(line.port).open():
            line.deploy()
        client.sock.sendall(data[cut:])
        client.receive()
        assert client.ask("text") == "/path 1 text"


def test_a_client_that_sends_without_waiting_gets_each_answer_once_and_in_order(
    line: Line,
) -> None:
    count = 30_000
    with Client(line.port).open() as client:
        data = b"".join(client.data(TextMessage(str(number))) for number in range(count))
        sending = threading.Thread(target=client.sock.sendall, args=(data,))
        sending.start()
        for number in range(count):
            if number % 10_000 == 100:
                line.start()
            assert client.receive_text() == f"/path {number + 1} {number}"
        sending.join()
        while len(line.running) > 1:
            line.wait()


def is_served_by(server: subprocess.Popen[str], client: Client) -> bool:
    """Whether a server has the other end of a client's connection."""
    (_, near), (_, far) = client.sock.getsockname(), client.sock.getpeername()
    # While others come and go, the system may leave one out, or tell of it twice.
    names = {
        f"socket:[{fields[9]}]"
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines())
        if (fields[1][-5:], fields[2][-5:]) == (f":{far:04X}", f":{near:04X}")
    }
    directory = f"/proc/{server.pid}/fd"
    with contextlib.suppress(FileNotFoundError):
        for fd in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{directory}/{fd}") in names:
                    return True
    return False


def test_a_client_that_does_not_read_holds_up_nobody(line: Line) -> None:
    # More than the buffers of the system take: the server cannot send all the answers.
    count = 200
    with Client(line.port, buffer=4096).open() as client, Client(line.port).open() as other:
        assert other.ask("before") == "/path 1 before"
        data = client.data(TextMessage(LONGER)) * count
        sending = threading.Thread(target=client.sock.sendall, args=(data,))
        sending.start()
        for number in (2, 3):
            line.start()
            while not is_served_by(line.running[-1], other):
                os.sched_yield()
            assert other.ask("after") == f"/path {number} after"
        for number in range(count):
            assert client.receive_text() == f"/path {number + 1} {LONGER}"
        sending.join()
        line.wait()
        line.wait()
        assert client.ask("last") == f"/path {count + 1} last"
        assert other.ask("last") == "/path 4 last"


def test_a_server_that_is_stopped_tells_its_clients_to_go(line: Line) -> None:
    with Client(line.port).open() as client, Client(line.port) as silent:
        line.running[0].send_signal(signal.SIGTERM)
        event = client.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == 1001
        client.send(event.response())
        silent.sock.close()
        line.wait()
    line.start()


@pytest.mark.parametrize(
    ("events", "code"),
    [
        pytest.param([BytesMessage(b"not a text")], 1003, id="bytes"),
        pytest.param([TextMessage("x" * (1 << 20))], 1009, id="too long"),
        pytest.param([TextMessage("x" * 600_000, message_finished=False)] * 2, 1009, id="in two"),
        pytest.param([CloseConnection(1000)], 1000, id="goodbye"),
    ],
)
def test_a_client_that_is_closed_is_told_why(line: Line, events: list[Event], code: int) -> None:
    with Client(line.port).open() as client:

        def send() -> None:
            # It is closed in the middle, once it is too long.
            with contextlib.suppress(ConnectionError):
                client.send(*events)

        sending = threading.Thread(target=send)
        sending.start()
        event = client.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == code
        sending.join()


def test_what_is_no_websocket_is_refused(line: Line) -> None:
    with socket.create_connection(("127.0.0.1", line.port), GENEROUS) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")


def run(script: Path, *options: str) -> tuple[int, list[str]]:
    """Run a script that says nothing of an error; the exit code, and the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *options],
        capture_output=True,
        text=True,
        timeout=100,
        env=ENVIRONMENT,
        check=False,
    )
    print(done.stdout)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def deploy(*options: str) -> tuple[int, list[int]]:
    """Run the example's own clients; the exit code, and the numbers of the last line."""
    code, lines = run(EXAMPLE / "deploy.py", *options)
    return code, list(map(int, re.findall(r"\d+", lines[-1])))


# Each has one at its end, and some are on their way from one server to the next.
_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
MANY = 1000 if HARD == resource.RLIM_INFINITY else min(1000, HARD // 2)


@pytest.mark.parametrize(
    ("clients", "deploys"), [(50, 3), pytest.param(MANY, 10, marks=pytest.mark.long)]
)
def test_many_clients_stay_connected_through_many_deploys(clients: int, deploys: int) -> None:
    code, seen = deploy(f"--clients={clients}", f"--deploys={deploys}")
    *had, answers, faults, closed, _ = seen
    assert (code, had, faults, closed) == (0, [clients, deploys], 0, 0)
    assert answers > clients * deploys


def test_the_same_clients_notice_a_deploy_that_closes_their_connections() -> None:
    code, (clients, deploys, _, faults, closed, _) = deploy(
        "--clients=50", "--deploys=2", "--close"
    )
    assert (code, clients, deploys, faults, closed) == (0, 50, 2, 0, 100)


def test_the_benchmark_writes_what_it_measured(tmp_path: Path) -> None:
    table, plot = tmp_path / "table.csv", tmp_path / "plot.svg"
    options = "--clients=20", "--deploys=1", f"--table={table}", f"--plot={plot}"
    code, lines = run(EXAMPLE.parent.parent / "benchmarks" / "websocket.py", *options)
    assert code == 0
    rows = [line.split(" | ") for line in lines[2:]]
    assert [row[0] for row in rows] == ["| handed over", "| closed", "| no deploy"]
    assert [row[2:4] for row in rows] == [["0", "0"], ["0", "20"], ["0", "0"]]
    assert len(table.read_text().splitlines()) == 1 + 3 * 102
    assert plot.read_text().startswith("<svg ")
