"""An application on sanic, on the socket that was passed."""

import sanic
from app import body, listener


async def answer(_request: sanic.Request) -> sanic.HTTPResponse:
    return sanic.response.raw(body(), content_type="text/plain")


app = sanic.Sanic("app")
app.add_route(answer, "/")

if __name__ == "__main__":
    app.run(sock=listener(), single_process=True, access_log=False, motd=False)
