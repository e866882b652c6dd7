"""`detach_stream`: takes a connection out of asyncio or uvloop, with the bytes it has read."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from conduit._conduit import Descriptor
from conduit.errors import DescriptorTypeError, Error, ErrType, reraise


def detach_stream(
    reader: asyncio.StreamReader | None, writer: asyncio.StreamWriter | asyncio.Transport
) -> tuple[socket.socket, bytes]:
    """Take a connection out of asyncio, or uvloop, to hand it to another process or loop.

    The writer must have sent all it holds. This is not a coroutine, so nothing comes or goes
    between the last message that the program has handled and this call. If the program may write
    faster than the peer reads, flush first::

        writer.transport.set_write_buffer_limits(0)
        await writer.drain()
        sock, unread = conduit.aio.detach_stream(reader, writer)

    Call it in the loop's thread, while no other task reads from the reader. Afterwards the reader
    is at its end and the writer closed; the loop no longer reads or writes, and the connection
    stays open. If it raises, nothing has changed.

    Args:
        reader: the `asyncio.StreamReader`; None if the program's own protocol got the bytes.
        writer: its `asyncio.StreamWriter`, or a transport.

    Returns:
        the socket, a duplicate that the caller owns (close-on-exec; non-blocking, with timeout 0),
        and the bytes that were read from it and not consumed. They come before any byte that is
        received from the socket.

    Raises:
        Error: ``NO_FD`` if the connection is closing, failed, or has no socket;
            ``FAILED_TRANSFER`` if the writer still holds bytes; ``BAD_CLONE`` if the system gives
            no duplicate, or the transport is a pipe's.
        DescriptorTypeError: ``NO_FD``, if it is TLS, whose state lives in this process, or if
            ``writer`` is neither a stream nor a transport.
    """
    transport: Any = getattr(writer, "transport", writer)
    if not hasattr(transport, "get_extra_info"):
        raise DescriptorTypeError(
            f"a {type(writer).__name__} is neither an asyncio.StreamWriter nor a transport",
            ErrType.NO_FD,
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
        # For a pipe transport, uvloop's "socket" is not one.
        with Descriptor(os.dup(sock.fileno())) as duplicate:
            detached = duplicate.to_conn()
    except OSError as exc:
        reraise(exc, what, ErrType.BAD_CLONE)
    try:
        unread = b"" if reader is None else _unread(reader)
    except BaseException:
        detached.close()
        raise
    # The loop closes it at its next turn, without shutting the connection down.
    transport.abort()
    return detached, unread


def _unread(reader: asyncio.StreamReader) -> bytes:
    """Return what a reader has, and leave it at its end.

    ``read()`` returns all up to the end, and does not wait once the reader was fed the end.
    """
    reader.feed_eof()
    reading = reader.read()
    try:
        reading.send(None)
    except StopIteration as done:
        unread: bytes = done.value
        return unread
    raise RuntimeError("a reader at its end waits")  # pragma: no cover - in no asyncio of today
