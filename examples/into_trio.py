"""A received connection goes straight into trio."""

from __future__ import annotations

import socket

import trio

from conduit.aio import AsyncConduit


async def main() -> None:
    ours, theirs = AsyncConduit.pair()
    async with ours, theirs:
        near, far = socket.socketpair()
        with near:
            await ours.transfer_conn(far)
            conn = await theirs.receive_conn()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(conn))
            async with stream:
                await stream.send_all(b"hello\n")
                print("trio:", near.recv(100))


trio.run(main)
