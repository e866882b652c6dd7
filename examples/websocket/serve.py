"""A WebSocket server whose clients stay connected while it is replaced.

    python examples/websocket/serve.py --control ./websocket.sock --port 8000

Run the same line again to replace it, as often as you like. The new process takes the listening
socket over, and then each connection with its state, between two messages: no client sees a close.
It echoes each message with the path that the client asked for and the number of the message, which
would show if anything were lost on the way.

SIGTERM, or Ctrl-C, ends it: the clients are told to go. With --close, so they are at a handover.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import signal
import socket
from typing import Any

from session import Session
from wsproto.frame_protocol import CloseReason

import conduit
from conduit.aio import AsyncChannel, AsyncTakeover


class Server:
    """The sessions of this process, until they end or go on in the next one."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.sessions: dict[Session, asyncio.Task[Any] | None] = {}
        self.is_ending = False
        self.successor: AsyncChannel | None = None

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection, in one step, so that none is lost when the accepting ends."""
        # The other process was faster, or the client has gone.
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, _ = listener.accept()
            sock.setblocking(False)
            self.tasks.create_task(self.serve(sock, None))

    async def receive(self, predecessor: AsyncChannel) -> None:
        """Go on with the connections of the predecessor, until it has none left."""
        try:
            async for message in predecessor:
                sock = message["socket"].to_conn()
                self.tasks.create_task(self.serve(sock, message["state"]))
        except conduit.Error:
            logging.exception("the predecessor died")

    async def serve(self, sock: socket.socket, state: dict[str, Any] | None) -> None:
        """Serve a connection until it ends, or is handed over."""
        try:
            session = Session(*await asyncio.open_connection(sock=sock))
        except OSError:
            sock.close()  # the client's end
            return
        self.sessions[session] = asyncio.current_task()
        try:
            if state is not None:
                session.restore(state)
            if self.is_ending:
                self.end(session)
            await session.run()
            if session.is_moving and self.successor is not None:
                sock, state = session.detach()
                with sock:
                    await self.successor.send({"socket": sock, "state": state})
        except ConnectionError:
            pass  # the client's end
        except Exception:
            # Of this one: the others go on.
            logging.exception("a connection is lost")
        finally:
            del self.sessions[session]
            await session.aclose()

    def end(self, session: Session) -> None:
        if self.successor is None:
            session.close(CloseReason.GOING_AWAY)
        else:
            session.move()

    async def end_all(self, successor: AsyncChannel | None) -> None:
        """Hand over all connections, or close them, and those that are still on their way here."""
        self.is_ending, self.successor = True, successor
        for session, task in list(self.sessions.items()):
            self.end(session)
            if successor is not None and task is not None:
                # One after another; the others are served meanwhile. One that cannot go yet, since
                # its client does not read, or the application waits, does not hold up the rest.
                await asyncio.wait({task}, timeout=0.01)


async def serve(control: str, port: int, *, closes: bool) -> None:
    """Serve until replaced or ended by a signal, and all connections are gone."""
    loop = asyncio.get_running_loop()
    async with AsyncTakeover(control) as line, asyncio.TaskGroup() as tasks:
        server, receiving = Server(tasks), None
        with await line.listen("127.0.0.1", port, name="websocket", backlog=1024) as listener:
            listener.setblocking(False)
            # Until this returns, the predecessor may stay; who connects waits in the queue.
            await line.ready()
            loop.add_reader(listener, server.accept, listener)
            if line.takeover.predecessor_line is not None:
                predecessor = AsyncChannel(line.takeover.predecessor_line)
                receiving = tasks.create_task(server.receive(predecessor))
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, line.takeover.close)
            print(f"serving on port {listener.getsockname()[1]}", flush=True)
            is_replaced = await line.wait()
            loop.remove_reader(listener)
        for number in (signal.SIGINT, signal.SIGTERM):
            # Another one ends it at once.
            loop.remove_signal_handler(number)
        successor = line.takeover.successor
        if successor is not None and not closes:
            await server.end_all(AsyncChannel(successor))
        else:
            await server.end_all(None)
        if receiving is not None and not is_replaced:
            receiving.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo WebSocket messages.")
    parser.add_argument("--control", required=True, metavar="PATH", help="of the control socket")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--close", action="store_true", help="close connections at a handover")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS says infinite, and allows so many by default (OPEN_MAX).
    soft = 10_240 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    asyncio.run(serve(options.control, options.port, closes=options.close))


if __name__ == "__main__":
    main()
