"""The conduits of a test: blocking, or on one of three event loops, behind the same names.

A test that takes the fixture ``driver``, or ``ends`` or ``wired`` that come of it, runs once with
each. One that is about threads, signals or the ``timeout`` of the blocking class says so with
``@only_blocking``, and so can a whole module.
"""

from __future__ import annotations

import errno
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self, TypeVar, cast

import anyio
import anyio.from_thread
import pytest
from helpers import ELSEWHERE

import conduit
from conduit import Channel, Reader
from conduit.aio import AsyncChannel, AsyncConduit, AsyncListener, AsyncReader
from conduit.errors import ErrType, from_errno

T = TypeVar("T")

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
"""The event loops by name, each as anyio takes it."""

BLOCKING = "blocking"

only_blocking = pytest.mark.parametrize("driver", [BLOCKING], indirect=True)
"""For a test whose meaning is of the blocking class alone."""

AT_ONCE = 0.02
"""Seconds in which a call ends that need not wait. A loop has no deadline that is over at once:
such a call would be cancelled wherever it lets other tasks run, be its message there or not."""

TICK = 0.002
"""Seconds that a loop's timer may be early: uvloop counts whole milliseconds."""


class Driver:
    """The classes to make conduits of: here the blocking ones."""

    Conduit: type[conduit.Conduit] = conduit.Conduit
    Listener: type[conduit.Listener] = conduit.Listener
    Channel: type[Channel] = Channel
    Reader: type[Reader] = Reader


class LoopDriver(Driver):
    """An event loop in a thread of its own, and classes that call coroutines there and wait.

    They stand in for the blocking classes. In a forked child, which has no such thread, what they
    made is the blocking conduit beneath.
    """

    def __init__(self, loop: str, stack: ExitStack) -> None:
        portal = anyio.from_thread.start_blocking_portal(**LOOPS[loop])
        self._portal = stack.enter_context(portal)
        self.Conduit = cast(type[conduit.Conduit], _Conduits(self))
        self.Listener = cast(type[conduit.Listener], _Listeners(self))
        self.Channel = cast(type[Channel], partial(_Channel, self))
        self.Reader = cast(type[Reader], partial(_Reader, self))

    def call(
        self,
        function: Callable[..., Awaitable[T]],
        timeout: float | None,
        *args: Any,
        **kwargs: Any,
    ) -> T:
        """Await a coroutine function on the loop, no longer than the timeout of a conduit."""
        result: list[T] = []
        scopes: list[anyio.CancelScope] = []

        async def run() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                # No other place may hold the result: it is the test's to drop.
                result.append(await function(*args, **kwargs))

        async def expire() -> None:
            # On a busy machine, it may not have had its turn yet; in a flood, it always has one.
            with anyio.move_on_after(1):
                await anyio.wait_all_tasks_blocked()
            scopes[0].cancel()

        ending = self._portal.start_task_soon(run)
        ELSEWHERE[threading.get_native_id()] = self.settle
        try:
            if timeout is not None:
                futures.wait([ending], max(timeout, AT_ONCE) + TICK)
                if not ending.done():
                    self._portal.call(expire)
            ending.result()
        finally:
            del ELSEWHERE[threading.get_native_id()]
        if result:
            return result.pop()
        code = errno.ETIMEDOUT if timeout else errno.EAGAIN
        raise from_errno(code, ErrType.FAILED_TRANSFER, "on a loop", "the deadline passed")

    def settle(self) -> None:
        """Return once all tasks of the loop wait for something."""
        self._portal.call(anyio.wait_all_tasks_blocked)

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function in the loop's thread."""
        return self._portal.call(partial(function, *args, **kwargs))


class _Face:
    """What the facades of AsyncConduit and AsyncListener share: attributes, passed on."""

    def __init__(
        self, driver: LoopDriver, inner: Any, blocking: Any, timeout: float | None
    ) -> None:
        self._driver, self._inner, self._blocking = driver, inner, blocking
        self._process = os.getpid()
        self.timeout = timeout

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, "aclose" if name == "close" else name)
        if not inspect.iscoroutinefunction(attribute):
            return attribute
        return partial(self._call, name, attribute)

    def _call(self, name: str, method: Callable[..., Awaitable[Any]], *args: Any, **kw: Any) -> Any:
        if os.getpid() != self._process:
            if isinstance(self._blocking, conduit.Conduit):
                self._blocking.timeout = self.timeout
            return getattr(self._blocking, name)(*args, **kw)
        bare = [arg._inner if isinstance(arg, _Face) else arg for arg in args]
        # To close has no deadline, as it has none where it is not awaited.
        timeout = None if name == "close" else self.timeout
        return self._driver.call(method, timeout, *bare, **kw)

    def __repr__(self) -> str:
        return repr(self._inner)

    def __iter__(self) -> Iterator[Any]:
        async def following() -> Any:
            async for item in self._inner:
                return item
            return None

        while (item := self._driver.call(following, self.timeout)) is not None:
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def settle(link: conduit.Conduit) -> None:
    """Let what was dropped here be gone.

    Without a GIL, an object goes away in the thread that made it (PEP 703), once that runs again:
    for what a conduit of a `LoopDriver` received, that is the loop's.
    """
    if isinstance(link, _Face):
        link._driver.settle()


