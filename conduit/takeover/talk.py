"""One conversation over a conduit: messages out, messages in, and never a wait.

Both sides use it. If something cannot be done at once, it returns the event to wait for. The caller
waits: the successor in poll(2) with a deadline, the predecessor for many conversations at a time.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conduit._conduit import PAUSE, Conduit, Send
from conduit._syscalls import MAX_FDS
from conduit.channel import Channel, close_descriptors
from conduit.errors import Error, Ignoring, WouldBlockError
from conduit.takeover.protocol import Conversation, Side
from conduit.wire import message_frame

TYPE = socket.SOCK_STREAM if sys.platform == "darwin" else socket.SOCK_SEQPACKET

_MAX_SIZE = 1 << 20
"""The most bytes of a message."""

_AT_ONCE = 16
"""How many messages `drain` drops before other conversations have their turn."""

NOTHING = object()
"""The result of `Talk.receive` for no message."""


class Outgoing:
    """A message of an outbox. Without ``keep``, its descriptors are closed once it has left."""

    def __init__(self, message: dict[str, Any], keep: bool) -> None:
        self.message = message
        self.keep = keep
        self.send: Send | None = None
        self._size = 0

    @property
    def has_left(self) -> bool:
        """Whether the socket has taken all of it."""
        return self.send is not None and self.send.sent == self._size

    def step(self, channel: Channel) -> int:
        """Send some of it; return 0 once it has left, also before, else the event to wait for."""
        send = self.send
        if send is None:
            body, items = channel._codec.encode(self.message)
            frame = message_frame(body, len(items))
            self._size = len(frame)
            send = self.send = Send(channel.conduit, tuple(items), frame, self.keep)
        return send.step()

    def forget(self) -> None:
        """Send no more of it."""
        if self.send is not None:
            self.send.cancel()
        if not self.keep:
            for value in self.message.values():
                if hasattr(value, "fileno"):
                    value.close()


class Talk:
    """A conversation: Talk(conduit, side). It owns the conduit.

    Attributes:
        conduit: the conduit it uses.
        conversation: the state of the protocol.
    """

    def __init__(self, conduit: Conduit, side: Side) -> None:
        self.conduit = conduit
        self.conversation: Conversation = Conversation(side)
        conduit.timeout = 0
        self._channel = Channel(conduit, max_size=_MAX_SIZE, max_fds=MAX_FDS)
        # A list, since copying one is atomic, also without a GIL.
        self._outbox: list[Outgoing] = []

    def say(
        self, kind: str, fields: dict[str, Any] | None = None, *, keep: bool = True
    ) -> Outgoing:
        """Put a message into the outbox, and return it there."""
        self.conversation.say(kind)
        message = Outgoing({"kind": kind, **(fields or {})}, keep)
        self._outbox.append(message)
        return message

    def flush(self) -> int:
        """Send what the socket takes; return 0 once all has left, else the event to wait for."""
        # A local name, since `close` may replace it at any line.
        outbox = self._outbox
        while outbox:
            if events := outbox[0].step(self._channel):
                return select.POLLOUT if events == PAUSE else events
            del outbox[0]
        return 0

    def receive(self) -> Any:
        """Return a message, which may be any object; `NOTHING` if no whole one has come."""
        with Ignoring(WouldBlockError):
            return self._channel.receive()
        return NOTHING

    def clear(self) -> None:
        """Forget what was to be sent."""
        outbox, self._outbox = self._outbox, []
        for message in outbox.copy():
            message.forget()

    def drain(self) -> None:
        """Receive and drop some messages. `PeerClosedError` once the other side has closed."""
        with Ignoring(WouldBlockError):
            # Not all, since a peer may never stop and others wait; the next call takes more.
            for _ in range(_AT_ONCE):
                self.conduit.receive().close()

    def close(self) -> None:
        """End the conversation."""
        try:
            self.clear()
        finally:
            with Ignoring(Error):
                self._channel.close()


@contextmanager
def closing(message: object) -> Iterator[None]:
    """After the block, close what was not taken out of a received message."""
    try:
        yield
    finally:
        with Ignoring(Error):
            close_descriptors(message)
