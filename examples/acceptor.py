"""One process accepts, N processes serve: an acceptor that hands connections to asyncio workers.

    python examples/acceptor.py [--workers N] [--port PORT]

The acceptor owns only the listening socket. Each worker is a process that runs an asyncio server on
the connections it receives. The least busy worker gets the next connection; a worker tells when it
is done with one. A worker that dies is replaced, and only its own connections are lost: one that
cannot be handed over stays with the acceptor. Ctrl-C ends them all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import selectors
import signal
import socket

import conduit
import conduit.multiprocessing  # so that a worker can be given its end
from conduit.aio import AsyncConduit

CONTEXT = multiprocessing.get_context("spawn")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection: each line comes back with the pid of the worker in front."""
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(b"%d %b" % (os.getpid(), line))
            await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def serve(link: conduit.Conduit) -> None:
    """Serve the connections that come over a conduit, until the acceptor closes it."""
    async with AsyncConduit(link) as connections, asyncio.TaskGroup() as serving:

        async def answer_and_tell(conn: socket.socket) -> None:
            # The socket goes straight into the loop, as if it had been accepted here.
            await answer(*await asyncio.open_connection(sock=conn))
            with contextlib.suppress(conduit.PeerClosedError):
                await connections.transfer(data=b"done")

        with contextlib.suppress(conduit.PeerClosedError):
            while True:
                serving.create_task(answer_and_tell(await connections.receive_conn()))


def work(link: conduit.Conduit) -> None:
    """Run a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(link))


class Worker:
    """A process that serves, the conduit that leads to it, and how many connections it has."""

    def __init__(self) -> None:
        self.busy = 0
        self.link, theirs = conduit.Conduit.pair(type=socket.SOCK_SEQPACKET)
        with theirs:
            self.process = CONTEXT.Process(target=work, args=(theirs,))
            self.process.start()

    def stop(self) -> None:
        """Let it end with its last connection, and wait for that."""
        self.link.close()
        self.process.join()
        self.process.close()


class Acceptor:
    """The workers, each of which may end at any time."""

    def __init__(self, count: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.workers: list[Worker] = []
        for _ in range(count):
            self.start_worker()

    def start_worker(self) -> None:
        worker = Worker()
        self.workers.append(worker)
        self.selector.register(worker.link, selectors.EVENT_READ, worker)

    def replace(self, worker: Worker) -> None:
        self.selector.unregister(worker.link)
        self.workers.remove(worker)
        worker.stop()
        self.start_worker()

    def hand_over(self, conn: socket.socket) -> None:
        """Give a connection to the least busy worker, or to the next if that has died."""
        while True:
            worker = min(self.workers, key=lambda worker: worker.busy)
            try:
                worker.link.transfer_conn(conn)
            except conduit.PeerClosedError:
                # The connection is open, and still ours.
                self.replace(worker)
            else:
                worker.busy += 1
                return

    def listen_to(self, worker: Worker) -> None:
        """Note that a worker is done with a connection, or replace it if it has ended."""
        try:
            worker.link.receive()
            worker.busy -= 1
        except conduit.PeerClosedError:
            self.replace(worker)

    def run(self, listener: socket.socket) -> None:
        self.selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    self.hand_over(listener.accept()[0])
                elif key.data in self.workers:
                    self.listen_to(key.data)

    def stop(self) -> None:
        self.selector.close()
        for worker in self.workers:
            worker.link.close()
        for worker in self.workers:
            worker.stop()


def main() -> None:
    """Accept on one port and deal the connections out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", options.port), backlog=1024) as listener:
        acceptor = Acceptor(options.workers)
        print(f"serving on port {listener.getsockname()[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            acceptor.run(listener)
    acceptor.stop()


if __name__ == "__main__":
    main()
