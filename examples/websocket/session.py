"""One WebSocket connection, which can be taken out of this process between two messages.

wsproto is given whole messages, and control frames, one at a time. So there is nothing of the
connection in it between two of them; what has come of the next is in `Session` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from wsproto import WSConnection
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

from conduit.aio import detach_stream

MAX_MESSAGE = 1 << 20
"""The most bytes of a message, and of a request."""

PATIENCE = 5.0
"""Seconds that a client has to answer a close."""


def frame_size(data: bytearray) -> int:
    """How long the first frame is; while that cannot be told, more than there is of it.

    See RFC 6455, 5.2: two bytes, the length if it is not in them, a mask, the payload.
    """
    if len(data) < 2:
        return 2
    length = data[1] & 127
    extended = {126: 2, 127: 8}.get(length, 0)
    if extended:
        length = int.from_bytes(data[2 : 2 + extended], "big")
    return 2 + extended + (4 if data[1] & 128 else 0) + length


class Session:
    """A client: its connection, and what goes to another process with it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        # So that nothing is left to be sent once drain() has returned.
        writer.transport.set_write_buffer_limits(0)
        # What the application knows: here, what the client asked for, and how often it spoke.
        self.path, self.messages = "", 0
        # Received and not dealt with: frames of a message that has not ended, and what follows.
        self.begun, self.unread = bytearray(), bytearray()
        # None until the client has asked for it, by HTTP.
        self.websocket: Connection | None = None
        self.is_moving = False
        self.waiting: asyncio.Timeout | None = None

    async def answer(self, text: str) -> str:
        """Be the application. It may wait for something; a handover waits for it."""
        self.messages += 1
        return f"{self.path} {self.messages} {text}"

    async def run(self) -> None:
        """Serve until the client goes, or is to go on elsewhere."""
        while not self.is_moving and await self.serve_one():
            pass

    def move(self) -> None:
        """End `run` as soon as that is between two messages, after which comes `detach`."""
        self.is_moving = True
        if self.waiting is not None:
            self.waiting.reschedule(0)

    def detach(self) -> tuple[socket.socket, dict[str, Any]]:
        """Take the connection out of this process: its socket, and the state for `restore`."""
        sock, unread = detach_stream(self.reader, self.writer)
        unread = bytes(self.begun + self.unread) + unread
        return sock, {"path": self.path, "messages": self.messages, "unread": unread.hex()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `detach` ended."""
        self.path, self.messages = state["path"], state["messages"]
        self.unread += bytes.fromhex(state["unread"])
        if self.path:
            self.websocket = Connection(ConnectionType.SERVER)

    def close(self, reason: CloseReason) -> None:
        """Tell the client to go, which ends `run` when it has answered."""
        if self.websocket is not None and self.websocket.state is ConnectionState.OPEN:
            self.send(CloseConnection(reason))
        asyncio.get_running_loop().call_later(PATIENCE, self.writer.transport.abort)

    async def aclose(self) -> None:
        """Close the connection, unless it was detached."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def send(self, event: Event) -> None:
        assert self.websocket is not None
        self.writer.write(self.websocket.send(event))

    async def serve_one(self) -> bool:
        """Deal with a frame if one has come, else wait; whether there may be another."""
        if self.websocket is None:
            size = self.unread.find(b"\r\n\r\n") + 4
            has_come = size >= 4
        else:
            size = frame_size(self.unread)
            has_come = size <= len(self.unread)
        if not has_come:
            return await self.receive()
        data = self.unread[:size]
        del self.unread[:size]
        if self.websocket is None:
            goes_on = self.upgrade(bytes(data))
        else:
            goes_on = await self.serve_frame(self.websocket, data)
        await self.writer.drain()
        # A client that sends without end has only its turn.
        await asyncio.sleep(0)
        return goes_on

    async def receive(self) -> bool:
        """Wait until something comes, or `move` is called; False at the end."""
        try:
            async with asyncio.timeout(None) as self.waiting:
                data = await self.reader.read(65536)
        except TimeoutError:
            return True
        finally:
            self.waiting = None
        self.unread += data
        if len(self.begun) + len(self.unread) > MAX_MESSAGE:
            self.close(CloseReason.MESSAGE_TOO_BIG)
            return False
        return bool(data)

    def upgrade(self, request: bytes) -> bool:
        http = WSConnection(ConnectionType.SERVER)
        try:
            http.receive_data(request)
            for event in http.events():
                if isinstance(event, Request):
                    # With no extension: that of compression has a state in zlib.
                    self.writer.write(http.send(AcceptConnection()))
                    self.path = event.target
                    self.websocket = Connection(ConnectionType.SERVER)
                    return True
        except RemoteProtocolError as exc:
            self.writer.write(http.send(exc.event_hint or RejectConnection()))
        return False

    async def serve_frame(self, websocket: Connection, frame: bytearray) -> bool:
        # The operation codes below 8 are messages', which may have several frames; the first bit
        # tells the last one.
        if frame[0] & 15 < 8:
            self.begun += frame
            if not frame[0] & 128:
                return True
            frame, self.begun = self.begun, bytearray()
        websocket.receive_data(bytes(frame))
        text = ""
        for event in websocket.events():
            if isinstance(event, CloseConnection):
                if websocket.state is not ConnectionState.CLOSED:
                    self.send(event.response())
                return False
            if websocket.state is not ConnectionState.OPEN:
                continue  # it was told to go, and gets no more answers
            if isinstance(event, Ping):
                self.send(event.response())
            elif isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    self.send(TextMessage(await self.answer(text)))
            elif isinstance(event, BytesMessage):
                self.close(CloseReason.UNSUPPORTED_DATA)
        return True
