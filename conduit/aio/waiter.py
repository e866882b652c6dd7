"""Waiting on the running loop (asyncio, uvloop or trio), and being woken from anywhere."""

from __future__ import annotations

import asyncio
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from conduit.errors import Error, ErrType, from_handler


class Waiter(ABC):
    """A call that waits, and is woken from anywhere.

    A wake-up is remembered: if the call does not wait when it is woken, its next wait returns.

    Attributes:
        loop: the loop that it waits on.
        holds: functions that release what it holds; called once, by itself, or by others if its
            loop has ended.
    """

    __slots__ = ("_call_soon", "_refusals", "_woken", "holds", "loop")

    has_ended = False
    """Whether its loop has ended, and it will never run."""

    def __init__(
        self, loop: Any, call_soon: Callable[..., object], *refusals: type[Exception]
    ) -> None:
        self.loop: Any = loop
        self._call_soon = call_soon
        # What the loop raises if it does not watch a descriptor.
        self._refusals = refusals
        self.holds: list[Callable[[], object]] = []
        self._woken = False

    def wake(self, here: object = None) -> None:
        """Wake it; at once if ``here`` is its loop. RuntimeError if the loop has ended."""
        if here is self.loop:
            self._wake()
        else:
            self._call_soon(self._wake)

    async def wait(
        self, fd: int = -1, *, writing: bool = False, limit: float | None = None
    ) -> None:
        """Wait until it is woken, a descriptor may be ready, or ``limit`` seconds have passed.

        Raises:
            Error: ``FAILED_TRANSFER``, if the loop does not watch the descriptor.
        """
        if self._woken:
            self._woken = False
            return
        try:
            await self._wait(fd, writing, limit)
        except self._refusals as exc:
            if from_handler(exc):
                raise
            raise Error(
                f"cannot wait: the event loop does not watch its number: {exc}",
                ErrType.FAILED_TRANSFER,
                getattr(exc, "errno", None),
            ) from exc

    @abstractmethod
    def _wake(self) -> None:
        """Wake it, in its loop."""

    @abstractmethod
    async def _wait(self, fd: int, writing: bool, limit: float | None) -> None: ...


class _AsyncioWaiter(Waiter):
    """A call that waits on asyncio or uvloop."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        # RuntimeError: a transport has it. OSError: no room.
        super().__init__(loop, loop.call_soon_threadsafe, OSError, RuntimeError)
        self._future: asyncio.Future[None] | None = None

    @property
    def has_ended(self) -> bool:  # type: ignore[override]
        return bool(self.loop.is_closed())

    def _wake(self) -> None:
        if self._future is None or self._future.done():
            self._woken = True
        else:
            self._future.set_result(None)

    async def _wait(self, fd: int, writing: bool, limit: float | None) -> None:
        loop, watched = self.loop, False
        remove = loop.remove_writer if writing else loop.remove_reader

        def ready() -> None:
            # At once, or the loop would report it again before the task runs.
            nonlocal watched
            watched = False
            remove(fd)
            self._wake()

        self._future = loop.create_future()
        timer = None if limit is None else loop.call_later(limit, self._wake)
        try:
            if fd >= 0:
                # First, since a handler may raise in between; to remove one not watched is a no-op.
                watched = True
                (loop.add_writer if writing else loop.add_reader)(fd, ready)
            await self._future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()
            if watched:
                # If the loop has ended, it watches nothing.
                with suppress(RuntimeError):
                    remove(fd)


class _TrioWaiter(Waiter):
    """A call that waits on trio, whose loop never ends before its tasks."""

    __slots__ = ("_scope", "_trio")

    def __init__(self) -> None:
        self._trio = trio = sys.modules["trio"]
        loop = trio.lowlevel.current_trio_token()
        # BusyResourceError: another task waits for it. ClosedResourceError: it was closed.
        refusals = trio.BusyResourceError, trio.ClosedResourceError
        super().__init__(loop, loop.run_sync_soon, OSError, *refusals)
        self._scope: Any = None

    def _wake(self) -> None:
        if self._scope is None:
            self._woken = True
        else:
            self._scope.cancel()

    async def _wait(self, fd: int, writing: bool, limit: float | None) -> None:
        lowlevel = self._trio.lowlevel
        try:
            with self._trio.move_on_after(math.inf if limit is None else limit) as self._scope:
                if fd < 0:
                    await self._trio.sleep_forever()
                else:
                    await (lowlevel.wait_writable if writing else lowlevel.wait_readable)(fd)
        finally:
            self._scope = None


def new_waiter() -> Waiter:
    """Return a waiter for a call on the running loop."""
    return _TrioWaiter() if _runs_on_trio() else _AsyncioWaiter()


def _runs_on_trio() -> bool:
    # trio first, since it may run as a guest of asyncio.
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


async def sleep(seconds: float) -> None:
    """Sleep on the running loop. The first call of anyio's own imports, and so may open files."""
    if _runs_on_trio():
        await sys.modules["trio"].sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def checkpoint() -> None:
    """Let other tasks run."""
    await sleep(0)


def spawn(function: Callable[[], Coroutine[Any, Any, None]]) -> object:
    """Start a task outside of any nursery on the running loop; keep what this returns alive."""
    if _runs_on_trio():
        return sys.modules["trio"].lowlevel.spawn_system_task(function)
    return asyncio.get_running_loop().create_task(function())
