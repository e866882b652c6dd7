"""Room for descriptors: raises the soft limit of open files where it is too low.

Most systems give a process a soft limit of 1024, for programs that use select(2), and let it raise
that up to the hard limit (getrlimit(2)). It is raised no further than needed: children inherit it,
and some programs loop over all numbers below it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Callable
from typing import TypeVar

from conduit.errors import Ignoring, from_handler

_T = TypeVar("_T")


def with_room(open_one: Callable[[], _T]) -> _T:
    """Call a function that opens descriptors; if they do not fit, again with a higher limit.

    Raises:
        OSError: ``EMFILE`` if the hard limit allows no more; whatever else it raises.
    """
    while True:
        try:
            return open_one()
        except OSError as exc:
            if exc.errno != errno.EMFILE or from_handler(exc) or not _raise_limit():
                raise


def make_room(count: int) -> None:
    """Make room for ``count`` more descriptors, as far as the hard limit allows."""
    while _limit() - _used() < count and _raise_limit():
        pass
    wanted = min(_used() + count, _limit()) - 1
    # The table grows to that at once. By itself it doubles each time, and each time waits for all
    # processors if threads share it, which takes longer than all else of a takeover.
    with Ignoring(OSError, OverflowError), open(os.devnull, "rb", buffering=0) as file:
        next(map(os.close, map(fcntl.fcntl, (file,), (fcntl.F_DUPFD_CLOEXEC,), (wanted,))))


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _used() -> int:
    with Ignoring(OSError):
        return len(os.listdir("/proc/self/fd"))
    # Where the system does not tell, all may be in use.
    return _limit()


def _raise_limit() -> bool:
    """Double the soft limit, up to the hard one; False if it cannot be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
    if soft in (hard, resource.RLIM_INFINITY):
        return False
    with Ignoring(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return True
    # There is a lower limit, as macOS has one (kern.maxfilesperproc).
    return False
