"""How the cost of a transfer grows: with descriptors, with bytes, with open connections.

Each function returns, for each number, the contestants that ``rounds.measure`` lets take turns.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from time import perf_counter_ns
from typing import Any

from jobs import FLOOR, OURS, REDUCTION, STDLIB, Setting, moved
from rounds import Round, clocked

import conduit
from conduit.aio import AsyncConduit

DESCRIPTORS = (1, 2, 4, 8, 16, 32, 64, 128, 253)
BYTES = (1, 1 << 4, 1 << 8, 1 << 12, 1 << 16, 1 << 20, 1 << 24)
CONNECTIONS = (1, 10, 100, 1000)

BY_HAND = "send_fds, sendall, recv_into"
MEMORY = "conduit, a memfd that is mapped"
BLOCKING, ASYNCIO, BARE = "conduit", "conduit.aio on asyncio", "asyncio, add_reader and recv_fds"


def descriptors(setting: Setting) -> Iterator[tuple[int, dict[str, Round]]]:
    """Move some in one message, receive and close them."""
    wanted = {FLOOR: FLOOR, f"{OURS}, ints": OURS, STDLIB: STDLIB, REDUCTION: REDUCTION}
    for count in DESCRIPTORS:
        contestants = moved(setting, count).contestants
        yield count, {name: contestants[key] for key, name in wanted.items()}


def payloads(setting: Setting) -> Iterator[tuple[int, dict[str, Round]]]:
    """Send one descriptor with so many bytes to a process, which answers when it has them."""
    fd = setting.opened(os.devnull)
    for size in BYTES:
        body = bytes(size)
        ours, by_hand, memory = (
            _served(setting, partial(serve, size))
            for serve in (_serve_ours, _serve_by_hand, _serve_memory)
        )
        link = setting.stack.enter_context(conduit.Conduit.from_conn(ours))
        other = setting.stack.enter_context(conduit.Conduit.from_conn(memory))
        kept = setting.stack.enter_context(conduit.Descriptor(os.memfd_create("bytes")))
        os.truncate(kept.fileno(), size)
        written = setting.stack.enter_context(mmap.mmap(kept.fileno(), size))

        def send_ours(n: int, link: conduit.Conduit = link, body: bytes = body) -> None:
            for _ in range(n):
                link.transfer(fd, data=body, keep=True)
                link.receive().close()

        def send_by_hand(n: int, sock: socket.socket = by_hand, body: bytes = body) -> None:
            for _ in range(n):
                sent = socket.send_fds(sock, [body], [fd])
                sock.sendall(memoryview(body)[sent:])
                sock.recv(1)

        def send_memory(
            n: int, link: conduit.Conduit = other, kept: conduit.Descriptor = kept,
            written: mmap.mmap = written, body: bytes = body,
        ) -> None:  # fmt: skip
            for _ in range(n):
                written[:] = body
                link.transfer(fd, kept, keep=True)
                link.receive().close()

        yield (
            size,
            {
                OURS: clocked(send_ours),
                BY_HAND: clocked(send_by_hand),
                MEMORY: clocked(send_memory),
            },
        )


def _served(setting: Setting, serve: Callable[[socket.socket], None]) -> socket.socket:
    """Fork a process that serves one end of a pair until the other is closed; return that one."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    setting.stack.callback(os.waitpid, pid, 0)
    # Whatever else has a copy of it, this ends it.
    setting.stack.callback(ours.close)
    setting.stack.callback(ours.shutdown, socket.SHUT_RDWR)
    return ours


def _serve_ours(size: int, sock: socket.socket) -> None:
    with conduit.Conduit.from_conn(sock) as link:
        while True:
            link.receive_exactly(size).close()
            link.transfer(data=b"x")


def _serve_by_hand(size: int, sock: socket.socket) -> None:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while True:
        data, fds, _, _ = socket.recv_fds(sock, size, 1)
        if not data:
            return
        view[: len(data)] = data
        done = len(data)
        while done < size:
            done += sock.recv_into(view[done:])
        for fd in fds:
            os.close(fd)
        sock.send(b"x")


def _serve_memory(size: int, sock: socket.socket) -> None:
    with conduit.Conduit.from_conn(sock) as link:
        while True:
            with link.receive() as message, mmap.mmap(message.fds[1].fileno(), size) as view:
                view[:]  # looked at, as what was received is
            link.transfer(data=b"x")


def connections(setting: Setting) -> Iterator[tuple[int, dict[str, Round]]]:
    """Send and receive on one of so many connections after the other; all are waited for."""
    fd = setting.opened(os.devnull)
    for count in CONNECTIONS:

        def blocking(iterations: int, count: int = count) -> int:
            pairs = [conduit.Conduit.pair() for _ in range(count)]
            begun = perf_counter_ns()
            for index in range(iterations):
                here, there = pairs[index % count]
                here.transfer_fd(os.dup(fd))
                os.close(there.receive_fd())
            took = perf_counter_ns() - begun
            for here, there in pairs:
                here.close()
                there.close()
            return took

        yield (
            count,
            {
                BLOCKING: blocking,
                ASYNCIO: _on_a_loop(partial(_on_asyncio, fd, count)),
                BARE: _on_a_loop(partial(_bare, fd, count)),
            },
        )


def _on_a_loop(main: Callable[[int], Coroutine[Any, Any, int]]) -> Round:
    return lambda iterations: asyncio.run(main(iterations))


async def _on_asyncio(fd: int, count: int, iterations: int) -> int:
    pairs = [AsyncConduit.pair() for _ in range(count)]
    arrived = asyncio.Semaphore(0)

    async def receive(link: AsyncConduit) -> None:
        while True:
            os.close(await link.receive_fd())
            arrived.release()

    tasks = [asyncio.create_task(receive(there)) for _, there in pairs]
    await asyncio.sleep(0)
    begun = perf_counter_ns()
    for index in range(iterations):
        await pairs[index % count][0].transfer_fd(os.dup(fd))
        await arrived.acquire()
    took = perf_counter_ns() - begun
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for here, there in pairs:
        here.close()
        there.close()
    return took


async def _bare(fd: int, count: int, iterations: int) -> int:
    pairs: list[tuple[socket.socket, socket.socket]] = []
    loop = asyncio.get_running_loop()
    arrived = asyncio.Semaphore(0)

    def receive(sock: socket.socket) -> None:
        _, fds, _, _ = socket.recv_fds(sock, 1, 1)
        os.close(fds[0])
        arrived.release()

    for _ in range(count):
        pairs.append(socket.socketpair())
        pairs[-1][1].setblocking(False)
        loop.add_reader(pairs[-1][1], receive, pairs[-1][1])
    begun = perf_counter_ns()
    for index in range(iterations):
        copy = os.dup(fd)
        socket.send_fds(pairs[index % count][0], [b"\0"], [copy])
        os.close(copy)
        await arrived.acquire()
    took = perf_counter_ns() - begun
    for here, there in pairs:
        loop.remove_reader(there)
        here.close()
        there.close()
    return took


SWEEPS: dict[str, Callable[[Setting], Iterator[tuple[int, dict[str, Any]]]]] = {
    "descriptors": descriptors,
    "bytes": payloads,
    "connections": connections,
}
