"""`Channel`: sends and receives objects with descriptors in them.

`codec` turns an object into bytes and a list of descriptors, `wire` turns those into frames, and a
`Conduit` moves the frames. Only this file knows all three, and only the conduit does input or
output.

**Sending** needs no lock. A message is usually one frame, which the conduit sends whole and in its
turn. The frames of a longer message carry its number, so other frames may come between them. They
share the descriptors, and the items are closed once the last frame has left, so a failure leaves
everything open. The peer is then told to close what it has: at once if the socket has room, else
ahead of the next message.

**Receiving** is done by one thread at a time, since the bytes of a stream come in order. The thread
has the lock while it waits in the conduit; the wait ends at the deadline, or when the conduit is
closed. What has come of a message stays in the `Assembler`; the call that receives the rest returns
it. The lock is an RLock: a signal handler that receives on the channel it interrupted would
deadlock, and gets an Error instead. Decoding runs foreign code, so it is done without the lock.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from conduit._conduit import Conduit, Descriptor, Message, Send
from conduit._syscalls import MAX_FDS, monotonic, socket_options
from conduit.closing import Closing
from conduit.codec import Codec, JsonCodec
from conduit.errors import (
    Error,
    ErrType,
    PeerClosedError,
    from_errno,
    from_handler,
    prefix_message,
    reraise,
)
from conduit.objects import prepare
from conduit.wire import (
    HEADER_SIZE,
    MAX_PACKET,
    Assembler,
    abandonment,
    close_fds,
    message_frame,
    sealed,
    split,
)

MAX_SIZE = 16 * 1024 * 1024
"""The default for the most bytes of a message."""

_STRIDE = 8
"""How many times one call receives before it releases the lock for others."""


def close_descriptors(obj: Any) -> None:
    """Close every open `Descriptor` in an object that `Channel.receive` returned.

    It looks into dicts, lists and tuples. It closes all, then raises as `Message.close`.
    """
    found: list[Descriptor] = []
    rest, seen = [obj], set()
    while rest:
        each = rest.pop()
        if isinstance(each, Descriptor):
            found.append(each)
        elif isinstance(each, dict | list | tuple) and id(each) not in seen:
            seen.add(id(each))
            rest.extend(each.values() if isinstance(each, dict) else each)
    Message(b"", found).close()


class Channel(Closing):
    """Sends and receives objects with descriptors in them, over a `Conduit` of its own.

    Channel(conduit) speaks JSON. For another encoding, give ``dumps``, a function from an object to
    bytes, and ``loads``, the reverse, such as msgspec's or msgpack's. ``max_size`` is the most
    bytes and ``max_fds`` the most descriptors of one message, sent or received. A longer message is
    refused before memory is allocated for it.

    An object is made of dicts, lists and what the codec knows. Tuples arrive as lists, and
    dataclasses as dicts of their fields. Files, sockets, Descriptors and whatever else has a
    ``fileno()`` may stand anywhere in them, and arrive as a `Descriptor` each.

    A message may have any number of descriptors. On ``SOCK_SEQPACKET`` it is a packet, and may be
    longer than the system's packets. The peer may be any program that speaks the format of
    docs/channel.md.

    The channel owns the conduit from then on: only the channel may use and close it. The conduit's
    ``timeout`` holds for `send` and `receive`. Several threads may call either. `ValueError` for a
    datagram socket, which has no end and may have many senders, and for an impossible limit.
    """

    __slots__ = (
        *("_assembler", "_codec", "_conduit", "_is_mine", "_lock", "_max_fds", "_max_size"),
        *("_one_count", "_one_size", "_owed", "_packets", "_receive_one", "_what"),
    )

    def __init__(
        self,
        conduit: Conduit,
        *,
        dumps: Callable[[Any], bytes] | None = None,
        loads: Callable[[bytes], Any] | None = None,
        max_size: int = MAX_SIZE,
        max_fds: int = 4 * MAX_FDS,
    ) -> None:
        if not isinstance(conduit, Conduit):
            raise TypeError(
                f"a Channel is made over a Conduit, not a {type(conduit).__name__}; for a socket, "
                "use Channel(Conduit.from_conn(sock))"
            )
        self._codec: Codec | JsonCodec = JsonCodec()
        if dumps is not None and loads is not None:
            self._codec = Codec(dumps, loads)
        elif dumps is not loads:
            raise TypeError(
                "a codec is two functions, dumps and loads: give both, or none for JSON"
            )
        if not 1 <= max_size < 1 << 32:
            raise ValueError(
                f"max_size must be at least 1 byte and less than 4 GiB, not {max_size}"
            )
        if max_fds < 0:
            raise ValueError(f"max_fds must be at least 0, not {max_fds}")
        try:
            kind = socket_options(conduit.fileno())[1]
        except OSError as exc:
            reraise(exc, repr(conduit._handle), ErrType.FAILED_TRANSFER)
        if kind not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            raise ValueError(f"{conduit!r} is of datagrams; a Channel needs a stream or SEQPACKET")
        self._conduit = conduit
        self._what = conduit._handle
        self._receive_one = conduit._receive_by
        self._max_size = max_size
        self._max_fds = max_fds
        self._packets = kind == socket.SOCK_SEQPACKET
        # The most that fits in one frame.
        self._one_size = min(max_size, MAX_PACKET - HEADER_SIZE) if self._packets else max_size
        self._one_count = min(max_fds, MAX_FDS)
        # Frames that tell the peer which messages were given up; sent ahead of the next message.
        self._owed: set[bytes] = set()
        self._assembler = Assembler(stream=not self._packets, max_size=max_size, max_fds=max_fds)
        self._renew_lock()
        _channels.add(self)

    def _renew_lock(self) -> None:
        """Make a lock; a forked child needs a new one, as the thread that held it is not there."""
        self._lock = threading.RLock()
        # `threading.Condition` uses the same method.
        self._is_mine: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"<conduit.Channel over {self._conduit!r}>"

    @property
    def conduit(self) -> Conduit:
        """The conduit it sends and receives on: for ``timeout``, ``peer`` and ``name``."""
        return self._conduit

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._conduit.closed

    def fileno(self) -> int:
        """Return the number of the socket, to poll; the channel reads nothing ahead."""
        return self._conduit.fileno()

    def close(self) -> None:
        """Close the conduit, end other threads' calls, and close a partly received message."""
        try:
            self._conduit.close()
        finally:
            # If this thread has the lock, this is a signal handler, which interrupted a receive
            # that is using the assembler.
            if not self._is_mine():
                try:
                    self._lock.acquire()
                    self._assembler.clear()
                finally:
                    try:  # noqa: SIM105 - see _advance
                        self._lock.release()
                    except RuntimeError:  # pragma: no cover - a signal handler's
                        pass  # pragma: no cover

    def send(self, obj: Any, *, keep: bool = False) -> None:
        """Send an object, and move the descriptors in it, or share them with ``keep``.

        On success, all are closed here, as by `Conduit.transfer`. One that is in the object twice
        is sent twice and closed once.

        Raises `Error`, with everything open and the caller's, as `Conduit.transfer`; also
        ``BAD_CTRL_MESG`` for a message beyond ``max_size`` or ``max_fds``. `ValueError` for an
        object that nests too deep or holds itself, and what ``dumps`` raises (for JSON, `TypeError`
        for what it does not know), before anything is sent.
        """
        body, items = self._codec.encode(obj)
        if self._fits(body, items):
            try:
                return self._conduit.transfer(
                    *items, data=message_frame(body, len(items)), keep=keep
                )
            except Error as exc:
                # EMSGSIZE: the body would fit in a packet, but not in this socket's buffer. It goes
                # in a file.
                if exc.errno != errno.EMSGSIZE or exc.sent:
                    raise
        deadline = self._deadline()
        with Parts(self, body, items, keep) as parts:
            for some, data in parts:
                self._conduit._send(tuple(some), data, True, deadline)
        return None

    def receive(self) -> Any:
        """Receive an object, with a `Descriptor`, which the caller owns, in each place of one.

        Raises `Error` as `Conduit.receive`. ``BAD_CTRL_MESG``, with all that came with it closed,
        for a message that does not decode, exceeds ``max_size`` or ``max_fds``, or does not have
        the descriptors it announces. The next message can be received then, unless the peer does
        not speak the format: a stream is out of step then, and every further call says so.
        `PeerClosedError` at the end, also in the middle of a message.

        If a deadline or a signal handler interrupts it, what has come of a message stays for the
        next call.
        """
        return self._receive_with_fds()[0]

    @contextmanager
    def receiving(self) -> Iterator[Any]:
        """Receive an object as `receive` does; after the block, close what was not taken out.

        That is each of its Descriptors that is still open: not made into a file or a socket, moved,
        or detached.
        """
        obj, fds = self._receive_with_fds()
        with Message(b"", fds):
            yield obj

    def __iter__(self) -> Iterator[Any]:
        """Receive objects until the peer closes; raise if it closes in the middle of one."""
        while True:
            try:
                obj = self.receive()
            except PeerClosedError as exc:
                if exc.__cause__ is not None:
                    raise
                return
            yield obj

    def _fits(self, body: bytes, items: Sequence[Any]) -> bool:
        """Whether a message is sent in one frame."""
        return len(body) <= self._one_size and len(items) <= self._one_count and not self._owed

    def _deadline(self) -> float | None:
        """Return the deadline of a call of several steps, as `Conduit._receive_by` takes it."""
        timeout = self._conduit.timeout
        return monotonic() + timeout if timeout else None

    def _receive_with_fds(self) -> tuple[Any, list[Descriptor]]:
        deadline = self._deadline()
        while (found := self._advance(deadline)) is None:
            # A peer may send any number of frames that make no message.
            if self._conduit.timeout == 0 or (deadline is not None and monotonic() > deadline):
                code = errno.ETIMEDOUT if deadline else errno.EAGAIN
                raise from_errno(
                    code,
                    ErrType.FAILED_TRANSFER,
                    f"{self._what!r}: receiving",
                    "there is more to come of a message",
                )
        return self._decode(*found)

    def _decode(self, body: bytes, came: tuple[Descriptor, ...]) -> tuple[Any, list[Descriptor]]:
        """Return an object and its descriptors."""
        fds = [*came]
        try:
            return self._codec.decode(body, fds), fds
        except BaseException as exc:
            close_fds(fds)
            if from_handler(exc):
                raise
            raise Error(
                f"{self._what!r}: a message does not decode (all closed): {exc}",
                ErrType.BAD_CTRL_MESG,
            ) from exc

    def _advance(
        self, deadline: float | None = None
    ) -> tuple[bytes, tuple[Descriptor, ...]] | None:
        """Receive a message, or some of it: then None. Waits if the conduit does."""
        if self._is_mine():
            raise from_errno(
                errno.EDEADLK,
                ErrType.FAILED_TRANSFER,
                f"{self._what!r}: receiving",
                "this thread is receiving on it already, and was interrupted by a signal handler "
                "or the like, for which it cannot wait",
            )
        assembler = self._assembler
        pieces = assembler.pieces
        try:
            self._lock.acquire()
            for _ in range(_STRIDE):
                if pieces:
                    try:
                        found = assembler.take()
                    except Error as exc:
                        prefix_message(exc, f"{self._what!r}: receiving")
                        raise
                    if found is not None:
                        return found
                try:
                    if assembler.broken:
                        raise self._out_of_step()
                    # One call, all in C: no signal handler can run while nothing owns what came.
                    pieces.extend(
                        map(self._receive_one, (assembler.wanted,), (MAX_FDS,), (deadline,))
                    )
                except PeerClosedError as exc:
                    if assembler.unfinished:
                        raise self._cut_off() from exc
                    raise
                except Error as exc:
                    if exc.type is ErrType.BAD_CTRL_MESG and not self._packets:
                        # Its bytes are lost.
                        assembler.break_off("descriptors did not arrive whole")
                    raise
        finally:
            # Not by a with statement: from Python 3.14 on, a handler can raise between its acquire
            # and its block. And no call comes before this one, in which a handler could raise.
            try:  # noqa: SIM105
                self._lock.release()
            except RuntimeError:  # pragma: no cover - raised before the lock was acquired
                pass  # pragma: no cover
        return None

    def _out_of_step(self) -> Error:
        return Error(
            f"{self._what!r}: receiving: the stream is out of step, since this came before: "
            f"{self._assembler.broken}; close and reconnect",
            ErrType.FAILED_TRANSFER,
        )

    def _cut_off(self) -> PeerClosedError:
        self._assembler.clear()
        return PeerClosedError(
            f"{self._what!r}: receiving: the peer closed its end in the middle of a message (all "
            "closed)",
            ErrType.FAILED_TRANSFER,
        )


