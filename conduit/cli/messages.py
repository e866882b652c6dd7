"""What the command line prints, and its failures."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import sys

_PATIENCE = 100
"""Milliseconds that a line waits for room in a pipe or terminal; then it is lost."""

_OBEYED = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]"
)


class CommandError(Exception):
    """The command line cannot do what it was asked to; ``code`` is its exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def plain(text: str) -> str:
    r"""Return text with escapes, such as ``\n`` or ``\x1b``, for what a terminal would obey.

    Names, words and answers are whatever somebody gave. Control characters, ends of lines, changes
    of direction and what is no character become escapes; the bytes of paths (surrogates) stay.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _bytes_of(text: str) -> bytes:
    """Return a line for standard output, with any bytes that paths and words have."""
    text = plain(text)
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        # It was written in another locale.
        data = text.encode(sys.getfilesystemencoding(), "backslashreplace")
    # Bytes of a path, each alone, may be a control character together.
    return os.fsencode(plain(os.fsdecode(data))) + b"\n"


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
                print(f"conduit: {plain(text)}", file=sys.stderr, flush=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def complain(exc: Exception) -> None:
    """Print why the command line failed, in one line."""
    say(" ".join(str(exc).split()))


def show(*lines: str) -> None:
    """Print lines on standard output.

    Raises:
        OSError: they cannot be written.
    """
    with open(1, "wb", closefd=False) as output:
        output.writelines(map(_bytes_of, lines))


def tell(text: str) -> None:
    """Print a line on standard output; if the reader is gone, it is lost."""
    # None if it was closed. What could not be printed would be tried again at the end, and decide
    # the exit code.
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            os.write(1, _bytes_of(f"conduit: {text}"))


class Log(logging.Handler):
    """A handler that prints log records by `say`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        say(record.getMessage())
