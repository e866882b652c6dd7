"""The path of a Unix socket: as an address, bound, known again, removed.

All imports are at the top: a program may bind in a sandbox, where it can no longer read modules.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time

from conduit._handle import Handle
from conduit.errors import Error, ErrType, Ignoring, from_handler, reraise
from conduit.mistakes import path_from

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from _typeshed import StrOrBytesPath

_LONGEST = 107
"""Bytes a path may have in ``sun_path``, its closing NUL not counted (unix(7))."""

_LOOKS = 100
"""How often to look, each millisecond, who has a lock: its holder binds before it listens."""


def address_from(path: StrOrBytesPath) -> bytes:
    """Return the bytes of a Unix socket's address: ``@name`` is an abstract one on Linux."""
    address = os.fsencode(path_from(path))
    if address.startswith(b"@") and sys.platform == "linux":
        return b"\0" + address[1:]
    if b"\0" in address[1:] and address[:1] != b"\0":
        raise ValueError(f"embedded null byte in path {path!r}")
    return address


def absolute(path: str | bytes) -> str | bytes:
    """Return a path that stays valid when this process changes directory.

    Raises:
        Error: ``NO_FD``, if it is relative and the current directory is gone.
    """
    try:
        return os.path.abspath(path)
    except OSError as exc:
        why = "it is relative, and the current directory is not to be found"
        reraise(exc, f"the path {path!r}", why=why)


def unlink_own(path: StrOrBytesPath, inode: tuple[int, int]) -> None:
    """Remove a path if it is still the file of this device and inode."""
    try:
        if inode_of(path) == inode:
            os.unlink(path)
    except FileNotFoundError:  # pragma: no cover - it went in between
        pass  # pragma: no cover


