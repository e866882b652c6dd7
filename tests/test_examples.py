"""The examples and the README do what they say."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import await_that
from helpers import GENEROUS, Call, patient, run_python
from sides import may_change_user

import conduit

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
README = (HERE.parent / "README.md").read_text()
REQUESTS = 3000


def readme_examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", readme_examples(), ids=lambda code: str(len(code)))
def test_an_example_of_the_readme_runs(code: str, tmp_path: Path) -> None:
    # As a file, which a process that is spawned imports.
    (tmp_path / "example.py").write_text(patient(code))
    run = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = run_python(run, str(tmp_path / "example.py"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_has_its_examples() -> None:
    shown = "".join(readme_examples())
    for name in ("Listener", "AsyncConduit", "Reader", "Channel", "listen_fds", "multiprocessing"):
        assert name in shown


@pytest.mark.parametrize(
    ("name", "lines"), [("into_asyncio", 3), ("into_trio", 1), ("into_anyio", 1)]
)
def test_a_received_connection_goes_straight_into_the_loop(name: str, lines: int) -> None:
    done = run_python((EXAMPLES / f"{name}.py").read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("b'hello\\n'") == lines


@pytest.mark.skipif(
    os.geteuid() == 0 and not may_change_user,
    reason="a root that cannot become another user (CAP_SETUID) has no rights to give up",
)
def test_the_broker_gives_what_is_allowed_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", EXAMPLES / "broker.py"],
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    read, bound, not_opened, not_bound, no_path, no_message = done.stdout.splitlines()
    assert read.endswith("for those who are given it")
    assert int(bound.rpartition(" ")[2])
    assert "shadow is not in" in not_opened
    assert "port 22 is not allowed" in not_bound
    assert no_path == "refused: not a request: ValueError"
    assert no_message == "refused: not a message"


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("dbus", "b'o file' []\nb'a pipe' ['fifo', 'fifo']\n"),
        ("qmp", "QMP\nbacking is a character device\n{}\n"),
        ("vhost_user", "3 0 []\n12 8 ['character device']\n"),
        ("wayland", "1 0 4 []\n3 0 8 ['memfd']\n1 0 4 []\n"),
    ],
)
def test_a_protocol_of_others_is_framed(name: str, printed: str) -> None:
    done = run_python((EXAMPLES / "framing" / f"{name}.py").read_text())
    assert (done.returncode, done.stderr, done.stdout) == (0, "", printed)


async def ask(port: int, request: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%d\n" % request)
    pid, _, answer = (await reader.readline()).partition(b" ")
    writer.close()
    await writer.wait_closed()
    assert int(answer) == request
    return pid.decode()


async def ask_all(port: int, requests: int = REQUESTS) -> set[str]:
    some = asyncio.Semaphore(50)

    async def one(request: int) -> str:
        async with some:
            return await ask(port, request)

    return set(await asyncio.gather(*map(one, range(requests))))


@contextlib.contextmanager
def serving(name: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run an example that serves on a port, until Ctrl-C; the process, and the port."""
    # Without coverage, which looks at each line in Python, and loses a Ctrl-C that comes then.
    environment = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    server = subprocess.Popen(
        [sys.executable, "-P", "-W", "error", EXAMPLES / name, *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with server:
        try:
            assert server.stdout is not None
            yield server, int(server.stdout.readline().split()[-1])
            server.send_signal(signal.SIGINT)
            assert server.wait(GENEROUS) == 0
        finally:
            server.kill()


@pytest.mark.slow
def test_the_acceptor_loses_none_of_thousands_of_requests() -> None:
    with serving("acceptor.py", "--workers=3") as (_, port):
        assert len(asyncio.run(ask_all(port))) == 3


def ask_open(port: int) -> tuple[socket.socket, str]:
    """Ask once; the connection, open still, and the pid of the worker that has it."""
    conn = socket.create_connection(("127.0.0.1", port), GENEROUS)
    conn.sendall(b"hello\n")
    return conn, conn.recv(100).split()[0].decode()


@pytest.mark.slow
def test_the_acceptor_gives_a_connection_to_the_least_busy_worker() -> None:
    with serving("acceptor.py", "--workers=3") as (_, port):
        open_ones = [ask_open(port) for _ in range(9)]
        counts = collections.Counter(pid for _, pid in open_ones)
        assert sorted(counts.values()) == [3, 3, 3]
        for conn, _ in open_ones:
            conn.close()


@pytest.mark.slow
def test_the_acceptor_replaces_a_worker_that_dies_and_loses_only_what_that_had() -> None:
    with serving("acceptor.py", "--workers=2") as (_, port):
        (lost, dead), (kept, alive) = ask_open(port), ask_open(port)
        with lost, kept:
            process = os.pidfd_open(int(dead))
            os.kill(int(dead), signal.SIGKILL)
            assert select.select([process], [], [], GENEROUS)[0]
            os.close(process)
            assert lost.recv(100) == b""
            open_ones = [ask_open(port) for _ in range(9)]
            counts = collections.Counter(pid for _, pid in open_ones)
            assert dead not in counts
            assert sorted(counts.values()) == [4, 5]
            assert counts[alive] == 4, "it had one before"
            kept.sendall(b"still\n")
            assert kept.recv(100).split() == [alive.encode(), b"still"]
            for conn, _ in open_ones:
                conn.close()


@pytest.mark.slow
def test_a_spawned_pool_answers_and_keeps_no_connection() -> None:
    with serving("spawn_pool.py", "--workers=2") as (server, port):
        asyncio.run(ask(port, 0))
        sockets = count_sockets(server.pid)
        assert 1 <= len(asyncio.run(ask_all(port, 200))) <= 2
        # The last ones are closed when the pool has told that they are done with.
        while count_sockets(server.pid) > sockets:
            os.sched_yield()


def count_sockets(pid: int) -> int:
    count = 0
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
    return count


@pytest.mark.slow
def test_an_array_is_added_up_by_workers_where_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", EXAMPLES / "shared_array.py"],
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == sum(range(1_000_000))


@pytest.mark.slow
def test_a_warm_worker_works_with_the_streams_of_who_asks(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-W", "error", str(EXAMPLES / "warm_worker.py")]
    path = str(tmp_path / "socket")
    server = subprocess.Popen([*command, "serve", path], stdout=subprocess.PIPE, text=True)
    with server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            pids = set()
            for _ in range(3):
                with open(tmp_path / "output", "w") as output:
                    done = subprocess.run(
                        [*command, "run", path, "a", "b"],
                        input="first\nsecond\n",
                        stdout=output,
                        stderr=subprocess.PIPE,
                        text=True,
                        timeout=GENEROUS,
                        check=False,
                    )
                assert done.returncode == 0
                assert (tmp_path / "output").read_text() == "1 a b first\n2 a b second\n"
                assert done.stderr.startswith("2 lines, in ")
                pids.add(done.stderr.split()[-1])
            assert len(pids) == 3
            empty = subprocess.run(
                [*command, "run", path], stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            assert (empty.returncode, empty.stdout) == (1, b"")
            server.send_signal(signal.SIGINT)
            assert server.wait(GENEROUS) == 0
        finally:
            server.kill()


class Client:
    """A session of the UDP example, which asks for nothing twice: each reply must come."""

    HEADER = struct.Struct("!IQ")

    def __init__(self, port: int) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.settimeout(GENEROUS)
        self.sock.connect(("127.0.0.1", port))
        self.header = self.HEADER.pack(0, 0)
        self.count = 0
        self.pid = ""
        self.ask()

    def ask(self, payload: bytes = b"hello") -> None:
        """Send a packet and receive its reply, from the process that has had all others."""
        self.sock.send(self.header + payload)
        reply = self.sock.recv(65536)
        header, (pid, count, echo) = reply[: self.HEADER.size], reply[12:].split(b" ", 2)
        self.count += 1
        assert (int(count), echo) == (self.count, payload)
        assert self.pid in ("", pid.decode())
        assert self.HEADER.unpack(self.header)[0] == 0 or header == self.header
        self.header, self.pid = header, pid.decode()

    def end(self) -> None:
        self.ask(b"")
        self.sock.setblocking(False)
        # Nothing comes twice.
        with pytest.raises(BlockingIOError):
            self.sock.recv(1)
        self.sock.close()


@contextlib.contextmanager
def clients(port: int, count: int) -> Iterator[tuple[list[Client], threading.Event]]:
    """Sessions that ask without a pause, each in a thread of its own, until they are told to end.

    Each has had at least one reply once the block begins.
    """
    ending = threading.Event()

    def go_on(client: Client) -> None:
        while not ending.is_set():
            client.ask(os.urandom(100).hex().encode())
        client.end()

    all_of_them = [Client(port) for _ in range(count)]
    calls = [Call(go_on, client) for client in all_of_them]
    try:
        yield all_of_them, ending
    finally:
        ending.set()
        for call in calls:
            call.result()


LOOPS = {
    "asyncio": "",
    "uvloop": """\
import asyncio, uvloop

def run(main):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)

asyncio.run = run
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_on_asyncio_is_replaced_under_load_without_a_lost_request(
    loop: str, tmp_path: Path
) -> None:
    pytest.importorskip(loop)
    environment = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    servers: list[subprocess.Popen[str]] = []

    def start(port: int) -> int:
        run = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
        command = [sys.executable, "-P", "-W", "error", "-c", LOOPS[loop] + run]
        command += [
            str(EXAMPLES / "asyncio_server.py"),
            "--control",
            f"{tmp_path}/control",
            "--port",
            str(port),
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        servers.append(server)
        assert server.stdout is not None
        return int(server.stdout.readline().split()[-1])

    async def ask_until(port: int, stopped: asyncio.Event) -> set[str]:
        pids = set()
        while not stopped.is_set():
            pids.add(await ask(port, 1))
        return pids

    async def restart(port: int) -> set[str]:
        stopped = asyncio.Event()
        clients = asyncio.gather(*(ask_until(port, stopped) for _ in range(30)))
        for _ in range(3):
            await asyncio.to_thread(start, port)
            # It ends by itself, all that it has accepted being answered.
            assert await asyncio.to_thread(servers[-2].wait, GENEROUS) == 0
        # The last one has served, too.
        await ask(port, 2)
        stopped.set()
        return set().union(*await clients)

    try:
        pids = asyncio.run(restart(start(0)))
        assert pids >= {str(server.pid) for server in servers[:-1]}
        servers[-1].send_signal(signal.SIGTERM)
        assert servers[-1].wait(GENEROUS) == 0
    finally:
        for server in servers:
            server.kill()
            server.communicate()
    assert os.listdir(tmp_path) == []


def test_a_server_on_asyncio_that_stops_right_after_it_accepted_answers_all() -> None:
    example = runpy.run_path(str(EXAMPLES / "asyncio_server.py"))

    async def serve_and_stop(listener: socket.socket) -> None:
        loop: Any = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []
        stopping = loop.create_future()
        accept = loop._accept_connection

        def accept_and_stop(*args: Any) -> None:
            accept(*args)
            # The first step runs now, before the tasks that were just made.
            step = example["stop"](server, listener)
            step.send(None)
            stopping.set_result(step)

        loop._accept_connection = accept_and_stop
        server = await asyncio.start_server(
            lambda *streams: tasks.append(loop.create_task(example["answer"](*streams))),
            sock=listener,
        )
        step = await stopping
        with contextlib.suppress(StopIteration):
            while True:
                step.send(None)
                await asyncio.sleep(0)
        assert len(tasks) == 5
        await asyncio.gather(*tasks)

    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(5)]
        for client in clients:
            client.sendall(b"hello\n")
        asyncio.run(asyncio.wait_for(serve_and_stop(listener), GENEROUS))
        assert [client.recv(100) for client in clients] == [b"%d hello\n" % os.getpid()] * 5


@pytest.mark.slow
def test_udp_sessions_survive_ten_takeovers_without_a_lost_reply(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-W", "error", str(EXAMPLES / "udp_sessions.py")]
    command += ["--control", f"{tmp_path}/control"]
    environment = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}

    def start(port: int) -> tuple[subprocess.Popen[str], int]:
        server = subprocess.Popen(
            [*command, f"--port={port}"], stdout=subprocess.PIPE, text=True, env=environment
        )
        servers.append(server)
        assert server.stdout is not None
        pid, *_, port_said = server.stdout.readline().split()
        assert int(pid) == server.pid
        return server, int(port_said)

    servers: list[subprocess.Popen[str]] = []
    try:
        newest, port = start(0)
        with contextlib.ExitStack() as stack:
            # Ten from the beginning; one more from each of the ten processes that follow.
            lasting, _ = stack.enter_context(clients(port, 10))
            for _ in range(10):
                newest, _ = start(port)
                stack.enter_context(clients(port, 1))
            assert {client.pid for client in lasting} == {str(servers[0].pid)}
            await_that(lambda: min(client.count for client in lasting) > 10)
            assert all(server.poll() is None for server in servers)
        # All sessions have ended, and so has whoever is not the newest.
        for server in servers[:-1]:
            assert server.wait(GENEROUS) == 0
        newest.send_signal(signal.SIGINT)
        assert newest.wait(GENEROUS) == 0
    finally:
        for server in servers:
            server.kill()
            server.communicate()
    assert os.listdir(tmp_path) == []


def test_a_datagram_that_an_older_process_reads_is_passed_on_to_the_newer_one() -> None:
    example = runpy.run_path(str(EXAMPLES / "udp_sessions.py"))

    async def route_at_the_older(sock: socket.socket, client: socket.socket) -> None:
        old, new = (example["Server"](sock, generation, GENEROUS) for generation in (1, 2))
        down, up = conduit.Conduit.pair(type=socket.SOCK_SEQPACKET)
        talks = asyncio.gather(old.newer.talk(down), new.older.talk(up))
        old.is_followed = True
        header = Client.HEADER.pack(0, 0)
        for count in (b"1", b"2"):
            old.route(header + b"\0\xff", client.getsockname())
            reply = await asyncio.get_running_loop().sock_recv(client, 100)
            header = reply[:12]
            assert Client.HEADER.unpack(header)[0] == 2
            assert reply[12:].split(b" ") == [b"%d" % os.getpid(), count, b"\0\xff"]
        old.route(header, client.getsockname())
        old.newer.finish()
        await talks
        await new.is_idle.wait()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            sock.bind(("127.0.0.1", 0))
            client.bind(("127.0.0.1", 0))
            client.setblocking(False)
            asyncio.run(asyncio.wait_for(route_at_the_older(sock, client), GENEROUS))
