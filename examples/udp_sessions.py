"""UDP sessions survive each deploy: datagrams that reach the wrong process are passed along.

    python examples/udp_sessions.py --control PATH [--host HOST] [--port PORT] [--patience SECONDS]

Start it again to deploy: new sessions begin in the new process, and the old one keeps its sessions
until the last has ended. Both have the same socket, on which the kernel cannot tell sessions apart.
So each packet names the process that has its session, by that process's place in the line (its
generation). Only the newest process reads the socket. It sends older processes' packets to its
predecessor, which sends on those that are not its own. While two read for a moment, the older sends
the newer one's packets to its successor. Every process sends replies by the socket itself.

Meta's load balancers do this for QUIC, by its connection ids ("Zero Downtime Release", SIGCOMM
2020). A packet here is a header (generation, session) and a payload; without one it ends the
session. ``(0, 0)`` asks for a session, and the reply has its header, as all have, the pid, how many
packets the session has had, and the payload.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Callable

import conduit
from conduit.aio import AsyncChannel, AsyncTakeover

HEADER = struct.Struct("!IQ")

MOST_QUEUED = 10_000  # Packets that wait to be passed on; more are lost, as UDP may lose any.

Address = tuple[str | int, ...]


class Neighbour:
    """The process before or after this one in the line; ``receive`` gets what it passes on."""

    def __init__(self, receive: Callable[[bytes, Address], None]) -> None:
        self._receive = receive
        self._queue: asyncio.Queue[tuple[bytes, Address] | None] = asyncio.Queue()

    def pass_on(self, packet: bytes, address: Address) -> None:
        """Have it get a packet, if it is there, or once it is."""
        if self._queue.qsize() < MOST_QUEUED:
            self._queue.put_nowait((packet, address))

    def finish(self) -> None:
        """Let `talk` return once all has left."""
        self._queue.put_nowait(None)

    async def talk(self, line: conduit.Conduit) -> None:
        """Pass packets on and receive them, until the other has closed the line or `finish`."""
        async with AsyncChannel(line) as channel:
            tasks = [asyncio.create_task(part(channel)) for part in (self._send, self._hear)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _send(self, channel: AsyncChannel) -> None:
        while found := await self._queue.get():
            packet, address = found
            # If it has gone, so have its sessions. What it has said before is still to be heard.
            with contextlib.suppress(conduit.PeerClosedError):
                await channel.send([packet.decode("latin-1"), *address])

    async def _hear(self, channel: AsyncChannel) -> None:
        with contextlib.suppress(conduit.PeerClosedError):
            async for packet, *address in channel:
                self._receive(packet.encode("latin-1"), tuple(address))


class Server:
    """The sessions of one process, and its neighbours, to which it passes what is theirs."""

    def __init__(self, sock: socket.socket, generation: int, patience: float) -> None:
        self.older = Neighbour(self.route)
        self.newer = Neighbour(self.route)
        self.is_followed = False
        self.is_idle = asyncio.Event()
        self.is_idle.set()
        self._sock = sock
        self.generation = generation
        self._patience = patience
        self._sessions: dict[int, int] = {}
        self._ends: dict[int, asyncio.TimerHandle] = {}

    def read(self) -> None:
        """Take datagrams off the socket. A callback, since a cancelled task might lose one."""
        for _ in range(100):
            try:
                packet, address = self._sock.recvfrom(65536)
            except OSError:
                return  # No more, or news of a client that has gone.
            self.route(packet, address)

    def route(self, packet: bytes, address: Address) -> None:
        """Answer a packet, or pass it on to where its session is."""
        if len(packet) < HEADER.size:
            return
        generation, session = HEADER.unpack_from(packet)
        if not generation and not self.is_followed:
            self._answer(secrets.randbits(64), packet[HEADER.size :], address)
        elif not generation or generation > self.generation:
            self.newer.pass_on(packet, address)
        elif generation < self.generation:
            self.older.pass_on(packet, address)
        elif session in self._sessions:
            self._answer(session, packet[HEADER.size :], address)

    def _answer(self, session: int, payload: bytes, address: Address) -> None:
        count = self._sessions[session] = self._sessions.get(session, 0) + 1
        self.is_idle.clear()
        if old := self._ends.pop(session, None):
            old.cancel()
        if payload:
            loop = asyncio.get_running_loop()
            self._ends[session] = loop.call_later(self._patience, self._end, session)
        else:
            self._end(session)
        header = HEADER.pack(self.generation, session)
        # A full socket loses the reply, as UDP may.
        with contextlib.suppress(OSError):
            self._sock.sendto(b"%b%d %d %b" % (header, os.getpid(), count, payload), address)

    def _end(self, session: int) -> None:
        self._ends.pop(session, None)
        del self._sessions[session]
        if not self._sessions:
            self.is_idle.set()


async def serve(control: str, host: str, port: int, patience: float) -> None:
    """Serve until a successor does and no session is left here, nor in an older process."""
    loop = asyncio.get_running_loop()
    async with AsyncTakeover(control) as takeover:
        with await takeover.listen(host, port, name="udp", type=socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            server = Server(sock, int(takeover.state or b"0") + 1, patience)
            takeover.offer(b"%d" % server.generation)
            await takeover.ready()
            loop.add_reader(sock, server.read)
            print(f"{os.getpid()} serves on port {sock.getsockname()[1]}", flush=True)
            async with asyncio.TaskGroup() as group:
                if (line := takeover.takeover.predecessor_line) is not None:
                    older = group.create_task(server.older.talk(line))
                await takeover.wait()
                loop.remove_reader(sock)
                server.is_followed = True
                if (ahead := takeover.takeover.successor) is not None:
                    newer = group.create_task(server.newer.talk(ahead))
                if line is not None:
                    await older
                await server.is_idle.wait()
                server.newer.finish()
                if ahead is not None:
                    await newer


def main() -> None:
    """Serve, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--control", required=True, metavar="PATH")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--patience", type=float, default=60.0, metavar="SECONDS")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.control, options.host, options.port, options.patience))


if __name__ == "__main__":
    main()
