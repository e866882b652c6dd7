"""The frames that a `Channel` sends and receives: the format of docs/channel.md, without a socket.

A message is one frame: a header and a body, with the message's descriptors attached. Two things do
not fit in one frame:

- More descriptors than the system carries at once. They go ahead, in frames of their own with the
  number of their message. So frames of several senders may alternate, and no sender has to lock out
  the others.
- A body too long for a packet. It is in a sealed file in memory, the first descriptor attached.

`Assembler` is the receiving end. It gets everything that is received; on a stream never more bytes
than it wants, so that bytes and descriptors of the next frame stay in the socket.

**Signal handlers** may raise between any two lines here. What has come is in ``pieces`` until its
frame is complete, and every change to that is one step: an append, a slice, a clear. `take` reads
everything anew from there, so that one that was interrupted is just called again.
"""

from __future__ import annotations

import fcntl
import io
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from conduit._conduit import Descriptor, Message
from conduit._syscalls import MAX_FDS
from conduit.errors import Error, ErrType, from_handler

VERSION = 1

MESSAGE = 1
"""A frame that ends a message: its body, and its last descriptors."""

FDS = 2
"""A frame of descriptors of a message whose end is still to come."""

ABANDON = 3
"""A frame that says that a message will have no end."""

_MAY_IGNORE_KIND = 0x80
"""A receiver skips unknown kinds from here on."""

IN_FILE = 0x01
"""Flag of a MESSAGE: the body is in the first descriptor attached, not after the header."""

_MAY_IGNORE_FLAGS = 0xF0
"""A receiver ignores unknown flags among these."""

MAX_PACKET = 65536
"""The most bytes of a frame in a packet. A longer body travels in a file."""

_READ_AT_ONCE = 1 << 26
"""The most bytes to read from a file in one call, during which no signal handler can run.

What is read in several calls is copied once more.
"""

_PIECE = 1 << 18
"""The most bytes to receive at once; that much memory is allocated."""

_HEADER = struct.Struct("<IBBHIIQ")
HEADER_SIZE = _HEADER.size
_START = int.from_bytes(b"\xfdC" + bytes([VERSION, HEADER_SIZE]), "little")
"""The first four bytes of a header: magic, version, and the size of the header."""

_SEALS = 0
if hasattr(fcntl, "F_SEAL_WRITE"):  # pragma: no branch - macOS has none
    _SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Seals without which a file could change, or end early, while it is read."""


def frame(
    kind: int, count: int, total: int, body: bytes = b"", *, number: int = 0, in_file: int = 0
) -> bytes:
    """Return the bytes of a frame.

    Args:
        kind: MESSAGE, FDS or ABANDON.
        count: how many descriptors are attached.
        total: how many the whole message has, without the body's file.
        body: the body, unless it is in a file.
        number: which message it belongs to; 0 for one that has no other frame.
        in_file: how many bytes of body are in the first descriptor attached, or 0.
    """
    flags = IN_FILE if in_file else 0
    return _HEADER.pack(_START, kind, flags, count, total, in_file or len(body), number) + body


def message_frame(body: bytes, count: int) -> bytes:
    """Return a message as one frame, to which all of its descriptors are attached."""
    return _HEADER.pack(_START, MESSAGE, 0, count, count, len(body), 0) + body


def split(
    body: bytes, items: Sequence[Any], number: int, file: io.FileIO | None
) -> list[tuple[Sequence[Any], bytes]]:
    """Return the frames of a message, each with the items to be attached to it.

    Args:
        body: the body.
        items: whatever has a descriptor, as many as the message has.
        number: 64 bits, not all 0, that no other message under way has.
        file: a sealed file with the body, if it travels in one.
    """
    frames: list[tuple[Sequence[Any], bytes]] = []
    total, begin = len(items), 0
    room = MAX_FDS if file is None else MAX_FDS - 1
    while total - begin > room:
        some = items[begin : begin + MAX_FDS]
        begin += len(some)
        frames.append((some, frame(FDS, len(some), total, number=number)))
    last = items[begin:]
    if file is None:
        frames.append((last, frame(MESSAGE, len(last), total, body, number=number)))
    else:
        in_file = len(body)
        last = [file, *last]
        frames.append((last, frame(MESSAGE, len(last), total, number=number, in_file=in_file)))
    return frames


def abandonment(number: int) -> bytes:
    """Return the frame that says that a message will have no end."""
    return frame(ABANDON, 0, 0, number=number)


def sealed(body: bytes) -> io.FileIO:
    """Return a file in memory that holds a body, and never changes again.

    Raises:
        OSError: there is no room for it, or no such files on this system.
    """
    if not _SEALS:  # pragma: no cover - macOS, which has no packets either
        raise OSError(f"a message of {len(body)} bytes is too long for a packet")
    file = memory_file("conduit-channel", body)
    try:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        file.close()
        raise
    return file


def memory_file(name: str, body: bytes) -> io.FileIO:
    """Return a file in memory that holds some bytes, and can be sealed.

    Raises:
        OSError: there is no room for it.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    # One call, of C alone: no signal handler can run while the number is nobody's.
    file = next(map(io.FileIO, map(os.memfd_create, (name,), (flags,)), ("r+",)))
    try:
        write_all(file, body)
    except BaseException:
        file.close()
        raise
    return file


