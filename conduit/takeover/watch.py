"""Poll conduits, which a signal handler or another thread may close during the wait."""

from __future__ import annotations

import select
from collections.abc import Sequence

from conduit._conduit import Conduit
from conduit._handle import Use
from conduit.errors import Error, from_handler

Watched = tuple[Conduit, int]
"""A conduit, and the events to wait for."""


def wait_for(watched: Sequence[Watched], timeout: float, fd: int = -1) -> bool:
    """Wait for conduits, for a descriptor to become readable, or for ``timeout`` seconds.

    At most an hour, since poll(2) takes an int of milliseconds; callers wait in a loop.

    Returns:
        whether anything is ready; a closed conduit counts as ready.
    """
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, select.POLLIN)
    uses: list[Use] = []
    try:
        for conduit, events in watched:
            uses.append(Use(conduit._handle))
            poll.register(uses[-1].fileno(), events)
        return bool(poll.poll(min(timeout, 3600.0) * 1000))
    except Error as exc:
        if from_handler(exc):
            raise  # pragma: no cover - traced runs have no handler that raises
        return True
    finally:
        for use in uses:
            use.close()


def has_ended(conduit: Conduit) -> bool:
    """Whether the other end of a conduit is closed, or this one."""
    return wait_for([(conduit, 0)], 0)
