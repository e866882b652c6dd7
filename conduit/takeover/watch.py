"""Poll conduits, which a signal handler or another thread may close during the wait."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import TypeVar

from conduit._conduit import Conduit
from conduit._handle import Handle
from conduit.errors import Error, from_handler

_T = TypeVar("_T")

Watched = tuple[Conduit, int]
"""A conduit, and the events to wait for."""


def in_use(conduit: Conduit, function: Callable[[int], _T]) -> _T:
    """Call a function with the descriptor of a conduit, which stays that file's until it returns.

    Raises:
        Error: the conduit is closed.
    """
    handle = conduit._handle
    fds: list[int] = []
    try:
        # One call, all in C: a signal handler may raise after a call made in Python, before its
        # result has a name, and then nothing would tell that `leave` is due.
        fds.extend(map(Handle.enter, (handle,)))
        return function(fds[0])
    finally:
        if fds:
            handle.leave()


def wait_for(watched: Sequence[Watched], timeout: float, fd: int = -1) -> bool:
    """Wait for conduits, for a descriptor to become readable, or for ``timeout`` seconds.

    Returns:
        whether anything is ready; a closed conduit counts as ready.
    """
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, select.POLLIN)
    try:
        return _wait_for(watched, timeout, poll)
    except Error as exc:
        if from_handler(exc):
            raise  # pragma: no cover - traced runs have no handler that raises
        return True


def _wait_for(watched: Sequence[Watched], timeout: float, poll: select.poll) -> bool:
    if not watched:
        return bool(poll.poll(timeout * 1000))
    (conduit, events), *rest = watched

    def enter(fd: int) -> bool:
        poll.register(fd, events)
        return _wait_for(rest, timeout, poll)

    return in_use(conduit, enter)


def has_ended(conduit: Conduit) -> bool:
    """Whether the other end of a conduit is closed, or this one."""
    return wait_for([(conduit, 0)], 0)
