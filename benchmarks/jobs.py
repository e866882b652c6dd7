"""The jobs that are measured, and how each contestant does them.

To add one, write a function that returns a `Comparison` and name it in ``comparisons``.
"""

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import reduction
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import anyio
from anyio.abc import UNIXSocketStream
from floor import Floor
from rounds import Round, clocked, clocked_after

import conduit
from conduit.aio import AsyncConduit, AsyncReader
from conduit.channel import Channel
from conduit.reader import Reader

FLOOR = "C floor"
OURS = "conduit"
STDLIB = "send_fds, recv_fds"
REDUCTION = "multiprocessing.reduction"
ANYIO = "anyio"
STREAM_READER = "asyncio, StreamReader.readline"

LINE = b"x" * 79 + b"\n"

# As anyio takes them, the module that each needs, and the most that our time may be of anyio's.
LOOPS: dict[str, tuple[dict[str, Any], str, float]] = {
    "asyncio": ({"backend": "asyncio"}, "asyncio", 0.45),
    "uvloop": ({"backend": "asyncio", "backend_options": {"use_uvloop": True}}, "uvloop", 0.45),
    "trio": ({"backend": "trio"}, "trio", 0.3),
}


@dataclass(frozen=True)
class Bar:
    """The most that a contestant may take relative to another."""

    name: str
    base: str
    most: float


@dataclass(frozen=True)
class Comparison:
    """One job, the contestants, what they are compared with, and the bars of the design."""

    title: str
    contestants: dict[str, Round]
    alternative: str
    bars: Sequence[Bar] = field(default=())


@dataclass(frozen=True)
class Setting:
    """What all comparisons share: the floor's process, and what is closed in the end."""

    floor: Floor
    stack: ExitStack

    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """Return a connected pair, closed when the run is over."""
        one, other = socket.socketpair()
        return self.stack.enter_context(one), self.stack.enter_context(other)

    def conduits(self, kind: int = socket.SOCK_STREAM) -> tuple[conduit.Conduit, conduit.Conduit]:
        """Return a connected pair, closed when the run is over."""
        one, other = conduit.Conduit.pair(type=kind)
        return self.stack.enter_context(one), self.stack.enter_context(other)

    def opened(self, path: str) -> int:
        """Return a descriptor of a file open for reading, closed when the run is over."""
        fd = os.open(path, os.O_RDONLY)
        self.stack.callback(os.close, fd)
        return fd


def one_fd(setting: Setting) -> Comparison:
    fd = setting.opened(os.devnull)
    here, there = setting.conduits()
    sock_here, sock_there = setting.sockets()

    def ours(iterations: int) -> None:
        for _ in range(iterations):
            here.transfer_fd(os.dup(fd))
            os.close(there.receive_fd())

    def stdlib(iterations: int) -> None:
        for _ in range(iterations):
            sent = os.dup(fd)
            socket.send_fds(sock_here, [b"\0"], [sent])
            os.close(sent)
            _, fds, _, _ = socket.recv_fds(sock_there, 1, 1)
            os.close(fds[0])

    # Since Python 3.14 sendfds() waits until recvfds() has acknowledged, which comes after it
    # here: each takes the acknowledgement of the one before.
    sock_there.send(b"A")

    def multiprocessing(iterations: int) -> None:
        for _ in range(iterations):
            sent = os.dup(fd)
            reduction.sendfds(sock_here, [sent])  # type: ignore[attr-defined,unused-ignore]
            os.close(sent)
            os.close(reduction.recvfds(sock_there, 1)[0])  # type: ignore[attr-defined,unused-ignore]

    return Comparison(
        "transfer_fd and receive_fd: duplicate, send, close, receive, close",
        {
            FLOOR: setting.floor.contestant("one", 1),
            OURS: clocked(ours),
            STDLIB: clocked(stdlib),
            REDUCTION: clocked(multiprocessing),
        },
        STDLIB,
        [Bar(OURS, FLOOR, 1.2), Bar(OURS, STDLIB, 0.7)],
    )


def relay(
    setting: Setting,
    title: str,
    make: Callable[[], Any],
    send: str,
    receive: Callable[[Any], Any],
    open_fd: Callable[[int], Any],
    most: float,
) -> Comparison:
    """Compare sending an object, and receiving the one that is sent next."""
    here, there = setting.conduits()
    sock_here, sock_there = setting.sockets()
    transfer = getattr(here, send)

    def ours(iterations: int) -> None:
        obj = make()
        for _ in range(iterations):
            transfer(obj)
            obj = receive(there)
        obj.close()

    def stdlib(iterations: int) -> None:
        obj = make()
        for _ in range(iterations):
            socket.send_fds(sock_here, [b"\0"], [obj.fileno()])
            obj.close()
            _, fds, _, _ = socket.recv_fds(sock_there, 1, 1)
            obj = open_fd(fds[0])
        obj.close()

    return Comparison(
        title,
        {
            FLOOR: setting.floor.contestant("relay", 1),
            OURS: clocked(ours),
            STDLIB: clocked(stdlib),
        },
        STDLIB,
        [Bar(OURS, STDLIB, most)],
    )


