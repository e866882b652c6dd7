"""An application on aiohttp, on the socket that was passed."""

from aiohttp import web
from app import body, listener


async def answer(_request: web.Request) -> web.Response:
    return web.Response(body=body())


app = web.Application()
app.router.add_get("/", answer)
web.run_app(app, sock=listener(), print=None, access_log=None)
