"""A pool of spawned processes that get sockets: a connection is an argument like any other.

    python examples/spawn_pool.py [--workers N] [--port PORT]

With "spawn", and with "forkserver", the default since Python 3.14, a worker inherits nothing, and
what it is to work with must be sent to it. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import socket
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial

import conduit.multiprocessing  # noqa: F401 - lets sockets through, and what is not taken is closed


def answer(conn: socket.socket) -> None:
    """Serve one connection: each line comes back with the pid of the worker in front."""
    with contextlib.suppress(ConnectionError), conn, conn.makefile("rb") as lines:
        for line in lines:
            conn.sendall(b"%d %b" % (os.getpid(), line))


def close(conn: socket.socket, done: Future[None]) -> None:
    conn.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with (
        socket.create_server(("127.0.0.1", options.port), backlog=1024) as listener,
        ProcessPoolExecutor(options.workers, mp_context=context) as pool,
    ):
        print(f"serving on port {listener.getsockname()[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                conn, _ = listener.accept()
                # It is shared, and pickled only when its turn comes: ours is closed after that.
                done = pool.submit(answer, conn)
                done.add_done_callback(partial(close, conn))


if __name__ == "__main__":
    main()
