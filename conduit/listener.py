"""A listening Unix socket that only invited peers reach: bound safely, admitting by identity."""

from __future__ import annotations

import builtins
import errno
import os
import socket
from collections.abc import Callable
from types import TracebackType

from conduit import objects
from conduit._conduit import Conduit
from conduit._handle import Handle
from conduit._syscalls import monotonic
from conduit.errors import Error, ErrType, from_errno, from_handler
from conduit.mistakes import not_picklable, path_from
from conduit.peer import Peer, admits, same_user_or_root

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from typing import Self

    from _typeshed import HasFileno, StrOrBytesPath


class Listener:
    """A Unix socket that listens at a path, or at an abstract name, for conduits.

    Listener(path, mode=0o600, backlog=128, type=SOCK_STREAM, allow=None) binds and listens.
    The socket appears at ``path`` complete, listening and with its mode, so that at no instant
    another user can connect whom the mode keeps out. What is found there is replaced if it is a
    socket that nobody listens on any more. ``"@name"`` is an abstract address on Linux, which
    has no mode: there ``allow`` alone decides.

    To hand it to another process, transfer it with ``keep=True``, then ``close(unlink=False)``;
    the other makes a listener of it again with `from_conn`.

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
    conduit: Conduit

    def __init__(
        self,
        path: StrOrBytesPath,
        *,
        mode: int = 0o600,
        backlog: int = 128,
        type: int = socket.SOCK_STREAM,
        allow: Callable[[Peer], bool] | None = None,
    ) -> None:
        # Not above, since it takes longer to import than the rest of conduit.
        from conduit import paths

        self.path = path_from(path)
        self._place = os.path.abspath(self.path)
        self._allow = same_user_or_root if allow is None else allow
        self._process = os.getpid()
        self._inode: tuple[int, int] | None = None
        address = paths.address_from(path)
        try:
            with socket.socket(socket.AF_UNIX, type) as sock:
                # Another process may share it and accept first what both were told of.
                sock.setblocking(False)
                if sock.type == socket.SOCK_DGRAM:
                    raise OSError(errno.EOPNOTSUPP, "datagram sockets take no connections")
                if address.startswith(b"\0"):
                    paths.check_length(address[1:])
                    sock.bind(address)
                    sock.listen(backlog)
                else:
                    self._inode = paths.bind_path(sock, address, mode, backlog)
                self._handle = Handle.duplicate(sock.fileno(), "listener", os.fsdecode(self.path))
        except BaseException as exc:
            # An interrupt, too, leaves nothing behind that no object removes.
            if self._inode is not None:
                paths.unlink_own(self._place, self._inode)
            if isinstance(exc, Error) or not isinstance(exc, OSError) or from_handler(exc):
                raise
            code = exc.errno or errno.EINVAL
            why = None if exc.strerror == os.strerror(code) else exc.strerror
            raise from_errno(code, ErrType.NO_FD, f"listening at {self.path!r}", why) from exc

    def __reduce__(self) -> str:
        raise not_picklable(self)

    @classmethod
    def from_conn(
        cls,
        conn: HasFileno,
        path: StrOrBytesPath,
        *,
        allow: Callable[[Peer], bool] | None = None,
    ) -> Self:
        """Listen on a socket that listens at a path already: one received, or inherited.

        Its descriptor is duplicated. It becomes non-blocking, and `close` removes the path.

        Raises:
            Error: as `Conduit.from_conn`.
        """
        from conduit import paths

        inode = None
        if not paths.address_from(path).startswith(b"\0"):
            inode = paths.inode_of(os.path.abspath(path_from(path)))
        self = cls._over(conn, path, same_user_or_root if allow is None else allow)
        self._inode = inode
        return self

    @classmethod
    def _over(cls, conn: HasFileno, path: StrOrBytesPath, allow: Callable[[Peer], bool]) -> Self:
        """Listen on a duplicate of a socket whose path is somebody else's to remove."""
        self = cls.__new__(cls)
        self.path = path_from(path)
        self._place = os.path.abspath(self.path)
        self._allow = allow
        self._process = os.getpid()
        self._inode = None
        self._handle = Handle.duplicate(objects.fd_of(conn), "listener", os.fsdecode(self.path))
        os.set_blocking(self._handle.fileno(), False)
        return self

    def __del__(self) -> None:
        # There is no handle if it could not be made.
        if handle := getattr(self, "_handle", None):
            handle.warn_unclosed(self, 2)

    def __repr__(self) -> str:
        return f"<conduit.Listener {self.path!r}{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._handle.is_closed

    def fileno(self) -> int:
        """Return the number of the listening socket, which stays the listener's.

        It is readable when somebody waits to be accepted. `Error` (``NO_FD``) if closed.
        """
        return self._handle.fileno()

    def accept(self, timeout: float | None = None) -> Conduit:
        """Wait for a connection from a peer that is allowed, and return its conduit.

        A peer that is not is closed before a byte of it is read, and logged (logger
        ``conduit``, level WARNING); the wait goes on.

        Args:
            timeout: seconds to wait in all; None for ever, 0 not at all.

        Raises:
            TransferTimeoutError, WouldBlockError: nobody came in time.
            Error: ``NO_FD`` if the listener is or gets closed, or, with the errno, if the
                system gives no connection: ``EMFILE`` means that this process has no room; the
                peer goes on waiting, so close something before the next call.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            conduit = self.admit(timeout)
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

    def admit(self, timeout: float | None = None) -> Conduit | None:
        """Wait for a connection; None if its peer was refused. Otherwise as `accept`."""
        conduit = Conduit._accept(self._handle, timeout)
        try:
            peer = conduit.peer
            if admits(self._allow, peer):
                return conduit
            # As `paths`.
            import logging

            logging.getLogger("conduit").warning("%r refused %r", self, peer)
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
        from conduit import paths

        inode, self._inode = self._inode, None
        try:
            if unlink and inode is not None and self._process == os.getpid():
                paths.unlink_own(self._place, inode)
        except OSError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            raise from_errno(
                exc.errno or errno.EINVAL, ErrType.FAILED_CLOSE, f"removing {self.path!r}"
            ) from exc
        finally:
            self._handle.close()
