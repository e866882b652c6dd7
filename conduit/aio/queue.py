"""A queue of waiters, each of which may belong to a loop of its own."""

from __future__ import annotations

from contextlib import suppress

from conduit.aio.waiter import Waiter, checkpoint, new_waiter


class Queue:
    """Waiters, in the order in which they came.

    They may be of several loops, of which one may end without them; what such a call holds is let
    go of for it.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        # A list, of which a copy can be made while other threads change it, without a GIL, too.
        self.waiting: list[Waiter] = []

    def join(self) -> Waiter:
        """Stand in the queue, until `leave`."""
        for waiter in self.waiting.copy():
            if not waiter.has_ended:
                break
            self.leave(waiter)
        waiter = new_waiter()
        self.waiting.append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leave the queue, with what it holds; nothing if that was done for it."""
        with suppress(ValueError):
            self.waiting.remove(waiter)
        while waiter.holds:
            waiter.holds.pop()()

    def wake_all(self) -> None:
        """Let all who wait look again. May be called from anywhere."""
        for waiter in self.waiting.copy():
            try:
                waiter.wake()
            except RuntimeError:
                self.leave(waiter)

    async def end(self) -> None:
        """Let the calls of this loop end, once what they wait for is closed and they are woken."""
        await checkpoint()
        here = new_waiter().loop
        while any(waiter.loop is here for waiter in self.waiting):
            await checkpoint()
