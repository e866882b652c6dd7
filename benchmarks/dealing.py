"""How many connections a second N processes answer, and how evenly they are shared out.

Three ways to spread connections over processes are compared: an acceptor that deals them with
``transfer_conn``, a listening socket of each with ``SO_REUSEPORT``, and one listening socket that
all have inherited. A worker reads a line, answers with its pid and closes, or keeps the connection
if it is asked to. One process asks, on sixteen connections at a time.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import conduit

HOST = "127.0.0.1"
AT_ONCE = 16
KEPT = 64
TRIALS = 10


class Figures(NamedTuple):
    """What the client saw.

    Attributes:
        rate: connections a second.
        busiest: of KEPT connections that are opened at once and stay open, how many the worker has
            that has most; the mean of some trials.
    """

    rate: float
    busiest: float


def _answer(conns: Iterable[socket.socket]) -> None:
    kept = []
    for conn in conns:
        keep = conn.recv(100) == b"keep\n"
        conn.send(b"%d\n" % os.getpid())
        if keep:
            kept.append(conn)
        else:
            conn.close()


def _accept(server: socket.socket) -> None:
    _answer(conn for conn, _ in iter(server.accept, None))


def _receive(link: conduit.Conduit) -> None:
    _answer(iter(link.receive_conn, None))


def _deal(server: socket.socket, links: list[conduit.Conduit]) -> None:
    while True:
        for link in links:
            link.transfer_conn(server.accept()[0])


def _listening(*, reuse_port: bool = False, port: int = 0) -> socket.socket:
    return socket.create_server((HOST, port), backlog=512, reuse_port=reuse_port)


class _Processes:
    """Processes that do something for ever, until they are ended."""

    def __init__(self) -> None:
        self._pids: list[int] = []

    def start(self, work: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                work()
            os._exit(0)
        self._pids.append(pid)

    def end(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def dealt(processes: _Processes, workers: int) -> int:
    """One process accepts, and gives each connection to the next worker; return the port."""
    server = _listening()
    links = []
    for _ in range(workers):
        ours, theirs = conduit.Conduit.pair(type=_PACKETS)
        processes.start(lambda link=theirs: _receive(link))  # type: ignore[misc]
        theirs.close()
        links.append(ours)
    processes.start(lambda: _deal(server, links))
    for link in links:
        link.close()
    return _port_of(server)


def reuse_port(processes: _Processes, workers: int) -> int:
    """Each worker has a listening socket, among which the kernel chooses; return the port."""
    servers = [_listening(reuse_port=True)]
    port: int = servers[0].getsockname()[1]
    servers += [_listening(reuse_port=True, port=port) for _ in range(workers - 1)]
    for server in servers:
        processes.start(lambda server=server: _accept(server))  # type: ignore[misc]
    for server in servers:
        server.close()
    return port


def shared_socket(processes: _Processes, workers: int) -> int:
    """All workers accept from one listening socket; return the port."""
    server = _listening()
    for _ in range(workers):
        processes.start(lambda: _accept(server))
    return _port_of(server)


def _port_of(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    server.close()
    return port


_PACKETS = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM)
WAYS = {
    "an acceptor deals": dealt,
    "SO_REUSEPORT": reuse_port,
    "a shared socket": shared_socket,
}
WORKERS = (1, 2, 4)


def measure(way: str, workers: int, seconds: float) -> Figures:
    """Ask for some seconds."""
    processes = _Processes()
    try:
        port = WAYS[way](processes, workers)
        _ask(port, seconds / 10)  # warms up
        begun = time.monotonic()
        answers = _ask(port, seconds)
        rate = answers / (time.monotonic() - begun)
        most = [max(_keep(port).values()) for _ in range(TRIALS)]
    finally:
        processes.end()
    return Figures(rate, statistics.mean(most))


def _keep(port: int) -> Counter[bytes]:
    """Open some connections and keep them all; how many each worker has."""
    with contextlib.ExitStack() as stack:
        conns = [stack.enter_context(socket.socket()) for _ in range(KEPT)]
        for conn in conns:
            conn.connect((HOST, port))
            conn.send(b"keep\n")
        return Counter(conn.recv(100) for conn in conns)


def _ask(port: int, seconds: float) -> int:
    """Ask on several connections at a time; return how many were answered."""
    answers = 0
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:

        def begin() -> None:
            sock = socket.socket()
            sock.connect((HOST, port))
            sock.send(b"who?\n")
            selector.register(sock, selectors.EVENT_READ)

        for _ in range(AT_ONCE):
            begin()
        while selector.get_map():
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                answers += bool(sock.recv(100))
                selector.unregister(sock)
                sock.close()
                if time.monotonic() < deadline:
                    begin()
    return answers
