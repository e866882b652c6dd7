"""What may be said next in a takeover: the protocol of docs/takeover.md, without a socket.

Predecessor and successor each have a `Conversation`, which is told what its own side says and what
it hears. They speak in turn, so one table of states serves both, and messages cannot cross. Only a
refusal may come at any time: it ends the conversation.

The state alone says who owns the sockets, on either side: the predecessor until it has heard
``done``. The table has no transition after which both or neither would own them.
"""

from __future__ import annotations

import enum
import os
from typing import Any

from conduit.errors import ErrType, TakeoverError

VERSIONS = (1,)
"""The versions of the protocol that this package speaks."""

GREETING = 10.0
"""Seconds within which either side must answer a message that needs no work."""

LONGEST_REASON = 1000
"""The most characters of a refusal's reason that are sent."""


class Side(enum.Enum):
    """Whose turn it is to speak."""

    PREDECESSOR = 1
    SUCCESSOR = 2


class State(enum.Enum):
    """How far a conversation has come."""

    CONNECTED = 1
    ASKED = 2
    GIVING = 3
    GIVEN = 4
    STARTING = 5
    UPDATING = 6
    CONFIRMED = 7
    DONE = 8
    OVER = 9
    REFUSED = 10


_GIFTS = ("sockets", "items", "state")
"""Kinds of messages that bring something."""

_STEPS: dict[State, tuple[Side | None, dict[str, State]]] = {
    State.CONNECTED: (Side.SUCCESSOR, {"hello": State.ASKED}),
    State.ASKED: (Side.PREDECESSOR, {"welcome": State.GIVING}),
    State.GIVING: (
        Side.PREDECESSOR,
        {**dict.fromkeys(_GIFTS, State.GIVING), "control": State.GIVEN},
    ),
    State.GIVEN: (Side.SUCCESSOR, {"received": State.STARTING}),
    State.STARTING: (Side.SUCCESSOR, {"ready": State.UPDATING}),
    State.UPDATING: (
        Side.PREDECESSOR,
        {**dict.fromkeys(_GIFTS, State.UPDATING), "confirmed": State.CONFIRMED},
    ),
    State.CONFIRMED: (Side.SUCCESSOR, {"done": State.DONE}),
    State.DONE: (Side.PREDECESSOR, {"over": State.OVER}),
    State.OVER: (None, {}),
    State.REFUSED: (None, {}),
}
"""Who speaks in a state, what may be said, and where that leads."""

_KINDS = frozenset(kind for _, steps in _STEPS.values() for kind in steps) | {"refused"}


class Conversation:
    """One side's view of a takeover.

    Args:
        side: which one.

    Attributes:
        state: how far it has come.
    """

    def __init__(self, side: Side) -> None:
        self.state: State = State.CONNECTED
        self._side = side

    @property
    def received(self) -> bool:
        """Whether the successor has all that it needs to go on if the predecessor ends."""
        return self.state in (
            State.STARTING,
            State.UPDATING,
            State.CONFIRMED,
            State.DONE,
            State.OVER,
        )

    @property
    def is_new(self) -> bool:
        """Whether no message of a takeover was said yet."""
        return self.state is State.CONNECTED

    @property
    def is_refused(self) -> bool:
        """Whether either side has refused."""
        return self.state is State.REFUSED

    def say(self, kind: str) -> None:
        """Note what this side says. `ValueError` if it may not."""
        if kind == "refused":
            self.state = State.REFUSED
            return
        speaker, steps = _STEPS[self.state]
        if speaker is not self._side or kind not in steps:
            raise ValueError(f"{kind!r} cannot be said when the conversation is {self.state.name}")
        self.state = steps[kind]

    def hear(self, message: object) -> str | None:
        """Note what the other side says.

        Returns:
            its kind; None to ignore it: a kind that this version does not know, or anything after a
            refusal.

        Raises:
            TakeoverError: the other side refuses, or says what it may not. The takeover has then
                failed; unless it was a refusal, the caller must send one.
        """
        if self.state is State.REFUSED:
            return None
        kind = message.get("kind") if isinstance(message, dict) else None
        if not isinstance(kind, str):
            raise failure(f"a message that is not of the takeover protocol: {message!r:.60}")
        if kind not in _KINDS:
            return None
        assert isinstance(message, dict)
        if kind == "refused":
            self.state = State.REFUSED
            raise failure(f"the other side refuses: {_reason_in(message)}")
        speaker, steps = _STEPS[self.state]
        if speaker is self._side or kind not in steps:
            raise failure(f"the other side said {kind!r} where that means nothing")
        self.state = steps[kind]
        return kind


def hello() -> dict[str, Any]:
    """Return the fields of a successor's first message."""
    return {"versions": list(VERSIONS), "pid": os.getpid()}


def welcome(version: int, descriptors: int) -> dict[str, Any]:
    """Return the fields of the answer to it."""
    return {"version": version, "pid": os.getpid(), "descriptors": descriptors}


def refused(reason: str) -> dict[str, Any]:
    """Return the fields of a refusal."""
    return {
        "reason": reason[:LONGEST_REASON],
        "version": VERSIONS[-1],
        "versions": list(VERSIONS),
        "pid": os.getpid(),
    }


def version_for(message: dict[str, Any]) -> int | None:
    """Return the highest version that both sides speak, given a ``hello``; None if none."""
    versions = message.get("versions")
    if not isinstance(versions, list):
        return None
    return max((version for version in VERSIONS if version in versions), default=None)


def failure(reason: str) -> TakeoverError:
    """Return the error for a takeover that fails."""
    return TakeoverError(reason, ErrType.FAILED_TRANSFER)


def _reason_in(message: dict[str, Any]) -> str:
    pid = message.get("pid")
    return f"{message.get('reason')}" + (f" (pid {pid})" if isinstance(pid, int) else "")
