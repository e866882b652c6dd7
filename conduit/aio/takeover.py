"""`AsyncTakeover`: a place in a line of servers, on an event loop."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
from anyio import to_thread

from conduit._conduit import Descriptor
from conduit.aio.closing import Closing
from conduit.errors import Error, ErrType
from conduit.peer import Peer
from conduit.takeover import Takeover

if TYPE_CHECKING:
    from _typeshed import HasFileno, StrOrBytesPath

_T = TypeVar("_T")


class AsyncTakeover(Closing):
    """A zero-downtime restart on an event loop: `conduit.takeover.Takeover`, awaited.

    AsyncTakeover(path, timeout=60.0, allow=None) is entered with ``async with``; then, in this
    order: `listen`, `ready`, `wait`. What may take a while runs in a worker thread. Each call can
    be cancelled: what it was about has then not happened, but for a `ready` with which the
    predecessor has handed over already. That one returns as if it had not been cancelled.
    """

    def __init__(
        self,
        path: StrOrBytesPath,
        *,
        timeout: float = 60.0,
        allow: Callable[[Peer], bool] | None = None,
    ) -> None:
        self._arguments = (path, timeout, allow)
        self._entered: Takeover | None = None

    @property
    def takeover(self) -> Takeover:
        """The `Takeover` that was entered: its ``predecessor``, ``dropped``, ``successor``..."""
        if self._entered is None:
            raise RuntimeError("this AsyncTakeover is to be entered first, with async with")
        return self._entered

    @property
    def state(self) -> bytes:
        """What the predecessor offered; see `Takeover`."""
        return self.takeover.state

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what the predecessor kept; see `Takeover.names`."""
        return self.takeover.names

    def adopt(self, sock: socket.socket, name: str) -> socket.socket:
        """Return the predecessor's socket of a name, else this one; see `Takeover.adopt`."""
        return self.takeover.adopt(sock, name)

    def keep(self, name: str, item: int | HasFileno | None) -> None:
        """Keep any descriptor for a successor; see `Takeover.keep`."""
        self.takeover.keep(name, item)

    def take(self, name: str) -> Descriptor | None:
        """Return what the predecessor kept under a name; see `Takeover.take`."""
        return self.takeover.take(name)

    def offer(self, state: bytes | Callable[[], bytes]) -> None:
        """Offer bytes to the successor; see `Takeover.offer`. A function runs in a thread."""
        self.takeover.offer(state)

    async def __aenter__(self) -> Self:
        takeover = Takeover.__new__(Takeover)
        path, timeout, allow = self._arguments
        takeover._prepare(path, timeout, allow, True)
        try:
            await _in_thread(takeover._enter, lambda _: None)
        except BaseException:
            # It ends what the thread waits for, which then leaves nothing behind.
            takeover.close()
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
        """Return a socket at an address, the predecessor's if it has it; see `Takeover.listen`."""
        takeover = self.takeover
        listen = partial(takeover._listen, host, port, name, type, backlog, mode)
        return (await _in_thread(listen, takeover._undo)).sock

    async def ready(self) -> tuple[str, ...]:
        """Say that requests are served; see `Takeover.ready`."""
        takeover = self.takeover
        outcome: Future[tuple[str, ...]] = Future()
        try:
            await to_thread.run_sync(_settle, outcome, takeover.ready, abandon_on_cancel=True)
        except BaseException:
            if not outcome.cancel():
                # From here on the thread waits for nobody.
                takeover._give_up()
                if outcome.exception() is None:
                    return outcome.result()
            raise
        return outcome.result()

    async def wait(self) -> bool:
        """Wait until a successor is ready, and return whether there is one; see `Takeover.wait`.

        `aclose`, or `Takeover.close` from anywhere, ends it.
        """
        takeover = self.takeover
        if not (takeover.closed or takeover.wait(0)):
            # Of this task alone, and open until it is done with it.
            try:
                fd = os.dup(takeover.fileno())
            except OSError as exc:
                if takeover.closed:
                    return takeover.wait(0)
                raise Error(
                    f"{takeover!r}: waiting: {exc.strerror}", ErrType.NO_FD, exc.errno
                ) from exc
            try:
                await anyio.wait_readable(fd)
            finally:
                os.close(fd)
        return takeover.wait(0)

    async def aclose(self) -> None:
        """Leave the line; see `Takeover.close`. It is closed even if this is cancelled."""
        if self._entered is not None:
            try:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(self._entered.close)
            finally:
                # asyncio's own cancellation comes through the shield, maybe before the thread ran.
                if not self._entered.closed:
                    self._entered.close()


async def _in_thread(function: Callable[[], _T], undo: Callable[[_T], object]) -> _T:
    """Run a function in a worker thread; if this is cancelled, undo there what it did."""
    outcome: Future[_T] = Future()
    try:
        await to_thread.run_sync(_settle, outcome, function, abandon_on_cancel=True)
    except BaseException:
        if not outcome.cancel():
            outcome.add_done_callback(partial(_undo, undo))
        raise
    return outcome.result()


def _undo(undo: Callable[[_T], object], outcome: Future[_T]) -> None:
    if outcome.exception() is None:
        undo(outcome.result())


def _settle(outcome: Future[_T], function: Callable[[], _T]) -> None:
    if outcome.set_running_or_notify_cancel():  # pragma: no branch - cancelled before it began
        try:
            outcome.set_result(function())
        except BaseException as exc:
            outcome.set_exception(exc)
