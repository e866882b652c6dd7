"""A listening Unix socket that only invited peers reach: bound safely, admitting by identity."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from types import TracebackType

from conduit import objects
from conduit._conduit import Conduit
from conduit._handle import Handle
from conduit._syscalls import monotonic
from conduit.errors import Error, ErrType, from_errno, from_handler
from conduit.mistakes import path_from
from conduit.paths import address_from
from conduit.peer import Peer, admits, same_user_or_root

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from typing import Self

    from _typeshed import HasFileno, StrOrBytesPath


_LONGEST = 107
"""Bytes a path may have in ``sun_path``, its closing NUL not counted (unix(7))."""


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
        self.path = path_from(path)
        self._place = os.path.abspath(self.path)
        self._allow = same_user_or_root if allow is None else allow
        self._process = os.getpid()
        self._inode: tuple[int, int] | None = None
        address = address_from(path)
        try:
            with socket.socket(socket.AF_UNIX, type) as sock:
                # Another process may share it and accept first what both were told of.
                sock.setblocking(False)
                if sock.type == socket.SOCK_DGRAM:
                    raise OSError(errno.EOPNOTSUPP, "datagram sockets take no connections")
                if address.startswith(b"\0"):
                    _check_length(address[1:])
                    sock.bind(address)
                    sock.listen(backlog)
                else:
                    self._inode = bind_path(sock, address, mode, backlog)
                self._handle = Handle.duplicate(sock.fileno(), "listener", self.path)
        except BaseException as exc:
            # An interrupt, too, leaves nothing behind that no object removes.
            if self._inode is not None:
                unlink_own(self._place, self._inode)
            if isinstance(exc, Error) or not isinstance(exc, OSError) or from_handler(exc):
                raise
            code = exc.errno or errno.EINVAL
            why = None if exc.strerror == os.strerror(code) else exc.strerror
            raise from_errno(code, ErrType.NO_FD, f"listening at {self.path!r}", why) from exc

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
        self = cls.__new__(cls)
        self.path = path_from(path)
        self._place = os.path.abspath(self.path)
        self._allow = same_user_or_root if allow is None else allow
        self._process = os.getpid()
        self._inode = None
        if not address_from(path).startswith(b"\0"):
            with contextlib.suppress(FileNotFoundError):
                self._inode = inode_of(self._place)
        self._handle = Handle.duplicate(objects.fd_of(conn), "listener", self.path)
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
                        ErrType.FAILED_TRANSFER,
                        f"{self!r}: accepting",
                        "the deadline passed, and all who came were refused",
                    )

    def admit(self, timeout: float | None = None) -> Conduit | None:
        """Wait for a connection; None if its peer was refused. Otherwise as `accept`."""
        conduit = Conduit._accept(self._handle, timeout)
        try:
            peer = conduit.peer
            if admits(self._allow, peer):
                return conduit
            # Here, as `tempfile` below, since each takes longer to import than the rest of conduit.
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
        inode, self._inode = self._inode, None
        try:
            if unlink and inode is not None and self._process == os.getpid():
                unlink_own(self._place, inode)
        except OSError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            raise from_errno(
                exc.errno or errno.EINVAL, ErrType.FAILED_CLOSE, f"removing {self.path!r}"
            ) from exc
        finally:
            self._handle.close()


def unlink_own(path: StrOrBytesPath, inode: tuple[int, int]) -> None:
    """Remove a path, if it still is the file of this device and inode."""
    with contextlib.suppress(FileNotFoundError):
        if inode_of(path) == inode:
            os.unlink(path)


def inode_of(path: StrOrBytesPath) -> tuple[int, int]:
    """Return the device and inode of a path, by which to know it again."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def bind_path(sock: socket.socket, path: bytes, mode: int, backlog: int) -> tuple[int, int]:
    """Bind and listen at a path, which shows the socket only when it is complete.

    It is made in a directory that only this user can enter, and then linked to its place, which
    fails if another was faster; a rename would replace that one unseen.

    Returns:
        the device and inode of the socket, to know it again.
    """
    import tempfile

    _check_length(path)
    inode = None
    try:
        private = tempfile.mkdtemp(prefix=b".", dir=os.path.dirname(path) or b".")
        made, aside = os.path.join(private, b"s"), os.path.join(private, b"stale")
        try:
            # The umask took bits of its mode away, too.
            os.chmod(private, 0o700)
            with _short(private) as reachable:
                sock.bind(os.path.join(reachable, b"s"))
            os.chmod(made, mode)
            if sock.type != socket.SOCK_DGRAM:
                sock.listen(backlog)
            if os.path.lexists(path):
                with _alone(path):
                    _remove_stale(path, aside, sock.type)
            inode = inode_of(made)
            _link(made, path)
        finally:
            # By name: what walks a directory needs a descriptor, and there may be none left.
            for name in (made, aside):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
            os.rmdir(private)
        return inode
    except BaseException:
        # It may be linked already: an interrupt comes at any line.
        if inode is not None:
            unlink_own(path, inode)
        raise


def _link(made: bytes, path: bytes) -> None:
    try:
        os.link(made, path, follow_symlinks=False)
    except FileExistsError as exc:
        raise OSError(errno.EADDRINUSE, "somebody has just begun to listen there") from exc


def _check_length(path: bytes) -> None:
    if len(path) > _LONGEST:
        raise OSError(
            errno.ENAMETOOLONG, f"the path has {len(path)} bytes, and {_LONGEST} is the most"
        )


@contextlib.contextmanager
def _short(directory: bytes) -> Iterator[bytes]:
    """A name of a directory that leaves room in ``sun_path``, for a while."""
    if len(directory) + 2 <= _LONGEST or not os.path.isdir("/proc/self/fd"):
        yield directory
        return
    fd = os.open(directory, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield b"/proc/self/fd/%d" % fd
    finally:
        os.close(fd)


def _is(name: bytes, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(name), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _alone(path: bytes) -> Iterator[None]:
    """Keep away others who would replace a stale socket at a path; raise EADDRINUSE for them.

    Of two that found the same one, the later would take away what the earlier put there.
    """
    name = os.path.join(os.path.dirname(path), b".%b.lock" % os.path.basename(path))
    while True:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise OSError(errno.EADDRINUSE, "somebody is about to listen there") from exc
            # Who had it before has removed it, and another may have made the next.
            if _is(name, fd):
                try:
                    yield
                finally:
                    os.unlink(name)
                return
        finally:
            os.close(fd)


def _remove_stale(path: bytes, aside: bytes, type: int) -> None:
    """Remove a socket that nobody listens on from a path; raise EADDRINUSE for anything else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "something that is no socket is there")
    with socket.socket(socket.AF_UNIX, type) as probe:
        probe.setblocking(False)
        # Anything but a refusal means that somebody is there: a full backlog (EAGAIN), a
        # socket of another type (EPROTOTYPE), or one this user may not connect to (EACCES).
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "somebody listens there")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    moved = os.lstat(aside)
    # The number of what another removed may be its own socket's now; the time tells.
    if not os.path.samestat(moved, found) or moved.st_mtime_ns != found.st_mtime_ns:
        # Another listener took the place in between; it gets it back.
        _link(aside, path)
        raise OSError(errno.EADDRINUSE, "somebody has just begun to listen there")
