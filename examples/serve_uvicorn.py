"""An ASGI application on uvicorn, restarted without losing a request.

Start it, and start the same line again to replace it:

    conduit run --control ./takeover.sock --listen 127.0.0.1:8000 -- python serve_uvicorn.py
"""

import asyncio
import os
import socket
from typing import Any

import uvicorn

SETTLE = 0.2
"""Seconds without a new request or a closed connection, after which idle ones are closed."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with the number of this process."""
    if scope["type"] != "http":
        return
    body = b"%d\n" % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Server(uvicorn.Server):
    """uvicorn that says when it is ready, and answers all that it has accepted.

    uvicorn itself closes, at shutdown, connections whose request it has not read yet.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that requests are served, which is when uvicorn has started."""
        await super().startup(sockets)
        if self.started:
            notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, answer what was accepted, then shut down."""
        loop = asyncio.get_running_loop()
        for sock in sockets or []:
            loop.remove_reader(sock)
        # What was accepted in this turn of the loop becomes a connection in the next; asyncio
        # drops it if the server is closed before.
        await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        changed = loop.time()
        while state.connections and loop.time() - changed < SETTLE:
            before = state.total_requests, set(state.connections)
            await asyncio.sleep(SETTLE / 10)
            if before != (state.total_requests, state.connections):
                changed = loop.time()
        await super().shutdown(sockets)


def inherited_sockets() -> list[socket.socket]:
    """Take the sockets that were passed to this very process (sd_listen_fds(3))."""
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return []
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    sockets = [socket.socket(fileno=number) for number in range(3, 3 + count)]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets


def notify(state: str) -> None:
    """Tell whoever started this process (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address.replace("@", "\0", 1))


def main() -> None:
    """Serve on the inherited sockets; without any, on uvicorn's usual address."""
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    Server(config).run(sockets=inherited_sockets() or None)


if __name__ == "__main__":
    main()
