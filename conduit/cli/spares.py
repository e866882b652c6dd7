"""Second names of Unix sockets, while something that may remove the first ones ends.

Many servers remove the path of their socket when they end, though another has taken it over: it is
gone then for everybody. A socket cannot be given a name once it has none; so it has a second one,
next to the first, as long as something drains, or all the time where COMMAND is started again.

`Takeover` does the same for the successor of another process (`conduit.takeover.guard`), which
looks from time to time. Here it is done as soon as what drains has ended.
"""

from __future__ import annotations

import contextlib
import os

from conduit.cli.messages import say
from conduit.paths import inode_of
from conduit.takeover.guard import link, second_name

_END = ".run"


class Spares:
    """Second names of sockets: Spares(paths). Where none can be made, there is none."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._spares: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """All second names that this process may ever make, and its `Takeover`."""
        return [second_name(path, end) for path in self._paths for end in (_END, "")]

    def make(self) -> None:
        """Have second names from now on."""
        for path in self._paths:
            if path not in self._spares:
                spare = second_name(path, _END)
                with contextlib.suppress(OSError):
                    link(path, spare)
                    self._spares[path] = spare

    def restore(self) -> None:
        """Give back the first name to those that have lost it, and still listen."""
        for path, spare in self._spares.items():
            if inode_of(path) is None and _listens(path):
                with contextlib.suppress(OSError):
                    os.link(spare, path)
                    say(f"{path} was removed by what has ended, and is there again")

    def remove(self) -> None:
        """Have no second names any more."""
        while self._spares:
            with contextlib.suppress(OSError):
                os.unlink(self._spares.popitem()[1])


def _listens(path: str) -> bool:
    """Whether a socket that listens was bound at a path, whatever became of that.

    To connect would tell as well, but not every server bears one who says nothing.
    """
    try:
        end = b" " + os.fsencode(path)
        with open("/proc/net/unix", "rb") as lines:
            # Its flags are SO_ACCEPTCON, and the path is the last word; it may have blanks.
            return any(
                line.split(None, 7)[3] == b"00010000" and line.rstrip(b"\n").endswith(end)
                for line in lines
            )
    except FileNotFoundError:
        return True
