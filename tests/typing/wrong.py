"""A wrong program, which is only type-checked: every checker finds each `# error`, and no more."""

import io
import json
import socket

from conduit import Channel, Conduit, Listener, Reader, multiprocessing, systemd
from conduit.aio import AsyncChannel, AsyncConduit, AsyncReader, detach_stream
from conduit.takeover import Takeover


def arguments(link: Conduit, sock: socket.socket) -> None:
    Conduit()  # error
    Conduit("3")  # error
    Conduit(sock)  # error
    Conduit(3, 4)  # error
    Conduit.from_conn(3)  # error
    Conduit.from_file("path")  # error
    Conduit.pair(socket.SOCK_STREAM)  # error
    link.transfer_fd(sock)  # error
    link.transfer_fd(1.5)  # error
    link.transfer_fd(3, True)  # error
    link.transfer_file(3)  # error
    link.transfer_conn(object())  # error
    link.receive_file(3)  # error
    link.receive_file(encoding="utf-8")  # error
    link.receive_fd(1)  # error
    link.transfer([sock])  # error
    link.transfer(data="text")  # error
    Conduit.connect(("localhost", 80))  # error
    Listener(80)  # error


def services(sock: socket.socket) -> None:
    systemd.notify(b"READY=1")  # error
    systemd.notify("READY=1", timeout="1")  # error
    systemd.notify("FDSTORE=1", "path")  # error
    systemd.store(sock, "name")  # error
    systemd.store("name")  # error
    systemd.store("name", sock, False)  # error
    systemd.watchdog_interval() / 2  # error
    systemd.listen_fds(True)  # error


def readers(link: Conduit, other: AsyncConduit, sock: socket.socket) -> None:
    Reader(sock)  # error
    Reader(other)  # error
    AsyncReader(link)  # error
    Reader(link, 1000)  # error
    Reader(link).receive_exactly(b"4")  # error
    Reader(link).receive_until("\n")  # error
    Reader(link).receive_until(b"\n").encode()  # error
    Reader(link).take_fds(1).close()  # error
    Reader(link).pending = 0  # error
    AsyncReader(other).receive_exactly(4).hex()  # error


def attributes(link: Conduit) -> None:
    link.timeout = "1"  # error
    link.name = "other"  # error
    link.closed = True  # error
    link.time_out = 1  # error


def results(link: Conduit) -> None:
    text: io.TextIOWrapper = link.receive_file("rb")  # error
    reader: io.BufferedReader = link.receive_file("r")  # error
    link.receive_file("rb").write("text")  # error
    link.receive_file("r").write(b"bytes")  # error
    link.receive_fd().close()  # error
    print(text, reader)


def channels(link: Conduit, sock: socket.socket) -> None:
    Channel(sock)  # error
    Channel(link, 1000)  # error
    Channel(link, dumps=json.dumps, loads=json.loads)  # error
    AsyncChannel(link, max_size="1")  # error
    with Channel(link) as channel:
        channel.send()  # error
        channel.send(sock, True)  # error
        channel.receive(1)  # error
        channel.conduit = link  # error


def detached_streams(sock: socket.socket) -> None:
    detach_stream(None, sock)  # error


def in_multiprocessing() -> None:
    multiprocessing.register(30)  # error
    multiprocessing.register(lifetime="30")  # error
    multiprocessing.register(lifetime=None)  # error


class Own(Conduit):  # error
    """A conduit is final."""


def takeovers(takeover: Takeover, sock: socket.socket) -> None:
    Takeover()  # error
    Takeover("path", 5)  # error
    takeover.adopt("http", sock)  # error
    takeover.adopt(sock)  # error
    takeover.keep(sock, "x")  # error
    takeover.keep("x", "path")  # error
    takeover.take("x").close()  # error
    takeover.offer("text")  # error
    takeover.offer(lambda: "text")  # error
    takeover.successor.receive()  # error
