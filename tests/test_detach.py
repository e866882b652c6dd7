"""Connections that leave asyncio and uvloop, with what was read and not consumed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from helpers import GENEROUS, room_for

from conduit import DescriptorTypeError, Error, ErrType
from conduit.aio import AsyncConduit, detach_stream

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True),
]

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

SOME = 1 << 20


@pytest.fixture(params=["tcp", "unix"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A stream that a server of asyncio accepted, and the plain socket of its client."""
    accepted: asyncio.Queue[Stream] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait((reader, writer))

    if request.param == "tcp":
        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=4096)
        client = socket.socket()
        client.connect(server.sockets[0].getsockname())
    else:
        path = str(tmp_path / "socket")
        server = await asyncio.start_unix_server(accept, path, limit=4096)
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
    with client:
        client.settimeout(GENEROUS)
        async with asyncio.timeout(GENEROUS):
            reader, writer = await accepted.get()
            yield (reader, writer), client
            writer.close()
            server.close()
            # It waits for each connection that it has.
            await server.wait_closed()


async def turn() -> None:
    """Let the loop do all that is to be done."""
    for _ in range(5):
        await asyncio.sleep(0.001)


def all_there(sock: socket.socket) -> bytes:
    """Read all that has come."""
    got = b""
    while True:
        try:
            some = sock.recv(SOME)
        except BlockingIOError:
            return got
        if not some:
            return got
        got += some


async def receive(sock: socket.socket, size: int) -> bytes:
    """Receive so many bytes, or fewer at the end: they may take a moment, even here."""
    got = b""
    while len(got) < size:
        some = await asyncio.get_running_loop().sock_recv(sock, size - len(got))
        if not some:
            break
        got += some
    return got


async def test_a_connection_goes_on_with_what_was_read_and_not_consumed(
    served: tuple[Stream, socket.socket],
) -> None:
    (reader, writer), client = served
    client.sendall(b"first\nsecond\nthi")
    assert await reader.readline() == b"first\n"
    writer.write(b"to first\n")
    sock, unread = detach_stream(reader, writer)
    with sock:
        assert unread == b"second\nthi"
        assert (sock.family, sock.type) == (client.family, socket.SOCK_STREAM)
        assert sock.getpeername() == client.getsockname()
        assert sock.gettimeout() == 0.0
        assert not os.get_blocking(sock.fileno())
        assert not sock.get_inheritable()
        client.sendall(b"rd\n")
        await turn()
        assert await receive(sock, 3) == b"rd\n", "the loop reads no more"
        assert reader.at_eof()
        assert await reader.read() == b""
        assert writer.is_closing()
        # uvloop says so, asyncio does not.
        with contextlib.suppress(RuntimeError):
            writer.write(b"too late")
        await writer.wait_closed()
        sock.send(b"to second\n")
        client.setblocking(False)
        assert await receive(client, 19) == b"to first\nto second\n"
        client.shutdown(socket.SHUT_WR)
        assert await receive(sock, 1) == b""


@pytest.mark.parametrize("lines", [0, 1, 100])
@pytest.mark.parametrize("turns", range(4))
async def test_no_byte_is_lost_or_doubled_however_much_is_on_its_way(
    served: tuple[Stream, socket.socket], lines: int, turns: int
) -> None:
    (reader, writer), client = served
    sent = b"".join(b"%07d\n" % number for number in range(10_000))
    client.setblocking(False)
    rest = memoryview(sent)[client.send(sent) :]
    got = b"".join([await reader.readline() for _ in range(lines)])
    for _ in range(turns):
        await asyncio.sleep(0)
    sock, unread = detach_stream(reader, writer)
    got += unread
    with sock:
        while len(got) < len(sent):
            await turn()
            if rest:
                rest = rest[client.send(rest) :]
            got += all_there(sock)
    assert got == sent


async def test_what_the_writer_holds_is_to_be_written_before(
    served: tuple[Stream, socket.socket],
) -> None:
    (reader, writer), client = served
    client.setblocking(False)
    client.send(b"question")
    sent = b"".join(b"%07d\n" % number for number in range(1_000_000))
    writer.write(sent)
    await turn()
    with pytest.raises(Error, match=r"await writer.drain\(\)") as caught:
        detach_stream(reader, writer)
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert not writer.is_closing()
    assert not reader.at_eof()
    got = b""

    async def read() -> None:
        nonlocal got
        while len(got) < len(sent):
            got += all_there(client)
            await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()
    sock, unread = detach_stream(reader, writer)
    with sock:
        assert unread == b"question"
        await reading
        sock.send(b"the end")
        assert got + await receive(client, 7) == sent + b"the end"