def write_all(file: IO[bytes] | io.FileIO, body: bytes) -> None:
    """Write some bytes to a file without a buffer, in as many calls as it takes."""
    left = memoryview(body)
    while left:
        left = left[file.write(left) :]


def read_all(fd: int, size: int) -> bytes:
    """Return so many bytes from the beginning of a file.

    Raises:
        ValueError: it ends before.
        OSError: it cannot be read.
    """
    parts: list[bytes] = []
    got = 0
    while got < size:
        part = os.pread(fd, min(size - got, _READ_AT_ONCE), got)
        if not part:
            raise ValueError(f"its file ends after {got} of {size} bytes")
        parts.append(part)
        got += len(part)
    return b"".join(parts)


def unsealed(file: Descriptor, size: int) -> bytes:
    """Return the body that is in a file, which stays open.

    Raises:
        Error: ``BAD_CTRL_MESG``, unless it is a sealed file in memory of just that size: any other
            could change while it is read, end early, or let the reader wait for ever.
    """
    fd = file.fileno()
    try:
        # Before all else: fstat() of a file that a peer serves (FUSE) may never return.
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS) if _SEALS else 0
        if seals & _SEALS != _SEALS or os.fstat(fd).st_size != size:
            raise _bad(f"a body of {size} bytes was not in a sealed file of that size")
        return read_all(fd, size)
    except OSError as exc:
        if isinstance(exc, Error) or from_handler(exc):
            raise
        raise _bad(f"the file with the body cannot be read: {exc}") from exc


def close_fds(fds: Sequence[Descriptor]) -> None:
    """Close descriptors, and ignore failures."""
    with suppress(Error):
        Message(b"", fds).close()


def _bad(why: str) -> Error:
    return Error(f"{why} (all closed)", ErrType.BAD_CTRL_MESG)


