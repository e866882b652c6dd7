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
        CommandError: nobody answers there (`NOBODY`), the request is refused, or what comes is no
            answer to it.
        Error: the socket cannot be reached.
    """
    for _ in range(_ATTEMPTS):
        with _connect(path) as channel:
            try:
                channel.send({"kind": kind, **fields})
                answer = channel.receive()
                channel.conduit.timeout = None
                yield from _all(path, kind, answer, channel)
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


def _all(path: str, asked: str, answer: Any, channel: Channel) -> Iterator[dict[str, Any]]:
    while True:
        match answer:
            case {"kind": "refused"}:
                raise CommandError(f"who serves at {path} refuses: {answer.get('reason')}")
            case {"kind": "status"} if asked == "status":
                yield answer
                return
            case {"kind": "progress", "text": str()} if asked != "status":
                yield answer
            case {"kind": "end", "text": str(), "code": int(code)} if (
                asked != "status" and 0 <= code < 256
            ):
                yield answer
                return
            case _:
                raise unclear(path, answer)
        try:
            answer = channel.receive()
        except PeerClosedError as exc:
            raise CommandError(f"who serves at {path} ended without an answer") from exc


_NUMBER = (int, float)

_STATUS: dict[str, Any] = {
    "version": str,
    "pid": int,
    "control": str,
    "since": _NUMBER,
    "reloads": int,
    "restarts": int,
    "generations": list,
    "sockets": list,
}

_GENERATION: dict[str, Any] = {
    "number": int,
    "state": str,
    "seconds": _NUMBER,
    "pid": int,
    "command": list,
}

_SOCKET: dict[str, Any] = {"name": str, "type": str, "address": str}


def checked(path: str, told: dict[str, Any]) -> dict[str, Any]:
    """Return a status, which has all that this version tells; another version's may not.

    Raises:
        CommandError: it has not.
    """
    if (
        not _has(told, _STATUS)
        or not all(_has(each, _GENERATION) for each in told["generations"])
        or not all(isinstance(w, str) for each in told["generations"] for w in each["command"])
        or not all(_has(each, _SOCKET) for each in told["sockets"])
    ):
        raise unclear(path, told)
    return told


def _has(told: Any, fields: dict[str, Any]) -> bool:
    return isinstance(told, dict) and all(
        isinstance(told.get(name), kind) for name, kind in fields.items()
    )


def unclear(path: str, answer: Any) -> CommandError:
    """Return the error for an answer that this version cannot read."""
    return CommandError(
        f"who serves at {path} answers what this version of conduit cannot read: {answer!r:.200}"
    )
