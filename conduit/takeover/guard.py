"""The paths of Unix sockets, put back when a predecessor that drains removes them.

Many servers remove the path of their socket when they close: asyncio's do from Python 3.13 on
(``cleanup_socket``). By then it is the successor's, and nothing tells the two apart, since the
socket, and with it the inode, is the same. A socket cannot be bound a second time; but its inode
may have a second name, from which the first is made again.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from conduit.paths import inode_of

log: logging.Logger = logging.getLogger("conduit.takeover")


def spare_of(path: str) -> str:
    """Return the second name of a socket, beside its path, hidden, with the pid of this process."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{os.getpid()}")


class Guard:
    """Second names of sockets (`spare_of`)."""

    def __init__(self) -> None:
        self._spares: dict[str, str] = {}

    def add(self, path: str, inode: tuple[int, int]) -> None:
        """Give a socket a second name, if that can be done."""
        spare = spare_of(path)
        if inode_of(path) != inode:
            return
        try:
            os.link(path, spare, follow_symlinks=False)
        except OSError as exc:
            log.info("%s could not be put back if the predecessor removed it: %s", path, exc)
        else:
            self._spares[path] = spare

    def restore(self) -> None:
        """Put each path back that nothing is at."""
        for path, spare in self._spares.copy().items():
            # It is there, as a rule.
            with suppress(OSError):
                os.link(spare, path)
                log.warning("the path of a socket was removed, and has been put back: %s", path)

    def close(self) -> None:
        """Remove the second names."""
        while self._spares:
            _, spare = self._spares.popitem()
            with suppress(OSError):
                os.unlink(spare)

    def forget(self) -> None:
        """Leave them, for they are another process's."""
        self._spares.clear()
