"""Waiting on the loop that runs, asyncio's, uvloop's or trio's, and being woken from anywhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class AsyncioWaiter:
    """A call that waits on asyncio or uvloop, and is woken from anywhere.

    That is told once: a call woken while it does not wait does not wait the next time.
    """

    __slots__ = ("_future", "_woken", "holds", "loop")

    refusals: tuple[type[Exception], ...] = (OSError, RuntimeError)
    """What the loop raises that does not watch a descriptor: one of a transport, or no room."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        self._woken = False
        # What is to be done once it waits no more, by itself or by whom it would keep waiting.
        self.holds: list[Callable[[], object]] = []

    @property
    def has_ended(self) -> bool:
        """Whether its loop has ended, and it will never run."""
        return self.loop.is_closed()

    def wake(self, here: object = None) -> None:
        """Wake it; at once if ``here`` is its loop. RuntimeError if that has ended."""
        if here is self.loop:
            self._wake()
        else:
            self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._future is None or self._future.done():
            self._woken = True
        else:
            self._future.set_result(None)

    async def wait(self, fd: int = -1, writing: bool = False) -> None:
        """Wait until it is woken, or a descriptor may be ready."""
        if self._woken:
            self._woken = False
            return
        loop, watched = self.loop, False
        remove = loop.remove_writer if writing else loop.remove_reader

        def ready() -> None:
            # Now, or the loop would find it ready once more before the task runs.
            nonlocal watched
            watched = False
            remove(fd)
            self._wake()

        self._future = loop.create_future()
        try:
            if fd >= 0:
                (loop.add_writer if writing else loop.add_reader)(fd, ready)
                watched = True
            await self._future
        finally:
            self._future = None
            if watched:
                # A loop that has ended watches nothing.
                with suppress(RuntimeError):
                    remove(fd)


class TrioWaiter:
    """A call that waits on trio; otherwise as `AsyncioWaiter`."""

    __slots__ = ("_scope", "_trio", "_woken", "holds", "loop", "refusals")

    has_ended = False
    """Trio ends no loop before its tasks."""

    def __init__(self) -> None:
        self._trio = trio = sys.modules["trio"]
        # Another task waits for it, or it was said to be closed.
        self.refusals = (OSError, trio.BusyResourceError, trio.ClosedResourceError)
        self.loop = trio.lowlevel.current_trio_token()
        self._scope: Any = None
        self._woken = False
        self.holds: list[Callable[[], object]] = []

    def wake(self, here: object = None) -> None:
        """Wake it; at once if ``here`` is its loop. RuntimeError if that has ended."""
        if here is self.loop:
            self._wake()
        else:
            self.loop.run_sync_soon(self._wake)

    def _wake(self) -> None:
        if self._scope is None:
            self._woken = True
        else:
            self._scope.cancel()

    async def wait(self, fd: int = -1, writing: bool = False) -> None:
        """Wait until it is woken, or a descriptor may be ready."""
        if self._woken:
            self._woken = False
            return
        try:
            with self._trio.CancelScope() as self._scope:
                if fd < 0:
                    await self._trio.sleep_forever()
                elif writing:
                    await self._trio.lowlevel.wait_writable(fd)
                else:
                    await self._trio.lowlevel.wait_readable(fd)
        finally:
            self._scope = None


Waiter = AsyncioWaiter | TrioWaiter


def new_waiter() -> Waiter:
    """Return one for a call on the loop that runs."""
    return TrioWaiter() if _runs_on_trio() else AsyncioWaiter()


def _runs_on_trio() -> bool:
    # Asked first, since trio may be a guest of asyncio.
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


async def sleep(seconds: float) -> None:
    """Sleep on the loop that runs. anyio's own may open files at its first call: it imports."""
    if _runs_on_trio():
        await sys.modules["trio"].sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def checkpoint() -> None:
    """Let other tasks run."""
    await sleep(0)
