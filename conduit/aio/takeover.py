"""`AsyncTakeover`: a place in a line of servers, on an event loop.

There is no thread. The steps of a successor wait in the task that called; a task of its own answers
successors, since they come at any time.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeVar

from anyio import get_cancelled_exc_class, to_thread

from conduit._conduit import Conduit, Descriptor
from conduit._handle import Handle
from conduit.aio.closing import Closing
from conduit.aio.direction import Direction
from conduit.aio.queue import Queue
from conduit.aio.waiter import Waiter, checkpoint, spawn
from conduit.errors import Error, reraise
from conduit.peer import Peer
from conduit.takeover import Takeover, sockets
from conduit.takeover.inheritance import Steps
from conduit.takeover.succession import PAUSE, log

if TYPE_CHECKING:
    from _typeshed import HasFileno, StrOrBytesPath

_T = TypeVar("_T")


class AsyncTakeover(Closing):
    """A zero-downtime restart on an event loop: `conduit.takeover.Takeover`, awaited.

    Enter AsyncTakeover(path, timeout=60.0, allow=None) with ``async with``; then call, in this
    order: `listen`, `ready`, `wait`. A task on the same loop answers successors; it also calls
    ``allow`` and an offered function. Only the look-up of a host name runs in a thread.

    Each call can be cancelled, and has then had no effect. The exception is a `ready` that comes
    too late to cancel, since the predecessor has handed over: it returns as if it had not been
    cancelled, without a ``predecessor_line``.
    """

    __slots__ = ("_answering", "_arguments", "_entered", "_queue")

    def __init__(
        self,
        path: StrOrBytesPath,
        *,
        timeout: float = 60.0,
        allow: Callable[[Peer], bool] | None = None,
    ) -> None:
        self._arguments = (path, timeout, allow)
        self._entered: Takeover | None = None
        # The waiters to wake when it is closed, or when nothing is left to do.
        self._queue = Queue()

    @property
    def takeover(self) -> Takeover:
        """The `Takeover` that was entered."""
        if self._entered is None:
            raise RuntimeError("enter this AsyncTakeover first, with async with")
        return self._entered

    @property
    def path(self) -> str | bytes:
        """The path of the control socket; see `Takeover`."""
        return self.takeover.path

    @property
    def predecessor(self) -> Peer | None:
        """The process whose sockets were received; see `Takeover`."""
        return self.takeover.predecessor

    @property
    def state(self) -> bytes:
        """What the predecessor offered; see `Takeover`."""
        return self.takeover.state

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names of the predecessor's sockets that were not asked for; see `Takeover`."""
        return self.takeover.dropped

    @property
    def predecessor_line(self) -> Conduit | None:
        """A conduit to the predecessor; see `Takeover`. `AsyncConduit` takes it over."""
        return self.takeover.predecessor_line

    @property
    def successor(self) -> Conduit | None:
        """A conduit to the successor; see `Takeover.successor`. `AsyncConduit` takes it over."""
        return self.takeover.successor

    @property
    def closed(self) -> bool:
        """Whether it was entered and closed."""
        return self._entered is not None and self._entered.closed

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what the predecessor kept; see `Takeover.names`."""
        return self.takeover.names

    def adopt(self, sock: socket.socket, name: str) -> socket.socket:
        """Return the predecessor's socket of a name, else ``sock``; see `Takeover.adopt`."""
        return self.takeover.adopt(sock, name)

    def keep(self, name: str, item: int | HasFileno | None) -> None:
        """Keep any descriptor for a successor; see `Takeover.keep`."""
        self.takeover.keep(name, item)

    def take(self, name: str) -> Descriptor | None:
        """Return what the predecessor kept under a name; see `Takeover.take`."""
        return self.takeover.take(name)

    def offer(self, state: bytes | Callable[[], bytes]) -> None:
        """Offer bytes to the successor; see `Takeover.offer`. A function runs on the loop."""
        self.takeover.offer(state)

    async def __aenter__(self) -> Self:
        takeover = Takeover.__new__(Takeover)
        path, timeout, allow = self._arguments
        try:
            takeover._prepare(path, timeout, allow, False)
            takeover._wake = self._queue.wake_all
            await checkpoint()
            await self._drive(takeover._find())
            self._answer(takeover)
        except BaseException:
            takeover._abandon()
            raise
        self._entered = takeover
        return self

    async def listen(
        self,
        host: str,
        port: int | None = None,
        *,
        name: str | None = None,
        type: int = socket.SOCK_STREAM,
        backlog: int = 128,
        mode: int = 0o600,
    ) -> socket.socket:
        """Return a socket at an address, the predecessor's if there is one.

        See `Takeover.listen`.
        """
        await checkpoint()
        takeover = self.takeover
        if port is not None and host and not sockets.is_numeric(host):
            name = f"{host}:{port}" if name is None else name
            try:
                _, address = await to_thread.run_sync(
                    sockets.resolve, host, port, type, abandon_on_cancel=True
                )
            except OSError as exc:
                reraise(exc, f"listening as {name!r}")
            host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        return await self._drive(takeover._listen(host, port, name, type, backlog, mode))

    async def ready(self) -> tuple[str, ...]:
        """Say that requests are served; see `Takeover.ready`."""
        await checkpoint()
        takeover = self.takeover
        try:
            return await self._drive(takeover._become_ready())
        except get_cancelled_exc_class():
            # Too late: this process is the owner.
            if takeover._ready:
                return takeover.dropped
            raise

    async def wait(self) -> bool:
        """Wait until a successor is ready, and return whether there is one; see `Takeover.wait`.

        `aclose`, or `close` from anywhere, ends it.
        """
        takeover = self.takeover
        with self._queue.place() as waiter:
            while not takeover._is_over:
                await waiter.wait()
        return takeover.wait(0)

    def close(self) -> None:
        """Leave the line; see `Takeover.close`."""
        if self._entered is not None:
            self._entered.close()

    async def aclose(self) -> None:
        """Close as `close` does, and let the calls of other tasks end.

        It is closed even if this is cancelled.
        """
        self.close()
        await self._queue.end()

    async def _drive(self, steps: Steps[_T]) -> _T:
        """Run all steps, and wait between them."""
        with self._queue.place() as waiter:
            try:
                wait = next(steps)
                while True:
                    try:
                        await _wait(waiter, *wait)
                    except BaseException as exc:
                        # The steps may end in spite of it, with a result.
                        wait = steps.throw(exc)
                    else:
                        wait = next(steps)
            except StopIteration as done:
                result: _T = done.value
                return result

    def _answer(self, takeover: Takeover) -> None:
        """Answer successors, until one serves or this is closed."""
        succession = takeover._succession
        # A duplicate: `close` may close the succession's own while the loop watches it.
        watched = Handle.duplicate(succession.fileno(), "watching successors", "")
        takeover._watched = watched

        async def answer() -> None:
            # Not before: a task that is cancelled before it runs would never leave.
            with self._queue.place() as waiter:
                waiter.holds.append(watched.close)
                while not takeover._is_over:
                    try:
                        succession.step()
                        await waiter.wait(watched.fileno(), limit=succession.until_next())
                    except Exception:
                        log.exception("answering successors failed, and goes on")
                        await waiter.wait(limit=PAUSE)

        self._answering = spawn(answer)


async def _wait(waiter: Waiter, conduit: Conduit | None, events: int, limit: float) -> None:
    if conduit is None:
        await waiter.wait(limit=limit)
        return
    direction = Direction(conduit._handle, events == select.POLLOUT, shared=True)
    try:
        await direction.wait(waiter, limit=limit)
    except Error:
        # It was closed, and so is the takeover.
        if not conduit.closed:
            raise
