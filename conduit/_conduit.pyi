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

    Close it (or use ``with``), turn it into a file (`to_file`) or a socket (`to_conn`), or take the
    number out (`detach`). If it is dropped while open, it is closed with a `ResourceWarning`.
    While a call moves it, it looks closed; if that call fails, it is open again. A method that
    needs it open raises `Error` (``NO_FD``) if it is closed.

    Descriptor(fd, name="") takes ownership of the number and sets close-on-exec. Anything but an
    int is a `DescriptorTypeError`.
    """

    __signature__: ClassVar[Signature]
    def __init__(self, fd: int, name: str = "") -> None: ...
    @property
    def name(self) -> str:
        """The name it was given by the program, by systemd or over a `Channel`; else ""."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    @property
    def closed(self) -> bool:
        """Whether it was closed, detached, or made into another object."""
    @property
    def kind(self) -> str:
        """The type of the open file, as ``fstat(2)`` and, on Linux, ``/proc`` report it.

        ``"regular file"``, ``"directory"``, ``"fifo"``, ``"socket"``, ``"character device"``,
        ``"block device"``, ``"symlink"`` (opened with ``O_PATH``). For files without a path Linux
        reports ``"memfd"``, ``"eventfd"``, ``"epoll"``, ``"timerfd"``, ``"signalfd"``,
        ``"inotify"``, ``"pidfd"``, ``"io_uring"`` and others; if unknown, it is ``"anonymous"``.
        `Error` (``UNKNOWN``) if fstat(2) fails.
        """
    def is_same_file(self, other: int | HasFileno) -> bool:
        """Whether both refer to one open file description, as duplicates do (two opens do not).

        Where the system cannot tell, the inode decides: on Linux before 6.10 in a sandbox without
        kcmp(2), and on other systems.
        """
    def fileno(self) -> int:
        """Return the number; this object still owns it."""
    def detach(self) -> int:
        """Return the number, which the caller now owns. `Error` while another call uses it."""
    def close(self) -> None:
        """Close it; a second `close` does nothing. Raises ``FAILED_CLOSE`` as `Conduit.close`."""
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

        The arguments are those of ``open()``; ``name`` is the file's ``name``. Without a mode, the
        file is binary and allows what the descriptor allows. Nothing is truncated; ``"a"`` seeks to
        the end.

        A descriptor that reads and writes and has no offset (a socket, a terminal) becomes an
        `io.BufferedRWPair`. ``O_NONBLOCK`` stays set, since the sender may need it, but the file
        blocks all the same; only with ``buffering=0`` does it return None. Raises `Error`
        (``BAD_CLONE``) if the descriptor does not allow the mode, and what ``open()`` raises. The
        Descriptor is then unchanged.
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
    def _mode(self) -> int:
        """Return the ``st_mode``, or minus the errno. No thread can close it during the call."""
    def _open_as(self, arguments: tuple[Any, ...] | None, close: bool) -> Any:
        """Turn it into a file, or for None a socket; on failure ``close`` it or leave it open."""
    def to_conn(self) -> socket.socket:
        """Return a `socket.socket` that owns the descriptor from now on.

        It has the descriptor's family, type and protocol. ``O_NONBLOCK`` stays as it is, and the
        timeout matches it: 0.0 if set, else None. `Error` (``BAD_CLONE``) if it is not a socket;
        the Descriptor is then unchanged.
        """

