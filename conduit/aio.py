"""Conduits on an event loop: asyncio, uvloop and trio, through anyio.

The names and meanings are those of `conduit.Conduit` and `conduit.Listener`; what can wait is a
coroutine. There is no timeout to set: deadlines are the loop's own (``anyio.fail_after``,
``asyncio.timeout``).

Nothing here waits inside a system call, and nothing is awaited after one that received: a
cancelled receive has either not taken the message out of the socket or returned it.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
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
from anyio.lowlevel import checkpoint

from conduit import mistakes, objects
from conduit._conduit import PAUSE, QUEUED, Conduit, Descriptor, Message, Send
from conduit._handle import Handle
from conduit._syscalls import MAX_FDS
from conduit.channel import MAX_SIZE, Channel, Parts
from conduit.errors import Error, ErrType, PeerClosedError, WouldBlockError
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


class _Direction:
    """The calls of one direction of a socket: when other tasks are due, and how one waits.

    Waiting for the socket is within a call of its handle, so that the descriptor is no other
    file's before the task that was woken runs.
    """

    __slots__ = ("_handle", "_passed", "_queued", "_wait_for")

    def __init__(self, handle: Handle, wait: Callable[[Any], Awaitable[None]]) -> None:
        self._handle = handle
        self._wait_for = wait
        self._queued = 0
        self._passed = 0

    def free(self) -> bool:
        """Whether a call may go ahead at once: nobody is before it, and no other task is due."""
        self._passed += 1
        return self._passed < _STRIDE and not self._queued

    async def let_others_run(self) -> bool:
        """Let other tasks run if they are due; whether that was so, and nobody waits since."""
        if self._passed < _STRIDE or self._queued:
            return False
        self._passed = 0
        await checkpoint()
        return not self._queued

    async def wait(self, sent: int = 0) -> None:
        """Wait until the socket may be ready; ``sent`` is what has left of a message."""
        self._passed = 0
        fd = self._handle.enter()
        try:
            await self._wait_for(fd)
        except anyio.ClosedResourceError:
            raise Error(
                f"{self._handle!r}: waiting ended, since it was closed meanwhile",
                ErrType.NO_FD,
                sent=sent,
            ) from None
        finally:
            self._handle.leave()

    async def end(self) -> None:
        """Let the calls that wait end, once the conduit is closed and they are woken."""
        await checkpoint()
        while self._queued:
            await checkpoint()


class _Receiving(_Direction):
    """The calls that receive, or accept: those that wait are served in their order."""

    __slots__ = ("_turn",)

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle, anyio.wait_readable)
        self._turn = anyio.Lock(fast_acquire=True)

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
        if await self.let_others_run():
            try:
                return attempt()
            except WouldBlockError:
                pass
        first = not self._queued
        self._queued += 1
        try:
            async with self._turn:
                if self._passed >= _STRIDE:
                    self._passed = 0
                    await checkpoint()
                elif first:
                    # The caller has just tried in vain.
                    await self.wait()
                while True:
                    try:
                        return attempt()
                    except WouldBlockError:
                        await self.wait()
        finally:
            self._queued -= 1


class _Sending(_Direction):
    """The calls that send: the handle orders them, together with those of threads."""

    __slots__ = ()

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle, anyio.wait_writable)

    async def finish(self, send: Send) -> None:
        """Send the message, or what has not left of it."""
        self._queued += 1
        turn: anyio.Event | None = None
        wake: Callable[[], object] | None = None
        try:
            if self._passed >= _STRIDE:
                self._passed = 0
                await checkpoint()
            while events := send.step(wake):
                if events == PAUSE:
                    await anyio.sleep(_PAUSE)
                elif events != QUEUED:
                    await self.wait(send.sent)
                elif turn is None:
                    turn, wake = _event()
                else:
                    await turn.wait()
        finally:
            self._queued -= 1
            send.cancel()


def _event() -> tuple[anyio.Event, Callable[[], object]]:
    """Return an event of the running loop, and what sets it from any thread."""
    import asyncio

    event = anyio.Event()
    try:
        soon: Callable[..., object] = asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio

        soon = trio.lowlevel.current_trio_token().run_sync_soon
    return event, partial(soon, event.set)


def _wake(fd: int) -> None:
    """End the waits of other tasks for a descriptor that is about to be closed."""
    # Where no event loop runs, nobody waits.
    with suppress(RuntimeError):
        anyio.notify_closing(fd)


class AsyncConduit:
    """One end of a Unix socket that carries open descriptors, for the tasks of an event loop.

    AsyncConduit(conduit) takes over a blocking `Conduit`, which is from then on this one's to use
    and to close; AsyncConduit(fd, name="") borrows a number, as ``Conduit(fd, name)`` does.

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
        self._sending = _Sending(conduit._handle)
        self._receiving = _Receiving(conduit._handle)
        # Looked up once: of a call that need not wait, a look-up is a measurable part.
        self._transfer_fd = conduit.transfer_fd
        self._receive_fd = conduit.receive_fd

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
        return cls(Conduit.from_conn(conn, name=name))

    @classmethod
    def pair(cls, *, type: int = socket.SOCK_STREAM) -> tuple[Self, Self]:
        """Return two connected conduits; see `Conduit.pair`."""
        first, second = Conduit.pair(type=type)
        return cls(first), cls(second)

    @classmethod
    def bind(cls, path: StrOrBytesPath, *, mode: int = 0o600, name: str = "") -> Self:
        """Return a datagram socket bound at a path, to receive on; see `Conduit.bind`."""
        return cls(Conduit.bind(path, mode=mode, name=name))

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
                return cls(Conduit.connect(path, type=type, timeout=0, wait=wait, name=name))
            except WouldBlockError:
                await anyio.sleep(_PAUSE)

    def __repr__(self) -> str:
        return f"<conduit.aio.AsyncConduit over {self._conduit!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

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
        """Return the number of the socket; see `Conduit.fileno`."""
        return self._conduit.fileno()

    def close(self) -> None:
        """Close as `aclose` does, without letting other tasks run before it returns.

        It is there because a transfer closes what it moved, and a conduit can be moved, too.
        """
        if not self._conduit.closed:
            _wake(self._conduit.fileno())
            self._conduit.close()

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
        if self._sending.free():
            try:
                return self._transfer_fd(fd, keep=keep)
            except WouldBlockError:
                pass
        # An object, which transfer() takes, is none.
        if not isinstance(fd, int):
            raise mistakes.not_an_int("transfer_fd", fd)
        return await self.transfer(fd, keep=keep)

    async def transfer_file(self, file: HasFileno, *, keep: bool = False) -> None:
        """Send an open file; see `Conduit.transfer_file`."""
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
        """Send a message: bytes, and any number of descriptors; see `Conduit.transfer`."""
        send = Send(self._conduit, items, data, keep)
        if not self._sending.free() or send.step():
            await self._sending.finish(send)

    async def receive_fd(self) -> int:
        """Receive one descriptor and return its number; see `Conduit.receive_fd`."""
        if self._receiving.free():
            try:
                return self._receive_fd()
            except WouldBlockError:
                pass
        return await self._receiving.queue(self._receive_fd)

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


