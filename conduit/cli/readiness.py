"""When COMMAND is ready: by its notification, and by what it does with its sockets."""

from __future__ import annotations

import enum

from conduit.cli import inspection

EITHER, NOTIFY, ACCEPTING = "either", "notify", "accepting"
"""What shows that COMMAND is ready."""

_FLUX = 1.0
"""Seconds, after it says that it is ready, within which it must be seen with the sockets."""

_GLANCE = 0.02
"""Seconds until COMMAND is looked at again; they grow."""

_LONGEST_GLANCE = 0.25


class Verdict(enum.Enum):
    """What is known of a generation that starts: that it is ready, or does not have the sockets."""

    OPEN = "open"
    SERVES = "serves"
    GUESSED = "guessed"
    REFUSED = "refused"


class Readiness:
    """Whether one generation serves.

    Args:
        ready: what shows it: `EITHER`, `NOTIFY`, `ACCEPTING`, or seconds that it has run.
        sockets: by their inodes.
        pid: of its first process.
        since: when it was started.

    Attributes:
        next_look: when to look again.
        is_idle: whether it was seen to wait on none of the sockets.
    """

    def __init__(self, ready: str | float, sockets: frozenset[int], pid: int, since: float) -> None:
        self.next_look: float = 0.0
        self.is_idle: bool = False
        self._ready, self._sockets, self._pid, self._since = ready, sockets, pid, since
        self._pause = _GLANCE
        self._said: tuple[int, float] | None = None

    def hear(self, speaker: int, now: float) -> None:
        """Note that a process, 0 if unknown, says that it is ready."""
        if self._said is None:
            self._said = speaker, now
            self.next_look = now

    def look(self, now: float) -> Verdict:
        """Look whether it serves, if it is time to."""
        if now < self.next_look:
            return Verdict.OPEN
        self.next_look = now + self._pause
        self._pause = min(1.3 * self._pause, _LONGEST_GLANCE)
        if self._said is not None and self._ready != ACCEPTING:
            speaker, when = self._said
            return self._judge(Verdict.SERVES, speaker, now - when)
        if self._ready in (EITHER, ACCEPTING):
            seen = inspection.see(inspection.family(self._pid, self._pid), self._sockets)
            self.is_idle = seen.having is not None and not seen.waiting
            return Verdict.OPEN if self._sockets - seen.waiting else Verdict.SERVES
        if isinstance(self._ready, float) and now - self._since >= self._ready:
            return self._judge(Verdict.GUESSED, 0, now - self._since)
        return Verdict.OPEN

    def _judge(self, verdict: Verdict, speaker: int, seconds: float) -> Verdict:
        """Return this verdict, unless it was seen without the sockets, for so many seconds."""
        if has_sockets(self._pid, speaker, self._sockets) is not False:
            return verdict
        return Verdict.REFUSED if seconds >= _FLUX else Verdict.OPEN


def has_sockets(pid: int, speaker: int, sockets: frozenset[int]) -> bool | None:
    """Whether COMMAND has the sockets; None where that cannot be known.

    A wrapper has them without using them. So only the process that says it is ready counts, with
    its children, as long as it exists; or any process that waits on them.
    """
    whole = inspection.family(pid, pid)
    some = inspection.family(speaker, -1) if speaker in whole else whole
    sight = inspection.see(some, sockets)
    if sight.having is None:
        return None
    return sockets <= sight.having or bool(inspection.see(whole, sockets).waiting)
