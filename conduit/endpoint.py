"""How a `Conduit` comes to its socket: borrowed, duplicated, one of a pair, bound, connected.

These are the methods of `Conduit` that need no C. A signal handler may raise at any line: until a
`Conduit` is returned, a socket or a handle owns the descriptor, and closes it when it is dropped.
"""

from __future__ import annotations

import _socket
import errno
import math
import os
import socket
import time

from conduit import mistakes, objects, paths
from conduit._handle import Handle
from conduit._syscalls import monotonic
from conduit.errors import ErrType, from_errno, reraise

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from _typeshed import HasFileno, StrOrBytesPath

    from conduit._conduit import Conduit

_LOOK = 0.01
"""Seconds between two attempts to connect: nothing signals that a listener is there or has room."""


def from_file(cls: type[Conduit], file: HasFileno, *, name: str | None = None) -> Conduit:
    """Borrow the descriptor of any object with ``fileno()``, and keep a reference to it.

    `close` drops the reference and leaves the descriptor open. The default name is the file's.
    """
    text = mistakes.name_from(objects.name_of(file) if name is None else name)
    handle = Handle()
    handle.open(objects.fd_of(file, "Conduit"), "conduit", text, False)
    return cls._over(handle, source=file)


def from_conn(cls: type[Conduit], conn: HasFileno, *, name: str = "") -> Conduit:
    """Duplicate the descriptor of any object with ``fileno()``; the object stays as it is.

    The conduit owns the duplicate (close-on-exec). If the object has ``gettimeout()``, the
    conduit gets its timeout. Raises `Error` (``BAD_CLONE``) if duplicating fails.
    """
    text = mistakes.name_from(name)
    fd = objects.fd_of(conn, "Conduit")
    timeout = objects.timeout_of(conn)
    return cls._over(Handle.duplicate(fd, "conduit", text), timeout)


def pair(cls: type[Conduit], *, type: int = socket.SOCK_STREAM) -> tuple[Conduit, Conduit]:
    """Return two conduits that are connected to each other, as ``socketpair(2)`` makes them.

    ``SOCK_SEQPACKET`` keeps messages apart. Raises `Error` (``NO_FD``) if there is no pair.
    """
    ends: tuple[_socket.socket, ...] = ()
    try:
        # Not socket.socketpair, which gevent and others replace.
        ends = _socket.socketpair(socket.AF_UNIX, type)
        for end in ends:
            # socket.setdefaulttimeout() may have made it non-blocking.
            end.setblocking(True)
        one, other = [Handle.adopt(end, "conduit", "") for end in ends]
        return cls._over(one), cls._over(other)
    except OSError as exc:
        reraise(exc, "making a pair")
    finally:
        for end in ends:
            end.close()


def bind(cls: type[Conduit], path: StrOrBytesPath, *, mode: int = 0o600, name: str = "") -> Conduit:
    """Return a datagram socket to receive on, bound at a path, which `close` removes.

    The path is made and removed as a `Listener`'s, and is the default name. Each message has
    its `Message.sender`. Raises `Error` (``NO_FD``) as `Listener`.
    """
    text = mistakes.name_from(name)
    place = paths.Place(path)
    try:
        return cls._over(place.bind("conduit", text, socket.SOCK_DGRAM, mode, None), place=place)
    except BaseException:
        place.release()
        raise


def connect(
    cls: type[Conduit],
    path: StrOrBytesPath,
    *,
    type: int = socket.SOCK_STREAM,
    timeout: float | None = None,
    wait: bool = False,
    name: str = "",
) -> Conduit:
    """Connect to a Unix socket that listens at a path; ``"@name"`` is abstract on Linux.

    ``timeout`` is how many seconds to wait for room in the listener's backlog: None for ever, 0
    not at all. It becomes the conduit's timeout. With ``wait``, the call also waits for a
    socket to listen there. Raises `Error` (``NO_FD``) if there is no connection: ``ENOENT``,
    ``ECONNREFUSED`` (nobody listens there any more), ``EPROTOTYPE`` (another type),
    ``ENAMETOOLONG`` (over 107 bytes).
    """
    text = mistakes.name_from(name)
    address = paths.address_from(path)
    seconds = mistakes.seconds_from(timeout)
    doing = f"connecting to {path!r}"
    try:
        paths.check_length(address.removeprefix(b"\0"))
        sock = _socket.socket(socket.AF_UNIX, type)
        try:
            # A blocking connect(2) would wait for room in the backlog, whatever the timeout.
            sock.setblocking(False)
            _connect(sock, address, seconds, wait, doing)
            sock.setblocking(True)
            return cls._over(Handle.adopt(sock, "conduit", text), timeout)
        finally:
            sock.close()
    except OSError as exc:
        reraise(exc, doing)


def _connect(sock: _socket.socket, address: bytes, seconds: float, wait: bool, doing: str) -> None:
    """Connect, or wait until that can be done; the seconds count from the first failure."""
    deadline = None
    while code := sock.connect_ex(address):
        if code == errno.EAGAIN:
            why = "the listener's backlog is full"
        elif wait and code in (errno.ENOENT, errno.ECONNREFUSED):
            why = "nobody listens there"
        else:
            raise OSError(code, os.strerror(code))
        if deadline is None:
            deadline = monotonic() + seconds if seconds >= 0 else math.inf
        left = deadline - monotonic()
        if left <= 0:
            code = errno.ETIMEDOUT if seconds else errno.EAGAIN
            raise from_errno(code, ErrType.NO_FD, doing, why)
        time.sleep(min(left, _LOOK))
