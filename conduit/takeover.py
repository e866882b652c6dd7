"""Zero-downtime restart: a new process takes over the sockets of the one that runs.

The protocol between the two is written down in ``docs/takeover.md``.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import json
import logging
import os
import socket
import stat
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from conduit._conduit import Conduit, Descriptor
from conduit.errors import (
    Error,
    ErrType,
    PeerClosedError,
    TakeoverError,
    TransferTimeoutError,
)
from conduit.listener import Listener
from conduit.mistakes import path_from
from conduit.paths import address_from, bind_path, unlink_own
from conduit.peer import Peer, admits, same_user_or_root

if TYPE_CHECKING:
    from _typeshed import HasFileno, StrOrBytesPath

_log = logging.getLogger("conduit.takeover")

VERSION = 1
"""The version of the protocol that this module speaks."""

_TYPE = socket.SOCK_STREAM if sys.platform == "darwin" else socket.SOCK_SEQPACKET

_SOCKETS_A_MESSAGE = 50
"""So many names and paths fit in a packet, however long they are and as JSON writes them."""

_LONGEST_NAME = 255
"""Bytes of a socket's name."""

_LONGEST_INLINE = 32 * 1024
"""Bytes of state that travel in a message; more of it travels as a file in memory."""

_LONGEST_MESSAGE = 128 * 1024
"""Bytes; under the send buffer of a Unix socket, which limits a packet."""

_GREETING = 10.0
"""Seconds within which either side must answer what it can answer at once."""

_BACKLOG = 128
"""How many successors may wait to be answered."""

_PAUSE = 0.1
"""Seconds between two attempts at what a full system, or a dying process, does not allow yet."""


_open: weakref.WeakSet[Takeover] = weakref.WeakSet()
"""Those of this process that are not closed."""


