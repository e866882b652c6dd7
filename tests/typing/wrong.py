"""Wrong programs, which are only type-checked: an error that goes missing fails the check."""

import io
import socket

import conduit
from conduit import Conduit


def arguments(link: Conduit, sock: socket.socket) -> None:
    Conduit()  # type: ignore[call-arg]
    Conduit("3")  # type: ignore[arg-type]
    Conduit(sock)  # type: ignore[arg-type]
    Conduit(3, 4)  # type: ignore[arg-type]
    Conduit.from_conn(3)  # type: ignore[arg-type]
    Conduit.from_file("path")  # type: ignore[arg-type]
    Conduit.pair(socket.SOCK_STREAM)  # type: ignore[call-arg]
    link.transfer_fd(sock)  # type: ignore[arg-type]
    link.transfer_fd(1.5)  # type: ignore[arg-type]
    link.transfer_fd(3, True)  # type: ignore[call-arg]
    link.transfer_file(3)  # type: ignore[arg-type]
    link.transfer_conn(object())  # type: ignore[arg-type]
    link.receive_file(3)  # type: ignore[call-overload]
    link.receive_file(encoding="utf-8")  # type: ignore[call-overload]
    link.receive_fd(1)  # type: ignore[call-arg]


def attributes(link: Conduit) -> None:
    link.timeout = "1"  # type: ignore[assignment]
    link.name = "other"  # type: ignore[misc]
    link.closed = True  # type: ignore[misc]
    link.time_out = 1  # type: ignore[attr-defined]


def results(link: Conduit) -> None:
    text: io.TextIOWrapper = link.receive_file("rb")  # type: ignore[assignment]
    reader: io.BufferedReader = link.receive_file("r")  # type: ignore[assignment]
    link.receive_file("rb").write("text")  # type: ignore[arg-type]
    link.receive_file("r").write(b"bytes")  # type: ignore[arg-type]
    link.receive_fd().close()  # type: ignore[attr-defined]
    print(text, reader)


class Own(Conduit):  # type: ignore[misc]
    """A conduit is final."""


conduit.MAX_FDS = 5  # type: ignore[misc]
