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
"""Of what a process or the system runs out while somebody goes on waiting to be accepted."""

REST = 0.1
"""Seconds to rest after that."""


class Listener(Closing):
    """A Unix socket that listens at a path, or at an abstract name, for conduits.

    Listener(path, mode=0o600, backlog=128, type=SOCK_STREAM, allow=None) binds and listens.
    The socket appears at ``path`` complete, listening and with its mode, so that at no instant
    another user can connect whom the mode keeps out. What is found there is replaced if it is a
    socket that nobody listens on any more. ``"@name"`` is an abstract address on Linux, which
    has no mode: there ``allow`` alone decides.

    To hand it to another process, transfer it with ``keep=True``, then ``close(unlink=False)``;
    the other makes a listener of it again with `from_conn`. A server of an event loop that was
    made of it may remove the path when it closes: asyncio's do from Python 3.13 on, without
    ``cleanup_socket=False``.

    Args:
        path: where to listen; up to 107 bytes.
        mode: the permission bits of the socket; who may write may connect.
        backlog: how many connections wait to be accepted.
        type: ``SOCK_STREAM``, or ``SOCK_SEQPACKET``, which keeps messages apart.
        allow: whether a `Peer` is admitted, answered at once: a coroutine function is a `TypeError`
            when somebody comes. Without it: this process's user, and root.

    Raises:
        Error: ``NO_FD``, with the errno: ``EADDRINUSE`` if something else is at the path or
            somebody listens there, ``ENAMETOOLONG``, ``EACCES`` and what bind(2) reports.
    """

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
            # An interrupt, too, leaves nothing behind that no object removes.
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
        """Listen on a socket that listens at a path already: one received, or inherited.

        Its descriptor is duplicated. It becomes non-blocking. `close` removes the path if the
        socket is bound there.

        Raises:
            Error: as `Conduit.from_conn`, and ``BAD_CLONE`` if it is no Unix socket that listens.
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
        # There is no handle if it could not be made.
        if handle := getattr(self, "_handle", None):
            handle.warn_unclosed(self, 2)

    def __repr__(self) -> str:
        return f"<conduit.Listener {self.path!r}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._handle.closed

    def fileno(self) -> int:
        """Return the number of the listening socket, which stays the listener's.

        It is readable when somebody waits to be accepted. `Error` (``NO_FD``) if closed.
        """
        return self._handle.fileno()

    def accept(self, timeout: float | None = None) -> Conduit:
        """Wait for a connection from a peer that is allowed, and return its conduit.

        A peer that is not is closed before a byte of it is read, and logged (logger
        ``conduit``, level WARNING), also if ``allow`` raises; the wait goes on.

        Args:
            timeout: seconds to wait in all; None for ever, 0 not at all.

        Raises:
            TransferTimeoutError, WouldBlockError: nobody came in time.
            Error: ``NO_FD`` if the listener is or gets closed, or, with the errno, if the
                system gives no connection: ``EMFILE`` means that this process has no room; the
                peer goes on waiting, so close something before the next call. This comes 0.1
                seconds late, so that a loop does not spin.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            try:
                conduit = self.admit(timeout)
            except Error as exc:
                # Who accepts in a loop is not to spin, and what is closed meanwhile makes room.
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
                        "all who came were refused",
                    )

    def __iter__(self) -> Iterator[Conduit]:
        """Accept one connection after another, for ever. Raises as `accept`."""
        while True:
            yield self.accept()

    def admit(self, timeout: float | None = None) -> Conduit | None:
        """Wait for a connection; None if its peer was refused. Otherwise as `accept`."""
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

        Only the socket that this listener made is removed, and only by the process that made
        it: one that has replaced it, and a forked child, leave it alone. Without ``unlink`` it
        stays, for another process that listens on the same socket. A second `close` does
        nothing.

        Raises:
            Error: ``FAILED_CLOSE``, if the system reports a failure.
        """
        try:
            self._place.release(unlink=unlink)
        finally:
            self._handle.close()
