"""What the command line prints, and its failures."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys

_PATIENCE = 100
"""Milliseconds that a line waits for room in a pipe or terminal; then it is lost."""


class CommandError(Exception):
    """The command line cannot do what it was asked to; ``code`` is its exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def say(text: str) -> None:
    """Print a line on standard error; if the reader is slow or gone, it is lost."""
    # A terminal may want to stop who writes from the background.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        poller = select.poll()
        poller.register(2, select.POLLOUT)
        # None if it was closed, which print takes for standard output.
        if sys.stderr is not None and poller.poll(_PATIENCE):
            # Whoever read it may be gone; serving goes on.
            with contextlib.suppress(OSError):
                print(f"conduit: {text}", file=sys.stderr, flush=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def complain(exc: Exception) -> None:
    """Print why the command line failed, in one line."""
    say(" ".join(str(exc).split()))


def show(text: str) -> None:
    """Print text on standard output, with any bytes that paths and words have.

    Raises:
        OSError: it cannot be written.
    """
    with open(1, "wb", closefd=False) as output:
        output.write(os.fsencode(text) + b"\n")


def tell(text: str) -> None:
    """Print a line on standard output; if the reader is gone, it is lost."""
    # None if it was closed. What could not be printed would be tried again at the end, and decide
    # the exit code.
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            os.write(1, os.fsencode(f"conduit: {text}\n"))


class Log(logging.Handler):
    """A handler that prints log records by `say`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        say(record.getMessage())
