"""`AsyncConduit`: sends and receives descriptors on an event loop."""

from __future__ import annotations

import io
import socket
from functools import partial
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, Self, overload

from anyio import to_thread

from conduit import mistakes, objects
from conduit._conduit import Conduit, Message, Send
from conduit._syscalls import MAX_FDS
from conduit.aio.closing import Closing
from conduit.aio.direction import RETRY, STRIDE, Receiving, Sending
from conduit.aio.waiter import checkpoint, sleep
from conduit.errors import Error, PeerClosedError, WouldBlockError, prefix_message
from conduit.peer import Peer

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


async def _prepare(item: object, keep: bool, place: int, count: int) -> None:
    """Prepare an item to be sent; if that may block, in a worker thread."""
    try:
        await to_thread.run_sync(objects.prepare, item, keep, abandon_on_cancel=True)
    except Error as exc:
        if count > 1:
            prefix_message(exc, f"item {place} of {count}")
        raise


class AsyncConduit(Closing):
    """One end of a Unix socket that carries open descriptors, for the tasks of an event loop.

    AsyncConduit(conduit) takes over a blocking `Conduit`: only this object may use and close it
    from then on. AsyncConduit(fd, name="") borrows a number, as ``Conduit(fd, name)`` does. With
    either, a call that waits needs one more descriptor, a duplicate to watch: the program's own
    registration of the number with its loop is left alone.

    Several tasks may send and receive; each message goes to one task, whole. Cancelling a receive
    loses nothing. Cancelling a send in the middle of a long payload breaks the stream: the conduit
    then sends no more.

    A call that need not wait does not let other tasks run, except every 64th at the latest, which
    is also where a cancellation takes effect.
    """

    __slots__ = ("_conduit", "_receive_fd", "_receiving", "_sending", "_transfer_fd")

    def __init__(self, conduit: Conduit | int, name: str = "") -> None:
        if not isinstance(conduit, Conduit):
            conduit = Conduit(conduit, name)
        conduit.timeout = 0
        self._conduit = conduit
        self._sending = Sending(conduit._handle, shared=True)
        self._receiving = Receiving(conduit._handle, shared=True)
        # Looked up once: the look-up is a measurable part of a call that need not wait.
        self._transfer_fd = conduit.transfer_fd
        self._receive_fd = conduit.receive_fd

    @classmethod
    def _own(cls, conduit: Conduit) -> Self:
        """Make one of a conduit whose number nothing else uses."""
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
        loop goes on reading from it: stop using the original before you use this one.
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

        Waits for room in the listener's backlog, and with ``wait`` for a listener, until the
        caller's deadline.
        """
        while True:
            await checkpoint()
            try:
                conduit = Conduit.connect(path, type=type, timeout=0, wait=wait, name=name)
            except WouldBlockError:
                await sleep(RETRY)
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

        The event loop watches it while calls wait, and a loop has one callback for each number. To
        watch it yourself, duplicate it, or borrow it with another `AsyncConduit`.
        """
        return self._conduit.fileno()

    def close(self) -> None:
        """Close as `aclose` does, without letting other tasks run before it returns.

        A transfer calls it to close what it moved: a conduit can be moved, too.
        """
        try:
            self._conduit.close()
        finally:
            # Also if it is closed: a signal handler may have ended that call before this.
            self._sending.wake_all()
            self._receiving.wake_all()

    async def aclose(self) -> None:
        """Close what the conduit owns, and end the calls of other tasks that wait.

        Those calls raise `Error` (``NO_FD``). See `Conduit.close`. It is closed even if this is
        cancelled.
        """
        self.close()
        await self._sending.end()
        await self._receiving.end()

    async def transfer_fd(self, fd: int, *, keep: bool = False) -> None:
        """Send one descriptor by its number; see `Conduit.transfer_fd`."""
        # `free` written out, as in `receive_fd`: calling it is a measurable part of this.
        sending = self._sending
        sending.passed += 1
        if sending.passed < STRIDE and not sending.waiting:
            try:
                return self._transfer_fd(fd, keep=keep)
            except WouldBlockError:
                pass
        # transfer() would accept an object.
        if not isinstance(fd, int):
            raise mistakes.not_an_int("transfer_fd", fd)
        return await self.transfer(fd, keep=keep)

    async def transfer_file(self, file: HasFileno, *, keep: bool = False) -> None:
        """Send an open file; see `Conduit.transfer_file` and `transfer`."""
        # transfer() would accept a number.
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

        Files over a pipe, a terminal or a socket are flushed in a worker thread. If the call is
        cancelled, the thread goes on flushing, but nothing is sent, and nothing is lost.
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
        if receiving.passed < STRIDE and not receiving.waiting:
            try:
                return self._receive_fd()
            except WouldBlockError:
                pass
        return await receiving.queue(self._receive_fd)

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
        mode: OpenBinaryMode | None = None,
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
        """Receive ``size`` bytes, with their descriptors; see `Conduit.receive_exactly`."""
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
