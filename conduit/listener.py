"""A listening Unix socket that only invited peers reach: bound safely, admitting by identity."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator

from conduit import objects, paths
from conduit._conduit import Conduit
from conduit._handle import Handle
from conduit._syscalls import monotonic
from conduit.closing import Closing
from conduit.errors import Error, ErrType, from_errno
from conduit.mistakes import path_from
from conduit.peer import Peer, admits, same_user_or_root

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from typing import Self

    from _typeshed import HasFileno, StrOrBytesPath


SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""The errnos of accept(2) for a lack of resources, after which the peer stays in the backlog."""

REST = 0.1
"""Seconds to wait after one of them."""


class Listener(Closing):
    """A Unix socket that listens at a path, or at an abstract name, for conduits.

    Listener(path, mode=0o600, backlog=128, type=SOCK_STREAM, allow=None) binds and listens.
    The path never has more permissions than ``mode``, so a user whom the mode keeps out cannot
    connect at any instant. A socket that nobody listens on any more is replaced. ``"@name"`` is an
    abstract address on Linux, which has no mode: there ``allow`` alone decides.

    To hand it to another process, transfer it with ``keep=True``, then ``close(unlink=False)``;
    the other process makes a listener of it with `from_conn`. An event loop's server on the same
    socket may remove the path when it closes: asyncio's do from Python 3.13 on, unless
    ``cleanup_socket=False``.

    Args:
        path: where to listen; up to 107 bytes.
        mode: the permission bits of the socket; who may write may connect.
        backlog: how many connections may wait to be accepted.
        type: ``SOCK_STREAM``, or ``SOCK_SEQPACKET``, which keeps messages apart.
        allow: a function that says whether a `Peer` is admitted; by default this process's user and
            root are. A coroutine function is a `TypeError` at the first connection.

    Raises:
        Error: ``NO_FD``, with the errno: ``EADDRINUSE`` if something else is at the path or
            somebody listens there, ``ENAMETOOLONG``, ``EACCES`` and what bind(2) reports.
    """

    __slots__ = ("_allow", "_handle", "_place", "path")

    path: str | bytes

    def __init__(
        self,
        path: StrOrBytesPath,
        *,
        mode: int = 0o600,
        backlog: int = 128,
        type: int = socket.SOCK_STREAM,
        allow: Callable[[Peer], bool] | None = None,
    ) -> None:
        self.path = path_from(path)
        self._allow = same_user_or_root if allow is None else allow
        self._place = paths.Place(path)
        try:
            self._handle = self._place.bind("listener", "", type, mode, backlog)
        except BaseException:
            # Also when a signal handler raises: no other object would remove the path.
            self._place.release()
            raise

    @classmethod
    def from_conn(
        cls,
        conn: HasFileno,
        path: StrOrBytesPath,
        *,
        allow: Callable[[Peer], bool] | None = None,
    ) -> Self:
        """Make a listener of a socket that listens at a path already, received or inherited.

        Its descriptor is duplicated. The socket becomes non-blocking, for all who share it. `close`
        removes the path if the socket is bound there.

        Raises:
            Error: as `Conduit.from_conn`; ``BAD_CLONE`` if it is not a listening Unix socket.
        """
        self = cls.__new__(cls)
        self.path = path_from(path)
        self._allow = same_user_or_root if allow is None else allow
        self._place = paths.Place(path)
        handle = Handle.duplicate(objects.fd_of(conn), "listener", os.fsdecode(self.path))
        try:
            self._place.adopt(handle)
            os.set_blocking(handle.fileno(), False)
        except BaseException:
            handle.close()
            raise
        self._handle = handle
        return self

    def __del__(self) -> None:
        # There is no handle if __init__ raised.
        if handle := getattr(self, "_handle", None):
            handle.warn_unclosed(self, 2)

    def __repr__(self) -> str:
        return f"<conduit.Listener {self.path!r}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._handle.closed

    def fileno(self) -> int:
        """Return the number of the listening socket, which the listener still owns.

        It is readable when a connection is pending. `Error` (``NO_FD``) if closed.
        """
        return self._handle.fileno()

    def accept(self, timeout: float | None = None) -> Conduit:
        """Wait for a connection from a peer that is allowed, and return its conduit.

        If the peer is not allowed, or ``allow`` raises, its connection is closed before a byte of
        it is read, and logged (logger ``conduit``, level WARNING); the wait goes on.

        Args:
            timeout: seconds to wait in all; None for ever, 0 not at all.

        Raises:
            TransferTimeoutError, WouldBlockError: no allowed peer came in time.
            Error: ``NO_FD`` if the listener is or gets closed; with an errno, if accept(2) fails.
                ``EMFILE`` means that this process has no room; the peer goes on waiting, so close
                something before the next call. Such an error comes 0.1 seconds late, so that a
                loop does not spin.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            try:
                conduit = self.admit(timeout)
            except Error as exc:
                # So that a loop does not spin; what is closed meanwhile makes room.
                if exc.errno in SHORTAGES and timeout != 0:
                    time.sleep(REST if timeout is None else min(REST, timeout))
                raise
            if conduit is not None:
                return conduit
            if deadline is not None and timeout:
                timeout = deadline - monotonic()
                if timeout <= 0:
                    raise from_errno(
                        errno.ETIMEDOUT,
                        ErrType.NO_FD,
                        f"{self!r}: accepting",
                        "every peer that connected was refused",
                    )

    def __iter__(self) -> Iterator[Conduit]:
        """Accept one connection after another, for ever. Raises as `accept`."""
        while True:
            yield self.accept()

    def admit(self, timeout: float | None = None) -> Conduit | None:
        """Wait for one connection; return None if its peer was refused. Raises as `accept`."""
        conduit = Conduit._accept(self._handle, timeout)
        try:
            if admits(self._allow, conduit.peer, self):
                return conduit
        except BaseException:
            conduit.close()
            raise
        conduit.close()
        return None

    def close(self, *, unlink: bool = True) -> None:
        """Stop listening, end the calls that wait in `accept`, and remove the path.

        Only the process that made the socket removes the path, and only if it still is that socket:
        a forked child does not, nor is a newer socket at the path removed. Without ``unlink`` the
        path stays, for another process that listens on the same socket. A second `close` does
        nothing.

        Raises:
            Error: ``FAILED_CLOSE``, if the system reports a failure.
        """
        try:
            self._place.release(unlink=unlink)
        finally:
            self._handle.close()
