"""A user's program, which is only type-checked: every precise type is asserted."""

import asyncio
import io
import pickle
import socket
from typing import IO, Any, BinaryIO, assert_type

import conduit
import conduit.multiprocessing
from conduit import Channel, Conduit, Descriptor, ErrType, Listener, Message, Peer, Reader, systemd
from conduit.aio import AsyncChannel, AsyncConduit, AsyncReader, AsyncTakeover, detach_stream
from conduit.channel import close_descriptors
from conduit.takeover import Takeover


def constructors(sock: socket.socket, file: IO[bytes]) -> None:
    assert_type(Conduit(3), Conduit)
    assert_type(Conduit(3, "name"), Conduit)
    assert_type(Conduit(fd=3, name="name"), Conduit)
    assert_type(Conduit.from_file(file), Conduit)
    assert_type(Conduit.from_conn(sock), Conduit)
    assert_type(Conduit.pair(), tuple[Conduit, Conduit])
    assert_type(Conduit.pair(type=socket.SOCK_SEQPACKET), tuple[Conduit, Conduit])
    with Conduit(3) as link:
        assert_type(link, Conduit)


def attributes(link: Conduit) -> None:
    assert_type(link.name, str)
    assert_type(link.closed, bool)
    assert_type(link.timeout, float | None)
    link.timeout = None
    link.timeout = 1
    link.timeout = 0.5
    assert_type(link.fileno(), int)
    Conduit.from_conn(link)


def sending(link: Conduit, sock: socket.socket, text: io.TextIOWrapper, raw: io.FileIO) -> None:
    link.transfer_fd(3)
    link.transfer_fd(3, keep=True)
    link.transfer_file(text)
    link.transfer_file(raw, keep=True)
    link.transfer_conn(sock)
    link.transfer_conn(link, keep=False)


def exact_messages(link: Conduit) -> None:
    assert_type(link.receive_exactly(10), Message)
    assert_type(link.receive_exactly(10, max_fds=0), Message)
    assert_type(link.receive().sender, Peer | None)
    link.shutdown()
    link.shutdown(socket.SHUT_RDWR)
    for message in link:
        assert_type(message, Message)
    assert_type(Conduit.bind("/run/it", mode=0o666), Conduit)
    assert_type(Conduit.connect("/run/it", wait=True), Conduit)


async def awaited_messages(link: AsyncConduit) -> None:
    assert_type(await link.receive_exactly(10), Message)
    async for message in link:
        assert_type(message, Message)
    assert_type(AsyncConduit.bind("/run/it"), AsyncConduit)
    assert_type(await AsyncConduit.connect("/run/it", wait=True), AsyncConduit)


def numbers_and_sockets(link: Conduit) -> None:
    assert_type(link.receive_fd(), int)
    assert_type(link.receive_conn(), socket.socket)


def files(link: Conduit, mode: str, optional: str | None, size: int) -> None:
    assert_type(link.receive_file(), BinaryIO)
    assert_type(link.receive_file(None), BinaryIO)
    assert_type(link.receive_file(name="log"), BinaryIO)
    assert_type(link.receive_file("r"), io.TextIOWrapper)
    assert_type(link.receive_file(mode="r"), io.TextIOWrapper)
    assert_type(link.receive_file("w"), io.TextIOWrapper)
    assert_type(link.receive_file("r+"), io.TextIOWrapper)
    assert_type(link.receive_file("rt", encoding="utf-8", newline=""), io.TextIOWrapper)
    assert_type(link.receive_file("r", 1, "utf-8", "replace", "\n"), io.TextIOWrapper)
    assert_type(link.receive_file("r", name="log"), io.TextIOWrapper)
    assert_type(link.receive_file("rb"), io.BufferedReader)
    assert_type(link.receive_file("rb", name="log"), io.BufferedReader)
    assert_type(link.receive_file("wb"), io.BufferedWriter)
    assert_type(link.receive_file("ab"), io.BufferedWriter)
    assert_type(link.receive_file("xb"), io.BufferedWriter)
    assert_type(link.receive_file("r+b"), io.BufferedRandom)
    assert_type(link.receive_file("w+b"), io.BufferedRandom)
    assert_type(link.receive_file("rb", 0), io.FileIO)
    assert_type(link.receive_file("r+b", buffering=0), io.FileIO)
    assert_type(link.receive_file("rb", size), BinaryIO)
    assert_type(link.receive_file(mode), IO[Any])
    assert_type(link.receive_file(optional, -1, "utf-8"), IO[Any])


