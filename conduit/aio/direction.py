"""One direction of a socket: the order of its calls, and how a call waits.

Each direction of a socket has a queue of waiters, one for each call that waits. The first receiver
registers the socket with its loop; each receiver wakes the next when it returns. The handle orders
the senders, together with threads. A task, a thread or a signal handler may wake a waiter.

anyio has a lock and can wait for a descriptor, but not across loops. If a loop ends with a task
that holds its lock, the lock stays locked, and `aclose` never returns. And anyio replaces the
reader that the program registered for the descriptor. Here, waking a waiter whose loop has ended
removes it and releases what it held. A descriptor that the program may have registered itself is
watched through a duplicate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from conduit._conduit import PAUSE, QUEUED, Send
from conduit._handle import Handle, Use
from conduit.aio.queue import Queue
from conduit.aio.waiter import Waiter, checkpoint, sleep
from conduit.errors import Error, ErrType, WouldBlockError, prefix_message

_T = TypeVar("_T")

STRIDE = 64
"""After so many calls that need not wait, a call lets other tasks run."""

RETRY = 0.01
"""Seconds between two tries where nothing signals: a full backlog, a system out of buffers."""


class Direction(Queue):
    """The calls of one direction of a socket: when other tasks are due, and how one waits.

    A loop has one callback for a number, and no way to ask for it. If the program or another
    conduit may watch the same number, it is ``shared``, and each wait makes a duplicate. A lasting
    duplicate would keep the connection open after the program closes the descriptor it lent.
    """

    __slots__ = ("_handle", "_writing", "passed", "shared")

    def __init__(self, handle: Handle, writing: bool, shared: bool) -> None:
        super().__init__()
        self._handle = handle
        self._writing = writing
        self.shared: bool = shared
        self.passed: int = 0

    def free(self) -> bool:
        """Whether a call may go ahead at once: none waits before it, and no other task is due."""
        self.passed += 1
        return self.passed < STRIDE and not self.waiting

    async def let_others_run(self) -> bool:
        """Let other tasks run if they are due; return whether it did and no call waits now."""
        if self.passed < STRIDE or self.waiting:
            return False
        self.passed = 0
        await checkpoint()
        return not self.waiting

    async def wait(self, waiter: Waiter, sent: int = 0, limit: float | None = None) -> None:
        """Wait until the socket may be ready; ``sent`` is what has left of a message.

        The number that is watched stays this file's until the woken task runs.
        """
        self.passed = 0
        watched: Handle | Use
        if self.shared:
            watched = Handle.duplicate(self._handle.fileno(), "conduit", "")
        else:
            watched = Use(self._handle)
        waiter.holds.append(watched.close)
        try:
            await waiter.wait(watched.fileno(), writing=self._writing, limit=limit)
        except Error as exc:
            prefix_message(exc, repr(self._handle))
            exc.sent = sent
            raise
        finally:
            # It is no longer there if its loop has ended.
            if waiter.holds:  # pragma: no branch - no task of it runs then
                waiter.holds.pop()()
        if self._handle.closed:
            raise Error(
                f"{self._handle!r}: waiting ended, since it was closed meanwhile",
                ErrType.NO_FD,
                sent=sent,
            )


class Receiving(Direction):
    """The calls that receive or accept; those that wait are served first in, first out."""

    __slots__ = ()

    def __init__(self, handle: Handle, *, shared: bool = False) -> None:
        super().__init__(handle, False, shared)

    async def call(self, attempt: Callable[[], _T]) -> _T:
        """Return what ``attempt`` returns, once it no longer raises `WouldBlockError`."""
        if self.free():
            try:
                return attempt()
            except WouldBlockError:
                pass
        return await self.queue(attempt)

    async def queue(self, attempt: Callable[[], _T]) -> _T:
        """The part of `call` that waits: after an attempt that would block, or behind others."""
        if self.passed >= STRIDE and await self.let_others_run():
            try:
                return attempt()
            except WouldBlockError:
                pass
        # The first in the queue has just tried in vain.
        tried = not self.waiting
        with self.place() as waiter:
            while self.waiting[0] is not waiter:
                await waiter.wait()
            if self.passed >= STRIDE:
                self.passed = 0
                await checkpoint()
            while True:
                if tried:
                    await self.wait(waiter)
                try:
                    return attempt()
                except WouldBlockError:
                    tried = True

    def _has_left(self, waiter: Waiter) -> None:
        """Wake the next."""
        # A copy, since other threads may change the list: each waiter may be of another loop.
        for other in self.waiting.copy():
            try:
                return other.wake(waiter.loop)
            except RuntimeError:
                self.leave(other)
        return None


class Sending(Direction):
    """The calls that send; the handle orders them, together with those of threads."""

    __slots__ = ()

    def __init__(self, handle: Handle, *, shared: bool = False) -> None:
        super().__init__(handle, True, shared)

    async def finish(self, send: Send) -> None:
        """Send the message, or the rest of it."""
        try:
            with self.place() as waiter:
                waiter.holds.append(send.cancel)
                if self.passed >= STRIDE:
                    self.passed = 0
                    await checkpoint()
                while events := send.step(waiter.wake):
                    if events == PAUSE:
                        await sleep(RETRY)
                    elif events == QUEUED:
                        await waiter.wait()
                    else:
                        await self.wait(waiter, send.sent)
        finally:
            # Again: a signal handler may have raised before the call that `leave` took out.
            send.cancel()
