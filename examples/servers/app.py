"""The same small application for every server, and the socket for those that are a program."""

import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any


def body() -> bytes:
    """Return what every request is answered with: the number of the process."""
    return b"%d\n" % os.getpid()


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer by WSGI."""
    answer = body()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))]
    start_response("200 OK", headers)
    return [answer]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Answer by ASGI."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    answer = body()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def listener() -> socket.socket:
    """Return the first socket that was passed (sd_listen_fds(3)), or listen at a port."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=3)
    return socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
