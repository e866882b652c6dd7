"""The path of a Unix socket: as an address, bound, known again, removed.

Nothing is imported here later than `conduit` is: who binds may be in a sandbox by then that can
read no module.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time

from conduit._handle import Handle
from conduit.errors import Error, ErrType, Ignoring, from_errno, from_handler
from conduit.mistakes import path_from

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from _typeshed import StrOrBytesPath

_LONGEST = 107
"""Bytes a path may have in ``sun_path``, its closing NUL not counted (unix(7))."""

_LOOKS = 100
"""How often to look, each millisecond, who has a lock: it is bound a moment before it listens."""


def address_from(path: StrOrBytesPath) -> bytes:
    """Return the bytes of a Unix socket's address: ``@name`` is an abstract one on Linux."""
    address = os.fsencode(path_from(path))
    if address.startswith(b"@") and sys.platform == "linux":
        return b"\0" + address[1:]
    if b"\0" in address[1:] and address[:1] != b"\0":
        raise ValueError(f"embedded null byte in path {path!r}")
    return address


def absolute(path: str | bytes) -> str | bytes:
    """Return a path as it is known wherever this process goes.

    Raises:
        Error: ``NO_FD``, if it is relative and the current directory is gone.
    """
    try:
        return os.path.abspath(path)
    except OSError as exc:
        if from_handler(exc):
            raise  # pragma: no cover - traced runs have no handler that raises
        code = exc.errno or errno.EINVAL
        why = "it is relative, and the current directory is not to be found"
        raise from_errno(code, ErrType.NO_FD, f"the path {path!r}", why) from exc


def unlink_own(path: StrOrBytesPath, inode: tuple[int, int]) -> None:
    """Remove a path, if it still is the file of this device and inode."""
    try:
        if inode_of(path) == inode:
            os.unlink(path)
    except FileNotFoundError:  # pragma: no cover - it went in between
        pass  # pragma: no cover


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
        is_abstract = address_from(self.path).startswith(b"\0")
        self._absolute = self.path if is_abstract else absolute(self.path)
        self._process = os.getpid()
        self._inode: tuple[int, int] | None = None

    def adopt(self, handle: Handle) -> None:
        """Be the place of a socket that listens already; what is here and not its own will stay.

        Raises:
            Error: ``BAD_CLONE``, if it does not listen, or is no Unix socket.
        """
        bound = None
        try:
            # Made first, and given the fd inside: dropped by a handler that raises, it would close
            # what is the handle's.
            sock = socket.socket.__new__(socket.socket)
            try:
                sock.__init__(fileno=handle.fileno())  # type: ignore[misc]
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    bound = sock.getsockname()
            finally:
                sock.detach()
        except OSError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            raise from_errno(exc.errno or errno.EINVAL, ErrType.BAD_CLONE, repr(handle)) from exc
        address = address_from(self.path)
        if not isinstance(bound, str | bytes):
            raise Error(f"{handle!r}: it is no Unix socket that listens", ErrType.BAD_CLONE)
        bound = os.fsencode(bound)
        # A relative address says nothing of the directory it was bound in.
        if bound.startswith(b"/"):
            address = os.fsencode(self._absolute)
        if bound == address and not address.startswith(b"\0"):
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
            ValueError: the mode has bits that none has.
        """
        if not 0 <= mode <= 0o7777:
            raise ValueError(f"mode must be permission bits, such as 0o600, not {mode!r}")
        try:
            with socket.socket(socket.AF_UNIX, type) as sock:
                # Another process may share it and take first what both were told of.
                sock.setblocking(False)
                if backlog is None:
                    # Before anything can come.
                    if sys.platform == "linux":  # pragma: no branch
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                elif sock.type == socket.SOCK_DGRAM:
                    raise OSError(errno.EOPNOTSUPP, "datagram sockets take no connections")
                address = address_from(self.path)
                absolute = os.fsencode(self._absolute)
                # As it is known from then on, whoever looks from wherever, if there is room.
                if not address.startswith(b"\0") and len(absolute) <= _LONGEST:
                    address = absolute
                self._inode = bind_address(sock, address, mode, backlog or 0)
                return Handle.duplicate(sock.fileno(), what, name or os.fsdecode(self.path))
        except OSError as exc:
            if isinstance(exc, Error) or from_handler(exc):
                raise  # pragma: no cover - as above
            code = exc.errno or errno.EINVAL
            why = None if exc.strerror == os.strerror(code) else exc.strerror
            doing = "binding" if backlog is None else "listening at"
            raise from_errno(code, ErrType.NO_FD, f"{doing} {self.path!r}", why) from exc

    def release(self, *, unlink: bool = True) -> None:
        """Remove the path, unless another has replaced it, or in a forked child, and forget it.

        Args:
            unlink: False leaves it there.

        One that this process may not remove any more, having given up its rights, stays.

        Raises:
            Error: ``FAILED_CLOSE``, if the system reports another failure.
        """
        inode, self._inode = self._inode, None
        try:
            if unlink and inode is not None and self._process == os.getpid():
                unlink_own(self._absolute, inode)
        except PermissionError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
        except OSError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - as above
            code = exc.errno or errno.EINVAL
            raise from_errno(code, ErrType.FAILED_CLOSE, f"removing {self.path!r}") from exc


def bind_address(
    sock: socket.socket, address: bytes, mode: int, backlog: int
) -> tuple[int, int] | None:
    """Bind at a path or an abstract name, and listen unless for datagrams.

    Returns:
        the device and inode of the path, to know it again; None for an abstract name.
    """
    if not address.startswith(b"\0"):
        return _bind_path(sock, address, mode, backlog)
    check_length(address[1:])
    sock.bind(address)
    if sock.type != socket.SOCK_DGRAM:
        sock.listen(backlog)
    return None


def _bind_path(sock: socket.socket, path: bytes, mode: int, backlog: int) -> tuple[int, int]:
    """Bind at a path, which has its mode from the first instant, and listen unless for datagrams.

    A socket that nobody listens on any more is replaced.

    Returns:
        the device and inode of the path, to know it again.
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
        # An interrupt comes at any line; the address tells.
        if bound or sock.getsockname():
            # As traced runs have no handler that raises.
            unlink_own(path, inode_of(path) or (0, 0))  # pragma: no cover
        raise


