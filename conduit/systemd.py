"""A service's side of the protocols of systemd, without libsystemd.

`listen_fds` takes the sockets and stored descriptors that this process was started with
(sd_listen_fds(3)). `notify`, `store`, `unstore` and `barrier` send one datagram each to the socket
that ``NOTIFY_SOCKET`` names (sd_notify(3)). Without ``NOTIFY_SOCKET`` they return False, so a
program need not ask whether it is a service. Nothing is kept between the calls: each opens its own
socket and closes it again, and the kernel tells the manager which process sends.

Until `listen_fds`, no object owns its descriptors: they are numbers from 3 on, and only the
environment says that they are meant for this process. So it either takes them and clears the
environment, or changes neither.
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
"""As long as systemd-notify(1) waits for a barrier. A datagram waits only if 512 are queued."""

_MAX_STATE = 4096
"""The most bytes that systemd reads; it ignores a longer message (``PIPE_BUF``)."""

_MAX_NAME = 255


def listen_fds() -> tuple[Descriptor, ...]:
    """Take the descriptors that the service manager started this process with.

    The sockets come in the order of their unit, then what was stored (`store`). The
    `Descriptor.name` of each is from ``LISTEN_FDNAMES``: ``FileDescriptorName=`` of a socket unit,
    the name in the store, ``"connection"`` with ``Accept=yes``, ``"unknown"`` if there is none. All
    become close-on-exec. The variables are removed from the environment, so a second call returns
    nothing, and no child takes the descriptors for its own. Call it once, before other threads run.

    Returns:
        the descriptors, which the caller owns. Empty if there are none, or if they are meant for
        another process (``LISTEN_PID``, ``LISTEN_PIDFDID``); then only the environment is changed.

    Raises:
        Error: the environment is wrong. ``UNKNOWN`` (``EINVAL``): a variable is not a number, or
            there are more or fewer names than descriptors. ``NO_FD`` (``EBADF``): a descriptor is
            not open. Nothing was taken, closed or changed, not even the environment.
    """
    saved = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    fds, names = announced()
    taken: list[Descriptor] = []
    try:
        # All in C: no signal handler can run between the making of one and its entry in the list.
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

    ``READY=1`` needs ``Type=notify`` in the unit. A process other than the unit's main one needs
    ``NotifyAccess=all``.

    Args:
        state: assignments, one a line, such as ``"READY=1"`` or ``"RELOADING=1\nSTATUS=..."``; at
            most 4096 bytes of UTF-8 (systemd ignores a longer message).
        items: descriptors to send along, as `Conduit.transfer` takes them; they stay open here.
        timeout: seconds to wait if the manager's queue is full; None for ever, 0 not at all.

    Returns:
        True if it was sent; the manager does not say whether it acts on it. False, with nothing
        done, if ``NOTIFY_SOCKET`` is not set or empty.

    Raises:
        Error: ``NO_FD``, if there is no socket at ``NOTIFY_SOCKET``, or it does not name a Unix
            socket (``EAFNOSUPPORT``: vsock is not supported). Otherwise as `Conduit.transfer`;
            after `TransferTimeoutError` or `WouldBlockError` nothing was sent.
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
        poll: let the manager drop it on ``EPOLLHUP`` or ``EPOLLERR``, such as the reading end of a
            pipe that has no writer any more. False keeps it (``FDPOLL=0``).
        timeout: as for `notify`.

    Returns:
        as `notify`.

    Raises:
        Error: as `notify`.
        ValueError: the name is not of that form.
    """
    polled = "" if poll else "\nFDPOLL=0"
    return notify(f"FDSTORE=1\nFDNAME={_checked(name)}{polled}", item, timeout=timeout)


def unstore(name: str, *, timeout: float | None = _PATIENCE) -> bool:
    """Remove every descriptor of a name from the store. Returns and raises as `store`.

    Until then a stored descriptor stays there, even after `listen_fds` has returned it.
    """
    return notify(f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}", timeout=timeout)


def barrier(timeout: float | None = _PATIENCE) -> bool:
    """Wait until the service manager has processed everything sent before.

    Args:
        timeout: seconds to wait in all; None for ever, 0 not at all.

    Returns:
        True once it has; False, at once, if ``NOTIFY_SOCKET`` is not set.

    Raises:
        TransferTimeoutError, WouldBlockError: it has not, in time; what was sent remains sent.
        Error: as `notify`.
    """
    seconds_from(timeout)
    deadline = None if timeout is None else monotonic() + timeout
    # Not os.pipe(): objects own these two before a signal handler can run.
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

    Send ``notify("WATCHDOG=1")`` twice in that time (sd_watchdog_enabled(3)).

    Returns:
        ``WatchdogSec=`` of the unit; None if it is not set, or meant for another process
        (``WATCHDOG_PID``).

    Raises:
        Error: ``UNKNOWN`` (``EINVAL``): ``WATCHDOG_USEC`` or ``WATCHDOG_PID`` is not a number, or
            ``WATCHDOG_USEC`` is 0 or systemd's "infinity".
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


def announced() -> tuple[range, list[str]]:
    """Return the descriptors that the environment announces, all open, and their names.

    Who opens others before they are taken looks first: if a number is not open, the next descriptor
    gets it, and would be taken for a socket of the manager's.

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
    """Whether ``LISTEN_PIDFDID`` is ours; unlike ``LISTEN_PID``, it is never reused.

    True if it is not set or cannot be checked: then ``LISTEN_PID`` alone decides.
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
    # Before pidfs (Linux 6.9), all pidfds have the one inode of anonymous files.
    if own.st_dev == anonymous.st_dev:
        return True
    # A 32-bit kernel tells the lower half only.
    return not (own.st_ino ^ wanted) & sys.maxsize


def _number(variable: str) -> int | None:
    """Return the number that a variable holds; None if it is not set or empty."""
    text = os.environ.get(variable)
    if not text:
        return None
    # int() also takes signs, spaces and underscores, and refuses very long numbers.
    if not re.fullmatch("[0-9]{1,20}", text):
        raise _lie(variable, "which is not a number")
    return int(text)


def _lie(
    variable: str, why: str, type: ErrType = ErrType.UNKNOWN, code: int = errno.EINVAL
) -> Error:
    return Error(f"{variable} is {os.environ.get(variable)!r}, {why}", type, code)


def _encoded(state: object) -> bytes:
    """Return a state as the bytes of a datagram; `ValueError` if systemd would not read it."""
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
    """Return a name for the store; `ValueError` if systemd would not take it."""
    text = name_from(name)
    if not (text and text.isascii() and text.isprintable() and ":" not in text):
        raise ValueError(
            f"{text!r} cannot be a name in the store: ASCII, printable, without a colon, not empty"
        )
    if len(text) > _MAX_NAME:
        raise ValueError(f"a name in the store has at most {_MAX_NAME} bytes, not {len(text)}")
    return text
