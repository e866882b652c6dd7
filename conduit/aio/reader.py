"""`AsyncReader`: reads protocols from a stream on an event loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from conduit._conduit import Descriptor
from conduit.aio.closing import Closing
from conduit.aio.conduit import AsyncConduit
from conduit.aio.waiter import checkpoint
from conduit.reader import Reader

_W = TypeVar("_W", int, bytes)


class AsyncReader(Closing):
    """Reads a protocol from the stream of an `AsyncConduit`, as `Reader` does of a `Conduit`.

    It takes and raises what `Reader` does. A cancelled call loses nothing: what came stays in the
    reader. Several tasks may use one reader: each call's result is whole.
    """

    __slots__ = ("_ahead", "_reader", "_receiving")

    def __init__(self, conduit: AsyncConduit, *, limit: int = 65536) -> None:
        self._reader = Reader(conduit._conduit, limit=limit)
        self._ahead = self._reader._ahead
        self._receiving = conduit._receiving

    def __repr__(self) -> str:
        return f"<conduit.aio.AsyncReader over {self._reader!r}>"

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._reader.closed

    @property
    def buffered(self) -> int:
        """How many bytes came and were not consumed; see `Reader.buffered`."""
        return self._reader.buffered

    @property
    def pending(self) -> int:
        """How many descriptors came and were not taken; see `Reader.pending`."""
        return self._reader.pending

    async def receive_exactly(self, size: int) -> bytes:
        """Receive exactly ``size`` bytes; see `Reader.receive_exactly`."""
        found = self._at_once(self._ahead.exactly, size)
        return await self._read(self._ahead.exactly, size) if found is None else found

    async def receive_until(self, delimiter: bytes) -> bytes:
        """Receive the bytes up to a delimiter, which is consumed; see `Reader.receive_until`."""
        found = self._at_once(self._ahead.until, delimiter)
        return await self._read(self._ahead.until, delimiter) if found is None else found

    def take_fds(self, count: int = 1) -> tuple[Descriptor, ...]:
        """Return the first ``count`` descriptors that came; see `Reader.take_fds`."""
        return self._reader.take_fds(count)

    def close(self) -> None:
        """Close the descriptors that were not taken; see `Reader.close`."""
        self._reader.close()

    async def aclose(self) -> None:
        """Close as `close` does, even if this is cancelled."""
        self.close()
        await checkpoint()

    def _at_once(self, find: Callable[[_W], bytes | None], wanted: _W) -> bytes | None:
        """Return what has come already, or None; also if other tasks are due first."""
        # Of no bytes, a closed reader would have enough.
        return None if not self._receiving.free() or self._reader.closed else find(wanted)

    async def _read(self, find: Callable[[_W], bytes | None], wanted: _W) -> bytes:
        await self._receiving.let_others_run()
        while self._reader.closed or (found := find(wanted)) is None:
            # Receive once, or wait until another task has: it may have got what is wanted here.
            # What it gets is in the reader then, and is consumed by who awaits it.
            await self._receiving.call(partial(self._reader._fetch, wanted, self._ahead.came))
        return found