def _bind(sock: socket.socket, path: bytes, mode: int) -> None:
    """Bind a socket at a path, whose mode it has at once, less what the umask takes away."""
    if sys.platform == "linux":
        # Linux makes the path with the mode of the socket's own inode (seen from 5.10 to 7.3).
        os.fchmod(sock.fileno(), mode)
        sock.bind(path)
        return
    # For a moment, what other threads make is theirs alone, too.
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def _add_mode(path: bytes, status: os.stat_result, mode: int) -> None:
    """Give a path the bits that the umask took away, unless something else is there by now."""
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
    """Keep other processes of this user away that would bind at a path; EADDRINUSE for the later.

    Of two that found the same stale socket there, the later would remove what the earlier bound;
    and what is bound and does not listen yet looks stale. Who is first has an abstract name,
    which the system takes back however this ends: a file would need more rights than bind(2),
    could be left behind, and be held by any other user. A holder that is another user's does not
    count, nor does one that does not listen.

    Only on Linux are there such names; elsewhere, and for processes of another user or network
    namespace, the moment between the two calls remains.
    """

    def __init__(self, path: bytes) -> None:
        directory, name = os.path.split(path)
        try:
            place = os.stat(directory or b".")
        except FileNotFoundError as exc:
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
        # Not on Linux it fails: nothing was bound.
        with self._sock, Ignoring(OSError):
            # A child that was forked meanwhile has it, too; what does not listen does not count.
            self._sock.shutdown(socket.SHUT_RDWR)


def _holder(lock: bytes) -> int | None:
    """The user of the process that listens at a name; None if none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(lock)
        if code == errno.EAGAIN:
            # So many ask that nobody can; who it is, the next will see.
            return os.geteuid()
        if code:
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
            # Anything but a refusal means that somebody is there: a full backlog (EAGAIN), a
            # socket of another type (EPROTOTYPE), or one this user may not connect to (EACCES).
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                raise OSError(errno.EADDRINUSE, "somebody listens there")
        now = os.lstat(path)
        # The number of what another removed may be its own socket's now; the time tells.
        if os.path.samestat(now, found) and now.st_mtime_ns == found.st_mtime_ns:
            os.unlink(path)
    except FileNotFoundError:
        return