class Takeover:
    """This process's place in a line of servers, each of which takes over from the last.

    Takeover(path, timeout=60.0, allow=None) connects to the predecessor that listens at ``path``
    and receives its sockets and its state; if there is none, it begins to listen there itself.
    Then, in this order: `listen` for each socket, `ready` when requests are served, `wait` for a
    successor, drain, `close` (or leave the ``with``).

    Until `ready` returns, the predecessor goes on serving, and does so for ever if this process
    dies, closes, or takes longer than the predecessor's timeout. If the predecessor dies instead,
    this process has all it received, and `ready` makes it the owner.

    A thread answers successors from the beginning; what is not possible yet is refused at once,
    with a reason. Successors are served while this process serves, whatever it does meanwhile.

    A forked child has no part in this: there it is closed, and removes nothing. The sockets that
    `listen` returned are the child's as well.

    Args:
        path: of the control socket; ``"@name"`` is abstract on Linux. It is the same for all who
            follow each other.
        timeout: seconds that a successor of this process may take from its first word until it
            is ready.
        allow: whether a `Peer`, predecessor or successor, is dealt with. Without it: this
            process's user, and root.

    Attributes:
        path: as given.
        predecessor: the `Peer` whose sockets were received; None at a fresh start.
        state: the bytes that it offered; empty if it did not.
        dropped: the names of sockets that it had and this process did not ask for, which are
            closed here; filled by `ready`.

    Raises:
        TakeoverError: the predecessor refuses (another takeover is under way, it is not ready
            itself, its protocol is another), or is of another user.
        Error: the control socket can neither be reached nor made.
    """

    path: str | bytes
    predecessor: Peer | None
    state: bytes
    dropped: tuple[str, ...]

    def __init__(
        self,
        path: StrOrBytesPath,
        *,
        timeout: float = 60.0,
        allow: Callable[[Peer], bool] | None = None,
    ) -> None:
        self.path = path_from(path)
        self.predecessor = None
        self.state = b""
        self.dropped = ()
        self._timeout = timeout
        self._allow = same_user_or_root if allow is None else allow
        self._ready = False
        self._inherited: dict[str, _Held] = {}
        self._held: dict[str, _Held] = {}
        self._paths: dict[str, tuple[int, int]] = {}
        self._offered = b""
        self._control: Listener | None = None
        self._channel: _Channel | None = None
        # Guards what the threads that answer successors share with the caller's.
        self._lock = threading.Lock()
        self._refusal = "it is not ready itself yet"
        self._successor: _Channel | None = None
        self._talks: dict[threading.Thread, _Channel] = {}
        self._answering: threading.Thread | None = None
        self._handed_over = False
        self._over = threading.Event()
        self._bell = os.pipe()
        _open.add(self)
        try:
            self._find()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<conduit.takeover.Takeover {self.path!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: builtins.type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def listen(
        self,
        host: str,
        port: int | None = None,
        *,
        name: str | None = None,
        type: int = socket.SOCK_STREAM,
        backlog: int = 128,
        mode: int = 0o600,
    ) -> socket.socket:
        """Return a socket at an address: the predecessor's if it has it, otherwise a fresh one.

        The predecessor's is taken if it has the same name, address and type. It is the very
        same socket: its options are as they were, and connections that wait in its queue are
        accepted here. So is its blocking mode, which both processes share while both run: leave
        it as it is, or set it to what the predecessor's server uses.

        Args:
            host: an address to bind or a host name; ``""`` is every address, of both families
                where the system has both. ``"::"`` is so too, unless ``"0.0.0.0"`` with the same
                port was asked for before. With no port, the path of a Unix socket (``"@name"`` is
                abstract on Linux).
            port: a number; 0 lets the system choose, or takes whatever port the predecessor's
                socket of that name has.
            name: by which a successor asks for it; ``host:port`` or the path if not given.
            type: ``SOCK_STREAM``, which listens, or ``SOCK_DGRAM``, which is bound only.
            backlog: for a fresh one: how many connections wait to be accepted.
            mode: for a fresh Unix socket: the permission bits of its path.

        Returns:
            a socket object, which the caller owns. This object keeps a duplicate for a
            successor, and with it the socket open, until it is closed or has handed over.

        Raises:
            ValueError: the name is taken in this process, or longer than 255 bytes.
            Error: ``NO_FD``, with the errno, if there is no such socket to be had; without it,
                if this is closed.
        """
        self._check_open()
        if port is None and not host.startswith("@"):
            # The same place, wherever this process and its successors go.
            host = os.path.abspath(host)
        if name is None:
            name = host if port is None else f"{host}:{port}"
        if name in self._held:
            raise ValueError(f"there is a socket named {name!r} already")
        # As the system has them, any bytes that a path may have.
        if len(os.fsencode(name)) > _LONGEST_NAME:
            raise ValueError(f"a name has at most {_LONGEST_NAME} bytes, unlike {name!r}")
        path = host if port is None else None
        try:
            old = self._inherited.get(name)
            if old is not None and _is_at(old, host, port, type):
                sock, kept, inode = old.sock, old.sock.dup(), old.inode
                del self._inherited[name]
            else:
                if port is None:
                    sock = self._bind_path(host, type, mode, backlog)
                else:
                    sock = self._bind_host(host, port, type, backlog)
                with _closed_on_error(sock):
                    kept, inode = sock.dup(), self._paths.get(host) if port is None else None
            with self._lock:
                self._held[name] = _Held(kept, path, inode)
        except OSError as exc:
            raise Error(
                f"listening as {name!r}: {exc.strerror or exc}", ErrType.NO_FD, exc.errno
            ) from exc
        return sock

    def offer(self, state: bytes) -> None:
        """Offer bytes, of any number, to the successor, which finds them in its ``state``."""
        self._offered = bytes(state)

    def ready(self) -> tuple[str, ...]:
        """Say that requests are served: the predecessor drains, and a successor may come.

        The predecessor's sockets that were not asked for are closed, and their paths removed.
        A second time does nothing.

        Returns:
            their names, which are also in ``dropped``.

        Raises:
            TakeoverError: the predecessor does not hand over any more, since this took too long
                for it, or does not answer, and goes on serving. This process must not serve:
                close it.
            Error: ``NO_FD`` if this is closed.
        """
        self._check_open()
        if self._ready:
            return self.dropped
        if self._channel is not None:
            try:
                with self._channel as channel:
                    self._take_over(channel)
            except TakeoverError:
                raise
            except Error as exc:
                raise TakeoverError(
                    f"the predecessor does not hand over: {exc}", ErrType.FAILED_TRANSFER
                ) from exc
            self._channel = None
            assert self._control is not None
            with Descriptor(os.dup(self._control.fileno())).to_conn() as sock:
                # Again, so that the system names this process to those who connect.
                sock.listen(_BACKLOG)
            self._answer()
        self.dropped = tuple(self._inherited)
        for old in self._inherited.values():
            if old.path is not None and old.inode is not None:
                _remove(old.path, old.inode)
            old.sock.close()
        self._inherited.clear()
        if self.dropped:
            _log.info("closed sockets of the predecessor not asked for: %s", self.dropped)
        for held in self._held.values():
            if held.path is not None and held.inode is not None:
                self._paths[held.path] = held.inode
        self._ready = True
        with self._lock:
            self._refusal = ""
        return self.dropped

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a successor is ready: from now on it serves, and this process drains.

        `close` ends it.

        Args:
            timeout: seconds; None for ever.

        Returns:
            whether there is one.
        """
        return self._over.wait(timeout) and self._handed_over

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when `wait` would return.

        It stays this object's. An event loop may watch it; there is nothing to read from it.
        -1 once this is closed.
        """
        return self._bell[0]

    def close(self) -> None:
        """Leave the line, and close what this object holds. A second time does nothing.

        A predecessor that has not handed over goes on serving. If nobody follows, the paths of
        the control socket and of Unix sockets that this process owns are removed. A takeover
        under way ends with the successor the owner.
        """
        _open.discard(self)
        with self._lock:
            self._refusal = "it is closing"
            successor = self._successor
            followed = self._handed_over or successor is not None
            bell, self._bell = self._bell, (-1, -1)
            self._over.set()
        if successor is not None:
            # Before what it is being sent is closed: what came goes with it, and no refusal.
            successor.close()
        if self._control is not None:
            # The path stays where the predecessor is still the owner.
            try:
                self._control.close(unlink=not followed and self._channel is None)
            except Error as exc:
                _log.warning("%s", exc)
        if not followed:
            for path, inode in self._paths.items():
                _remove(path, inode)
        self._paths.clear()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._answering is not None:
            self._answering.join()
        for thread, channel in self._talks.items():
            channel.close()
            thread.join()
        for held in (*self._held.values(), *self._inherited.values()):
            held.sock.close()
        self._held.clear()
        self._inherited.clear()
        for number in bell:
            if number >= 0:
                os.close(number)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._bell[0] < 0

    def _leave_to_parent(self) -> None:
        """In a forked child, close its copies, which would make the parent's end go unseen."""
        # A thread that does not exist here may have held them.
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._paths.clear()
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise Error(f"{self!r} is closed", ErrType.NO_FD)

    def _bind_path(self, path: str, type: int, mode: int, backlog: int) -> socket.socket:
        with _closed_on_error(socket.socket(socket.AF_UNIX, type)) as sock:
            address = address_from(path)
            if address.startswith(b"\0"):
                sock.bind(address)
                if type != socket.SOCK_DGRAM:
                    sock.listen(backlog)
            else:
                self._paths[path] = bind_path(sock, address, mode, backlog)
            return sock

    def _bind_host(self, host: str, port: int, type: int, backlog: int) -> socket.socket:
        family, address = _resolve(host, port, type)
        with _closed_on_error(socket.socket(family, type)) as sock:
            if type == socket.SOCK_STREAM:
                # Connections of the last server that linger are no reason not to start.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and address[0] == "::":
                # All of IPv4 as well, whatever the system's default, if that is not had already.
                taken = any(_is_at(held, "0.0.0.0", port, type) for held in self._held.values())
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, taken)
            sock.bind(address)
            if type == socket.SOCK_STREAM:
                sock.listen(backlog)
            return sock

    # Towards the predecessor.

    def _find(self) -> None:
        """Receive what the predecessor has, or take the free place."""
        deadline = time.monotonic() + _GREETING
        while (conduit := self._connect()) is not None:
            self._channel = _Channel(conduit)
            peer = conduit.peer
            if not admits(self._allow, peer, self):
                raise TakeoverError(
                    f"{self.path!r} is served by {peer}, who is not allowed",
                    ErrType.FAILED_TRANSFER,
                )
            try:
                self._inherit(self._channel, peer)
            except PeerClosedError:
                if time.monotonic() > deadline:
                    raise
            except (ValueError, TypeError, IndexError) as exc:
                raise TakeoverError(
                    f"a message of {peer} is malformed: {exc}", ErrType.FAILED_TRANSFER
                ) from exc
            else:
                return
            _log.warning("the predecessor died; going on with what came from it")
            self._channel.close()
            self._channel = None
            # It may still be listening: a process that is killed closes one thing after another.
            time.sleep(_PAUSE)
        self._answer()

    def _connect(self) -> Conduit | None:
        """Connect to the predecessor; if there is none, listen in its place."""
        deadline = time.monotonic() + _GREETING
        while True:
            try:
                return Conduit.connect(
                    self.path, type=_TYPE, timeout=_GREETING, name=f"to {self.path!r}"
                )
            except Error as exc:
                if exc.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                    raise
            try:
                self._control = Listener(self.path, type=_TYPE, allow=_anybody)
            except Error as exc:
                # Somebody was faster, and is the predecessor then, unless it never listens.
                if (
                    exc.errno != errno.EADDRINUSE
                    or not _is_socket(self.path)
                    or time.monotonic() > deadline
                ):
                    raise
                time.sleep(_PAUSE)
            else:
                return None

    def _inherit(self, channel: _Channel, peer: Peer) -> None:
        # It may be gone already, and what it said before is still to be read.
        with contextlib.suppress(PeerClosedError):
            channel.send("hello", version=VERSION)
        while self._control is None:
            channel.within(_GREETING)
            with channel.receive() as message:
                if message.kind == "sockets":
                    for (name, path, inode), fd in zip(
                        message["sockets"], message.fds, strict=True
                    ):
                        with contextlib.suppress(KeyError):
                            self._inherited.pop(name).sock.close()
                        self._inherited[name] = _Held(
                            fd.to_conn(), path, None if inode is None else tuple(inode)
                        )
                elif message.kind == "state":
                    self.state = message.read_body()
                elif message.kind == "control":
                    with message.fds[0].to_conn() as sock:
                        self._control = Listener.from_conn(sock, self.path, allow=_anybody)
                else:
                    raise message.unexpected()
            self.predecessor = peer

    def _take_over(self, channel: _Channel) -> None:
        """Become the owner, or raise if the predecessor stays it."""
        try:
            channel.within(_GREETING)
            channel.send("ready")
            with channel.receive() as message:
                message.expect("confirmed")
            channel.send("done")
            # Until it has let go of the control socket, successors of this might find it there.
            channel.last_sign()
        except PeerClosedError:
            # It may only have stopped listening. Unless it leaves a refusal, it is dead.
            channel.within(_GREETING)
            with contextlib.suppress(PeerClosedError), channel.receive() as message:
                raise message.unexpected() from None
            _log.warning("the predecessor died before it handed over; going on without it")

    # Towards successors, in threads.

    def _answer(self) -> None:
        self._answering = threading.Thread(
            target=self._accept, args=(self._control,), name="conduit-takeover", daemon=True
        )
        self._answering.start()

    def _accept(self, control: Listener) -> None:
        while True:
            try:
                channel = _Channel(control.accept())
            except Error as exc:
                if control.closed:
                    return
                # No room for a connection just now; who waits goes on waiting.
                _log.warning("%s", exc)
                time.sleep(_PAUSE)
                continue
            thread = threading.Thread(
                target=self._deal, args=(channel, control), name="conduit-successor", daemon=True
            )
            self._talks = {talk: its for talk, its in self._talks.items() if talk.is_alive()}
            self._talks[thread] = channel
            thread.start()

    def _deal(self, channel: _Channel, control: Listener) -> None:
        """Answer one successor, to the end."""
        with channel:
            try:
                self._hand_over(channel, control)
            except Exception as exc:
                # Whatever it is, this process goes on serving, and the successor must know.
                if channel.closed:
                    return
                _log.warning("a takeover failed, and this process goes on serving: %s", exc)
                with contextlib.suppress(Error):
                    channel.within(_GREETING)
                    channel.send("refused", reason=str(exc))

    def _hand_over(self, channel: _Channel, control: Listener) -> None:
        # Here, and not in the listener, so that who is refused hears why.
        if not admits(self._allow, channel.peer, self):
            raise TakeoverError(f"{channel.peer} is not allowed", ErrType.FAILED_TRANSFER)
        with channel.receive() as message:
            version = message.expect("hello")["version"]
        with self._lock:
            if self._handed_over:
                # It comes again, since nothing is said, and finds the one that followed.
                return
            refusal = self._refusal
            if not refusal and self._successor is not None:
                refusal = "another takeover is under way"
            if not refusal and version != VERSION:
                refusal = f"it speaks version {VERSION} of the protocol, not {version}"
            if not refusal:
                self._successor = channel
        if refusal:
            channel.send("refused", reason=refusal)
            return
        try:
            self._lead(channel, control)
        finally:
            with self._lock:
                self._successor = None

    def _lead(self, channel: _Channel, control: Listener) -> None:
        """Take the one successor from its first word to its last."""
        channel.within(self._timeout)
        held = list(self._held.items())
        for first in range(0, len(held), _SOCKETS_A_MESSAGE):
            part = held[first : first + _SOCKETS_A_MESSAGE]
            channel.send(
                "sockets",
                *(old.sock for _, old in part),
                sockets=[(name, old.path, old.inode) for name, old in part],
            )
        channel.send_body("state", self._offered)
        channel.send("control", control)
        with channel.receive() as message:
            message.expect("ready")
        channel.within(_GREETING)
        channel.send("confirmed")
        with channel.last_word() as message:
            message.expect("done")
        with self._lock:
            self._handed_over = True
        try:
            control.close(unlink=False)
            for _, old in held:
                old.sock.close()
        finally:
            with self._lock:
                self._over.set()
                if self._bell[1] >= 0:
                    os.write(self._bell[1], b"!")


