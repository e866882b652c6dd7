import io
import socket
from collections.abc import Callable, Iterable, Iterator
from inspect import Signature
from typing import IO, Any, BinaryIO, ClassVar, Final, Literal, Self, final, overload

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

from conduit._handle import Handle, Waiter
from conduit.paths import Place
from conduit.peer import Peer

PAUSE: Final[int]
QUEUED: Final[int]

@final
class Descriptor:
    """One descriptor that this object owns, as `Conduit.receive` returns it.

    Close it (or leave it, as a context manager), give it to a file (`to_file`) or a socket
    (`to_conn`), or take the number out (`detach`). One that is dropped still open is closed too,
    with a `ResourceWarning`. While a call moves it, it looks closed; if that fails, it is open
    again. What needs it open raises `Error` (``NO_FD``).

    Descriptor(fd, name="") takes ownership of a number, and makes it close-on-exec.
    `DescriptorTypeError` for anything but an int.
    """

    __signature__: ClassVar[Signature]
    def __init__(self, fd: int, name: str = "") -> None: ...
    @property
    def name(self) -> str:
        """What it is called where descriptors have names, as systemd's have; "" for most."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    @property
    def closed(self) -> bool:
        """Whether it owns nothing any more: closed, detached, or made into another object."""
    @property
    def kind(self) -> str:
        """What it is, as ``fstat(2)`` and, on Linux, ``/proc`` say.

        ``"regular file"``, ``"directory"``, ``"fifo"``, ``"socket"``, ``"character device"``,
        ``"block device"``, ``"symlink"`` (opened with ``O_PATH``). Of what has no name, Linux tells
        ``"memfd"``, ``"eventfd"``, ``"epoll"``, ``"timerfd"``, ``"signalfd"``, ``"inotify"``,
        ``"pidfd"``, ``"io_uring"`` and others; else it is ``"anonymous"``. `Error` (``UNKNOWN``) if
        the system does not tell.
        """
    def is_same_file(self, other: HasFileno) -> bool:
        """Whether another has the same open file description: a duplicate, not a path opened twice.

        Where the system cannot tell (Linux before 6.10 in a sandbox without kcmp(2), or another
        system), the inode decides.
        """
    def fileno(self) -> int:
        """Return the number, which stays owned by this object."""
    def detach(self) -> int:
        """Return the number and forget it: the caller owns it. Not while another call uses it."""
    def close(self) -> None:
        """Close it; a second time does nothing. `Error` (``FAILED_CLOSE``) as `Conduit.close`."""
    @overload
    def to_file(
        self,
        mode: None = None,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> BinaryIO:
        """Return a file object that owns the descriptor from now on.

        The arguments are those of ``open()``, and ``name`` the file's. Without a mode, it is binary
        and allows what the descriptor allows. Nothing is truncated; ``"a"`` goes to the end.

        What goes both ways without an offset (a socket, a terminal) becomes an `io.BufferedRWPair`.
        ``O_NONBLOCK`` stays set, since the sender may need it, but the file waits; with
        ``buffering=0`` it returns None. Raises `Error` (``BAD_CLONE``) if the descriptor does not
        allow the mode, and what ``open()`` does. The Descriptor is then as it was.
        """
    @overload
    def to_file(
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
    def to_file(
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
    def to_file(
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
    def to_file(
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
    def to_file(
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
    def to_file(
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
    def to_file(
        self,
        mode: str | None,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> IO[Any]: ...
    def _open_as(self, arguments: tuple[Any, ...] | None, close: bool) -> Any:
        """Make a file, or for None a socket, of it; failing, ``close`` it or leave it as it was."""
    def to_conn(self) -> socket.socket:
        """Return a `socket.socket` that owns the descriptor from now on.

        Family, type and protocol are its own. The timeout says whether it waits (None) or not
        (0.0), and does not change that. `Error` (``BAD_CLONE``) if it is no socket; the Descriptor
        is then as it was.
        """

@final
class Message:
    """What one message brought; as a context manager, it closes what was not taken out of it."""

    __signature__: ClassVar[Signature]
    def __new__(
        cls, data: bytes = b"", fds: Iterable[Descriptor] = (), sender: Peer | None = None
    ) -> Self: ...
    @property
    def sender(self) -> Peer | None:
        """Who sent it, where the socket passes credentials, as one of `Conduit.bind` does.

        The system tells it of each message, so that a datagram's sender is known. A user that is
        not mapped in this user namespace has the overflow uid, 65534, which says nothing.
        """
    @property
    def data(self) -> bytes:
        """The bytes; empty if the message had none."""
    @property
    def fds(self) -> tuple[Descriptor, ...]:
        """A `Descriptor` for each one that came, in the order they were sent."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    def close(self) -> None:
        """Close the descriptors that were not taken out; raises, at the end, as theirs does."""

