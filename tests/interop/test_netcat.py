"""OpenBSD's netcat with ``-F``: it connects, passes the connection on, and is gone."""

from __future__ import annotations

import socket
import subprocess

import pytest
from helpers import is_private, reserved_port
from peers import LIMIT, accepted, installed, needs, plugged, running, served, succeeded

import conduit


def passes_descriptors() -> bool:
    """Whether the nc installed is OpenBSD's, the one with -F."""
    usage = subprocess.run(
        [installed("nc"), "-h"], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    return "Pass socket fd" in usage.stderr + usage.stdout


pytestmark = [needs("nc")]
if not pytestmark[0].args[0]:
    pytestmark.append(
        pytest.mark.skipif(not passes_descriptors(), reason="nc is not OpenBSD's: it has no -F")
    )


def test_the_connection_of_netcat_arrives_in_receive_conn() -> None:
    with served() as listener, plugged() as (link, theirs):
        host, port = listener.getsockname()
        with running(installed("nc"), "-F", host, str(port), stdout=theirs) as netcat:
            theirs.close()
            with link.receive_conn() as conn, accepted(listener) as server:
                assert conn.family == socket.AF_INET
                assert conn.type == socket.SOCK_STREAM
                assert conn.getpeername() == (host, port)
                assert is_private(conn.fileno())
                succeeded(netcat)
                server.sendall(b"after netcat is gone")
                assert conn.recv(64) == b"after netcat is gone"
                conn.sendall(b"and back")
                assert server.recv(64) == b"and back"
            with pytest.raises(conduit.PeerClosedError):
                link.receive_conn()


def test_the_datagram_socket_of_netcat_arrives_as_one() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server, plugged() as (link, theirs):
        server.bind(("127.0.0.1", 0))
        server.settimeout(LIMIT)
        host, port = server.getsockname()
        with running(installed("nc"), "-u", "-F", host, str(port), stdout=theirs) as netcat:
            theirs.close()
            with link.receive_conn() as conn:
                assert conn.type == socket.SOCK_DGRAM
                succeeded(netcat)
                conn.send(b"a datagram")
                assert server.recvfrom(64) == (b"a datagram", conn.getsockname())


def test_a_netcat_that_cannot_connect_is_a_closed_peer() -> None:
    with plugged() as (link, theirs), reserved_port() as port:
        with running(installed("nc"), "-F", "127.0.0.1", str(port), stdout=theirs) as netcat:
            theirs.close()
            with pytest.raises(conduit.PeerClosedError):
                link.receive_conn()
            assert netcat.wait(LIMIT) == 1
