"""What the command line tells on standard error, and its failures."""

from __future__ import annotations

import contextlib
import signal
import sys


class CommandError(Exception):
    """The command line cannot do what it was asked to; ``code`` is its exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def say(text: str) -> None:
    """Print a line on standard error, if anybody reads it."""
    # A terminal may want to stop who writes from the background.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    # Whoever read it may be gone; serving goes on.
    with contextlib.suppress(OSError):
        print(f"conduit: {text}", file=sys.stderr, flush=True)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def complain(exc: Exception) -> None:
    """Print why the command line failed, in one line."""
    text = " ".join(str(exc).split())
    with contextlib.suppress(OSError):
        print(f"conduit: {text}", file=sys.stderr, flush=True)
