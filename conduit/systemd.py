"""A service's side of systemd, or of any manager that speaks its protocols, without its library.

`listen_fds` takes the sockets and stored descriptors that this process was started with
(sd_listen_fds(3)). `notify`, `store`, `unstore` and `barrier` send one datagram each to the socket
that ``NOTIFY_SOCKET`` names (sd_notify(3)), and return False where nobody listens, so that a
program need not ask whether it is a service. Nothing is kept between the calls: each opens its own
socket and closes it again, and the kernel tells the manager who sends.

The descriptors of `listen_fds` are plain numbers from 3 on until then, which nothing owns; the
environment alone says that they are meant for this process. So the two change together: they are
taken and the environment is cleared, or both are left as they were.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import sys

from conduit._conduit import Conduit, Descriptor
from conduit._syscalls import monotonic
from conduit.errors import (
    Error,
    ErrType,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
    from_errno,
    from_handler,
)
from conduit.mistakes import name_from, seconds_from

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from _typeshed import HasFileno

__all__ = ["barrier", "listen_fds", "notify", "store", "unstore", "watchdog_interval"]

_FIRST = 3
"""The number of the first descriptor (``SD_LISTEN_FDS_START``)."""

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")

_PATIENCE = 5.0
"""Seconds that systemd-notify(1) gives a barrier. A datagram leaves at once, unless 512 wait."""

_MAX_STATE = 4096
"""The most bytes that systemd reads; it ignores a longer message (``PIPE_BUF``)."""

_MAX_NAME = 255


def listen_fds() -> tuple[Descriptor, ...]:
    """Take the descriptors that the service manager started this process with.

    The sockets come in the order of their unit, what was stored (`store`) after them; each has the
    `Descriptor.name` of ``LISTEN_FDNAMES``: ``FileDescriptorName=`` of a socket unit, the name in
    the store, ``"connection"`` with ``Accept=yes``, ``"unknown"`` where none is given. They are
    close-on-exec, and the variables are removed from the environment: a second call returns
    nothing, and no child takes them for its own. Call it once, before other threads run.

    Returns:
        the descriptors, which the caller owns; none if there are none, or if they are meant for
        another process (``LISTEN_PID``, ``LISTEN_PIDFDID``), and then nothing is touched but the
        environment.

    Raises:
        Error: the environment lies. ``UNKNOWN`` (``EINVAL``): a variable is no number, or there
            are more or fewer names than descriptors. ``NO_FD`` (``EBADF``): a descriptor is not
            open. Nothing was taken, closed or changed, not even the environment.
    """
    saved = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    fds, names = _announced()
    taken: list[Descriptor] = []
    try:
        # In C throughout, so that each is in the list once it owns its number.
        taken.extend(map(Descriptor, fds, names))
        for name in saved:
            del os.environ[name]
        return tuple(taken)
    except BaseException:
        for descriptor in taken:
            descriptor.detach()
        os.environ.update(saved)
        raise


def notify(state: str, *items: int | HasFileno, timeout: float | None = _PATIENCE) -> bool:
    r"""Tell the service manager about the state of this service, as sd_notify(3) does.

    The unit needs ``Type=notify`` for ``READY=1`` to count, and ``NotifyAccess=all`` for processes
    other than its main one to be heard.

    Args:
        state: assignments, one a line, such as ``"READY=1"`` or ``"RELOADING=1\nSTATUS=..."``; at
            most 4096 bytes of UTF-8 (systemd ignores a longer message).
        items: descriptors to send along, as `Conduit.transfer` takes them; they stay open here.
        timeout: seconds to wait where the manager is behind; None for ever, 0 not at all.

    Returns:
        True if it was sent; whether the manager acts on it, it does not tell. False, with nothing
        done, where ``NOTIFY_SOCKET`` is not set or empty.

    Raises:
        Error: ``NO_FD``, if there is no socket at ``NOTIFY_SOCKET``, or it names one of another
            kind than a Unix socket (``EAFNOSUPPORT``: vsock is not supported); else as
            `Conduit.transfer`: `TransferTimeoutError` or `WouldBlockError`, and nothing was sent.
        ValueError: the state is empty, too long or has a NUL in it.
    """
    data = _encoded(state)
    seconds_from(timeout)
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if not address.startswith(("/", "@")):
        raise Error(
            f"NOTIFY_SOCKET is {address!r}: it is neither an absolute path nor the @name of a Unix "
            "socket, and no other is supported",
            ErrType.NO_FD,
            errno.EAFNOSUPPORT,
        )
    with Conduit.connect(
        address, type=socket.SOCK_DGRAM, timeout=timeout, name=f"NOTIFY_SOCKET {address}"
    ) as manager:
        manager.transfer(*items, data=data, keep=True)
    return True


def store(
    name: str, item: int | HasFileno, *, poll: bool = True, timeout: float | None = _PATIENCE
) -> bool:
    """Put a descriptor into the store of the service manager, which keeps it across a restart.

    The next process of the service gets it from `listen_fds`, under its name, whether this one
    crashes or is restarted. The unit needs ``FileDescriptorStoreMax=``: without it systemd ignores
    this and does not say so.

    Args:
        name: ASCII without control characters and ``:``, up to 255 bytes. Several may share one.
        item: an int, a `Descriptor`, a file or a socket. It is shared: it stays open here.
        poll: let the manager drop it when it is of no more use (``EPOLLHUP``, ``EPOLLERR``), as
            the reading end of a pipe without a writer. False keeps it (``FDPOLL=0``).
        timeout: as for `notify`.

    Returns:
        as `notify`.

    Raises:
        Error: as `notify`.
        ValueError: it is no such name.
    """
    polled = "" if poll else "\nFDPOLL=0"
    return notify(f"FDSTORE=1\nFDNAME={_checked(name)}{polled}", item, timeout=timeout)


def unstore(name: str, *, timeout: float | None = _PATIENCE) -> bool:
    """Remove from the store every descriptor of that name. As `store`, but nothing is sent along.

    What is stored stays there until then: also what `listen_fds` has handed to this process.
    """
    return notify(f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}", timeout=timeout)


def barrier(timeout: float | None = _PATIENCE) -> bool:
    """Wait until the service manager has processed all that was sent before.

    Args:
        timeout: seconds to wait in all; None for ever, 0 not at all.

    Returns:
        True once it has; False, at once, where ``NOTIFY_SOCKET`` is not set.

    Raises:
        TransferTimeoutError, WouldBlockError: it has not, in time; what was sent stays sent.
        Error: as `notify`.
    """
    seconds_from(timeout)
    deadline = None if timeout is None else monotonic() + timeout
    # Not a pipe: these are owned before any Python code can be interrupted.
    ours, theirs = Conduit.pair()
    with ours, theirs:
        if not notify("BARRIER=1", theirs, timeout=timeout):
            return False
        theirs.close()
        try:
            # The manager closes its copy when it comes to the message.
            while True:
                ours.timeout = None if deadline is None else max(0.0, deadline - monotonic())
                ours.receive().close()
        except (PeerClosedError, TransferTimeoutError, WouldBlockError) as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            if isinstance(exc, PeerClosedError):
                return True
            raise from_errno(
                errno.ETIMEDOUT if timeout else errno.EAGAIN,
                ErrType.FAILED_TRANSFER,
                "barrier",
                "the service manager has not come to it",
            ) from None


def watchdog_interval() -> float | None:
    """Return how many seconds this process may be silent before the service manager acts.

    Send ``notify("WATCHDOG=1")`` every half of it (sd_watchdog_enabled(3)).

    Returns:
        ``WatchdogSec=`` of the unit; None if there is none, or it is another process's
        (``WATCHDOG_PID``).

    Raises:
        Error: ``UNKNOWN`` (``EINVAL``): ``WATCHDOG_USEC`` or ``WATCHDOG_PID`` is no number, or it
            is no length of time.
    """
    if _number("WATCHDOG_PID") not in (None, os.getpid()):
        return None
    usec = _number("WATCHDOG_USEC")
    if usec is None:
        return None
    # The highest is systemd's "infinity".
    if not 0 < usec < (1 << 64) - 1:
        raise _lie("WATCHDOG_USEC", "which is not a length of time")
    return usec / 1e6


def _announced() -> tuple[range, list[str]]:
    """Return the numbers that the environment says are this process's, all open, and their names.

    Raises:
        Error: as `listen_fds`.
    """
    if _number("LISTEN_PID") != os.getpid() or not _is_own_pidfd():
        return range(0), []
    count = _number("LISTEN_FDS") or 0
    fds = range(_FIRST, _FIRST + count)
    for fd in fds:
        try:
            os.get_inheritable(fd)
        except OSError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            raise _lie(
                "LISTEN_FDS", f"but descriptor {fd} is not open", ErrType.NO_FD, errno.EBADF
            ) from exc
    text = os.environ.get("LISTEN_FDNAMES")
    names = text.split(":") if text else [""] * count
    if len(names) != count:
        raise _lie("LISTEN_FDNAMES", f"{len(names)} names, but LISTEN_FDS is {count}")
    return fds, [name or "unknown" for name in names]


def _is_own_pidfd() -> bool:
    """Whether ``LISTEN_PIDFDID``, which tells a process from later ones of its pid, is ours.

    Where it is not set, or the system does not tell, ``LISTEN_PID`` has to do.
    """
    wanted = _number("LISTEN_PIDFDID")
    if wanted is None:
        return True
    try:
        with Descriptor(os.pidfd_open(os.getpid())) as pidfd, select.epoll() as other:
            own, anonymous = os.fstat(pidfd.fileno()), os.fstat(other.fileno())
    except (AttributeError, OSError) as exc:
        if from_handler(exc):
            raise  # pragma: no cover - traced runs have no handler that raises
        return True
    # Before pidfs (Linux 6.9), all pidfds have one number, as all that have no name.
    if own.st_dev == anonymous.st_dev:
        return True
    # A 32-bit kernel tells the lower half only.
    return not (own.st_ino ^ wanted) & sys.maxsize


def _number(variable: str) -> int | None:
    """Return the number that a variable holds; None if it is not set or empty."""
    text = os.environ.get(variable)
    if not text:
        return None
    # int() takes more than digits, and not any number of them.
    if not re.fullmatch("[0-9]{1,20}", text):
        raise _lie(variable, "which is not a number")
    return int(text)


def _lie(
    variable: str, why: str, type: ErrType = ErrType.UNKNOWN, code: int = errno.EINVAL
) -> Error:
    return Error(f"{variable} is {os.environ.get(variable)!r}, {why}", type, code)


def _encoded(state: object) -> bytes:
    """Return the datagram that says a state, if systemd would read it."""
    if not isinstance(state, str):
        raise TypeError(f"a state is a str, not {type(state).__name__}")
    data = state.encode()
    if not data or b"\0" in data:
        raise ValueError(f"a state is assignments without NUL, such as 'READY=1', not {state!r}")
    if len(data) > _MAX_STATE:
        raise ValueError(
            f"a state has at most {_MAX_STATE} bytes, not {len(data)}: systemd ignores a longer one"
        )
    return data


def _checked(name: str) -> str:
    """Return a name for the store, if it is one."""
    text = name_from(name)
    if not (text and text.isascii() and text.isprintable() and ":" not in text):
        raise ValueError(
            f"{text!r} cannot be a name in the store: ASCII, printable, without a colon, not empty"
        )
    if len(text) > _MAX_NAME:
        raise ValueError(f"a name in the store has at most {_MAX_NAME} bytes, not {len(text)}")
    return text
