"""Conduits on an event loop: asyncio, uvloop and trio.

The names and meanings are those of `conduit.Conduit` and `conduit.Listener`; what can wait is a
coroutine. There is no timeout to set: deadlines are the loop's own (``anyio.fail_after``,
``asyncio.timeout``).

Nothing here waits inside a system call, and nothing is awaited after one that received: a
cancelled receive has either not taken the message out of the socket or returned it.

How a call waits
================

Each direction of a socket has a queue of waiters, one for each call that waits. The first receiver
registers the socket with its loop; each receiver wakes the next when it returns. The handle orders
the senders, together with threads. A task, a thread or a signal handler may wake a waiter.

anyio has a lock and waits for a descriptor, but not across loops. Its lock stays locked when a loop
ends with a task that holds it, and `aclose` then never returns; and it replaces the reader that the
program registered for the same descriptor. Here, a waiter whose loop has ended is removed when it
is woken, and what it held is released. A descriptor that the program may have registered itself is
watched through a duplicate.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import io
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, Self, TypeVar, overload

try:
    import anyio
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "conduit.aio needs anyio: pip install 'net-conduit[async]'", name=_missing.name
    ) from _missing
from anyio import to_thread

from conduit import mistakes, objects
from conduit._conduit import PAUSE, QUEUED, Conduit, Descriptor, Message, Send
from conduit._handle import Handle
from conduit._syscalls import MAX_FDS
from conduit.channel import MAX_SIZE, Channel, Parts
from conduit.errors import (
    DescriptorTypeError,
    Error,
    ErrType,
    PeerClosedError,
    WouldBlockError,
    from_errno,
    from_handler,
    prefix_message,
)
from conduit.listener import REST, SHORTAGES, Listener
from conduit.peer import Peer
from conduit.reader import Reader
from conduit.takeover import Takeover
from conduit.wire import message_frame

if TYPE_CHECKING:
    from _typeshed import (
        HasFileno,
        OpenBinaryMode,
        OpenBinaryModeReading,
        OpenBinaryModeUpdating,
        OpenBinaryModeWriting,
        OpenTextMode,
        ReadableBuffer,
        StrOrBytesPath,
    )

_T = TypeVar("_T")

_STRIDE = 64
"""How many calls that need not wait a conduit lets pass before one lets other tasks run."""

_PAUSE = 0.01
"""Seconds between two looks at what nothing tells of: a full backlog, a system out of buffers."""


class _AsyncioWaiter:
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


class _TrioWaiter:
    """A call that waits on trio; otherwise as `_AsyncioWaiter`."""

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


_Waiter = _AsyncioWaiter | _TrioWaiter


def _new_waiter() -> _Waiter:
    return _TrioWaiter() if _runs_on_trio() else _AsyncioWaiter()


def _runs_on_trio() -> bool:
    # Asked first, since trio may be a guest of asyncio.
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


async def _sleep(seconds: float) -> None:
    """Sleep on the loop that runs. anyio's own may open files at its first call: it imports."""
    if _runs_on_trio():
        await sys.modules["trio"].sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def checkpoint() -> None:
    """Let other tasks run."""
    await _sleep(0)


