"""One process accepts, N processes serve: an acceptor that hands connections to asyncio workers.

    python examples/acceptor.py [--workers N] [--port PORT]

The acceptor owns the listening socket and nothing else; each worker is a process of its own that
runs an asyncio server on the connections it is handed. Ctrl-C ends them all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import socket

import conduit
from conduit.aio import AsyncConduit


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection: each line comes back with the pid of the worker in front."""
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(b"%d %b" % (os.getpid(), line))
            await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def work(link: conduit.Conduit) -> None:
    """Serve the connections that come over a conduit, until the acceptor closes it."""
    serving: set[asyncio.Task[None]] = set()
    async with AsyncConduit(link) as connections:
        while True:
            try:
                conn = await connections.receive_conn()
            except conduit.PeerClosedError:
                break
            # The socket goes straight into the loop, as if it had been accepted here.
            reader, writer = await asyncio.open_connection(sock=conn)
            task = asyncio.create_task(answer(reader, writer))
            serving.add(task)
            task.add_done_callback(serving.discard)
    await asyncio.gather(*serving)


def start_worker(others: list[conduit.Conduit]) -> tuple[int, conduit.Conduit]:
    """Fork a worker; return its pid and the conduit that leads to it."""
    ours, theirs = conduit.Conduit.pair(type=socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A worker that held the other ends would keep its siblings from seeing the end.
        for other in (*others, ours):
            other.close()
        asyncio.run(work(theirs))
    finally:
        os._exit(0)


def main() -> None:
    """Accept on one port and deal the connections out in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    links: list[conduit.Conduit] = []
    pids: list[int] = []
    with socket.create_server(("127.0.0.1", options.port), backlog=1024) as listener:
        for _ in range(options.workers):
            pid, link = start_worker(links)
            pids.append(pid)
            links.append(link)
        print(f"serving on port {listener.getsockname()[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for link in itertools.cycle(links):
                conn, _ = listener.accept()
                link.transfer_conn(conn)
    for link in links:
        link.close()
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
