"""How ``multiprocessing.reduction`` passes descriptors: of this Python, and both forms there are.

Since Python 3.14, and on macOS always, ``recvfds`` answers with ``b"A"``, for which ``sendfds``
waits. Before, nothing was answered.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import reduction
from typing import Any


@dataclass(frozen=True)
class Form:
    """One way to pass descriptors."""

    sendfds: Callable[[socket.socket, list[int]], None]
    recvfds: Callable[[socket.socket, int], list[int]]


def sendfds(acknowledged: bool, sock: socket.socket, fds: list[int]) -> None:
    socket.send_fds(sock, [bytes([len(fds) % 256])], fds)
    if acknowledged and sock.recv(1) != b"A":
        raise RuntimeError("did not receive acknowledgement of fd")


def recvfds(acknowledged: bool, sock: socket.socket, size: int) -> list[int]:
    fds = array.array("i")
    data, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(size * fds.itemsize))
    if not data and not ancillary:
        raise EOFError
    if acknowledged:
        sock.send(b"A")
    [(_, _, rights)] = ancillary
    fds.frombytes(rights)
    if len(fds) % 256 != data[0]:
        raise AssertionError(f"Len is {len(fds)} but msg[0] is {data[0]!r}")
    return list(fds)


# The stubs of the standard library leave out what only some systems have.
standard: Any = reduction

FORMS = {
    "this Python": Form(standard.sendfds, standard.recvfds),
    "before 3.14": Form(partial(sendfds, False), partial(recvfds, False)),
    "since 3.14": Form(partial(sendfds, True), partial(recvfds, True)),
}
