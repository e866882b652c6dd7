"""The path of a Unix socket: as an address, bound, known again, removed.

Imported where one is first used: what this needs takes longer to import than the rest of conduit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator

from conduit._handle import Handle
from conduit.errors import Error, ErrType, from_errno, from_handler
from conduit.mistakes import path_from

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from _typeshed import StrOrBytesPath

_LONGEST = 107
"""Bytes a path may have in ``sun_path``, its closing NUL not counted (unix(7))."""


def address_from(path: StrOrBytesPath) -> bytes:
    """Return the bytes of a Unix socket's address: ``@name`` is an abstract one on Linux."""
    address = os.fsencode(path_from(path))
    if address.startswith(b"@") and sys.platform == "linux":
        return b"\0" + address[1:]
    if b"\0" in address[1:] and address[:1] != b"\0":
        raise ValueError(f"embedded null byte in path {path!r}")
    return address


def unlink_own(path: StrOrBytesPath, inode: tuple[int, int]) -> None:
    """Remove a path, if it still is the file of this device and inode."""
    with contextlib.suppress(FileNotFoundError):
        if inode_of(path) == inode:
            os.unlink(path)


def inode_of(path: StrOrBytesPath) -> tuple[int, int] | None:
    """Return the device and inode of a path, by which to know it again; None if it is gone."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


class Place:
    """Where a socket is bound: known again, and removed by the process that bound it."""

    def __init__(self, path: StrOrBytesPath) -> None:
        self.path: str | bytes = path_from(path)
        self._absolute = os.path.abspath(self.path)
        self._process = os.getpid()
        self._inode: tuple[int, int] | None = None

    def adopt(self) -> None:
        """Take what is there now for the socket's own."""
        self._inode = inode_of(self._absolute)

    def bind(self, what: str, name: str, type: int, mode: int, backlog: int | None) -> Handle:
        """Bind a new socket here, and listen unless it takes datagrams.

        Args:
            what: what the handle is called in errors.
            name: its name there; without one, the path.
            type: the type of the socket.
            mode: the permission bits of the path; an abstract name has none.
            backlog: how many connections wait to be accepted; None for a socket that takes
                datagrams, which tell who sent them.

        Returns:
            the handle that owns the socket, which does not wait. Whoever fails after that, an
            interrupt say, has the place to `release`.

        Raises:
            Error: ``NO_FD``, with the errno.
        """
        try:
            with socket.socket(socket.AF_UNIX, type) as sock:
                # Another process may share it and take first what both were told of.
                sock.setblocking(False)
                if backlog is None:
                    # Before anything can come.
                    if sys.platform == "linux":
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                elif sock.type == socket.SOCK_DGRAM:
                    raise OSError(errno.EOPNOTSUPP, "datagram sockets take no connections")
                address = address_from(self.path)
                if address.startswith(b"\0"):
                    check_length(address[1:])
                    sock.bind(address)
                    if backlog is not None:
                        sock.listen(backlog)
                else:
                    self._inode = bind_path(sock, address, mode, backlog or 0)
                return Handle.duplicate(sock.fileno(), what, name or os.fsdecode(self.path))
        except OSError as exc:
            if isinstance(exc, Error) or from_handler(exc):
                raise
            code = exc.errno or errno.EINVAL
            why = None if exc.strerror == os.strerror(code) else exc.strerror
            doing = "binding" if backlog is None else "listening at"
            raise from_errno(code, ErrType.NO_FD, f"{doing} {self.path!r}", why) from exc

    def release(self, *, unlink: bool = True) -> None:
        """Remove the path, unless another has replaced it, or in a forked child, and forget it.

        Args:
            unlink: False leaves it there.

        Raises:
            Error: ``FAILED_CLOSE``, if the system reports a failure.
        """
        inode, self._inode = self._inode, None
        try:
            if unlink and inode is not None and self._process == os.getpid():
                unlink_own(self._absolute, inode)
        except OSError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            code = exc.errno or errno.EINVAL
            raise from_errno(code, ErrType.FAILED_CLOSE, f"removing {self.path!r}") from exc


def bind_path(sock: socket.socket, path: bytes, mode: int, backlog: int) -> tuple[int, int]:
    """Bind, and listen unless it takes datagrams, at a path that shows only a complete socket.

    It is made in a directory that only this user can enter, and then linked to its place, which
    fails if another was faster; a rename would replace that one unseen.

    Returns:
        the device and inode of the socket, to know it again.
    """
    check_length(path)
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
            status = os.lstat(made)
            inode = status.st_dev, status.st_ino
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


def check_length(path: bytes) -> None:
    """Raise `OSError` (``ENAMETOOLONG``) if a path or an abstract name is too long."""
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