@final
class Conduit:
    """One end of a Unix socket that carries open descriptors to and from another process.

    Conduit(fd, name="") borrows the number ``fd`` of a Unix socket: `close` leaves it open. The
    other constructors say what is owned. The name appears in the `repr` and in every error.

    What a call sends is moved: closed here once the system has taken the message, and open and the
    caller's if that fails. With ``keep`` it is shared: it stays open here too. A call that receives
    returns exactly what was sent, or raises with everything closed that had arrived. What is
    received is close-on-exec and never 0, 1 or 2.

    Calls wait no longer than `timeout`; while they wait, signal handlers run, and may raise;
    `close` in another thread ends them at once. Several threads may call; those that wait to send
    are served first in, first out. Whether the socket is blocking makes no difference, and is not
    changed; a stream gets ``SO_OOBINLINE``, without which a descriptor may be lost unseen.

    Every call raises `Error`: ``NO_FD`` if the conduit is closed, or an argument has no descriptor
    (`DescriptorTypeError` if its kind never has); ``FAILED_TRANSFER`` if the system call fails:
    `PeerClosedError`, `TransferTimeoutError`, `WouldBlockError`, or another with an errno.
    """

    __signature__: ClassVar[Signature]
    @property
    def _handle(self) -> Handle: ...
    def __init__(self, fd: int, name: str = "") -> None: ...
    @staticmethod
    def _over(
        handle: Handle,
        timeout: float | None = None,
        source: object = None,
        place: Place | None = None,
    ) -> Conduit:
        """Return a conduit over a handle, of what it is borrowed, and the place it is bound at."""
    @staticmethod
    def _accept(handle: Handle, timeout: float | None = None) -> Conduit:
        """Accept a connection on a handle over a non-blocking listening socket; for `Listener`."""
    @classmethod
    def from_file(cls, file: HasFileno, *, name: str | None = None) -> Conduit:
        """Borrow the descriptor of any object with ``fileno()``, to which it keeps a reference.

        `close` drops that and leaves it open. Without a name, it has the file's.
        """
    @classmethod
    def from_conn(cls, conn: HasFileno, *, name: str = "") -> Conduit:
        """Duplicate the descriptor of any object with ``fileno()``, which stays as it is.

        The conduit owns the duplicate (close-on-exec) and has the object's timeout, if it has
        ``gettimeout()``. Raises `Error` (``BAD_CLONE``) if duplicating fails.
        """
    @classmethod
    def pair(cls, *, type: int = ...) -> tuple[Conduit, Conduit]:
        """Return two conduits that are connected to each other, as ``socketpair(2)`` makes them.

        ``SOCK_SEQPACKET`` keeps messages apart. Raises `Error` (``NO_FD``) if there is no pair.
        """
    @classmethod
    def bind(cls, path: StrOrBytesPath, *, mode: int = 0o600, name: str = "") -> Conduit:
        """Return a datagram socket bound at a path, which `close` removes, to receive on.

        The path is made and removed as a `Listener`'s; without a name it is the name. What comes
        tells who sent it (`Message.sender`). Raises `Error` (``NO_FD``) as `Listener`.
        """
    @classmethod
    def connect(
        cls,
        path: StrOrBytesPath,
        *,
        type: int = ...,
        timeout: float | None = None,
        wait: bool = False,
        name: str = "",
    ) -> Conduit:
        """Connect to a Unix socket that listens at a path; ``"@name"`` is abstract on Linux.

        ``timeout`` is how many seconds to wait for room in the listener's backlog, and becomes the
        conduit's own: None for ever, 0 not at all. With ``wait``, it is waited for somebody who
        listens there, too. Raises `Error` (``NO_FD``) if there is no connection: ``ENOENT``,
        ``ECONNREFUSED`` (nobody listens there any more), ``EPROTOTYPE`` (another type),
        ``ENAMETOOLONG`` (over 107 bytes).
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    @property
    def name(self) -> str:
        """What the conduit is called in its `repr` and in errors."""
    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
    @property
    def peer(self) -> Peer:
        """The `Peer` (pid, uid, gid) this is connected to, as it was then; `Error` without one."""
    @property
    def timeout(self) -> float | None:
        """How many seconds a call may wait: None for ever, 0 not at all (`WouldBlockError`).

        They count from when it has to, and end with `TransferTimeoutError`. To set it takes effect
        with the next call. A negative number or NaN is a `ValueError`.
        """
    @timeout.setter
    def timeout(self, timeout: float | None) -> None: ...
    def fileno(self) -> int:
        """Return the number of the socket, which stays the conduit's."""
    def close(self) -> None:
        """Close what the conduit made itself, and end the calls that wait in other threads.

        Those raise `Error` (``NO_FD``), and the last to end closes the socket. A borrowed
        descriptor is left open. A second `close` does nothing. `Error` (``FAILED_CLOSE``) if the
        system reports a failure, or the number was closed elsewhere (what has it then is left
        alone); the conduit is closed all the same.
        """
    def transfer_fd(self, fd: int, *, keep: bool = False) -> None:
        """Send one descriptor by its number, which no other object may own. See `transfer`."""
    def transfer_file(self, file: HasFileno, *, keep: bool = False) -> None:
        """Send an open file; on success its ``close()`` is called. See `transfer`.

        What it has not written yet is flushed first, and the receiver reads on where the program
        stopped reading, not where the buffer did. With ``keep``, both have one offset.

        What was read ahead and cannot be put back (of a pipe, in the middle of what an encoding
        decodes at once) is refused (``FAILED_TRANSFER``), with the file open and where it was; so
        is any reader that may have a buffer of its own, but those of `io` over a file or a socket.
        """
    def transfer_conn(self, conn: HasFileno, *, keep: bool = False) -> None:
        """Send a socket, or anything with ``fileno()`` and ``close()``; on success it is closed.

        Take a socket out of its event loop first, which goes on watching it otherwise; one of a
        transport of asyncio or uvloop is only shared. A TLS socket is refused, since its state
        cannot travel. See `transfer`.
        """
    def receive_fd(self) -> int:
        """Receive one descriptor and return its number, which the caller owns.

        A signal handler that raises just as this returns loses it, as any int. Raises `Error`
        (``BAD_CTRL_MESG``), with all that came closed, for a message without one, with several, or
        with more than a byte, and if this process has no room for it (``EMFILE``).
        """
    @overload
    def receive_file(
        self,
        mode: None = None,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> BinaryIO:
        """Receive one descriptor and return a file that owns it, as `Descriptor.to_file` makes it.

        The arguments are checked first. Raises as `receive_fd` and that; the descriptor is closed.
        """
    @overload
    def receive_file(
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
    def receive_file(
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
    def receive_file(
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
    def receive_file(
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
    def receive_file(
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
    def receive_file(
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
    def receive_file(
        self,
        mode: str | None,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> IO[Any]: ...
    def receive_conn(self) -> socket.socket:
        """Receive one descriptor and return a socket that owns it, as `Descriptor.to_conn` does.

        Raises as `receive_fd` and that; the descriptor is closed.
        """
    def transfer(
        self, *items: int | HasFileno, data: ReadableBuffer | None = None, keep: bool = False
    ) -> None:
        """Send a message: bytes, and any number of descriptors with them.

        Each item is an int, a `Descriptor`, a file, a socket, or anything with ``fileno()`` and
        ``close()``; files are prepared as by `transfer_file`. On success each is closed through
        its own object, an int by its number; what stands twice is sent twice and closed once.

        ``data`` is any bytes-like object, sent whole however long it is, on a stream with the
        descriptors at its first byte; without it, that is one NUL. An empty one is sent as it is
        where the socket keeps messages apart.

        Raises `Error`, with everything open and the caller's: ``BAD_CTRL_MESG`` for more than
        `MAX_FDS` items; ``FAILED_TRANSFER`` if an object could not be prepared, or the message was
        not sent, or only ``sent`` bytes of it: then the conduit sends no more, since the stream is
        broken there. ``FAILED_CLOSE`` if all was sent, but something was not closed well here, or a
        number that had to wait may be another file's (another thread closed it), which is left
        alone. `DescriptorTypeError` also for what cannot be closed and is not to be kept;
        `ValueError` for nothing to send, or an empty ``data`` on a stream; `TypeError` or
        `BufferError` for ``data`` that is not bytes-like or not contiguous.
        """
    def _send(
        self,
        items: tuple[int | HasFileno, ...],
        data: ReadableBuffer | None,
        keep: bool,
        deadline: float | None,
    ) -> int:
        """Send as `transfer`, until a deadline as that of `_receive_by`."""
    def _receive_by(self, max_data: int, max_fds: int, deadline: float | None = None) -> Message:
        """Receive as `receive`, until a time of `monotonic`; None leaves it to the timeout."""
    def receive_exactly(self, size: int, max_fds: int = ...) -> Message:
        """Receive so many bytes, never one more, and the descriptors that came with them.

        Where a protocol says how long what follows is, this keeps the descriptors of one message
        apart from the next's. What had come when a deadline, a signal handler or a cancellation
        ends this stays, for the next call of it; until then no other call receives. Of packets,
        as many as make up the size.

        Raises as `receive`. `PeerClosedError` says how many bytes came before the end; with that,
        and with more than ``max_fds`` descriptors, all that came is lost and closed.
        """
    def __iter__(self) -> Iterator[Message]: ...
    def shutdown(self, how: int = ...) -> None:
        """End what is sent, so that the peer comes to the end, or ``SHUT_RD``, ``SHUT_RDWR``.

        See ``shutdown(2)``. All processes that share the socket are affected.
        """
    def receive(self, max_data: int = 65536, max_fds: int = ...) -> Message:
        """Receive one message: what one ``recvmsg(2)`` returns.

        ``max_data`` is the most bytes, at least 1, and ``max_fds`` the most descriptors to take.
        Packets come as they were sent. A stream has no boundaries: what comes is what has arrived,
        up to the descriptors of one message; bytes sent before may stand in front of it, and a
        long payload comes in pieces.

        Raises `Error` (``BAD_CTRL_MESG``), with all that came closed, and the conduit works on: for
        more than ``max_fds`` descriptors; ``EMSGSIZE`` for a packet longer than ``max_data``;
        ``EMFILE`` if this process has no room. `ValueError` for an impossible limit.
        """

@final
class Send(Waiter):
    """One message on its way out: Send(conduit, items, data, keep), as `Conduit.transfer`."""

    def __new__(
        cls,
        conduit: Conduit | None = None,
        items: tuple[int | HasFileno, ...] | None = None,
        data: ReadableBuffer | None = None,
        keep: bool = False,
    ) -> Self: ...
    @property
    def sent(self) -> int:
        """How many bytes have left."""
    def step(self, wake: Callable[[], object] | None = None) -> int:
        """Send what the socket takes at once; 0 once all has left, and the items are closed.

        Else what to wait for: ``POLLOUT``; `PAUSE`, just a moment; `QUEUED`, the turn, of which
        ``wake()`` tells, in whatever thread. Raises as `Conduit.transfer`, and is then cancelled.
        """
    def cancel(self) -> None:
        """Give up, unless all has left. If some of it has, the conduit sends no more.

        From anywhere: a step under way, in another thread or under a signal handler, ends with it.
        """
