"""The notifications that COMMAND sends, as services do to systemd (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from typing import NamedTuple, Self

from conduit._conduit import Conduit
from conduit.cli.inspection import family
from conduit.cli.messages import say
from conduit.errors import Error
from conduit.peer import Peer, same_user_or_root

_LONGEST = 4096

_AT_ONCE = 16
"""The most that one `take` reads."""


class Notice(NamedTuple):
    """One message: its assignments, and the sender's pid, or 0 if unknown."""

    said: dict[str, str]
    pid: int


class Notices:
    """The NOTIFY_SOCKET of one generation of COMMAND; context manager.

    If the system passes credentials, any user may send to it: COMMAND may change its user.

    Args:
        directory: where to make it if that fails in the directory for temporary files; None for
            nowhere else.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, directory: str | None) -> None:
        self._told = sys.platform == "linux"
        self._complained = False
        try:
            self._make(None)
        except OSError:
            # A root that cannot be written to, and no /tmp.
            self._make(directory)

    def _make(self, directory: str | None) -> None:
        self._directory = tempfile.mkdtemp(prefix="conduit-", dir=directory)
        self.path: str = os.path.join(self._directory, "notify")
        try:
            if self._told:  # pragma: no branch
                os.chmod(self._directory, 0o711)
            self._conduit = Conduit.bind(self.path, mode=0o666 if self._told else 0o600)
            self._conduit.timeout = 0
        except BaseException:
            os.rmdir(self._directory)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, and remove its path and directory."""
        # On a file system that is full of errors or read-only by now, they stay.
        with contextlib.suppress(OSError):
            self._conduit.close()
            os.rmdir(self._directory)

    def fileno(self) -> int:
        """Return the number of the socket."""
        return self._conduit.fileno()

    def take(self, command: int) -> list[Notice]:
        """Return what came from COMMAND, of this pid, or from this user or root.

        All senders are read, since COMMAND would block if nobody read. But only some messages at a
        time, so that a sender that never stops does not delay the rest. Descriptors that came along
        are closed, which is what a barrier waits for.
        """
        notices: list[Notice] = []
        for _ in range(_AT_ONCE):
            try:
                with self._conduit.receive(_LONGEST) as message:
                    lines = message.data.decode(errors="replace").split("\n")
                    said = {key: value for key, _, value in (each.partition("=") for each in lines)}
                    if _speaks_for(message.sender, command):
                        notices.append(Notice(said, message.sender.pid if message.sender else 0))
            except BlockingIOError:
                break
            except Error as exc:
                # Once: any user may send such, as many as it likes.
                if not self._complained:
                    self._complained = True
                    say(f"a notice that cannot be read: {exc}")
        return notices


def _speaks_for(sender: Peer | None, command: int) -> bool:
    """Whether the sender of a notice is this user or root, or a process of COMMAND."""
    if sender is None or same_user_or_root(sender):
        return True
    with contextlib.suppress(ProcessLookupError):
        # Also where /proc does not show the processes of others.
        if os.getpgid(sender.pid) == command:
            return True
    return sender.pid in family(command, command)