class AsyncTakeover:
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

    async def __aexit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

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
    if outcome.set_running_or_notify_cancel():
        try:
            outcome.set_result(function())
        except BaseException as exc:
            outcome.set_exception(exc)


class AsyncListener:
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
        self._listener = Listener(path, mode=mode, backlog=backlog, type=type, allow=allow)
        self._accepting = _Receiving(self._listener._handle)

    def __repr__(self) -> str:
        return f"<conduit.aio.AsyncListener over {self._listener!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

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
                    await anyio.sleep(REST)
                raise
            if conduit is not None:
                return AsyncConduit(conduit)
            # However many come who are refused, other tasks run in between.
            await checkpoint()

    def __aiter__(self) -> Self:
        """Accept one connection after another, for ever."""
        return self

    async def __anext__(self) -> AsyncConduit:
        return await self.accept()

    async def aclose(self) -> None:
        """Stop listening, end the calls of other tasks that wait, and remove the path.

        See `Listener.close`. It is closed even if this is cancelled.
        """
        if not self._listener.closed:
            _wake(self._listener.fileno())
            self._listener.close()
        await self._accepting.end()


class AsyncReader:
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

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


class AsyncChannel:
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

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

    async def _receive_with_fds(self) -> tuple[Any, tuple[Descriptor, ...]]:
        return await self._receiving.call(self._attempt)

    def _attempt(self) -> tuple[Any, tuple[Descriptor, ...]]:
        found = self._channel._advance()
        if found is None:
            raise WouldBlockError("there is more to come of a message")
        return self._channel._decode(*found)