def inode_of(path: StrOrBytesPath) -> tuple[int, int] | None:
    """Return the device and inode of a path, to recognise it later; None if it is gone."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


class Place:
    """Where a socket is bound; only the process that bound it removes the path."""

    def __init__(self, path: StrOrBytesPath) -> None:
        self.path: str | bytes = path_from(path)
        is_abstract = address_from(self.path).startswith(b"\0")
        self._absolute = self.path if is_abstract else absolute(self.path)
        self._process = os.getpid()
        self._inode: tuple[int, int] | None = None

    def adopt(self, handle: Handle) -> None:
        """Become the place of a socket that listens already. `release` removes only its path.

        Raises:
            Error: ``BAD_CLONE``, if it is not a listening Unix socket.
        """
        bound = None
        try:
            # Made first, and given the fd inside the try: if a handler raised in between, the
            # dropped socket would close the handle's fd.
            sock = socket.socket.__new__(socket.socket)
            try:
                sock.__init__(fileno=handle.fileno())  # type: ignore[misc]
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    bound = sock.getsockname()
            finally:
                sock.detach()
        except OSError as exc:
            reraise(exc, repr(handle), ErrType.BAD_CLONE)
        address = address_from(self.path)
        if not isinstance(bound, str | bytes):
            raise Error(f"{handle!r}: it is no Unix socket that listens", ErrType.BAD_CLONE)
        bound = os.fsencode(bound)
        # A relative address says nothing of the directory it was bound in.
        if bound.startswith(b"/"):
            address = os.fsencode(self._absolute)
        # A path that this process may not look at, it could not remove either.
        with Ignoring(OSError):
            if bound == address and not address.startswith(b"\0"):
                self._inode = inode_of(self._absolute)

    def bind(self, what: str, name: str, type: int, mode: int, backlog: int | None) -> Handle:
        """Bind a new socket here, and listen unless it takes datagrams.

        Args:
            what: the kind of object, in errors.
            name: its name there; by default the path.
            type: the type of the socket.
            mode: the permission bits of the path; an abstract name has none.
            backlog: how many connections may wait to be accepted; None for a datagram socket, which
                then passes credentials.

        Returns:
            the handle that owns the non-blocking socket. If anything fails after that, a signal
            handler included, the caller must `release` the place.

        Raises:
            Error: ``NO_FD``, with the errno.
            ValueError: the mode has more than permission bits.
        """
        if not 0 <= mode <= 0o7777:
            raise ValueError(f"mode must be permission bits, such as 0o600, not {mode!r}")
        try:
            with socket.socket(socket.AF_UNIX, type) as sock:
                # Non-blocking: a process that shares it may take what poll() reported to both.
                sock.setblocking(False)
                if backlog is None:
                    # Before anything can come.
                    if sys.platform == "linux":  # pragma: no branch
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                elif sock.type == socket.SOCK_DGRAM:
                    raise OSError(errno.EOPNOTSUPP, "datagram sockets take no connections")
                address = address_from(self.path)
                absolute = os.fsencode(self._absolute)
                # Absolute, if that fits: peers see the address, and may have another directory.
                if not address.startswith(b"\0") and len(absolute) <= _LONGEST:
                    address = absolute
                self._inode = bind_address(sock, address, mode, backlog or 0)
                name = name or os.fsdecode(self.path)
                return Handle.duplicate(sock.fileno(), what, name, ErrType.NO_FD)
        except OSError as exc:
            doing = "binding" if backlog is None else "listening at"
            reraise(exc, f"{doing} {self.path!r}")

    def release(self, *, unlink: bool = True) -> None:
        """Remove the path and forget it. In a forked child, or if it was replaced, it stays.

        Args:
            unlink: False leaves it there.

        A path that this process may no longer remove, having dropped its privileges, stays.

        Raises:
            Error: ``FAILED_CLOSE``, if the system reports another failure.
        """
        inode, self._inode = self._inode, None
        try:
            with Ignoring(PermissionError):
                if unlink and inode is not None and self._process == os.getpid():
                    unlink_own(self._absolute, inode)
        except OSError as exc:
            reraise(exc, f"removing {self.path!r}", ErrType.FAILED_CLOSE)


def bind_address(
    sock: socket.socket, address: bytes, mode: int, backlog: int
) -> tuple[int, int] | None:
    """Bind at a path or an abstract name, and listen unless for datagrams.

    Returns:
        the device and inode of the path, to recognise it later; None for an abstract name.
    """
    if not address.startswith(b"\0"):
        return _bind_path(sock, address, mode, backlog)
    check_length(address[1:])
    sock.bind(address)
    if sock.type != socket.SOCK_DGRAM:
        sock.listen(backlog)
    return None


def _bind_path(sock: socket.socket, path: bytes, mode: int, backlog: int) -> tuple[int, int]:
    """Bind at a path, never with more permissions than the mode, and listen unless for datagrams.

    A socket that nobody listens on any more is replaced.

    Returns:
        the device and inode of the path, to recognise it later.
    """
    check_length(path)
    bound = False
    try:
        with _Alone(path):
            while not bound:
                try:
                    _bind(sock, path, mode)
                    bound = True
                except OSError as exc:
                    if exc.errno != errno.EADDRINUSE:
                        raise  # pragma: no cover - root gets no other here
                    _remove_stale(path, sock.type)
            status = os.lstat(path)
            if stat.S_IMODE(status.st_mode) != mode:
                _add_mode(path, status, mode)
            if sock.type != socket.SOCK_DGRAM:
                sock.listen(backlog)
        return status.st_dev, status.st_ino
    except BaseException:
        # A signal handler may have raised at any line; the address tells whether it is bound.
        if bound or sock.getsockname():
            # As traced runs have no handler that raises.
            unlink_own(path, inode_of(path) or (0, 0))  # pragma: no cover
        raise


def _bind(sock: socket.socket, path: bytes, mode: int) -> None:
    """Bind a socket at a path that has the mode at once, less what `_add_mode` can add."""
    if sys.platform == "linux":
        # Linux makes the path with the mode of the socket's own inode (seen from 5.10 to 7.3).
        os.fchmod(sock.fileno(), mode)
        if _has_proc():
            sock.bind(path)
            return
    # The umask is the process's: for a moment it also holds for files that other threads make.
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def _has_proc() -> bool:
    with Ignoring(OSError):
        os.stat("/proc/self/fd")
        return True
    return False


def _add_mode(path: bytes, status: os.stat_result, mode: int) -> None:
    """Give a path the bits that the umask took away, unless it was replaced meanwhile."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.path.samestat(os.fstat(fd), status):
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def check_length(path: bytes) -> None:
    """Raise `OSError` (``ENAMETOOLONG``) if a path or an abstract name is too long."""
    if len(path) > _LONGEST:
        raise OSError(
            errno.ENAMETOOLONG, f"the path has {len(path)} bytes; at most {_LONGEST} are possible"
        )