def one_socket(setting: Setting) -> Comparison:
    return relay(
        setting, "transfer_conn and receive_conn, TCP socket objects",
        socket.socket, "transfer_conn", lambda there: there.receive_conn(),
        lambda fd: socket.socket(fileno=fd), 0.8,
    )  # fmt: skip


def one_file(setting: Setting, mode: str) -> Comparison:
    encoding = None if "b" in mode else "utf-8"
    return relay(
        setting, f'transfer_file and receive_file, file objects, "{mode}"',
        partial(open, __file__, mode, encoding=encoding), "transfer_file",
        lambda there: there.receive_file(mode, encoding=encoding),
        partial(open, mode=mode, encoding=encoding), 1.0,
    )  # fmt: skip


def moved(
    setting: Setting, count: int, most_ints: float | None = None,
    most_descriptors: float | None = None,
) -> Comparison:  # fmt: skip
    """Compare moving several, each with a number of its own, and closing what came."""
    fd = setting.opened(os.devnull)
    here, there = setting.conduits()
    sock_here, sock_there = setting.sockets()

    def ints() -> list[int]:
        return [os.dup(fd) for _ in range(count)]

    def descriptors() -> list[conduit.Descriptor]:
        return [conduit.Descriptor(os.dup(fd)) for _ in range(count)]

    def ours(items: Sequence[Any]) -> None:
        here.transfer(*items)
        with there.receive():
            pass

    def detached(items: Sequence[Any]) -> None:
        here.transfer(*items)
        for descriptor in there.receive().fds:
            os.close(descriptor.detach())

    def stdlib(items: list[int]) -> None:
        socket.send_fds(sock_here, [b"\0"], items)
        for item in items:
            os.close(item)
        _, fds, _, _ = socket.recv_fds(sock_there, 1, count)
        for item in fds:
            os.close(item)

    # As in `one_fd`.
    sock_there.send(b"A")

    def multiprocessing(items: list[int]) -> None:
        reduction.sendfds(sock_here, items)  # type: ignore[attr-defined,unused-ignore]
        for item in items:
            os.close(item)
        for item in reduction.recvfds(sock_there, count):  # type: ignore[attr-defined,unused-ignore]
            os.close(item)

    with_ints, with_descriptors = f"{OURS}, ints", f"{OURS}, Descriptors"
    return Comparison(
        f"move {count}: transfer, receive, close",
        {
            FLOOR: setting.floor.contestant("move", count),
            with_ints: clocked_after(ints, ours),
            with_descriptors: clocked_after(descriptors, ours),
            f"{with_descriptors}, each detached": clocked_after(descriptors, detached),
            STDLIB: clocked_after(ints, stdlib),
            REDUCTION: clocked_after(ints, multiprocessing),
        },
        STDLIB,
        [
            Bar(name, FLOOR, most)
            for name, most in [(with_ints, most_ints), (with_descriptors, most_descriptors)]
            if most is not None
        ],
    )


def shared(setting: Setting, count: int) -> Comparison:
    """Compare sharing several, and closing what came."""
    items = [setting.opened(os.devnull) for _ in range(count)]
    here, there = setting.conduits()
    sock_here, sock_there = setting.sockets()

    def ours(iterations: int) -> None:
        for _ in range(iterations):
            here.transfer(*items, keep=True)
            with there.receive():
                pass

    def stdlib(iterations: int) -> None:
        for _ in range(iterations):
            socket.send_fds(sock_here, [b"\0"], items)
            _, fds, _, _ = socket.recv_fds(sock_there, 1, count)
            for fd in fds:
                os.close(fd)

    return Comparison(
        f"share {count}: transfer(keep=True), receive, close",
        {
            FLOOR: setting.floor.contestant("share", count),
            OURS: clocked(ours),
            STDLIB: clocked(stdlib),
        },
        STDLIB,
        [Bar(OURS, FLOOR, 1.15)],
    )


def objects(setting: Setting, kind: int) -> Comparison:
    """Compare sending a small dict with a descriptor in it with what one would write instead."""
    stream = kind == socket.SOCK_STREAM
    one, other = (Channel(end) for end in setting.conduits(kind))
    here, there = setting.conduits(kind)

    def ours(iterations: int) -> None:
        fd = conduit.Descriptor(os.open(os.devnull, os.O_RDONLY))
        for _ in range(iterations):
            one.send({"op": "open", "mode": "r", "file": fd})
            fd = other.receive()["file"]
        fd.close()

    def by_hand(iterations: int) -> None:
        fd = conduit.Descriptor(os.open(os.devnull, os.O_RDONLY))
        for _ in range(iterations):
            body = json.dumps({"op": "open", "mode": "r", "file": 0}).encode()
            if stream:
                here.transfer(fd, data=len(body).to_bytes(4, "little") + body)
                first = there.receive(4)
                size = int.from_bytes(first.data, "little")
                obj = json.loads(there.receive(size).data)
            else:
                here.transfer(fd, data=body)
                first = there.receive()
                obj = json.loads(first.data)
            obj["file"] = first.fds[obj["file"]]
            fd = obj["file"]
        fd.close()

    other_way = "json, transfer, receive"
    return Comparison(
        f"Channel, {'a stream' if stream else 'packets'}: a small dict with one descriptor",
        {OURS: clocked(ours), other_way: clocked(by_hand)},
        other_way,
        [Bar(OURS, other_way, 1.5)],
    )


