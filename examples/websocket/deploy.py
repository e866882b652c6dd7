"""Keep many WebSocket clients busy through many deploys of serve.py, and say what they saw.

    python examples/websocket/deploy.py [--clients N] [--deploys M] [--close]

A client sends numbered messages, one or three at a time, waits for the answers, rests and goes on.
Some messages have two frames with a ping between them, and some come in two parts with a pause
between those. Each answer must be the one that is due, and have the number that is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Event, Ping, Pong, Request, TextMessage

SERVER = Path(__file__).resolve().parent / "serve.py"
PATIENCE = 30.0
"""Seconds that nothing takes unless it hangs."""


class ClosedError(Exception):
    """The server closed the connection."""


class Client:
    """A client, and what it saw.

    Attributes:
        answered: how many answers came.
        fault: what came in place of what was due, the first time.
        closes: how often its connection was closed, and it connected anew.
        unsure: messages without an answer then. It sent them again: the server may have had them.
        longest_wait: the most seconds that an answer took; after a close, since that if nothing was
            sent before it.
    """

    def __init__(self, name: int, port: int, rest: float) -> None:
        self.path, self.port, self.rest = f"/client/{name}", port, rest
        self.random = random.Random(name)
        self.answered = self.closes = self.unsure = 0
        self.fault = ""
        self.longest_wait = 0.0
        self.has_all = asyncio.Event()
        self.numbers = itertools.count()
        self.unanswered: deque[tuple[str, float]] = deque()

    async def run(self, enough: asyncio.Event) -> None:
        """Send and receive until it is enough, on one connection unless that is closed."""
        while not (enough.is_set() or self.fault):
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                await self.talk(enough)
            except TimeoutError:
                self.fault = f"no answer to {[text for text, _ in self.unanswered]}"
            except (ClosedError, ConnectionError):
                self.closes += 1
                self.unsure += len(self.unanswered)
                if not self.unanswered:
                    self.unanswered.append((f"message {next(self.numbers)}", time.monotonic()))
            finally:
                self.writer.close()
                with contextlib.suppress(OSError):
                    await self.writer.wait_closed()
        self.has_all.set()

    async def next_round(self) -> None:
        """Wait until it has all its answers once more."""
        if not self.fault:
            self.has_all.clear()
            await self.has_all.wait()

    async def talk(self, enough: asyncio.Event) -> None:
        self.websocket = WSConnection(ConnectionType.CLIENT)
        self.messages = self.pings = 0
        self.send(Request(host="localhost", target=self.path))
        while self.websocket.state is ConnectionState.CONNECTING:
            await self.receive()
        for text, _ in self.unanswered:
            self.send(TextMessage(text))
        while not (enough.is_set() or self.fault):
            async with asyncio.timeout(PATIENCE):
                while (self.unanswered or self.pings) and not self.fault:
                    await self.receive()
            self.has_all.set()
            # It listens while it rests, and notices at once if it is told to go.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.random.uniform(0.5, 1.5) * self.rest):
                    while True:
                        await self.receive()
            await self.send_some()
        self.send(CloseConnection(1000))
        with contextlib.suppress(ClosedError):
            while True:
                await self.receive()

    async def send_some(self) -> None:
        texts = [f"message {next(self.numbers)}" for _ in range(self.random.choice((1, 1, 3)))]
        data = b"".join(map(self.in_frames, texts))
        if self.random.random() < 0.2:
            cut = self.random.randrange(len(data))
            self.writer.write(data[:cut])
            await asyncio.sleep(self.random.random() * self.rest / 2)
            data = data[cut:]
        self.writer.write(data)
        now = time.monotonic()
        self.unanswered.extend((text, now) for text in texts)

    def in_frames(self, text: str) -> bytes:
        if self.random.random() < 0.8:
            return self.websocket.send(TextMessage(text))
        self.pings += 1
        events = TextMessage(text[:4], message_finished=False), Ping(b"?"), TextMessage(text[4:])
        return b"".join(map(self.websocket.send, events))

    def send(self, event: Event) -> None:
        self.writer.write(self.websocket.send(event))

    async def receive(self) -> None:
        data = await self.reader.read(65536)
        if not data:
            raise ClosedError
        self.websocket.receive_data(data)
        for event in self.websocket.events():
            if isinstance(event, CloseConnection):
                if self.websocket.state is ConnectionState.REMOTE_CLOSING:
                    self.send(event.response())
                raise ClosedError
            if isinstance(event, Pong):
                self.pings -= 1
            elif isinstance(event, TextMessage):
                self.check(event.data)

    def check(self, answer: str) -> None:
        self.messages += 1
        text, sent_at = self.unanswered.popleft() if self.unanswered else ("nothing", 0.0)
        due = f"{self.path} {self.messages} {text}"
        if answer != due:
            self.fault = self.fault or f"{answer!r} came, and {due!r} was due"
        self.answered += 1
        self.longest_wait = max(self.longest_wait, time.monotonic() - sent_at)


async def start_server(control: Path, *options: str) -> tuple[asyncio.subprocess.Process, int]:
    """Start a server that takes over from the one that runs; the process, and its port."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(SERVER), "--control", str(control), *options),
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    return server, int((await server.stdout.readline()).split()[-1])