class _Alone:
    """Let one process of this user at a time bind at a path; the others get EADDRINUSE.

    Without it, if two processes found the same stale socket, the second would remove what the first
    bound; and a socket that is bound but does not listen yet looks stale. The lock is an abstract
    name, which the system takes back however this process ends. A lock file would need more
    permissions than bind(2), could be left behind, and any user could hold it. A holder of another
    user does not count, nor does one that does not listen, or that nobody can ask who it is, since
    its backlog is full: this user's own are done in a moment.

    Only Linux has abstract names. Elsewhere, and between users or network namespaces, the race
    between the two calls remains.
    """

    def __init__(self, path: bytes) -> None:
        directory, name = os.path.split(path)
        try:
            place = os.stat(directory or b".")
        except FileNotFoundError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            why = f"the directory {os.fsdecode(directory)!r} does not exist"
            raise OSError(errno.ENOENT, why) from exc
        self._name = b"\0conduit %x:%x %b" % (place.st_dev, place.st_ino, name[-50:])
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def __enter__(self) -> None:
        try:
            for _ in range(_LOOKS if sys.platform == "linux" else 0):
                try:
                    self._sock.bind(self._name)
                    self._sock.listen()
                    break
                except OSError as exc:
                    if exc.errno != errno.EADDRINUSE:
                        raise
                    holder = _holder(self._name)
                    if holder in (0, os.geteuid()):
                        why = "somebody is about to listen there"
                        raise OSError(errno.EADDRINUSE, why) from exc
                    if holder is not None:
                        break
                    time.sleep(0.001)
        except BaseException:
            self._sock.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        # On systems other than Linux it fails: nothing was bound.
        with self._sock, Ignoring(OSError):
            # A child forked meanwhile has it, too; a holder that does not listen does not count.
            self._sock.shutdown(socket.SHUT_RDWR)


def _holder(lock: bytes) -> int | None:
    """Return the uid of the process that listens at a name; None if none does, or it is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        if probe.connect_ex(lock):
            return None
        # struct ucred: pid, uid, gid.
        uid = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8]
        return int.from_bytes(uid, sys.byteorder)


def _remove_stale(path: bytes, type: int) -> None:
    """Remove a socket that nobody listens on from a path; raise EADDRINUSE for anything else."""
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EADDRINUSE, "what is there is not a socket")
        with socket.socket(socket.AF_UNIX, type) as probe:
            probe.setblocking(False)
            # Anything but ECONNREFUSED means that somebody is there: a full backlog (EAGAIN), a
            # socket of another type (EPROTOTYPE), or one this user may not connect to (EACCES).
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                raise OSError(errno.EADDRINUSE, "somebody listens there")
        now = os.lstat(path)
        # Another process may have removed it, and its new socket reuse the inode; mtime tells.
        if os.path.samestat(now, found) and now.st_mtime_ns == found.st_mtime_ns:
            os.unlink(path)
    except FileNotFoundError:
        return
