"""The process at the other end of a Unix socket, and whether it is allowed."""

from __future__ import annotations

import os
import sys
from collections import namedtuple

from conduit.errors import Ignoring, from_handler

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NamedTuple

    class _Fields(NamedTuple):
        pid: int
        uid: int
        gid: int
else:
    _Fields = namedtuple("_Fields", ("pid", "uid", "gid"))  # noqa: PYI024


class Peer(_Fields):
    """The process that a Unix socket is connected to, as it was when it connected.

    A process may connect, then drop its privileges or pass the socket on. So the uid is that of the
    process that connected, not of the one that writes now (unix(7), ``SO_PEERCRED``). ``pid`` is 0
    if the process is outside this pid namespace, or the system does not report it.
    """

    __slots__ = ()


_OVERFLOW_UID = 65534
"""The uid shown for a user that is not mapped in this user namespace (user_namespaces(7))."""


def same_user_or_root(peer: Peer) -> bool:
    """Whether a peer is this process's user (the effective one) or root.

    The overflow uid may be any unmapped user, so it is refused unless all users are mapped. A
    program that runs as that uid in a user namespace, or cannot read ``/proc``, must pass
    ``allow``.
    """
    if peer.uid != _OVERFLOW_UID or not sys.platform.startswith("linux"):
        return peer.uid in (0, os.geteuid())
    # As bytes: a codec would be one more module to import.
    with Ignoring(OSError), open("/proc/self/uid_map", "rb") as lines:
        is_whole = lines.read().split() == [b"0", b"0", b"4294967295"]
        return is_whole and peer.uid == os.geteuid()
    return False


def admits(allow: Callable[[Peer], Any], peer: Peer, who: object) -> bool:
    """Ask whether a peer is allowed, and log (logger ``conduit``, level WARNING) if it is not.

    An ``allow`` that raises refuses.

    Args:
        allow: the function to ask.
        peer: its argument.
        who: the object that asks, for the log.

    Raises:
        TypeError: ``allow`` is a coroutine function; nobody would await its answer.
    """
    failure = None
    try:
        answer = allow(peer)
    except Exception as exc:
        if from_handler(exc):
            raise
        answer, failure = False, exc
    if hasattr(answer, "__await__"):
        if close := getattr(answer, "close", None):
            close()
        raise TypeError("allow() must answer at once, and cannot be a coroutine function")
    if not answer:
        _warn("%r refused %r", who, peer, exc_info=failure)
    return bool(answer)


def _warn(message: str, *args: object, exc_info: BaseException | None) -> None:
    try:
        # Here, since it takes longer to import than all of conduit.
        import logging
    except ImportError:
        # In a sandbox that cannot read modules. Nobody has configured logging, then.
        return
    logging.getLogger("conduit").warning(message, *args, exc_info=exc_info)