@contextlib.asynccontextmanager
async def busy(count: int, port: int, rest: float) -> AsyncIterator[list[Client]]:
    """Have so many clients send and receive."""
    enough = asyncio.Event()
    clients = [Client(number, port, rest) for number in range(count)]
    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.run(enough))
        await asyncio.gather(*(client.next_round() for client in clients))
        yield clients
        enough.set()


async def deploy(
    count: int, deploys: int, *options: str, rest: float = 0.4, replaces: bool = True
) -> tuple[list[Client], list[list[float]]]:
    """Have so many clients see so many deploys.

    Args:
        count: of clients.
        deploys: how often the server is replaced.
        options: of serve.py.
        rest: seconds between an answer and the next message, on average.
        replaces: whether it is; else there is only a second in place of a deploy, to compare.

    Returns:
        the clients, and for each deploy the longest wait of each.
    """
    waits = []
    with tempfile.TemporaryDirectory(prefix="websocket-") as directory:
        control = Path(directory) / "control"
        running, port = await start_server(control, *options)
        try:
            async with busy(count, port, rest) as clients:
                for _ in range(deploys):
                    for client in clients:
                        client.longest_wait = 0.0
                    if replaces:
                        old, (running, _) = running, await start_server(control, *options)
                        async with asyncio.timeout(PATIENCE):
                            if code := await old.wait():
                                raise RuntimeError(f"the old server ended with {code}")
                    else:
                        await asyncio.sleep(1.0)
                    await asyncio.gather(*(client.next_round() for client in clients))
                    waits.append([client.longest_wait for client in clients])
            running.terminate()
            await running.wait()
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()
    return clients, waits


def raise_limit_of_descriptors() -> None:
    """Let this process open as many as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS says infinite, and allows so many by default (OPEN_MAX).
    soft = 10_240 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main() -> None:
    parser = argparse.ArgumentParser(description="Deploy a WebSocket server under its clients.")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--deploys", type=int, default=10)
    parser.add_argument("--close", action="store_true", help="close connections at a deploy")
    options = parser.parse_args()
    raise_limit_of_descriptors()
    closing = ["--close"] if options.close else []
    clients, waits = asyncio.run(deploy(options.clients, options.deploys, *closing))
    for number, longest in enumerate(waits, 1):
        print(
            f"deploy {number}: longest wait for an answer: median "
            f"{statistics.median(longest) * 1000:.0f} ms, at most {max(longest) * 1000:.0f} ms"
        )
    for client in clients:
        if client.fault:
            print(f"{client.path}: {client.fault}")
    print(
        f"{len(clients)} clients, {len(waits)} deploys: "
        f"{sum(client.answered for client in clients)} answers, "
        f"{sum(bool(client.fault) for client in clients)} clients with one that was not due, "
        f"{sum(client.closes for client in clients)} connections closed, "
        f"{sum(client.unsure for client in clients)} messages unanswered then"
    )
    if any(client.fault or (client.closes and not options.close) for client in clients):
        sys.exit(1)


if __name__ == "__main__":
    main()
