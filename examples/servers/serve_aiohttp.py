"""An application on aiohttp, on the socket that was passed; SIGTERM ends it.

`web.run_app` closes, at its end, connections that it accepted and whose request it has not read.
"""

import asyncio
import signal

from aiohttp import web
from app import body, listener


async def answer(_request: web.Request) -> web.Response:
    return web.Response(body=body())


async def main() -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    sock = listener()
    await web.SockSite(runner, sock).start()
    await told.wait()
    # Accept nothing more, and answer what was accepted, before anything is closed.
    loop.remove_reader(sock)
    await asyncio.sleep(0.5)
    await runner.cleanup()


asyncio.run(main())
