"""A received connection goes straight into anyio, on whatever loop it runs."""

from __future__ import annotations

import socket

import anyio
from anyio.abc import SocketStream

from conduit.aio import AsyncConduit


async def main() -> None:
    ours, theirs = AsyncConduit.pair()
    async with ours, theirs:
        listener = socket.create_server(("127.0.0.1", 0))
        with listener, socket.create_connection(listener.getsockname()) as near:
            await ours.transfer_conn(listener.accept()[0])
            conn = await theirs.receive_conn()
            async with await SocketStream.from_socket(conn) as stream:
                await stream.send(b"hello\n")
                print("anyio:", near.recv(100))


anyio.run(main)