def descriptors(number: int) -> None:
    with Descriptor(number) as descriptor:
        assert_type(descriptor, Descriptor)
        assert_type(descriptor.fileno(), int)
        assert_type(descriptor.name, str)
        assert_type(descriptor.is_same_file(descriptor), bool)
        assert_type(descriptor.closed, bool)
        assert_type(descriptor.to_file(), BinaryIO)
        assert_type(descriptor.to_file("r"), io.TextIOWrapper)
        assert_type(descriptor.to_file("rb"), io.BufferedReader)
        assert_type(descriptor.to_file("wb"), io.BufferedWriter)
        assert_type(descriptor.to_file("r+b"), io.BufferedRandom)
        assert_type(descriptor.to_file("rb", 0), io.FileIO)
        assert_type(descriptor.to_conn(), socket.socket)
        assert_type(descriptor.detach(), int)


def messages(link: Conduit, sock: socket.socket, file: IO[bytes]) -> None:
    link.transfer(3, sock, file, Descriptor(3), data=memoryview(b""), keep=True)
    with link.receive(100, max_fds=2) as message:
        assert_type(message, Message)
        assert_type(message.data, bytes)
        assert_type(message.fds, tuple[Descriptor, ...])


def readers(link: Conduit) -> None:
    with Reader(link, limit=1000) as reader:
        assert_type(reader, Reader)
        assert_type(reader.receive_exactly(4), bytes)
        assert_type(reader.receive_until(b"\r\n"), bytes)
        assert_type(reader.take_fds(), tuple[Descriptor, ...])
        assert_type(reader.take_fds(count=2), tuple[Descriptor, ...])
        assert_type(reader.pending, int)
        assert_type(reader.buffered, int)
        assert_type(reader.closed, bool)


async def async_readers(link: AsyncConduit) -> None:
    async with AsyncReader(link, limit=1000) as reader:
        assert_type(reader, AsyncReader)
        assert_type(await reader.receive_exactly(4), bytes)
        assert_type(await reader.receive_until(b"\r\n"), bytes)
        assert_type(reader.take_fds(2), tuple[Descriptor, ...])
        assert_type(reader.pending, int)
        assert_type(reader.buffered, int)
        await reader.aclose()


def listeners(sock: socket.socket) -> None:
    with Listener("/path", allow=lambda peer: peer.uid == 0) as listener:
        assert_type(listener.path, str | bytes)
        assert_type(listener.closed, bool)
        assert_type(listener.accept(timeout=1), Conduit)
        assert_type(Listener.from_conn(sock, "/path"), Listener)


def services(sock: socket.socket, file: IO[bytes], timeout: float | None) -> None:
    assert_type(systemd.listen_fds(), tuple[Descriptor, ...])
    assert_type(systemd.notify("READY=1"), bool)
    assert_type(systemd.notify("FDSTORE=1", 3, sock, file, Descriptor(3), timeout=timeout), bool)
    assert_type(systemd.store("name", sock), bool)
    assert_type(systemd.store("name", 3, poll=False, timeout=0), bool)
    assert_type(systemd.unstore("name", timeout=0.5), bool)
    assert_type(systemd.barrier(), bool)
    assert_type(systemd.barrier(timeout), bool)
    assert_type(systemd.watchdog_interval(), float | None)


def end(exc: EOFError) -> None: ...
def late(exc: TimeoutError) -> None: ...
def busy(exc: BlockingIOError) -> None: ...
def system(exc: OSError) -> None: ...


