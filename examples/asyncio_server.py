"""A server on asyncio whose next version takes over without a gap.

    python examples/asyncio_server.py --control PATH [--port PORT]

Start it again to deploy. It answers each line with its pid and the line, and ends when the next one
serves and all that it has accepted is answered; or on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket

from conduit.aio import AsyncTakeover


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the one request of a connection."""
    with contextlib.suppress(ConnectionError):  # The client has gone.
        writer.write(b"%d %b" % (os.getpid(), await reader.readline()))
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def stop(server: asyncio.Server, listener: socket.socket) -> None:
    """Accept no more, and lose nothing that was accepted.

    asyncio accepts in one turn of the loop and makes the transport in the next, in a task. A server
    that is closed in between resets the connection.
    """
    asyncio.get_running_loop().remove_reader(listener)  # What is in the queue is the successor's.
    await asyncio.sleep(0)  # The tasks that there are make their transports,
    await asyncio.sleep(0)  # and those call what `start_server` was given.
    server.close()


async def main(control: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = loop.create_task(answer(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    async with AsyncTakeover(control) as takeover:
        listener = await takeover.listen("127.0.0.1", port, name="lines")
        server = await asyncio.start_server(begin, sock=listener)
        loop.add_signal_handler(signal.SIGTERM, takeover.close)
        await takeover.ready()
        print(os.getpid(), "serves at port", listener.getsockname()[1], flush=True)
        await takeover.wait()  # Until a successor is ready, or SIGTERM.
        await stop(server, listener)
        while running:
            await asyncio.wait(running)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    asyncio.run(main(options.control, options.port))