async def test_a_connection_that_its_peer_has_ended_is_detached_with_its_end(
    served: tuple[Stream, socket.socket],
) -> None:
    (reader, writer), client = served
    client.sendall(b"a\nb\n")
    client.shutdown(socket.SHUT_WR)
    assert await reader.readline() == b"a\n"
    await turn()
    sock, unread = detach_stream(reader, writer)
    with sock:
        assert (unread, sock.recv(1)) == (b"b\n", b"")
        sock.send(b"answer")
        assert client.recv(100) == b"answer"


async def test_a_detached_connection_goes_to_another_process(
    served: tuple[Stream, socket.socket],
) -> None:
    (reader, writer), client = served
    here, there = AsyncConduit.pair()
    async with here, there:
        client.sendall(b"begun, ")
        assert await reader.read(1) == b"b"
        sock, unread = detach_stream(reader, writer)
        await here.transfer(sock, data=unread)
        with await there.receive() as message:
            conn = message.fds[0].to_conn()
        reader, writer = await asyncio.open_connection(sock=conn)
        client.sendall(b"and ended")
        client.shutdown(socket.SHUT_WR)
        assert message.data + await reader.read() == b"egun, and ended"
        writer.write(b"bye")
        writer.close()
        await writer.wait_closed()
        assert client.recv(100) == b"bye"


async def test_a_transport_is_detached_from_a_protocol_of_the_programs_own() -> None:
    one, other = socket.socketpair()
    with other:
        got: list[bytes] = []

        class Protocol(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                got.append(data)

            def connection_lost(self, exc: Exception | None) -> None:
                lost.set_result(exc)

        loop = asyncio.get_running_loop()
        lost: asyncio.Future[Exception | None] = loop.create_future()
        transport, _ = await loop.create_connection(Protocol, sock=one)
        other.send(b"read")
        await turn()
        sock, unread = detach_stream(None, transport)
        with sock:
            assert (got, unread) == ([b"read"], b"")
            other.send(b"unread")
            assert await lost is None
            assert sock.recv(100) == b"unread"


async def open_stream() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]:
    one, other = socket.socketpair()
    one.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=one)
    return reader, writer, other


async def test_a_stream_that_is_closed_or_failed_has_nothing_to_detach() -> None:
    reader, writer, other = await open_stream()
    with other:
        reader.set_exception(ConnectionResetError(errno.ECONNRESET, "reset by the peer"))
        with pytest.raises(Error, match="reset by the peer") as caught:
            detach_stream(reader, writer)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        writer.close()
        for stream in (reader, None):
            with pytest.raises(Error, match="not detached") as caught:
                detach_stream(stream, writer)
            assert caught.value.type is ErrType.NO_FD
        await turn()


async def test_a_stream_stays_as_it_is_if_there_is_no_room_for_a_duplicate() -> None:
    reader, writer, other = await open_stream()
    with other:
        other.send(b"one\ntwo\n")
        assert await reader.readline() == b"one\n"
        with room_for(0), pytest.raises(Error) as caught:
            detach_stream(reader, writer)
        assert (caught.value.type, caught.value.errno) == (ErrType.BAD_CLONE, errno.EMFILE)
        assert await reader.readline() == b"two\n"
        writer.write(b"three")
        assert other.recv(100) == b"three"
        writer.close()
        await writer.wait_closed()


async def test_a_stream_stays_as_it_is_if_an_interrupt_comes_before_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer, other = await open_stream()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with other:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.StreamReader, "feed_eof", interrupted)
            with pytest.raises(KeyboardInterrupt):
                detach_stream(reader, writer)
        other.send(b"one\n")
        assert await reader.readline() == b"one\n"
        writer.close()
        await writer.wait_closed()


async def test_tls_is_not_detached() -> None:
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    for context in (server, client):
        # Without a certificate.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("aNULL:@SECLEVEL=0")
    streams: asyncio.Queue[Stream] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.put_nowait((reader, writer))

    with anyio.fail_after(GENEROUS):
        listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server)
        address = listening.sockets[0].getsockname()
        streams.put_nowait(await asyncio.open_connection(*address, ssl=client))
        for _ in range(2):
            reader, writer = await streams.get()
            with pytest.raises(DescriptorTypeError, match="TLS") as caught:
                detach_stream(reader, writer)
            assert caught.value.type is ErrType.NO_FD
            writer.transport.abort()
        listening.close()
        await listening.wait_closed()


async def test_what_is_no_stream_and_what_has_no_socket_is_told() -> None:
    out, into = os.pipe()
    loop = asyncio.get_running_loop()
    with os.fdopen(into, "wb") as file, os.fdopen(out, "rb"):
        transport, _ = await loop.connect_write_pipe(asyncio.Protocol, file)
        here, there = socket.socketpair()
        with here, there:
            for wrong in (transport, here):
                with pytest.raises(Error, match=r"no socket|not a socket|neither an asyncio"):
                    detach_stream(None, wrong)  # type: ignore[arg-type]
        transport.close()
        await turn()
