"""Who is at the other end of a Unix socket."""

from __future__ import annotations

import os
from collections import namedtuple

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

    A process may connect, then drop its privileges or hand the socket to another: the uid says
    who asked for the connection, not who writes now (unix(7), ``SO_PEERCRED``). ``pid`` is 0 if
    the process is outside this pid namespace, or where the system does not tell it.
    """

    __slots__ = ()


def same_user_or_root(peer: Peer) -> bool:
    """Whether a peer is this process's user (the effective one) or root."""
    return peer.uid in (0, os.geteuid())


def admits(allow: Callable[[Peer], Any], peer: Peer) -> bool:
    """Ask whether a peer is allowed.

    Raises:
        TypeError: ``allow`` is a coroutine function, whose answer nobody would await.
    """
    answer = allow(peer)
    if hasattr(answer, "__await__"):
        if close := getattr(answer, "close", None):
            close()
        raise TypeError("allow() must answer at once, and cannot be a coroutine function")
    return bool(answer)
