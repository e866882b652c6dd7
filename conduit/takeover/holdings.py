"""What is handed over: sockets, descriptors of any kind, and the state.

`Takeover` has two `Holdings`: what it holds for a successor, and what came from the predecessor and
was not asked for yet. Each change to the dicts is one step. So the thread that answers successors
may read while the program's thread writes, and a signal handler may close at any line.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from socket import socket
from typing import IO, Any, NamedTuple

from conduit import wire
from conduit._conduit import Descriptor
from conduit.errors import Ignoring, from_handler
from conduit.takeover.protocol import failure
from conduit.takeover.sockets import namespace_of

_MOST_BYTES = 50_000
"""Of the names and paths of a message, which is one packet, as JSON writes them."""

_MOST_ROWS = 64
"""The most rows of a message, so that the successor can work on one while the next is made."""

_BYTES_A_ROW = 150
"""The most bytes of a row beside its name and path."""


class Held(NamedTuple):
    """A socket; for a Unix socket, its path, and the device and inode to find there.

    It is foreign if its earlier owners were in another network namespace on purpose: a service
    manager may have opened it for them.
    """

    sock: socket
    path: str | None
    inode: tuple[int, int] | None
    foreign: bool = False


class Holdings:
    """What can be handed over, by name.

    Args:
        namespace: the network namespace of this process; see `namespace_of`.

    Attributes:
        sockets: to serve on.
        items: descriptors of any kind.
        state: bytes, or a function that returns them.
    """

    def __init__(self, namespace: bytes) -> None:
        self.namespace = namespace
        self.sockets: dict[str, Held] = {}
        self.items: dict[str, Descriptor] = {}
        self.state: bytes | Callable[[], bytes] = b""

    def gifts(self, sent: Sent) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the kind and the fields of each message for what was not sent yet.

        The caller owns a file in ``state``. If ``state`` is a function, only the second use of
        ``sent`` calls it.
        """
        sockets = [
            {
                "name": name if name != held.path else _told(name),
                "socket": held.sock,
                "path": None if held.path is None else _told(held.path),
                "inode": held.inode,
                "foreign": held.foreign or namespace_of(held.sock) != self.namespace,
            }
            for name, held in sent.new(self.sockets)
        ]
        items = [{"name": name, "fd": item} for name, item in sent.new(self.items)]
        for kind, rows in (("sockets", sockets), ("items", items)):
            for some in _in_packets(rows):
                yield kind, {kind: some}
        state = self.state
        if callable(state):
            if not sent.again:
                return
            state = bytes(state())
        if state is not sent.state:
            sent.state = state
            yield "state", {"file": memory_file(state) if state else None}

    def paths(self) -> dict[str, tuple[int, int]]:
        """Return the paths of the Unix sockets, with the device and inode to find there."""
        return {
            held.path: held.inode
            for held in self.sockets.copy().values()
            if held.path is not None and held.inode is not None
        }

    def __len__(self) -> int:
        return len(self.sockets) + len(self.items)

    def receive(self, kind: str, message: dict[str, Any]) -> None:
        """Take what a message brings.

        Raises:
            TakeoverError: it is malformed. This has the part of it that was not.
        """
        try:
            if kind == "sockets":
                for row in message["sockets"]:
                    self._receive_socket(row)
            elif kind == "items":
                for row in message["items"]:
                    self._receive_item(row)
            elif kind == "state":
                file = message["file"]
                self.state = b"" if file is None else _content(_fd_of(file))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, OSError) as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            raise failure(f"a message ({kind}) is malformed: {exc!r}") from exc

    def _receive_socket(self, row: dict[str, Any]) -> None:
        name, told, inode = _name_of(row), row.get("path"), row.get("inode")
        path = None if told is None else _heard(told)
        if path is not None and name == told:
            name = path
        if inode is not None:
            device, number = inode
            inode = int(device), int(number)
        is_foreign = row.get("foreign") is True
        held = Held(_fd_of(row["socket"]).to_conn(), path, inode, is_foreign)
        with Ignoring(KeyError):
            self.sockets.pop(name).sock.close()
        self.sockets[name] = held

    def _receive_item(self, row: dict[str, Any]) -> None:
        name, fd = _name_of(row), _fd_of(row["fd"])
        with Ignoring(KeyError):
            self.items.pop(name).close()
        # All in C, so that no signal handler runs while nothing owns the number.
        named = map(Descriptor, map(Descriptor.detach, (fd,)), (name,))
        self.items.update(zip((name,), named, strict=True))

    def close(self) -> None:
        """Close all of it."""
        while self.sockets:
            self.sockets.popitem()[1].sock.close()
        while self.items:
            self.items.popitem()[1].close()


def _in_packets(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Divide rows into parts that fit in a packet with their descriptors."""
    some: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        # A byte becomes six at most: \\u0001. A Descriptor's name goes along with it.
        texts = row["name"], row.get("path") or "", row["fd"].name if "fd" in row else ""
        length = 6 * len("".join(texts).encode(errors="surrogatepass")) + _BYTES_A_ROW
        if some and (size + length > _MOST_BYTES or len(some) == _MOST_ROWS):
            yield some
            some, size = [], 0
        some.append(row)
        size += length
    if some:
        yield some


class Sent:
    """What one successor was sent."""

    def __init__(self) -> None:
        self.again = False
        self.state: bytes = b""
        # By id(), and kept, so that no other object gets the same id.
        self._sent: dict[int, object] = {}

    def new(self, held: dict[str, Any]) -> list[tuple[str, Any]]:
        """Return what was not sent, and note it as sent."""
        found = [(name, each) for name, each in held.copy().items() if id(each) not in self._sent]
        self._sent.update((id(each), each) for _, each in found)
        return found


def memory_file(content: bytes) -> IO[bytes] | io.FileIO:
    """Return a file that is in no directory, with a content."""
    if hasattr(os, "memfd_create"):
        try:
            return wire.memory_file("conduit-state", content)
        except OSError as exc:
            # A policy may forbid the call.
            if exc.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS) or from_handler(exc):
                raise
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the caller's
    try:
        wire.write_all(file, content)
    except BaseException:
        file.close()
        raise
    return file


def _content(fd: Descriptor) -> bytes:
    if fd.kind not in ("memfd", "regular file"):
        raise ValueError(f"its file is a {fd.kind}")
    number = fd.fileno()
    return wire.read_all(number, os.fstat(number).st_size)


def _told(path: str) -> str:
    """Return a path as it is sent: its bytes as UTF-8, whatever encoding this process has."""
    return os.fsencode(path).decode(errors="surrogateescape")


def _heard(path: str) -> str:
    """Return a path that was sent, as this process writes it."""
    if "\0" in path:
        raise ValueError(f"{path!r} is no path")
    return os.fsdecode(path.encode(errors="surrogateescape"))


def _name_of(row: dict[str, Any]) -> str:
    name = row["name"]
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name")
    return name


def _fd_of(value: object) -> Descriptor:
    if not isinstance(value, Descriptor):
        raise TypeError(f"{value!r} is no descriptor")
    return value
