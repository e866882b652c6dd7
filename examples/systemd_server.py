"""An asyncio server that systemd starts when somebody connects; its units are beside it."""

import asyncio

from conduit import systemd


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    [listener] = systemd.listen_fds()
    async with await asyncio.start_server(echo, sock=listener.to_conn()) as server:
        systemd.notify("READY=1")
        await server.serve_forever()


asyncio.run(main())
