"""An application on tornado, on the socket that was passed; SIGTERM ends it."""

import asyncio
import signal

from app import listener, wsgi
from tornado.httpserver import HTTPServer
from tornado.wsgi import WSGIContainer


async def main() -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    sock = listener()
    sock.setblocking(False)
    server = HTTPServer(WSGIContainer(wsgi))
    server.add_socket(sock)
    await told.wait()
    server.stop()
    # The request of a connection that was accepted a moment ago may not have been read.
    await asyncio.sleep(0.5)
    await server.close_all_connections()


asyncio.run(main())
