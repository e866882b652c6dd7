"""A received connection goes straight into asyncio, in three ways; and a received listener."""

from __future__ import annotations

import asyncio
import socket

from conduit.aio import AsyncConduit


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()
    await writer.wait_closed()


async def ask(sock: socket.socket) -> bytes:
    """Send a line and return the answer."""
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(b"hello\n")
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


async def main() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = AsyncConduit.pair()
    async with ours, theirs:
        # A transport and a protocol, as a server would make them.
        near, far = socket.socketpair()
        await ours.transfer_conn(far)
        conn = await theirs.receive_conn()
        transport, _ = await loop.connect_accepted_socket(Echo, conn)
        print("protocol:", await ask(near))
        transport.close()

        # A pair of streams.
        near, far = socket.socketpair()
        await ours.transfer_conn(far)
        reader, writer = await asyncio.open_connection(sock=await theirs.receive_conn())
        asking = asyncio.create_task(ask(near))
        await echo(reader, writer)
        print("streams:", await asking)

        # A listener, which a server accepts on.
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        await ours.transfer_conn(listener)
        server = await asyncio.start_server(echo, sock=await theirs.receive_conn())
        async with server:
            client = socket.create_connection(address)
            print("server:", await ask(client))


asyncio.run(main())
