"""Second names (hard links) of Unix sockets, while a server that may remove the first ones ends.

Many servers remove the path of their socket when they close: asyncio's do from Python 3.13 on
(``cleanup_socket``). By then the path is the successor's; the server cannot tell, since the socket,
and so the inode, is the same. A socket cannot be bound again. But link(2) gives its inode a second
name, and makes the first again from that.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable

from conduit.errors import Ignoring, from_handler
from conduit.paths import inode_of

log: logging.Logger = logging.getLogger("conduit.takeover")


def second_name(path: str, end: str = "") -> str:
    """Return a name beside a path, hidden, with the pid of this process."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{os.getpid()}{end}")


class Spares:
    """Second names, each beside its path. A signal handler may close it at any line.

    Args:
        end: the suffix of each name, for a process that has several for one path.
        is_needed: a function that says whether to put a missing path back; by default always.
    """

    def __init__(self, end: str = "", is_needed: Callable[[str], bool] = bool) -> None:
        self._end = end
        self._is_needed = is_needed
        self._names: dict[str, str] = {}

    def add(self, path: str, inode: tuple[int, int]) -> None:
        """Give a socket a second name, if it has none and the system allows it."""
        if path in self._names:
            return
        name = second_name(path, self._end)
        try:
            if inode_of(path) != inode:
                return
            # Noted before linking, in case a handler raises, and after it, in case one closes.
            self._names[path] = name
            _link(path, name)
            self._names[path] = name
        except OSError as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            self._names.pop(path, None)
            log.info("%s could not be put back if the predecessor removed it: %s", path, exc)

    def restore(self) -> None:
        """Put back each path that is missing."""
        for path, name in self._names.copy().items():
            # Usually it is there.
            with Ignoring(OSError):
                if inode_of(path) is None and self._is_needed(path):
                    os.link(name, path)
                    log.warning("the path of a socket was removed, and has been put back: %s", path)

    def close(self) -> None:
        """Remove the second names."""
        for path, name in self._names.copy().items():
            with Ignoring(OSError):
                os.unlink(name)
            self._names.pop(path, None)

    def forget(self) -> None:
        """Forget them without removing them: they belong to another process."""
        self._names.clear()


def _link(path: str, name: str) -> None:
    """Give a socket a second name; `OSError` if that cannot be done.

    If the name exists, a killed process left it there: in containers the pid is the same each time.
    """
    try:
        os.link(path, name, follow_symlinks=False)
    except FileExistsError:
        if not stat.S_ISSOCK(os.lstat(name).st_mode):
            raise
        os.unlink(name)
        os.link(path, name, follow_symlinks=False)