@final
class Message:
    """A received message; as a context manager, it closes the descriptors not taken out of it."""

    __signature__: ClassVar[Signature]
    def __new__(
        cls, data: bytes = b"", fds: Iterable[Descriptor] = (), sender: Peer | None = None
    ) -> Self: ...
    @property
    def sender(self) -> Peer | None:
        """The process that sent it, where the socket passes credentials, as `Conduit.bind`'s does.

        The kernel attaches it to each message (``SCM_CREDENTIALS``), so datagrams have it too. A
        user not mapped in this user namespace shows as the overflow uid, 65534: it may be anyone.
        """
    @property
    def data(self) -> bytes:
        """The bytes; empty if the message had none."""
    @property
    def fds(self) -> tuple[Descriptor, ...]:
        """The received descriptors, in the order they were sent."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
    def close(self) -> None:
        """Close the descriptors not taken out; then raise the first failure, if any."""

@final
class Conduit:
    """One end of a Unix socket that carries open descriptors to and from another process.

    Conduit(fd, name="") borrows the number ``fd`` of a Unix socket: `close` leaves it open. The
    other constructors say what they own. The name appears in the `repr` and in every error.

    Sending moves a descriptor: once the system has taken the message, it is closed here; if the
    send fails, it is open and the caller's. With ``keep`` it is shared, and stays open here too.
    Receiving returns exactly what was sent, or closes all that arrived and raises. Received
    descriptors are close-on-exec and never 0, 1 or 2.

    Calls wait no longer than `timeout`. While they wait, signal handlers run and may raise, and
    `close` in another thread ends them at once. Several threads may call; those that wait to send
    are served first in, first out. ``O_NONBLOCK`` makes no difference and is left as it is. A
    stream socket gets ``SO_OOBINLINE``, without which a descriptor may be lost unseen.

    Every call raises `Error`: ``NO_FD`` if the conduit is closed or an argument has no descriptor
    (`DescriptorTypeError` if its type never has one); ``FAILED_TRANSFER`` if the system call fails:
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
        """Return a conduit over a handle. ``source`` owns a borrowed fd; ``place`` is its path."""
    @staticmethod
    def _accept(handle: Handle, timeout: float | None = None) -> Conduit:
        """Accept a connection on a handle over a non-blocking listening socket; for `Listener`."""
    @classmethod
    def from_file(cls, file: HasFileno, *, name: str | None = None) -> Conduit:
        """Borrow the descriptor of any object with ``fileno()``, and keep a reference to it.

        `close` drops the reference and leaves the descriptor open. The default name is the file's.
        """
    @classmethod
    def from_conn(cls, conn: HasFileno, *, name: str = "") -> Conduit:
        """Duplicate the descriptor of any object with ``fileno()``; the object stays as it is.

        The conduit owns the duplicate (close-on-exec). If the object has ``gettimeout()``, the
        conduit gets its timeout. Raises `Error` (``BAD_CLONE``) if duplicating fails.
        """
    @classmethod
    def pair(cls, *, type: int = ...) -> tuple[Conduit, Conduit]:
        """Return two conduits that are connected to each other, as ``socketpair(2)`` makes them.

        ``SOCK_SEQPACKET`` keeps messages apart. Raises `Error` (``NO_FD``) if there is no pair.
        """
    @classmethod
    def bind(cls, path: StrOrBytesPath, *, mode: int = 0o600, name: str = "") -> Conduit:
        """Return a datagram socket to receive on, bound at a path, which `close` removes.

        The path is made and removed as a `Listener`'s, and is the default name. Each message has
        its `Message.sender`. Raises `Error` (``NO_FD``) as `Listener`.
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

        ``timeout`` is how many seconds to wait for room in the listener's backlog: None for ever, 0
        not at all. It becomes the conduit's timeout. With ``wait``, the call also waits for a
        socket to listen there. Raises `Error` (``NO_FD``) if there is no connection: ``ENOENT``,
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
        """The `Peer` (pid, uid, gid) as of connect(2) (``SO_PEERCRED``); `Error` without one."""
    @property
    def timeout(self) -> float | None:
        """How many seconds a call may wait: None for ever, 0 not at all (`WouldBlockError`).

        They count from its first wait; then `TransferTimeoutError`. A new value holds from the next
        call on. A negative number or NaN is a `ValueError`.
        """
    @timeout.setter
    def timeout(self, timeout: float | None) -> None: ...
    def fileno(self) -> int:
        """Return the number of the socket; the conduit still owns it."""
    def close(self) -> None:
        """Close what the conduit owns, and end the calls that wait in other threads.

        Those calls raise `Error` (``NO_FD``), and the last one to end closes the socket. A borrowed
        descriptor is left open. A second `close` does nothing. `Error` (``FAILED_CLOSE``) if
        close(2) fails, or if other code has closed the number (a file that has it now is left
        alone); the conduit is closed all the same.
        """
    def transfer_fd(self, fd: int, *, keep: bool = False) -> None:
        """Send one descriptor by number; no object may own the number. See `transfer`."""
    def transfer_file(self, file: HasFileno, *, keep: bool = False) -> None:
        """Send an open file; on success its ``close()`` is called. See `transfer`.

        It is flushed first, and its offset is set to where the program stopped reading, not to
        where the buffer did. With ``keep``, both processes share that offset.

        A file with a buffer that cannot be put back is refused (``FAILED_TRANSFER``), unchanged: a
        pipe's, or one in the middle of what an encoding decodes at once. So is any reader that may
        have a buffer of its own, except those of `io` over a file or a socket.
        """
    def transfer_conn(self, conn: HasFileno, *, keep: bool = False) -> None:
        """Send a socket, or anything with ``fileno()`` and ``close()``; on success it is closed.

        Remove a socket from its event loop first, or the loop goes on watching the number. A
        socket of an asyncio or uvloop transport can only be shared. A TLS socket is refused: its
        state cannot travel. See `transfer`.
        """
    def receive_fd(self) -> int:
        """Receive one descriptor and return its number, which the caller owns.

        If a signal handler raises just as this returns, the number is lost and stays open. Raises
        `Error` (``BAD_CTRL_MESG``), with all that came closed, for a message with no descriptor,
        with several, or with more than one byte, and if this process has no room (``EMFILE``).
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

        The arguments are checked before anything is received. Raises as `receive_fd` and
        `Descriptor.to_file`, with the descriptor closed.
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

        Raises as `receive_fd` and `Descriptor.to_conn`, with the descriptor closed.
        """
    def transfer(
        self, *items: int | HasFileno, data: ReadableBuffer | None = None, keep: bool = False
    ) -> None:
        """Send a message: bytes, and any number of descriptors with them.

        Each item is an int, a `Descriptor`, a file, a socket, or anything with ``fileno()`` and
        ``close()``; files are prepared as by `transfer_file`. On success each is closed by its own
        ``close()``, an int by close(2). An item given twice is sent twice and closed once.

        ``data`` is any bytes-like object of any length, by default one NUL byte. All of it is sent;
        on a stream the descriptors go with its first byte. It may be empty where the socket keeps
        messages apart.

        Raises `Error`, with everything open and the caller's: ``BAD_CTRL_MESG`` for more than
        `MAX_FDS` items; ``FAILED_TRANSFER`` if an object could not be prepared or the message was
        not sent. If only ``sent`` bytes of it were, the stream is broken there and the conduit
        sends no more. ``FAILED_CLOSE`` if all was sent but a close failed here, or if another
        thread closed an int while it waited: the number may be another file's, and is left alone.
        `DescriptorTypeError` also for an object without ``close()``, unless ``keep``; `ValueError`
        for nothing to send or empty ``data`` on a stream; `TypeError` or `BufferError` for ``data``
        that is not bytes-like or not contiguous.
        """
    def _send(
        self,
        items: tuple[int | HasFileno, ...],
        data: ReadableBuffer | None,
        keep: bool,
        deadline: float | None,
    ) -> int:
        """Send as `transfer`, with a deadline as in `_receive_by`."""
    def _receive_by(self, max_data: int, max_fds: int, deadline: float | None) -> Message:
        """Receive as `receive`, until a time of `monotonic`; None: as the timeout says."""
    def receive_exactly(self, size: int, max_fds: int = ...) -> Message:
        """Receive exactly ``size`` bytes, and the descriptors that came with them.

        For protocols that say the length of what follows: it keeps the descriptors of one message
        apart from those of the next. If a deadline, a signal handler or a cancellation ends it, the
        next call continues with what had come; until then other receiving calls raise. On packets,
        it receives as many as make up the size.

        Raises as `receive`. `PeerClosedError` says how many bytes came before the end. On that, and
        on more than ``max_fds`` descriptors, all that had come is closed and lost.
        """
    def __iter__(self) -> Iterator[Message]: ...
    def shutdown(self, how: int = ...) -> None:
        """Shut down sending, so that the peer reads the end; or ``SHUT_RD``, ``SHUT_RDWR``.

        See ``shutdown(2)``. It affects all processes that share the socket.
        """
    def receive(self, max_data: int = 65536, max_fds: int = ...) -> Message:
        """Receive one message: what one ``recvmsg(2)`` returns.

        ``max_data`` is the most bytes, at least 1, and ``max_fds`` the most descriptors to take.
        Packets come as they were sent. A stream has no boundaries: this returns the bytes that have
        arrived, with the descriptors of at most one message. Bytes sent earlier may come in front
        of that message's, and a long payload comes in pieces.

        Raises `Error` (``BAD_CTRL_MESG``), with all that came closed, and can be called again: for
        more than ``max_fds`` descriptors; ``EMSGSIZE`` for a packet longer than ``max_data``;
        ``EMFILE`` if this process has no room. `ValueError` for an impossible limit.
        """

@final
class Send(Waiter):
    """A message being sent. Send(conduit, items, data, keep) takes what `Conduit.transfer` does."""

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
        """Send what the socket takes now; return 0 once all has left and the items are closed.

        Otherwise return what to wait for: ``POLLOUT``; `PAUSE`, a moment; `QUEUED`, the turn to
        send, until any thread calls ``wake()``. Raises as `Conduit.transfer`; then it is cancelled.
        """
    def cancel(self) -> None:
        """Give up, unless all has left. If only a part has left, the conduit sends no more.

        May be called in another thread or a signal handler: a step under way ends the send then.
        """
