"""`AsyncListener`: accepts conduits on an event loop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Self

from conduit.aio.closing import Closing
from conduit.aio.conduit import AsyncConduit
from conduit.aio.direction import Receiving
from conduit.aio.waiter import checkpoint, sleep
from conduit.errors import Error
from conduit.listener import REST, SHORTAGES, Listener
from conduit.peer import Peer

if TYPE_CHECKING:
    from _typeshed import HasFileno, StrOrBytesPath


class AsyncListener(Closing):
    """A Unix socket that listens for conduits, for the tasks of an event loop.

    It takes and raises what `Listener` does.
    """

    __slots__ = ("_accepting", "_listener")

    def __init__(
        self,
        path: StrOrBytesPath,
        *,
        mode: int = 0o600,
        backlog: int = 128,
        type: int = socket.SOCK_STREAM,
        allow: Callable[[Peer], bool] | None = None,
    ) -> None:
        self._listen(Listener(path, mode=mode, backlog=backlog, type=type, allow=allow))

    def _listen(self, listener: Listener) -> None:
        self._listener = listener
        self._accepting = Receiving(listener._handle)

    @classmethod
    def from_conn(
        cls,
        conn: HasFileno,
        path: StrOrBytesPath,
        *,
        allow: Callable[[Peer], bool] | None = None,
    ) -> Self:
        """Listen on a socket that listens at a path already; see `Listener.from_conn`."""
        self = cls.__new__(cls)
        self._listen(Listener.from_conn(conn, path, allow=allow))
        return self

    def __repr__(self) -> str:
        return f"<conduit.aio.AsyncListener over {self._listener!r}>"

    @property
    def path(self) -> str | bytes:
        """Where it listens."""
        return self._listener.path

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._listener.closed

    def fileno(self) -> int:
        """Return the number of the listening socket; see `Listener.fileno`."""
        return self._listener.fileno()

    async def accept(self) -> AsyncConduit:
        """Wait for a connection from a peer that is allowed; see `Listener.accept`."""
        attempt = partial(self._listener.admit, 0)
        while True:
            try:
                conduit = await self._accepting.call(attempt)
            except Error as exc:
                if exc.errno in SHORTAGES:
                    await sleep(REST)
                raise
            if conduit is not None:
                return AsyncConduit._own(conduit)
            # Other tasks run in between, however many peers are refused.
            await checkpoint()

    def __aiter__(self) -> Self:
        """Accept one connection after another, for ever."""
        return self

    async def __anext__(self) -> AsyncConduit:
        return await self.accept()

    def close(self, *, unlink: bool = True) -> None:
        """Close as `aclose` does, without letting other tasks run before it returns."""
        try:
            self._listener.close(unlink=unlink)
        finally:
            # Also if it is closed: a signal handler may have ended that call before this.
            self._accepting.wake_all()

    async def aclose(self, *, unlink: bool = True) -> None:
        """Stop listening, end the calls of other tasks that wait, and remove the path.

        See `Listener.close`, also for ``unlink``. It is closed even if this is cancelled.
        """
        self.close(unlink=unlink)
        await self._accepting.end()
