"""A queue of waiters, each of which may belong to a loop of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from conduit.aio.waiter import Waiter, checkpoint, new_waiter


class Queue:
    """Waiters, in the order in which they came.

    They may belong to several loops. If a loop ends before its waiters, others remove them and
    release what they hold.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        # A list, since copying one is atomic, also without a GIL.
        self.waiting: list[Waiter] = []

    @contextmanager
    def place(self) -> Iterator[Waiter]:
        """Let a call wait in the queue until the end of the ``with``.

        It leaves even if a signal handler raises: the ``try`` begins before it enters, `leave` is
        called twice, and dropping the generator runs the ``finally``, too.
        """
        for waiter in self.waiting.copy():
            if not waiter.has_ended:
                break
            self.leave(waiter)
        waiter = new_waiter()
        try:
            self.waiting.append(waiter)
            yield waiter
        finally:
            try:
                self.leave(waiter)
            finally:
                self.leave(waiter)
                self._has_left(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Leave the queue, and release what the waiter holds; no-op if others have done so."""
        with suppress(ValueError):
            self.waiting.remove(waiter)
        while waiter.holds:
            waiter.holds.pop()()

    def _has_left(self, waiter: Waiter) -> None:
        """Called after a call has left."""

    def wake_all(self) -> None:
        """Wake all waiters. May be called in any thread or signal handler."""
        for waiter in self.waiting.copy():
            try:
                waiter.wake()
            except RuntimeError:
                self.leave(waiter)

    async def end(self) -> None:
        """Wait until the calls of this loop have ended, after a close that woke them."""
        await checkpoint()
        here = new_waiter().loop
        while any(waiter.loop is here for waiter in self.waiting):
            await checkpoint()