class Assembler:
    """Makes messages of what is received, a frame at a time.

    The caller appends what it received to ``pieces``, on a stream at most ``wanted`` bytes. Then
    `take` returns the message, if that completed one.

    Attributes:
        pieces: what has come of a frame that is not complete.
        wanted: how many bytes to receive at most.
        broken: why the stream is out of step and nothing more can be received; or "".
    """

    def __init__(self, *, stream: bool, max_size: int, max_fds: int) -> None:
        self.pieces: list[Message] = []
        self.broken: str = ""
        self._stream = stream
        self._max_size = max_size
        self._max_fds = max_fds
        self.wanted: int = HEADER_SIZE if stream else MAX_PACKET
        # What came with each FDS frame of unfinished messages, by number.
        self._ahead: dict[int, tuple[tuple[Descriptor, ...], ...]] = {}

    @property
    def unfinished(self) -> bool:
        """Whether something has come of a message that is not complete."""
        return bool(self.pieces or self._ahead)

    def clear(self) -> None:
        """Drop unfinished messages, and close their descriptors."""
        fds = [fd for piece in self.pieces for fd in piece.fds]
        fds += [fd for parts in self._ahead.values() for part in parts for fd in part]
        try:
            if self._stream:
                self.wanted = HEADER_SIZE
            self.pieces.clear()
            self._ahead.clear()
        finally:
            close_fds(fds)

    def break_off(self, why: str) -> None:
        """Receive nothing more: the stream is out of step."""
        self.broken = why
        self.clear()

    def take(self) -> tuple[bytes, tuple[Descriptor, ...]] | None:
        """Return the body and the descriptors of a message, or None if more must come.

        Raises:
            Error: ``BAD_CTRL_MESG``: what came is not a frame, or its message is incomplete or
                exceeds the limits. All descriptors of it are closed.
        """
        pieces = self.pieces
        data = pieces[0].data
        if len(data) < HEADER_SIZE:
            if not self._stream:
                raise self._no_frame(f"{len(data)} bytes are not a message of a Channel")
            pieces[:] = [_joined(pieces)]
            data = pieces[0].data
            if len(data) < HEADER_SIZE:
                self.wanted = HEADER_SIZE - len(data)
                return None
        start, kind, flags, count, total, length, number = _HEADER.unpack_from(data)
        header_size = HEADER_SIZE if start == _START else self._header_size(data)
        if length > self._max_size:
            raise self._no_frame(
                f"a message of {length} bytes is longer than the {self._max_size} of max_size"
            )
        size = header_size if flags & IN_FILE else header_size + length
        if len(data) == size:
            body = data[header_size:]
        elif not self._stream:
            raise self._no_frame(f"{len(data)} bytes came, but {size} were announced")
        else:
            have = len(data)
            if len(pieces) > 1:
                have = sum([len(piece.data) for piece in pieces])
            if have < size:
                if len(pieces) > 1 or len(pieces[0].fds) > count:
                    self._check_count(count, whole=False)
                    self._compact()
                self.wanted = min(size - have, _PIECE)
                return None
            if len(pieces) == 2 and len(data) == header_size:
                body = pieces[1].data
            else:
                body = b"".join([piece.data for piece in pieces])[header_size:]
        fds = pieces[0].fds
        if len(pieces) > 1 and any(piece.fds for piece in pieces[1:]):
            # If a signal handler raises here, the next call finds the same objects.
            pieces[:] = [_joined(pieces)]
            fds = pieces[0].fds
        if self._stream:
            self.wanted = HEADER_SIZE
        if len(fds) != count:
            self._check_count(count, whole=True)
        if kind == MESSAGE:
            try:
                pieces.clear()
            finally:
                parts = self._ahead.pop(number, ()) if self._ahead else ()
            if flags or parts or total != count or total > self._max_fds:
                return self._composed(flags, total, length, body, parts, fds)
            return body, fds
        if kind == FDS and number:
            self._store(fds, total, number)
        elif kind == ABANDON:
            parts = self._ahead.pop(number, ())
            close_fds([*fds, *[fd for part in parts for fd in part]])
        elif kind < _MAY_IGNORE_KIND:
            raise self._no_frame(f"a frame of unknown form (kind {kind}, number {number})")
        else:
            close_fds(fds)
        pieces.clear()
        return None

    def _composed(
        self,
        flags: int,
        total: int,
        length: int,
        body: bytes,
        parts: tuple[tuple[Descriptor, ...], ...],
        last: tuple[Descriptor, ...],
    ) -> tuple[bytes, tuple[Descriptor, ...]]:
        """Return a message whose descriptors came ahead, or whose body is in a file."""
        fds = (*[fd for part in parts for fd in part], *last)
        in_file = flags & IN_FILE
        try:
            if flags & ~(IN_FILE | _MAY_IGNORE_FLAGS):
                raise _bad(f"a message has unknown flags ({flags:#x})")
            if total > self._max_fds:
                raise _bad(
                    f"a message has {total} descriptors, more than the {self._max_fds} of max_fds"
                )
            if len(fds) - in_file != total or len(last) < in_file:
                raise _bad(
                    f"a message of {total} descriptors came with {len(fds) - in_file}: it is "
                    "false, or too many were sent ahead of the end of messages (max_fds)"
                )
            if not in_file:
                return body, fds
            body = unsealed(last[0], length)
        except BaseException:
            close_fds(fds)
            raise
        close_fds(last[:1])
        return body, (*[fd for part in parts for fd in part], *last[1:])

    def _store(self, fds: tuple[Descriptor, ...], total: int, number: int) -> None:
        """Keep descriptors that came ahead of the end of a message; if too many came, none.

        Only the end of the message raises the error, so that there is one.
        """
        parts = self._ahead.get(number, ())
        if not fds or (parts and parts[-1] is fds):
            return
        held = sum([len(part) for each in self._ahead.values() for part in each])
        if total <= self._max_fds and held + len(fds) <= self._max_fds:
            self._ahead[number] = (*parts, fds)
        else:
            self._ahead.pop(number, None)
            close_fds([*fds, *[fd for part in parts for fd in part]])

    def _header_size(self, data: bytes) -> int:
        """Return the size of a header that differs from this version's, if it can be read."""
        if data[:2] != _START.to_bytes(4, "little")[:2]:
            raise self._no_frame("what came is not a message of a Channel")
        if data[2] != VERSION:
            raise self._no_frame(
                f"the peer speaks version {data[2]} of the format, and this is version {VERSION}"
            )
        if data[3] < HEADER_SIZE:
            raise self._no_frame(f"a header of {data[3]} bytes is too short")
        return data[3]

    def _check_count(self, count: int, *, whole: bool) -> None:
        """Check that a frame has as many descriptors as it announces; if not ``whole``, no more."""
        came = sum([len(each.fds) for each in self.pieces])
        if came > count or (whole and came < count):
            raise self._no_frame(f"{came} descriptors came, but {count} were announced")

    def _no_frame(self, why: str) -> Error:
        """Close what came and is not a frame; return the error. A stream is then out of step."""
        if self._stream:
            self.break_off(why)
        else:
            fds = self.pieces[0].fds
            try:
                self.pieces.clear()
            finally:
                close_fds(fds)
        return _bad(why)

    def _compact(self) -> None:
        """Keep the number of pieces small, and copy each byte only a few times."""
        pieces = self.pieces
        while len(pieces) > 8 and len(pieces[-1].data) * 2 >= len(pieces[-2].data):
            pieces[-2:] = [_joined(pieces[-2:])]


def _joined(pieces: Sequence[Message]) -> Message:
    return Message(
        b"".join([each.data for each in pieces]), [fd for each in pieces for fd in each.fds]
    )
