"""Reading protocols from a stream: bytes by count or up to a delimiter, and descriptors in order.

Theory of operation
===================

A stream carries bytes, and descriptors tied to positions among them. The system does not report the
positions: one ``recvmsg(2)`` may return the end of one message and the beginning of the next with
its descriptors. It does keep the order, and no descriptor comes later than the byte it was sent
with. So what was read ahead is two queues, and the protocol says how many of each belong to a
message.

**`ReadAhead`** is these queues, and does no input or output: `Reader` fills them from a blocking
conduit, `conduit.aio.AsyncReader` from one that never waits. The bytes are in two parts. ``_data``
is immutable; a call that finds all it wants there costs one slice and moves ``_start``. Otherwise
the bytes go to ``_tail``, a bytearray that grows until the call is satisfied; the rest of it then
becomes ``_data``. So each byte is copied a fixed number of times, however small the pieces it
comes in, and is searched once.

**Nothing is lost to an exception**: a deadline, a cancellation, or one of a signal handler. CPython
runs handlers when a call returns, when a loop jumps back and when a function begins, and at no
other instruction. So a message goes from ``recvmsg(2)`` into the list ``arrived`` within one call,
``extend(map(...))``: a handler could run before an assignment. Data moves from one place to another
in a row of statements without a call or a loop; the last of them takes the result from the queues.

**Limits.** No more than ``limit`` bytes are read ahead. It receives only while no more than MAX_FDS
descriptors wait to be taken. So one whole message more has room, and a peer cannot fill the fd
table of this process.

There is no lock: if two threads read from one `Reader` at once, both may get the same bytes.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from conduit._conduit import Conduit, Descriptor, Message
from conduit._syscalls import MAX_FDS, monotonic, socket_options
from conduit.closing import Closing
from conduit.errors import (
    Error,
    ErrType,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
    from_errno,
    from_handler,
    reraise,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 65536
"""The most bytes to receive at once."""


class ReadAhead:
    """What came on a stream and was not consumed. The caller appends messages to ``arrived``."""

    __slots__ = ("_data", "_fds", "_limit", "_merged", "_searched", "_start", "_tail", "arrived")

    def __init__(self, limit: int) -> None:
        self.arrived: list[Message] = []
        self._merged = 0
        self._limit = limit
        self._data = b""
        self._start = 0
        self._tail = bytearray()
        # The delimiter that ``_tail`` was searched for, and up to where there is none.
        self._searched = (b"", 0)
        self._fds: list[Descriptor] = []

    @property
    def buffered(self) -> int:
        """How many bytes there are."""
        self._merge()
        return len(self._data) - self._start + len(self._tail)

    @property
    def pending(self) -> int:
        """How many descriptors there are."""
        self._merge()
        return len(self._fds)

    @property
    def came(self) -> int:
        """How many messages have come in all."""
        return self._merged + len(self.arrived)

    def exactly(self, size: int) -> bytes | None:
        """Consume ``size`` bytes; return None if there are fewer."""
        if size < 0:
            raise ValueError(f"a size is at least 0 bytes, not {size}")
        data, start = self._data, self._start
        end = start + size
        if end <= len(data):
            found = data[start:end]
            self._start = end
            return found
        self._merge()
        if len(self._spilled()) < size:
            return None
        return self._cut(size, size)

    def until(self, delimiter: bytes) -> bytes | None:
        """Consume the bytes up to a delimiter, and it; None if it is not within the limit."""
        if not delimiter:
            raise ValueError("a delimiter is at least one byte")
        data, start = self._data, self._start
        end = data.find(delimiter, start)
        if 0 <= end <= start + self._limit:
            found = data[start:end]
            self._start = end + len(delimiter)
            return found
        self._merge()
        tail = self._spilled()
        sought, start = self._searched
        size = len(delimiter)
        end = tail.find(delimiter, start if sought == delimiter else 0, self._limit + size)
        if end >= 0:
            return self._cut(end, end + size)
        self._searched = delimiter, max(0, len(tail) - size + 1)
        return None

    def room_for(self, wanted: int | bytes) -> int:
        """Return how many more bytes to receive for a call that wants a size or a delimiter."""
        if isinstance(wanted, int):
            return max(wanted, self._limit) - self.buffered
        return self._limit + len(wanted) - self.buffered

    def take_fds(self, count: int) -> tuple[Descriptor, ...] | None:
        """Consume ``count`` descriptors; return None if there are fewer."""
        if count < 0:
            raise ValueError(f"a count is at least 0 descriptors, not {count}")
        if self.pending < count:
            return None
        taken = tuple(self._fds[:count])
        del self._fds[:count]
        return taken

    def discard(self) -> None:
        """Close the descriptors and drop the bytes; then raise as `Message.close`."""
        self._merge()
        fds = Message(b"", self._fds)
        try:
            fds.close()
        finally:
            self._fds, self._data, self._start, self._tail = [], b"", 0, bytearray()

    def _merge(self) -> None:
        """Move what has arrived to the queues."""
        while self.arrived:
            tail = self._spilled()
            message = self.arrived[0]
            fds = [*self._fds, *message.fds]
            merged = self._merged + 1
            tail += message.data
            self._fds = fds
            self._merged = merged
            del self.arrived[0]

    def _spilled(self) -> bytearray:
        """Return ``_tail``, with what is left of ``_data`` in it."""
        if self._data:
            # The tail is empty: the rest of it became the data.
            tail = bytearray(self._data[self._start :])
            self._tail = tail
            self._data = b""
            self._start = 0
        return self._tail

    def _cut(self, end: int, start: int) -> bytes:
        """Return ``_tail`` up to ``end``, and continue at ``start``."""
        with memoryview(self._tail) as view:
            found, rest, tail = bytes(view[:end]), bytes(view[start:]), bytearray()
        self._data = rest
        self._tail = tail
        self._searched = b"", 0
        return found


class Reader(Closing):
    """Reads a protocol from the stream of a conduit, which it neither owns nor closes.

    It reads ahead, and keeps bytes and descriptors in the order in which they were sent. A
    descriptor has come at the latest with the byte it was sent with, and maybe with an earlier one:
    the system glues the end of one message to the beginning of the next. So the protocol must say
    how many descriptors belong to a message. Read the message, then take that many.

    An interrupted call (a deadline, an exception of a signal handler) loses nothing: what came
    stays here, and the next call continues with it, also after the end of the stream. A call
    waits no longer than the ``timeout`` of the conduit, in all.

    Meanwhile only the reader may receive from the conduit; anyone may send. One thread at a time
    may use a reader. `close`, or leaving the ``with``, closes the descriptors that were not taken;
    without that, each one dropped gives a `ResourceWarning`.

    Args:
        conduit: a conduit over a stream.
        limit: the most bytes to read ahead, and before a delimiter; at least 1. Descriptors have a
            limit of their own: nothing is received while more than `MAX_FDS` were not taken.

    Raises:
        Error: ``FAILED_TRANSFER`` with ``EPROTOTYPE`` for a socket that keeps messages apart: a
            message longer than the room left would be lost. Use `Conduit.receive` there. ``NO_FD``
            if the conduit is closed.
    """

    __slots__ = ("_ahead", "_closed", "_conduit", "_gap", "_limit", "_receive")

    def __init__(self, conduit: Conduit, *, limit: int = 65536) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1 byte, not {limit}")
        self._conduit = conduit
        self._receive: Callable[[int, int, float | None], Message] = conduit._receive_by
        self._limit = limit
        self._ahead = ReadAhead(limit)
        self._closed = self._gap = False
        try:
            kind = socket_options(conduit.fileno())[1]
        except OSError as exc:
            reraise(exc, f"{conduit._handle!r}: receiving", ErrType.FAILED_TRANSFER)
        if kind != socket.SOCK_STREAM:
            raise self._error(
                errno.EPROTOTYPE,
                "a Reader is for streams, and this socket keeps messages apart: use receive()",
            )

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.buffered} bytes, {self.pending} descriptors"
        return f"<conduit.Reader over {self._conduit!r}: {state}>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def buffered(self) -> int:
        """How many bytes came and were not consumed; 0 at the end of a stream is a clean end."""
        return self._ahead.buffered

    @property
    def pending(self) -> int:
        """How many descriptors came and were not taken.

        If some are left when nothing is `buffered` and the last message's were taken, the peer sent
        more than its messages announce.
        """
        return self._ahead.pending

    def receive_exactly(self, size: int) -> bytes:
        """Receive exactly ``size`` bytes.

        The size may be larger than the limit. If it comes from the peer, check it first. Memory is
        allocated as bytes come.

        Raises:
            PeerClosedError: the stream ends before; it says after how many bytes.
            TransferTimeoutError, WouldBlockError: they did not come in time.
            Error: ``BAD_CTRL_MESG`` if too many descriptors were not taken (nothing is lost), or if
                this process had no room for one that came: the bytes that came with it are lost,
                and nothing more can be received. ``NO_FD`` if the reader or the conduit is closed.
                Else as `Conduit.receive`.
            ValueError: a negative size.
        """
        deadline = None
        # Of no bytes, a closed reader would have enough.
        while (found := self._ahead.exactly(size)) is None or self._closed:
            deadline = self._wait_and_receive(size, deadline)
        return found

    def receive_until(self, delimiter: bytes) -> bytes:
        """Receive the bytes up to a delimiter, which is consumed and not returned.

        Raises:
            Error: ``FAILED_TRANSFER`` with ``EMSGSIZE`` if it does not come within the limit. What
                came is kept. Else as `receive_exactly`.
            ValueError: an empty delimiter.
        """
        deadline = None
        while (found := self._ahead.until(delimiter)) is None:
            deadline = self._wait_and_receive(delimiter, deadline)
        return found

    def take_fds(self, count: int = 1) -> tuple[Descriptor, ...]:
        """Return the first ``count`` descriptors that came; the caller owns them.

        This does not receive: first read the bytes that they were sent with.

        Raises:
            Error: ``BAD_CTRL_MESG`` if fewer have come; then none is taken. ``NO_FD`` if the reader
                is closed.
            ValueError: a negative count.
        """
        self._check_open()
        taken = self._ahead.take_fds(count)
        if taken is None:
            raise Error(
                f"{self._conduit._handle!r}: expected {count} descriptors with what was read, "
                f"received {self.pending} (none taken)",
                ErrType.BAD_CTRL_MESG,
            )
        return taken

    def close(self) -> None:
        """Close the descriptors that were not taken; the conduit stays open.

        Bytes that were read ahead are dropped. A second `close` does nothing. If close(2) fails, it
        closes the others and raises `Error` (``FAILED_CLOSE``).
        """
        self._closed = True
        self._ahead.discard()

    def _wait_and_receive(self, wanted: int | bytes, deadline: float | None) -> float | None:
        """Receive once more, until a deadline; None: set it from the timeout. Return it."""
        if deadline is None and (timeout := self._conduit.timeout):
            deadline = monotonic() + timeout
        self._fetch(wanted, deadline=deadline)
        return deadline

    def _fetch(
        self, wanted: int | bytes, came: int | None = None, deadline: float | None = None
    ) -> None:
        """Receive once, for a call that waits for a size or a delimiter.

        ``came`` is how many messages had come when the call looked. If more have come since, this
        returns, so that it looks again. Without a ``deadline``, the conduit's timeout holds.
        """
        self._check_open()
        ahead = self._ahead
        if came is not None and came != ahead.came:
            return
        room = ahead.room_for(wanted)
        if room < 1:
            raise self._error(
                errno.EMSGSIZE,
                f"{wanted!r} did not come within {self._limit} bytes, which are kept; receive "
                "them by their number, or set another limit",
            )
        if ahead.pending > MAX_FDS:
            raise Error(
                f"{self._conduit._handle!r}: receiving: {ahead.pending} descriptors came and were "
                "not taken; call take_fds() first, or close",
                ErrType.BAD_CTRL_MESG,
            )
        if self._gap:
            raise Error(
                f"{self._conduit._handle!r}: receiving: bytes were lost with an earlier message "
                "that this process had no room for; close and reconnect",
                ErrType.BAD_CTRL_MESG,
            )
        try:
            size = min(room, _CHUNK)
            ahead.arrived.extend(map(self._receive, (size,), (MAX_FDS,), (deadline,)))
        except WouldBlockError:
            raise  # As it is, and soon: an event loop meets it each time before it waits.
        except Error as exc:
            # Before any call, after which a handler might raise.
            self._gap = exc.type is ErrType.BAD_CTRL_MESG
            if from_handler(exc):
                self._gap = False
                raise
            if isinstance(exc, PeerClosedError):
                why = f"the peer closed its end after {self._had(wanted)}"
                raise PeerClosedError(
                    f"{self._conduit._handle!r}: receiving: {why}", exc.type, exc.errno
                ) from exc
            if isinstance(exc, TransferTimeoutError):
                why = f"{self._had(wanted)} came, and are kept"
                raise self._error(exc.errno, why) from exc
            raise
        if self._closed:
            # By another thread, or a signal handler.
            ahead.discard()
            self._check_open()

    def _had(self, wanted: int | bytes) -> str:
        if isinstance(wanted, int):
            return f"{self.buffered} of {wanted} bytes"
        return f"{self.buffered} bytes without {wanted!r}"

    def _check_open(self) -> None:
        if self._closed:
            raise Error(f"{self._conduit._handle!r}: its Reader is closed", ErrType.NO_FD)

    def _error(self, code: int | None, why: str) -> Error:
        what = f"{self._conduit._handle!r}: receiving"
        return from_errno(code or errno.EINVAL, ErrType.FAILED_TRANSFER, what, why)