class _Direction:
    """The calls of one direction of a socket: when other tasks are due, and how one waits.

    Those that wait stand in ``waiting`` in the order in which they came. They may be of several
    loops, of which one may end without them; what such a call holds is let go of for it.

    A loop has one callback for a number, and no way to ask for it. Where the program, or another
    conduit, may have the same number watched, it is ``shared``, and each wait has a duplicate: one
    that was kept would keep the connection open when the program closes what it lent.
    """

    __slots__ = ("_handle", "_writing", "passed", "shared", "waiting")

    def __init__(self, handle: Handle, writing: bool, shared: bool) -> None:
        self._handle = handle
        self._writing = writing
        self.shared = shared
        self.waiting: deque[_Waiter] = deque()
        self.passed = 0

    def free(self) -> bool:
        """Whether a call may go ahead at once: nobody is before it, and no other task is due."""
        self.passed += 1
        return self.passed < _STRIDE and not self.waiting

    async def let_others_run(self) -> bool:
        """Let other tasks run if they are due; whether that was so, and nobody waits since."""
        if self.passed < _STRIDE or self.waiting:
            return False
        self.passed = 0
        await checkpoint()
        return not self.waiting

    def join(self) -> _Waiter:
        """Stand in the line of those who wait, until `leave`."""
        for waiter in self.waiting.copy():
            if not waiter.has_ended:
                break
            self.leave(waiter)
        waiter = _new_waiter()
        self.waiting.append(waiter)
        return waiter

    def leave(self, waiter: _Waiter) -> None:
        """Leave the line, with what it holds; nothing if that was done for it."""
        with suppress(ValueError):
            self.waiting.remove(waiter)
        while waiter.holds:
            waiter.holds.pop()()

    async def wait(self, waiter: _Waiter, sent: int = 0) -> None:
        """Wait until the socket may be ready; ``sent`` is what has left of a message.

        What is watched is no other file's before the task that was woken runs.
        """
        self.passed = 0
        handle = self._handle
        if self.shared:
            handle = Handle.duplicate(handle.fileno(), "conduit", "")
            fd, end = handle.fileno(), handle.close
        else:
            fd, end = handle.enter(), handle.leave
        waiter.holds.append(end)
        try:
            await waiter.wait(fd, self._writing)
        except waiter.refusals as exc:
            if from_handler(exc):
                raise
            raise Error(
                f"{self._handle!r}: cannot wait: the event loop does not watch its number: {exc}",
                ErrType.FAILED_TRANSFER,
                getattr(exc, "errno", None),
                sent=sent,
            ) from exc
        finally:
            # It is no longer there if its loop has ended.
            if waiter.holds:  # pragma: no branch - whose tasks then do not run on
                waiter.holds.pop()()
        if self._handle.is_closed:
            raise Error(
                f"{self._handle!r}: waiting ended, since it was closed meanwhile",
                ErrType.NO_FD,
                sent=sent,
            )

    def wake_all(self) -> None:
        """Let the calls that wait find the conduit closed."""
        for waiter in self.waiting.copy():
            try:
                waiter.wake()
            except RuntimeError:
                self.leave(waiter)

    async def end(self) -> None:
        """Let the calls of this loop end, once the conduit is closed and they are woken."""
        await checkpoint()
        here = _new_waiter().loop
        while any(waiter.loop is here for waiter in self.waiting):
            await checkpoint()


class _Receiving(_Direction):
    """The calls that receive, or accept: those that wait are served in their order."""

    __slots__ = ()

    def __init__(self, handle: Handle, *, shared: bool = False) -> None:
        super().__init__(handle, False, shared)

    async def call(self, attempt: Callable[[], _T]) -> _T:
        """Return what ``attempt`` does, once it no longer raises `WouldBlockError`."""
        if self.free():
            try:
                return attempt()
            except WouldBlockError:
                pass
        return await self.queue(attempt)

    async def queue(self, attempt: Callable[[], _T]) -> _T:
        """Go on as `call` does, for who may not go ahead or has tried in vain."""
        if self.passed >= _STRIDE and await self.let_others_run():
            try:
                return attempt()
            except WouldBlockError:
                pass
        # Who has nobody before it has just tried in vain.
        tried = not self.waiting
        waiter = self.join()
        try:
            while self.waiting[0] is not waiter:
                await waiter.wait()
            if self.passed >= _STRIDE:
                self.passed = 0
                await checkpoint()
            while True:
                if tried:
                    await self.wait(waiter)
                try:
                    return attempt()
                except WouldBlockError:
                    tried = True
        finally:
            first = bool(self.waiting) and self.waiting[0] is waiter
            self.leave(waiter)
            if first:
                self._wake_next(waiter.loop)

    def _wake_next(self, here: object) -> None:
        # Of a copy: the loop of the next may run in another thread.
        for waiter in self.waiting.copy():
            try:
                return waiter.wake(here)
            except RuntimeError:
                self.leave(waiter)
        return None