def on_a_loop(setting: Setting, loop: str) -> Comparison:
    fd = setting.opened(os.devnull)
    options, _, most = LOOPS[loop]

    async def ours(iterations: int) -> int:
        one, other = AsyncConduit.pair()
        async with one, other:
            begun = perf_counter_ns()
            for _ in range(iterations):
                await one.transfer_fd(os.dup(fd))
                os.close(await other.receive_fd())
            return perf_counter_ns() - begun

    async def theirs(iterations: int) -> int:
        ends = socket.socketpair()
        one, other = [await UNIXSocketStream.from_socket(end) for end in ends]
        async with one, other:
            begun = perf_counter_ns()
            for _ in range(iterations):
                copy = os.dup(fd)
                await one.send_fds(b"\0", [copy])
                os.close(copy)
                _, (arrived,) = await other.receive_fds(1, 1)
                os.close(arrived)
            return perf_counter_ns() - begun

    return Comparison(
        f"on {loop}: transfer_fd and receive_fd, against anyio's send_fds and receive_fds",
        {
            OURS: lambda iterations: anyio.run(ours, iterations, **options),
            ANYIO: lambda iterations: anyio.run(theirs, iterations, **options),
        },
        ANYIO,
        [Bar(OURS, ANYIO, most)],
    )


def lines(setting: Setting) -> Comparison:
    """Compare reading lines, of which some hundreds are there whenever more are received."""

    def batches(iterations: int) -> Iterator[int]:
        while iterations:
            batch = min(iterations, 500)
            yield batch
            iterations -= batch

    def ours(iterations: int) -> None:
        for batch in batches(iterations):
            sock.sendall(LINE * batch)
            for _ in range(batch):
                reader.receive_until(b"\n")

    async def ours_async(iterations: int) -> int:
        one, other = socket.socketpair()
        with one, other:
            async with AsyncConduit.from_conn(other) as link, AsyncReader(link) as reader:
                begun = perf_counter_ns()
                for batch in batches(iterations):
                    one.sendall(LINE * batch)
                    for _ in range(batch):
                        await reader.receive_until(b"\n")
                return perf_counter_ns() - begun

    async def theirs(iterations: int) -> int:
        one, other = socket.socketpair()
        with one:
            reader, writer = await asyncio.open_connection(sock=other)
            begun = perf_counter_ns()
            for batch in batches(iterations):
                one.sendall(LINE * batch)
                for _ in range(batch):
                    await reader.readline()
            took = perf_counter_ns() - begun
            writer.close()
            await writer.wait_closed()
            return took

    sock, other = setting.sockets()
    link = setting.stack.enter_context(conduit.Conduit.from_conn(other))
    reader = setting.stack.enter_context(Reader(link))
    with_reader, with_async = f"{OURS}, Reader", f"{OURS}, AsyncReader on asyncio"
    return Comparison(
        "lines of 80 bytes: send many, and receive each",
        {
            with_reader: clocked(ours),
            with_async: lambda iterations: asyncio.run(ours_async(iterations)),
            STREAM_READER: lambda iterations: asyncio.run(theirs(iterations)),
        },
        STREAM_READER,
        [Bar(with_reader, STREAM_READER, 1.0), Bar(with_async, STREAM_READER, 1.0)],
    )


def imported(_: Setting) -> Comparison:
    """Compare importing modules, each time in a new interpreter, whose start is not timed."""
    path = str(Path(conduit.__file__).parent.parent)

    def importing(module: str) -> Round:
        program = (
            f"import sys, time; sys.path.insert(0, {path!r}); begun = time.perf_counter_ns(); "
            f"import {module}; print(time.perf_counter_ns() - begun)"
        )

        def run(iterations: int) -> int:
            return sum(
                int(subprocess.check_output([sys.executable, "-I", "-c", program]))
                for _ in range(iterations)
            )

        return run

    ours, base = "import conduit", "import socket"
    return Comparison(
        "import, in a new interpreter",
        {ours: importing("conduit"), base: importing("socket")},
        base,
        [Bar(ours, base, 1.3)],
    )


def comparisons(setting: Setting) -> list[Comparison]:
    """Return all comparisons, in the order of the table."""
    return [
        one_fd(setting),
        moved(setting, 1),
        moved(setting, 16, 1.3, 1.3),
        moved(setting, 253, 1.3, 1.25),
        shared(setting, 253),
        one_socket(setting),
        one_file(setting, "rb"),
        one_file(setting, "r"),
        objects(setting, socket.SOCK_SEQPACKET),
        objects(setting, socket.SOCK_STREAM),
        *[
            on_a_loop(setting, loop)
            for loop, (_, module, _) in LOOPS.items()
            if importlib.util.find_spec(module)
        ],
        lines(setting),
        imported(setting),
    ]
