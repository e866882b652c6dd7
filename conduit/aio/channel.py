"""`AsyncChannel`: sends and receives objects with descriptors in them on an event loop."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from conduit._conduit import Conduit, Descriptor, Message
from conduit._syscalls import MAX_FDS
from conduit.aio.closing import Closing
from conduit.aio.conduit import AsyncConduit
from conduit.channel import MAX_SIZE, Channel, Parts
from conduit.errors import Error, PeerClosedError, WouldBlockError
from conduit.wire import message_frame


class AsyncChannel(Closing):
    """Sends and receives objects with descriptors in them: `conduit.Channel`, awaited.

    It takes an `AsyncConduit`, or a blocking `Conduit`, which it then owns; else it takes and
    raises what `Channel` does. A cancelled `receive` loses nothing. After a cancelled `send`, as
    after a failed one, everything is open and the caller's.
    """

    __slots__ = ("_channel", "_conduit", "_receiving")

    def __init__(
        self,
        conduit: AsyncConduit | Conduit,
        *,
        dumps: Callable[[Any], bytes] | None = None,
        loads: Callable[[bytes], Any] | None = None,
        max_size: int = MAX_SIZE,
        max_fds: int = 4 * MAX_FDS,
    ) -> None:
        if isinstance(conduit, Conduit):
            conduit = AsyncConduit(conduit)
        self._channel = Channel(
            conduit._conduit, dumps=dumps, loads=loads, max_size=max_size, max_fds=max_fds
        )
        self._conduit = conduit
        self._receiving = conduit._receiving

    def __repr__(self) -> str:
        return f"<conduit.aio.AsyncChannel over {self._channel.conduit!r}>"

    @property
    def conduit(self) -> AsyncConduit:
        """The conduit it sends and receives on."""
        return self._conduit

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._conduit.closed

    def fileno(self) -> int:
        """Return the number of the socket."""
        return self._conduit.fileno()

    def close(self) -> None:
        """Close the conduit, and a partly received message; see `Channel.close`."""
        self._conduit.close()
        self._channel.close()

    async def aclose(self) -> None:
        """Close as `close` does, and let the calls of other tasks end.

        It is closed even if this is cancelled.
        """
        self.close()
        await self._conduit.aclose()

    async def send(self, obj: Any, *, keep: bool = False) -> None:
        """Send an object, and move or share the descriptors in it; see `Channel.send`."""
        channel = self._channel
        body, items = channel._codec.encode(obj)
        if channel._fits(body, items):
            try:
                data = message_frame(body, len(items))
                return await self._conduit.transfer(*items, data=data, keep=keep)
            except Error as exc:
                if exc.errno != errno.EMSGSIZE or exc.sent:
                    raise
        with Parts(channel, body, items, keep) as parts:
            for some, data in parts:
                await self._conduit.transfer(*some, data=data, keep=True)
        return None

    async def receive(self) -> Any:
        """Receive an object, with a `Descriptor` in each place of one; see `Channel.receive`."""
        return (await self._receive_with_fds())[0]

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[Any]:
        """Receive an object; after the block, close what was not taken out.

        See `Channel.receiving`.
        """
        obj, fds = await self._receive_with_fds()
        with Message(b"", fds):
            yield obj

    def __aiter__(self) -> Self:
        """Receive objects until the peer closes; see `Channel`."""
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except PeerClosedError as exc:
            if exc.__cause__ is not None:
                raise
            raise StopAsyncIteration from None

    async def _receive_with_fds(self) -> tuple[Any, list[Descriptor]]:
        return await self._receiving.call(self._attempt)

    def _attempt(self) -> tuple[Any, list[Descriptor]]:
        found = self._channel._advance()
        if found is None:
            raise WouldBlockError("there is more to come of a message")
        return self._channel._decode(*found)
