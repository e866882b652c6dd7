"""Requests at the control socket, from peers that do not take over, and their answers.

Both are messages of a `Channel`: a dict with a ``kind``. A connection is one request, ``reload``,
``stop`` or ``status``. The answer is any number of ``progress`` with a ``text``, then ``end`` with
a ``text`` and an exit ``code``; or a single ``status``. `Takeover` receives the first message,
decides whether the peer is allowed, and passes on messages that are not of its own protocol.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any

from conduit._conduit import Conduit
from conduit.channel import Channel
from conduit.cli.messages import CommandError
from conduit.errors import Error, PeerClosedError
from conduit.takeover.talk import TYPE

NOBODY = 3
"""The exit code where nobody answers."""

_PATIENCE = 30.0
"""Seconds within which an answer begins."""

_ATTEMPTS = 50
"""How many times to try, since the process that answers may just be being replaced."""


class Guest:
    """A peer with a request: Guest(conduit). Answering never waits; a slow reader is dropped."""

    def __init__(self, conduit: Conduit) -> None:
        conduit.timeout = 0
        self._channel = Channel(conduit)

    def say(self, kind: str, **fields: Any) -> None:
        """Send an answer; any kind but ``progress`` is the last."""
        if self.closed:
            return
        try:
            self._channel.send({"kind": kind, **fields})
        except Error:
            kind = ""
        if kind != "progress":
            self.close()

    @property
    def closed(self) -> bool:
        """Whether it got its last answer, or closed its end."""
        return self._channel.closed

    def close(self) -> None:
        """Say no more."""
        self._channel.close()


def ask(path: str, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Send a request to a control socket, and yield the answers.

    Raises:
        CommandError: nobody answers there (`NOBODY`), or the request is refused.
        Error: the socket cannot be reached.
    """
    for _ in range(_ATTEMPTS):
        with _connect(path) as channel:
            try:
                channel.send({"kind": kind, **fields})
                answer = channel.receive()
                channel.conduit.timeout = None
                yield from _all(path, answer, channel)
                return
            except PeerClosedError:
                time.sleep(0.1)
    raise CommandError(f"who listens at {path} does not answer", NOBODY)


def _connect(path: str) -> Channel:
    try:
        return Channel(Conduit.connect(path, type=TYPE, timeout=_PATIENCE))
    except Error as exc:
        if exc.errno in (errno.ENOENT, errno.ECONNREFUSED):
            raise CommandError(f"nobody serves at {path}", NOBODY) from exc
        raise


def _all(path: str, answer: dict[str, Any], channel: Channel) -> Iterator[dict[str, Any]]:
    while True:
        if answer["kind"] == "refused":
            raise CommandError(f"who serves at {path} refuses: {answer.get('reason')}")
        yield answer
        if answer["kind"] != "progress":
            return
        try:
            answer = channel.receive()
        except PeerClosedError as exc:
            raise CommandError(f"who serves at {path} ended without an answer") from exc
