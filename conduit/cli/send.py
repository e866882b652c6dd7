"""``conduit send``: pass an open file to whoever listens."""

from __future__ import annotations

import os

from conduit._conduit import Conduit, Descriptor
from conduit.cli.messages import CommandError


def send(path: str, file: str) -> None:
    """Pass a file, opened for reading, or standard input."""
    # Opened first, so that nobody is bothered with a file that is not there.
    try:
        number = os.dup(0) if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        what = "standard input" if file == "-" else file
        raise CommandError(f"opening {what}: {exc.strerror}") from exc
    with Descriptor(number) as descriptor, Conduit.connect(path) as conduit:
        conduit.transfer(descriptor)