def _leave_to_parent() -> None:
    for takeover in list(_open):
        takeover._leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)


class _Held(NamedTuple):
    """A socket that is kept for a successor; the path of a Unix one, and what to find there."""

    sock: socket.socket
    path: str | None
    inode: tuple[int, int] | None


class _Message:
    """One message of the protocol, as it arrived: a line of JSON, then bytes, and descriptors."""

    def __init__(self, data: bytes, fds: Sequence[Descriptor]) -> None:
        self.fds = fds
        head, _, self._body = data.partition(b"\n")
        try:
            self._fields = json.loads(head)
            self.kind = self._fields["kind"]
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            self.__exit__()
            raise TakeoverError(
                f"a message that is not of the takeover protocol: {data[:60]!r}",
                ErrType.FAILED_TRANSFER,
            ) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for fd in self.fds:
            fd.close()

    def __getitem__(self, field: str) -> Any:
        return self._fields.get(field)

    def read_body(self) -> bytes:
        """Return the bytes that came with it, in it or as a file."""
        if not self.fds:
            return self._body
        with self.fds[0].to_file("r+b") as file:
            file.seek(0)
            return file.read()

    def expect(self, kind: str) -> Self:
        """Return this message if it is of a kind, and raise if it is not."""
        if self.kind != kind:
            raise self.unexpected()
        return self

    def unexpected(self) -> TakeoverError:
        """The error for a message that is not what was awaited: mostly a refusal."""
        if self.kind == "refused":
            return TakeoverError(
                f"the other side refuses: {self['reason']}", ErrType.FAILED_TRANSFER
            )
        return TakeoverError(
            f"the other side said {self.kind!r} where that means nothing", ErrType.FAILED_TRANSFER
        )


