"""The paths of Unix sockets, put back when a predecessor that drains removes them.

Many servers remove the path of their socket when they close: asyncio's do from Python 3.13 on
(``cleanup_socket``). By then it is the successor's, and nothing tells the two apart, since the
socket, and with it the inode, is the same. A socket cannot be bound a second time; but its inode
may have a second name, from which the first is made again.
"""

from __future__ import annotations

import logging
import os
import stat

from conduit.errors import Ignoring, from_handler
from conduit.paths import inode_of

log: logging.Logger = logging.getLogger("conduit.takeover")


def second_name(path: str, end: str = "") -> str:
    """Return a name beside a path, hidden, with the pid of this process."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{os.getpid()}{end}")


def link(path: str, spare: str) -> None:
    """Give a socket a second name; `OSError` if that cannot be done.

    A socket that is there was left by a process that was killed: in containers they have the same
    pid each time.
    """
    try:
        os.link(path, spare, follow_symlinks=False)
    except FileExistsError:
        if not stat.S_ISSOCK(os.lstat(spare).st_mode):
            raise
        os.unlink(spare)
        os.link(path, spare, follow_symlinks=False)


class Guard:
    """Second names of sockets, each beside its path. A signal handler may close it at any line."""

    def __init__(self) -> None:
        self._spares: dict[str, str] = {}

    def add(self, path: str, inode: tuple[int, int]) -> None:
        """Give a socket a second name, if that can be done."""
        if inode_of(path) != inode:
            return
        spare = second_name(path)
        # Before, for a handler that raises, and after, for one that closes.
        self._spares[path] = spare
        try:
            link(path, spare)
            self._spares[path] = spare
        except OSError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            self._spares.pop(path, None)
            log.info("%s could not be put back if the predecessor removed it: %s", path, exc)

    def restore(self) -> None:
        """Put each path back that nothing is at."""
        for path, spare in self._spares.copy().items():
            # It is there, as a rule.
            with Ignoring(OSError):
                os.link(spare, path)
                log.warning("the path of a socket was removed, and has been put back: %s", path)

    def close(self) -> None:
        """Remove the second names."""
        for path, spare in self._spares.copy().items():
            with Ignoring(OSError):
                os.unlink(spare)
            self._spares.pop(path, None)

    def forget(self) -> None:
        """Leave them, for they are another process's."""
        self._spares.clear()