class Parts:
    """A message that needs more than one frame, or a file for its body.

    Iterating yields the frames to send, each with the items to attach and share. Leaving the block
    closes the items; after a failure it tells the peer to close those it has, instead.
    """

    def __init__(self, channel: Channel, body: bytes, items: Sequence[Any], keep: bool) -> None:
        self._channel = channel
        self._body = body
        self._items = items
        self._keep = keep
        # Random: a forked child that shares the socket must not use the same one.
        self._number = int.from_bytes(os.urandom(8), "little") or 1
        self._file: io.FileIO | None = None
        self._begun = False

    def __enter__(self) -> Self:
        channel, size, count = self._channel, len(self._body), len(self._items)
        what = f"{channel._what!r}: sending"
        for much, most, kind in (
            (size, channel._max_size, "bytes"),
            (count, channel._max_fds, "descriptors"),
        ):
            if much > most:
                raise Error(
                    f"{what}: the message has {much} {kind}, and at most {most} are allowed",
                    ErrType.BAD_CTRL_MESG,
                )
        if not self._keep:
            # What cannot be moved is refused here: the frames only share it.
            for item in self._items:
                if not isinstance(item, Descriptor):
                    prepare(item, False)
        if channel._packets:
            try:
                self._file = sealed(self._body)
            except OSError as exc:
                if from_handler(exc):
                    raise
                raise Error(
                    f"{what}: a packet is too small for the message, and there is no file for it: "
                    f"{exc}",
                    ErrType.FAILED_TRANSFER,
                    exc.errno,
                ) from exc
        return self

    def __iter__(self) -> Iterator[tuple[Sequence[Any], bytes]]:
        owed = self._channel._owed
        for frame in owed.copy():
            yield (), frame
            owed.discard(frame)
        frames = split(self._body, self._items, self._number, self._file)
        self._begun = len(frames) > 1
        yield from frames
        self._begun = False

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if exc is not None:
            if self._begun:
                self._abandon()
        elif not self._keep:
            self._close_items()

    def _abandon(self) -> None:
        """Tell the peer that no more will come: now if the socket has room, else later."""
        channel = self._channel
        frame = abandonment(self._number)
        channel._owed.add(frame)
        with suppress(Error):
            send = Send(channel._conduit, (), frame, True)
            if send.step():
                send.cancel()
            else:
                channel._owed.discard(frame)

    def _close_items(self) -> None:
        failure: BaseException | None = None
        for item in self._items:
            try:
                item.close()
            except BaseException as exc:
                if failure is None or from_handler(exc):
                    failure = exc
        if failure is None:
            return
        if from_handler(failure):
            raise failure
        raise Error(
            f"{self._channel._what!r}: the message was sent, but closing it here failed: {failure}",
            ErrType.FAILED_CLOSE,
            failure.errno if isinstance(failure, OSError) else None,
        ) from failure


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def _renew_locks() -> None:
    for channel in _channels:
        channel._renew_lock()


os.register_at_fork(after_in_child=_renew_locks)