class _Channel:
    """The conversation of two processes about a takeover, message by message.

    Whatever is said or awaited is subject to the deadline that ``within`` sets.
    """

    def __init__(self, conduit: Conduit) -> None:
        self._conduit = conduit
        self.within(_GREETING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._conduit.closed

    @property
    def peer(self) -> Peer:
        return self._conduit.peer

    def close(self) -> None:
        self._conduit.close()

    def within(self, seconds: float) -> None:
        """Give what follows, all together, so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    def _limited(self) -> Conduit:
        """The conduit, which does not wait past the deadline."""
        self._conduit.timeout = max(self._deadline - time.monotonic(), 0.001)
        return self._conduit

    def send(self, kind: str, *items: HasFileno, **fields: object) -> None:
        """Send a message; the items stay here."""
        self._send(json.dumps({"kind": kind, **fields}).encode() + b"\n", *items)

    def send_body(self, kind: str, body: bytes) -> None:
        """Send a message with bytes; many of them as a file."""
        head = json.dumps({"kind": kind}).encode() + b"\n"
        if len(body) <= _LONGEST_INLINE:
            self._send(head + body)
            return
        with _memory_file() as file:
            file.write(body)
            self._send(head, file)

    def _send(self, data: bytes, *items: HasFileno) -> None:
        if _TYPE == socket.SOCK_STREAM:
            data = len(data).to_bytes(4, "big") + data
        self._limited().transfer(*items, data=data, keep=True)

    def receive(self) -> _Message:
        """Wait for a message."""
        if _TYPE != socket.SOCK_STREAM:
            message = self._limited().receive(_LONGEST_MESSAGE)
            return _Message(message.data, message.fds)
        with self._limited().receive_exactly(4) as start:
            size = int.from_bytes(start.data, "big")
            if size > _LONGEST_MESSAGE:
                raise TakeoverError(
                    f"a message that is not of the takeover protocol: {size} bytes",
                    ErrType.FAILED_TRANSFER,
                )
            data = self._limited().receive_exactly(size, 0).data
            fds = [Descriptor(fd.detach()) for fd in start.fds]
        return _Message(data, fds)

    def last_sign(self) -> None:
        """Wait until the other side closes, or the deadline."""
        with contextlib.suppress(PeerClosedError, TransferTimeoutError), self.receive():
            pass

    def last_word(self) -> _Message:
        """Wait for a message; what has not come in time can no longer be sent over there."""
        try:
            return self.receive()
        except TransferTimeoutError:
            self._conduit.shutdown(socket.SHUT_RD)
            return self.receive()


@contextlib.contextmanager
def _closed_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


def _memory_file() -> IO[bytes]:
    """An empty file that is in no directory."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("conduit-state", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _remove(path: str, inode: tuple[int, int]) -> None:
    """Remove the path of a socket, if it still is there and can be removed."""
    try:
        unlink_own(path, inode)
    except OSError as exc:
        _log.warning("the path of a socket stays: %s", exc)


def _anybody(peer: Peer) -> bool:
    return True


def _is_socket(path: str | bytes) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return True


def _resolve(host: str, port: int, type: int) -> tuple[int, Any]:
    """The family and address to bind to."""
    if not host:
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    family, _, _, _, address = socket.getaddrinfo(host, port, type=type, flags=socket.AI_PASSIVE)[0]
    return family, address


def _is_at(held: _Held, host: str, port: int | None, type: int) -> bool:
    """Whether a socket is the one that is asked for."""
    if held.sock.type != type:
        return False
    if port is None or held.path is not None:
        return port is None and held.path == host
    family, address = _resolve(host, port, type)
    here = held.sock.getsockname()
    return bool(held.sock.family == family and here[0] == address[0] and port in (0, here[1]))