class _Conduits:
    """What stands in for the class `Conduit`: its constructors."""

    def __init__(self, driver: LoopDriver) -> None:
        self._driver = driver

    def _face(self, inner: AsyncConduit, timeout: float | None = None) -> _Face:
        return _Face(self._driver, inner, inner._conduit, timeout)

    def __call__(self, *args: Any) -> _Face:
        return self._face(self._driver.run(AsyncConduit, *args))

    def pair(self, **kwargs: Any) -> tuple[_Face, ...]:
        return tuple(map(self._face, self._driver.run(AsyncConduit.pair, **kwargs)))

    def from_conn(self, conn: Any, **kwargs: Any) -> _Face:
        return self._face(self._driver.run(AsyncConduit.from_conn, conn, **kwargs))

    def bind(self, path: Any, **kwargs: Any) -> _Face:
        return self._face(self._driver.run(AsyncConduit.bind, path, **kwargs))

    def connect(self, path: Any, *, timeout: float | None = None, **kwargs: Any) -> Any:
        if os.getpid() != _PROCESS:
            return conduit.Conduit.connect(path, timeout=timeout, **kwargs)
        link = self._driver.call(AsyncConduit.connect, timeout, path, **kwargs)
        return self._face(link, timeout)


class _Listeners:
    """What stands in for the class `Listener`: its constructors."""

    def __init__(self, driver: LoopDriver) -> None:
        self._driver = driver

    def __call__(self, path: Any, **kwargs: Any) -> _Listener:
        return _Listener(self._driver, self._driver.run(AsyncListener, path, **kwargs))

    def from_conn(self, conn: Any, path: Any, **kwargs: Any) -> _Listener:
        inner = self._driver.run(AsyncListener.from_conn, conn, path, **kwargs)
        return _Listener(self._driver, inner)


class _Listener(_Face):
    """What stands in for a `Listener`."""

    def __init__(self, driver: LoopDriver, inner: AsyncListener) -> None:
        super().__init__(driver, inner, inner._listener, None)

    def accept(self, timeout: float | None = None) -> Any:
        if os.getpid() != self._process:
            return self._blocking.accept(timeout)
        link = self._driver.call(self._inner.accept, timeout)
        return _Face(self._driver, link, link._conduit, None)

    def __iter__(self) -> Iterator[Any]:
        for link in super().__iter__():
            yield _Face(self._driver, link, link._conduit, None)


class _Reader(_Face):
    """What stands in for the class `Reader`."""

    def __init__(self, driver: LoopDriver, link: _Face, **kwargs: Any) -> None:
        inner = driver.run(AsyncReader, link._inner, **kwargs)
        super().__init__(driver, inner, inner._reader, None)
        self._link = link

    def _call(self, name: str, method: Callable[..., Awaitable[Any]], *args: Any, **kw: Any) -> Any:
        # It waits as long as the conduit.
        self.timeout = self._link.timeout
        return super()._call(name, method, *args, **kw)


class _Channel(_Face):
    """What stands in for the class `Channel`; its timeout is that of what it is over."""

    def __init__(self, driver: LoopDriver, link: _Face, **kwargs: Any) -> None:
        inner = driver.run(AsyncChannel, link._inner, **kwargs)
        super().__init__(driver, inner, inner._channel, None)
        self.conduit = link

    def _call(self, name: str, method: Callable[..., Awaitable[Any]], *args: Any, **kw: Any) -> Any:
        self.timeout = self.conduit.timeout
        return super()._call(name, method, *args, **kw)

    @contextmanager
    def receiving(self) -> Iterator[Any]:
        context = self._inner.receiving()
        obj = self._driver.call(context.__aenter__, self.conduit.timeout)
        try:
            yield obj
        finally:
            self._driver.call(context.__aexit__, None, *sys.exc_info())

    def __iter__(self) -> Iterator[Any]:
        async def following() -> list[Any]:
            async for obj in self._inner:
                return [obj]
            return []

        while found := self._driver.call(following, self.conduit.timeout):
            yield found.pop()


_PROCESS = os.getpid()
