"""Node's IPC channel: its ``net.Socket`` and ``net.Server`` go both ways."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

from peers import (
    HERE,
    Lines,
    accepted,
    all_of,
    connected,
    installed,
    needs,
    plugged,
    running,
    served,
    succeeded,
)

from conduit import Conduit

pytestmark = needs("node")

ACK = {"cmd": "NODE_HANDLE_ACK"}
NACK = {"cmd": "NODE_HANDLE_NACK"}


@contextlib.contextmanager
def node(*args: str) -> Iterator[tuple[Lines, Conduit, subprocess.Popen[str]]]:
    """A node that has an IPC channel to a conduit."""
    with plugged() as (link, theirs):
        number = theirs.fileno()
        environment = {**os.environ, "NODE_CHANNEL_FD": str(number)}
        command = [installed("node"), str(HERE / "node_peer.js"), *args]
        with running(*command, env=environment, pass_fds=[number]) as process:
            theirs.close()
            yield Lines(link), link, process


def handle(kind: str, message: object) -> dict[str, object]:
    return {"cmd": "NODE_HANDLE", "type": kind, "msg": message}


def test_node_takes_a_connection_as_a_socket() -> None:
    with node("take") as (lines, link, process), served() as listener:
        client = connected(listener.getsockname())
        with client:
            lines.send(handle("net.Socket", "this"), accepted(listener))
            assert lines.next() == (ACK, ())
            assert all_of(client) == b"this is a socket"
        link.close()
        succeeded(process)


def test_node_takes_a_listener_as_a_server() -> None:
    with node("take") as (lines, link, process), served() as listener:
        address = listener.getsockname()
        listener.settimeout(None)
        lines.send(handle("net.Server", "this"), listener)
        assert lines.next() == (ACK, ())
        with connected(address) as client:
            assert all_of(client) == b"this is a server"
        link.close()
        succeeded(process)


def test_node_takes_one_after_the_other_and_plain_messages_in_between() -> None:
    with node("take") as (lines, link, process), served() as listener:
        for turn in range(20):
            with connected(listener.getsockname()) as client:
                lines.send(handle("net.Socket", turn), accepted(listener))
                lines.send(f"after {turn}")
                assert lines.next() == (ACK, ())
                assert lines.next() == ({"plain": f"after {turn}"}, ())
                assert all_of(client) == f"{turn} is a socket".encode()
        link.close()
        succeeded(process)


def test_node_refuses_a_handle_that_came_without_its_descriptor() -> None:
    with node("take") as (lines, link, process):
        lines.send(handle("net.Socket", "nothing"))
        assert lines.next() == (NACK, ())
        link.close()
        succeeded(process)


def test_the_socket_of_node_arrives_and_is_let_go_there_once_acknowledged() -> None:
    with served() as listener:
        host, port = listener.getsockname()
        with node("giveSocket", str(port)) as (lines, link, process), accepted(listener) as server:
            line, [descriptor] = lines.next()
            assert line == handle("net.Socket", "a connection")
            with descriptor.to_conn() as conn:
                assert conn.getpeername() == (host, port)
                assert conn.gettimeout() == 0
                conn.sendall(b"through node")
                lines.send(ACK)
                # Node holds it back until it has our answer.
                assert lines.next() == ("and nothing", ())
            # The end comes only when node has no copy of the connection any more.
            assert all_of(server) == b"through node"
            link.close()
            succeeded(process)


def test_the_socket_of_node_comes_again_when_it_was_not_acknowledged() -> None:
    with served() as listener:
        _, port = listener.getsockname()
        with node("giveSocket", str(port)) as (lines, link, process), accepted(listener) as server:
            first, [descriptor] = lines.next()
            assert first == handle("net.Socket", "a connection")
            descriptor.close()
            lines.send(NACK)
            second, [descriptor] = lines.next()
            # Node wraps once more what it sends again.
            assert second in (first, handle("net.Native", first))
            with descriptor.to_conn() as conn:
                conn.sendall(b"the second time")
                lines.send(ACK)
                assert lines.next() == ("and nothing", ())
            assert all_of(server) == b"the second time"
            link.close()
            succeeded(process)


def test_the_server_of_node_arrives_as_a_listener() -> None:
    with node("giveServer") as (lines, link, process):
        line, [descriptor] = lines.next()
        with descriptor.to_conn() as listener:
            host, port = listener.getsockname()
            assert line == handle("net.Server", port)
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            lines.send(ACK)
            link.close()
            succeeded(process)
            # Node is gone, and what it listened on is not.
            with connected((host, port)) as client:
                listener.setblocking(True)
                with accepted(listener) as conn:
                    conn.sendall(b"not node")
                assert all_of(client) == b"not node"