class _Sending(_Direction):
    """The calls that send: the handle orders them, together with those of threads."""

    __slots__ = ()

    def __init__(self, handle: Handle, *, shared: bool = False) -> None:
        super().__init__(handle, True, shared)

    async def finish(self, send: Send) -> None:
        """Send the message, or what has not left of it."""
        waiter = self.join()
        waiter.holds.append(send.cancel)
        try:
            if self.passed >= _STRIDE:
                self.passed = 0
                await checkpoint()
            while events := send.step(waiter.wake):
                if events == PAUSE:
                    await _sleep(_PAUSE)
                elif events == QUEUED:
                    await waiter.wait()
                else:
                    await self.wait(waiter, send.sent)
        finally:
            self.leave(waiter)


async def _prepare(item: object, keep: bool, place: int, count: int) -> None:
    """Make an item ready to be sent, which may wait, in a worker thread."""
    try:
        await to_thread.run_sync(objects.prepare, item, keep, abandon_on_cancel=True)
    except Error as exc:
        if count > 1:
            prefix_message(exc, f"item {place} of {count}")
        raise


class _Closing(ABC):
    """What ``async with`` closes at the end."""

    def __reduce__(self) -> str:
        raise mistakes.not_picklable(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None:
        """Close it."""


class AsyncConduit(_Closing):
    """One end of a Unix socket that carries open descriptors, for the tasks of an event loop.

    AsyncConduit(conduit) takes over a blocking `Conduit`, which is from then on this one's to use
    and to close; AsyncConduit(fd, name="") borrows a number, as ``Conduit(fd, name)`` does. Either
    needs room for one more descriptor while a call waits: what the program has its loop watch is
    left alone.

    Several tasks may receive on it, and send on it: each message goes to one of them, whole.
    Cancelling a call that receives loses nothing. Cancelling one that sends a long payload in
    the middle breaks the stream: the conduit then sends no more.

    A call that need not wait returns without letting other tasks run, but now and then one does
    (every 64th at the latest), and is where cancellation comes.
    """

    def __init__(self, conduit: Conduit | int, name: str = "") -> None:
        if not isinstance(conduit, Conduit):
            conduit = Conduit(conduit, name)
        conduit.timeout = 0
        self._conduit = conduit
        self._sending = _Sending(conduit._handle, shared=True)
        self._receiving = _Receiving(conduit._handle, shared=True)
        # Looked up once: of a call that need not wait, a look-up is a measurable part.
        self._transfer_fd = conduit.transfer_fd
        self._receive_fd = conduit.receive_fd

    @classmethod
    def _own(cls, conduit: Conduit) -> Self:
        """Make one of a conduit of which nobody else has the number."""
        self = cls(conduit)
        self._sending.shared = self._receiving.shared = False
        return self

    @classmethod
    def from_file(cls, file: HasFileno, *, name: str | None = None) -> Self:
        """Borrow the descriptor of a file; see `Conduit.from_file`."""
        return cls(Conduit.from_file(file, name=name))

    @classmethod
    def from_conn(cls, conn: HasFileno, *, name: str = "") -> Self:
        """Duplicate the descriptor of anything with ``fileno()``; see `Conduit.from_conn`.

        That may be a socket of asyncio (``writer.get_extra_info("socket")``), anyio or trio. The
        loop goes on reading what it had; give up that object before using this one.
        """
        return cls._own(Conduit.from_conn(conn, name=name))

    @classmethod
    def pair(cls, *, type: int = socket.SOCK_STREAM) -> tuple[Self, Self]:
        """Return two connected conduits; see `Conduit.pair`."""
        first, second = Conduit.pair(type=type)
        return cls._own(first), cls._own(second)

    @classmethod
    def bind(cls, path: StrOrBytesPath, *, mode: int = 0o600, name: str = "") -> Self:
        """Return a datagram socket bound at a path, to receive on; see `Conduit.bind`."""
        return cls._own(Conduit.bind(path, mode=mode, name=name))

    @classmethod
    async def connect(
        cls,
        path: StrOrBytesPath,
        *,
        type: int = socket.SOCK_STREAM,
        wait: bool = False,
        name: str = "",
    ) -> Self:
        """Connect to a listening Unix socket; see `Conduit.connect`.

        Waits for room in the listener's backlog, and with ``wait`` for a listener, as long as the
        caller's deadline lets it.
        """
        while True:
            await checkpoint()
            try:
                conduit = Conduit.connect(path, type=type, timeout=0, wait=wait, name=name)
            except WouldBlockError:
                await _sleep(_PAUSE)
            else:
                return cls._own(conduit)

    def __repr__(self) -> str:
        return f"<conduit.aio.AsyncConduit over {self._conduit!r}>"

    @property
    def name(self) -> str:
        """What the conduit is called in errors."""
        return self._conduit.name

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._conduit.closed

    @property
    def peer(self) -> Peer:
        """The process this is connected to; see `Conduit.peer`."""
        return self._conduit.peer

    def fileno(self) -> int:
        """Return the number of the socket; see `Conduit.fileno`.

        The event loop watches it while calls wait, and watches a number for one only: to have it
        watched for yourself, duplicate it, or borrow it with another `AsyncConduit`.
        """
        return self._conduit.fileno()

    def close(self) -> None:
        """Close as `aclose` does, without letting other tasks run before it returns.

        It is there because a transfer closes what it moved, and a conduit can be moved, too.
        """
        try:
            self._conduit.close()
        finally:
            # Also if it is closed: a signal handler may have ended that call before this.
            self._sending.wake_all()
            self._receiving.wake_all()

    async def aclose(self) -> None:
        """Close what the conduit made, and end the calls of other tasks that wait.

        Those raise `Error` (``NO_FD``). See `Conduit.close`. It is closed even if this is
        cancelled.
        """
        self.close()
        await self._sending.end()
        await self._receiving.end()

    async def transfer_fd(self, fd: int, *, keep: bool = False) -> None:
        """Send one descriptor by its number; see `Conduit.transfer_fd`."""
        # As `free`, of which the call is a measurable part of this one, and of `receive_fd`.
        sending = self._sending
        sending.passed += 1
        if sending.passed < _STRIDE and not sending.waiting:
            try:
                return self._transfer_fd(fd, keep=keep)
            except WouldBlockError:
                pass
        # An object, which transfer() takes, is none.
        if not isinstance(fd, int):
            raise mistakes.not_an_int("transfer_fd", fd)
        return await self.transfer(fd, keep=keep)

    async def transfer_file(self, file: HasFileno, *, keep: bool = False) -> None:
        """Send an open file; see `Conduit.transfer_file` and `transfer`."""
        # A number, which transfer() takes, is none.
        objects.fd_of(file)
        await self.transfer(file, keep=keep)

    async def transfer_conn(self, conn: HasFileno, *, keep: bool = False) -> None:
        """Send a socket; see `Conduit.transfer_conn`."""
        objects.fd_of(conn)
        await self.transfer(conn, keep=keep)

    async def transfer(
        self, *items: int | HasFileno, data: ReadableBuffer | None = None, keep: bool = False
    ) -> None:
        """Send a message: bytes, and any number of descriptors; see `Conduit.transfer`.

        What was written to a pipe, a terminal or a socket file is flushed in a worker thread, which
        goes on with that if the call is cancelled: nothing is sent then, and nothing is lost.
        """
        for place, item in enumerate(items, 1):
            if objects.may_wait(item):
                await _prepare(item, keep, place, len(items))
        send = Send(self._conduit, items, data, keep)
        if not self._sending.free() or send.step():
            await self._sending.finish(send)

    async def receive_fd(self) -> int:
        """Receive one descriptor and return its number; see `Conduit.receive_fd`."""
        receiving = self._receiving
        receiving.passed += 1
        if receiving.passed < _STRIDE and not receiving.waiting:
            try:
                return self._receive_fd()
            except WouldBlockError:
                pass
        return await receiving.queue(self._receive_fd)

    @overload
    async def receive_file(
        self,
        mode: None = None,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> BinaryIO: ...
    @overload
    async def receive_file(
        self,
        mode: OpenTextMode,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> io.TextIOWrapper: ...
    @overload
    async def receive_file(
        self,
        mode: OpenBinaryMode,
        buffering: Literal[0],
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.FileIO: ...
    @overload
    async def receive_file(
        self,
        mode: OpenBinaryModeUpdating,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedRandom: ...
    @overload
    async def receive_file(
        self,
        mode: OpenBinaryModeWriting,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedWriter: ...
    @overload
    async def receive_file(
        self,
        mode: OpenBinaryModeReading,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedReader: ...
    @overload
    async def receive_file(
        self,
        mode: OpenBinaryMode,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> BinaryIO: ...
    @overload
    async def receive_file(
        self,
        mode: str | None,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> IO[Any]: ...
    async def receive_file(
        self,
        mode: str | None = None,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> IO[Any]:
        """Receive one descriptor and return a file that owns it; see `Conduit.receive_file`.

        The file is an ordinary one: reading and writing it block.
        """
        attempt = partial(
            self._conduit.receive_file, mode, buffering, encoding, errors, newline, name=name
        )
        return await self._receiving.call(attempt)

    async def receive_conn(self) -> socket.socket:
        """Receive one descriptor and return a socket that owns it; see `Conduit.receive_conn`."""
        return await self._receiving.call(self._conduit.receive_conn)

    async def receive(self, max_data: int = 65536, max_fds: int = MAX_FDS) -> Message:
        """Receive one message; see `Conduit.receive`."""
        return await self._receiving.call(partial(self._conduit.receive, max_data, max_fds))

    async def receive_exactly(self, size: int, max_fds: int = MAX_FDS) -> Message:
        """Receive so many bytes, with their descriptors; see `Conduit.receive_exactly`."""
        return await self._receiving.call(partial(self._conduit.receive_exactly, size, max_fds))

    def __aiter__(self) -> Self:
        """Receive messages until the peer closes."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except PeerClosedError:
            raise StopAsyncIteration from None

    def shutdown(self, how: int = socket.SHUT_WR) -> None:
        """End one direction; see `Conduit.shutdown`."""
        self._conduit.shutdown(how)


def detach_stream(
    reader: asyncio.StreamReader | None, writer: asyncio.StreamWriter | asyncio.Transport
) -> tuple[socket.socket, bytes]:
    """Take a connection out of asyncio, or uvloop, to hand it to another process or loop.

    What the writer holds must have left: it is no coroutine, so that nothing comes or goes between
    the last message that the program has dealt with and this call. Where one may write faster than
    the peer reads, flush before::

        writer.transport.set_write_buffer_limits(0)
        await writer.drain()
        sock, unread = conduit.aio.detach_stream(reader, writer)

    Called in the thread of the loop, while no other task reads from the reader. Afterwards the
    reader is at its end and the writer closed: the loop neither reads nor writes any more, and the
    connection stays open. If it raises, nothing has changed.

    Args:
        reader: the `asyncio.StreamReader`; None for a transport with a protocol of the program's
            own, which has all that was read.
        writer: its `asyncio.StreamWriter`, or a transport.

    Returns:
        the socket, a duplicate that is the caller's (close-on-exec; non-blocking, as its timeout
        says), and the bytes that were read from it and not consumed: they come before whatever is
        received from it.

    Raises:
        Error: ``NO_FD`` if the connection is closing, failed, or has no socket;
            ``FAILED_TRANSFER`` if the writer still holds bytes; ``BAD_CLONE`` if the system gives
            no duplicate, or it is a pipe's.
        DescriptorTypeError: ``NO_FD``, if it is TLS, the state of which lives in this process, or
            if ``writer`` is neither a stream nor a transport.
    """
    transport: Any = getattr(writer, "transport", writer)
    if not hasattr(transport, "get_extra_info"):
        raise DescriptorTypeError(
            f"a {type(writer).__name__} is no asyncio.StreamWriter and no transport", ErrType.NO_FD
        )
    what = f"{transport!r} was not detached"
    if transport.get_extra_info("sslcontext") is not None:
        raise DescriptorTypeError(
            f"{what}: the keys and the state of TLS live in this process, not in the descriptor",
            ErrType.NO_FD,
        )
    sock = transport.get_extra_info("socket")
    if sock is None:
        raise DescriptorTypeError(f"{what}: it has no socket", ErrType.NO_FD)
    failure = None if reader is None else reader.exception()
    if failure is not None or transport.is_closing():
        raise Error(f"{what}: {failure or 'it is closed'}", ErrType.NO_FD) from failure
    if held := transport.get_write_buffer_size():
        raise Error(
            f"{what}: it holds {held} bytes to be written; call set_write_buffer_limits(0) of the "
            "transport, and await writer.drain()",
            ErrType.FAILED_TRANSFER,
        )
    try:
        # uvloop's is no socket where the transport is a pipe's.
        with Descriptor(os.dup(sock.fileno())) as duplicate:
            detached = duplicate.to_conn()
    except OSError as exc:
        if isinstance(exc, Error) or from_handler(exc):
            raise
        raise from_errno(exc.errno or errno.EBADF, ErrType.BAD_CLONE, what) from exc
    try:
        unread = b"" if reader is None else _unread(reader)
    except BaseException:
        detached.close()
        raise
    # It is closed when the loop goes on, and not shut down.
    transport.abort()
    return detached, unread


def _unread(reader: asyncio.StreamReader) -> bytes:
    """Return what a reader has, after which it is at its end.

    ``read()`` returns all until the end, and need not wait for that once it was told.
    """
    reader.feed_eof()
    reading = reader.read()
    try:
        reading.send(None)
    except StopIteration as done:
        unread: bytes = done.value
        return unread
    raise RuntimeError("a reader at its end waits")  # pragma: no cover - in no asyncio of today


class AsyncTakeover(_Closing):
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


class AsyncListener(_Closing):
    """A Unix socket that listens for conduits, for the tasks of an event loop.

    Takes what `Listener` takes, and raises as that does.
    """

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
        self._accepting = _Receiving(listener._handle)

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
                    await _sleep(REST)
                raise
            if conduit is not None:
                return AsyncConduit._own(conduit)
            # However many come who are refused, other tasks run in between.
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


class AsyncReader(_Closing):
    """Reads a protocol from the stream of an `AsyncConduit`, as `Reader` does of a `Conduit`.

    Takes what `Reader` takes, and raises as that does. A call that is cancelled loses nothing: what
    came stays in the reader. Several tasks may read lines, say, from one: each gets whole ones.
    """

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
        """Receive so many bytes; see `Reader.receive_exactly`."""
        if not self._receiving.free():
            await self._receiving.let_others_run()
        while (found := self._ahead.exactly(size)) is None:
            await self._receive(size)
        return found

    async def receive_until(self, delimiter: bytes) -> bytes:
        """Receive the bytes up to a delimiter, which is consumed; see `Reader.receive_until`."""
        if not self._receiving.free():
            await self._receiving.let_others_run()
        while (found := self._ahead.until(delimiter)) is None:
            await self._receive(delimiter)
        return found

    def take_fds(self, count: int = 1) -> tuple[Descriptor, ...]:
        """Return so many of the descriptors that came; see `Reader.take_fds`."""
        return self._reader.take_fds(count)

    def close(self) -> None:
        """Close the descriptors that were not taken; see `Reader.close`."""
        self._reader.close()

    async def aclose(self) -> None:
        """Close as `close` does, even if this is cancelled."""
        self.close()
        await checkpoint()

    async def _receive(self, wanted: int | bytes) -> None:
        """Receive once, or wait until another task has: it may have got what is wanted here."""
        # What it gets is in the reader when this returns, and is consumed by who awaits it.
        await self._receiving.call(partial(self._reader._fetch, wanted, self._ahead.came))


class AsyncChannel(_Closing):
    """Sends and receives objects with descriptors in them: `conduit.Channel`, awaited.

    Takes an `AsyncConduit`, or a blocking `Conduit` as that does, and what `Channel` takes. It
    raises as that does. A cancelled `receive` loses nothing; a cancelled `send` is as one that
    failed.
    """

    def __init__(
        self,
        conduit: AsyncConduit | Conduit,
        *,
        dumps: Callable[[Any], bytes] | None = None,
        loads: Callable[[bytes], Any] | None = None,
        max_size: int = MAX_SIZE,
        max_fds: int = 4 * MAX_FDS,
    ) -> None:
        if isinstance(conduit, Conduit):
            conduit = AsyncConduit(conduit)
        self._channel = Channel(
            conduit._conduit, dumps=dumps, loads=loads, max_size=max_size, max_fds=max_fds
        )
        self._conduit = conduit
        self._receiving = conduit._receiving

    def __repr__(self) -> str:
        return f"<conduit.aio.AsyncChannel over {self._channel.conduit!r}>"

    @property
    def conduit(self) -> AsyncConduit:
        """What it sends and receives on."""
        return self._conduit

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._conduit.closed

    def fileno(self) -> int:
        """Return the number of the socket."""
        return self._conduit.fileno()

    async def aclose(self) -> None:
        """Close the conduit, and what came of a message; see `Channel.close`."""
        self._conduit.close()
        self._channel.close()
        await self._conduit.aclose()

    async def send(self, obj: Any, *, keep: bool = False) -> None:
        """Send an object, and move or share the descriptors in it; see `Channel.send`."""
        channel = self._channel
        body, items = channel._codec.encode(obj)
        if channel._fits(body, items):
            try:
                data = message_frame(body, len(items))
                return await self._conduit.transfer(*items, data=data, keep=keep)
            except Error as exc:
                if exc.errno != errno.EMSGSIZE or exc.sent:
                    raise
        with Parts(channel, body, items, keep) as parts:
            for some, data in parts:
                await self._conduit.transfer(*some, data=data, keep=True)
        return None

    async def receive(self) -> Any:
        """Receive an object, with a `Descriptor` in each place of one; see `Channel.receive`."""
        return (await self._receive_with_fds())[0]

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[Any]:
        """Receive an object, and close what was not taken out; see `Channel.receiving`."""
        obj, fds = await self._receive_with_fds()
        with Message(b"", fds):
            yield obj

    def __aiter__(self) -> Self:
        """Receive objects until the peer closes; see `Channel`."""
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except PeerClosedError as exc:
            if exc.__cause__ is not None:
                raise
            raise StopAsyncIteration from None

    async def _receive_with_fds(self) -> tuple[Any, list[Descriptor]]:
        return await self._receiving.call(self._attempt)

    def _attempt(self) -> tuple[Any, list[Descriptor]]:
        found = self._channel._advance()
        if found is None:
            raise WouldBlockError("there is more to come of a message")
        return self._channel._decode(*found)