def errors(link: Conduit) -> None:
    try:
        link.receive_fd()
    except conduit.PeerClosedError as exc:
        end(exc)
    except conduit.TransferTimeoutError as exc:
        late(exc)
    except conduit.WouldBlockError as exc:
        busy(exc)
    except conduit.Error as exc:
        assert_type(exc.type, ErrType)
        assert_type(exc.sent, int)
        assert_type(exc.errno, int | None)
        system(exc)


assert_type(conduit.MAX_FDS, int)
version: str = conduit.__version__


def channels(link: Conduit, sock: socket.socket) -> None:
    Channel(link, max_size=1000, max_fds=3)
    Channel(link, dumps=pickle.dumps, loads=pickle.loads)
    with Channel(link) as channel:
        assert_type(channel, Channel)
        assert_type(channel.conduit, Conduit)
        assert_type(channel.fileno(), int)
        assert_type(channel.closed, bool)
        channel.send({"sock": sock}, keep=True)
        assert_type(channel.receive(), Any)
        with channel.receiving() as obj:
            assert_type(obj, Any)
            close_descriptors(obj)
        for each in channel:
            assert_type(each, Any)


async def detached_streams() -> None:
    reader, writer = await asyncio.open_connection("localhost", 80)
    assert_type(detach_stream(reader, writer), tuple[socket.socket, bytes])
    assert_type(detach_stream(None, writer), tuple[socket.socket, bytes])
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, "localhost", 80)
    detach_stream(None, transport)


async def async_channels(link: AsyncConduit, sock: socket.socket) -> None:
    AsyncChannel(Conduit(3), dumps=pickle.dumps, loads=pickle.loads, max_size=1, max_fds=1)
    async with AsyncChannel(link) as channel:
        assert_type(channel, AsyncChannel)
        assert_type(channel.conduit, AsyncConduit)
        await channel.send([sock], keep=True)
        assert_type(await channel.receive(), Any)
        async with channel.receiving() as obj:
            assert_type(obj, Any)
        async for each in channel:
            assert_type(each, Any)


def in_multiprocessing() -> None:
    conduit.multiprocessing.register()
    conduit.multiprocessing.register(lifetime=30)
    conduit.multiprocessing.register(lifetime=0.5)


def takeovers(sock: socket.socket, file: IO[bytes]) -> None:
    Takeover("path", timeout=5, allow=lambda peer: peer.uid == 0, thread=False).close()
    with Takeover("path") as takeover:
        assert_type(takeover, Takeover)
        assert_type(takeover.predecessor, Peer | None)
        assert_type(takeover.state, bytes)
        assert_type(takeover.listen("", 80, name="http"), socket.socket)
        assert_type(takeover.adopt(sock, "http"), socket.socket)
        takeover.keep("file", file)
        takeover.keep("fd", 3)
        takeover.keep("fd", None)
        assert_type(takeover.take("file"), Descriptor | None)
        assert_type(takeover.names, tuple[str, ...])
        takeover.offer(b"state")
        takeover.offer(lambda: b"state")
        assert_type(takeover.ready(), tuple[str, ...])
        assert_type(takeover.wait(1.5), bool)
        assert_type(takeover.fileno(), int)
        takeover.step()
        assert_type(takeover.successor, Conduit | None)
        assert_type(takeover.predecessor_line, Conduit | None)


async def async_takeovers(sock: socket.socket) -> None:
    async with AsyncTakeover("path", timeout=5) as takeover:
        assert_type(takeover, AsyncTakeover)
        assert_type(takeover.takeover, Takeover)
        assert_type(takeover.state, bytes)
        assert_type(takeover.names, tuple[str, ...])
        assert_type(takeover.dropped, tuple[str, ...])
        assert_type(takeover.predecessor, Peer | None)
        assert_type(takeover.successor, Conduit | None)
        assert_type(takeover.predecessor_line, Conduit | None)
        assert_type(takeover.closed, bool)
        assert_type(await takeover.listen("", 80), socket.socket)
        assert_type(takeover.adopt(sock, "x"), socket.socket)
        takeover.keep("x", sock)
        assert_type(takeover.take("x"), Descriptor | None)
        takeover.offer(lambda: b"state")
        assert_type(await takeover.ready(), tuple[str, ...])
        assert_type(await takeover.wait(), bool)
