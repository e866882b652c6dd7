# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
# cython: annotation_typing=False
"""The public classes: which object owns which descriptor, and one message out or in.

Theory of operation
===================

**One owner.** A descriptor belongs to one object at a time. A received one belongs to its
`Descriptor` before any Python code, and so any signal handler, can run: the object is made first,
and the fd put in after the system call. Memory that runs out therefore loses none.

**A message out** is a `Send`, blocking or not. It resolves its items once, to an fd and how that
is closed, and `step` makes one system call at a time and tells what to wait for. `Conduit.transfer`
waits in between, `conduit.aio` awaits. One descriptor that leaves at once, by far the most common
message, needs no `Send`: ``_transfer_one``.

**Items** stay the caller's until all of the message has left, and are then closed:

- a `Descriptor` that is moved is *taken out*: it looks closed to others, so that of many threads
  that move one, one does. If the message fails, it is put back, unless it was closed meanwhile.
- a `Descriptor` that is shared is *lent* for the length of one system call: closed under it, it
  is closed after it.
- a file, a socket, any object with ``fileno()`` and ``close()`` is closed through itself.
- an int has no owner here: only the caller knows. A message that has to wait holds duplicates,
  and sends these, so that a number closed and reused meanwhile does not send another's file. In
  the end the number is closed only if it is known to name the same open file still. Without a
  duplicate to compare with, or a system that tells, it is left open, and FAILED_CLOSE says so.

What a `Send` has taken out or duplicated stands in ``own``, in the place of its item, and in the
list of fds that a forked child closes (see ``_handle``).

**Exceptions.** What a user's object raises in ``fileno()`` or ``close()`` becomes an `Error`,
unless a signal handler raised it (`errors.from_handler`). Python code runs only before anything
has left, and after all that is closed in C was closed.
"""

import socket
from io import FileIO, IOBase

cimport cython
from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check, PyLong_FromLong
from cpython.object cimport PyObject_AsFileDescriptor
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_FromObject
from libc.errno cimport (
    EAGAIN, EBADF, ECONNABORTED, ECONNRESET, EINTR, EINVAL, EMFILE, EMSGSIZE, ENOBUFS, ETIMEDOUT,
)
from libc.limits cimport INT_MAX
from libc.math cimport isnan
from posix.fcntl cimport F_GETFD, F_SETFD, FD_CLOEXEC, fcntl
from posix.types cimport gid_t, pid_t, uid_t

from conduit._handle cimport (
    BUSY, PAUSE, QUEUED, TURN, Handle, HeldFds, Waiter, deadline_after, forks, hold_fds,
    in_main_thread, release_fds, warn_unclosed,
)
from conduit._posix cimport (
    CONDUIT_CMSG_CLOEXEC, CONDUIT_MAX_FDS, CONDUIT_SOCK_CLOEXEC, POLLIN, POLLOUT, SOCK_DGRAM,
    SOCK_SEQPACKET, SOCK_STREAM, conduit_at_end, conduit_mark_packets, conduit_unmark_packets,
)
from conduit._syscalls cimport (
    NEVER, SLOTS, RecvResult, accept_fd, close_fd, close_fds, close_same, connect_fd, dup_fd,
    now, peer_of, recv_message, send_message, socket_fd, socket_pair,
)

from _operator import index
from _socket import socket as c_socket

from conduit import mistakes, objects
from conduit.errors import (
    Error, ErrType, PeerClosedError, from_errno, from_handler, prefix_message,
)
from conduit.paths import address_from
from conduit.peer import Peer
from conduit.signature import class_signature

# For the steps of conduit.aio.
globals()["PAUSE"], globals()["QUEUED"] = PAUSE, QUEUED


cdef enum:
    # How an item of a message is closed once it was sent.
    NOT = 0
    AS_INT = 1
    AS_OBJECT = 2
    AS_TAKEN = 3
    # A Descriptor that is shared: to be returned after the system call.
    LENT = 4
    # How long connect() waits in the main thread before it looks for signals, in nanoseconds.
    CONNECT_SLICE = 250000000


cdef int fd_from(object value, str call) except -1:
    """The descriptor an int argument of a call stands for; only ints are (1.5 and True are not)."""
    cdef int overflow = 0
    cdef long long number
    if not PyLong_Check(value) or PyBool_Check(value):
        raise mistakes.not_an_int(call, value)
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not 0 <= number <= INT_MAX:
        raise Error(f"there is no descriptor {value}", ErrType.NO_FD)
    return <int>number


cdef int fd_of(object obj) except -1:
    """The descriptor an object has right now."""
    try:
        return PyObject_AsFileDescriptor(obj)
    except Exception as exc:
        if from_handler(exc):
            raise  # pragma: no cover - a signal handler's
        raise Error(f"{obj!r} has no descriptor: {exc}", ErrType.NO_FD) from exc


cdef int type_from(object value) except -1:
    """The type of a socket: an int, or an enum of ints."""
    return index(value)


cdef double seconds_from(object timeout) except? -2:
    """A timeout in seconds; -1 for None."""
    cdef double seconds
    if timeout is None:
        return -1
    seconds = timeout
    if isnan(seconds) or seconds < 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    return seconds


cdef str name_from(object name):
    """A name as an exact str, also of a subclass."""
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    return PyUnicode_FromObject(name)


cdef str label(str name):
    """What errors call a conduit."""
    return f"conduit {name!r}" if name else "conduit"


cdef object close_owner(object owner):
    """Close a file or socket that was sent; None, or the exception to raise for it."""
    cdef object failure
    try:
        owner.close()
        return None
    except BaseException as exc:
        if not from_handler(exc):
            failure = Error(
                f"{owner!r} was sent, but closing it here failed: {exc}", ErrType.FAILED_CLOSE,
                exc.errno if isinstance(exc, OSError) else None,
            )
            failure.__cause__ = exc
            return failure
        if isinstance(owner, (IOBase, c_socket)):
            # A handler struck in the middle. Python's own may be closed twice.
            try:
                owner.close()
            except BaseException:  # pragma: no cover - a signal handler's
                pass  # pragma: no cover
        return exc


@cython.final
@cython.freelist(256)
cdef class Descriptor:
    """One descriptor that this object owns: it is closed with the object.

    What `Conduit.receive` returns. Close it, give it to a file (`to_file`) or a socket
    (`to_conn`), or take the number out (`detach`); left as a context manager it is closed. One
    that is dropped still open is closed too, with a `ResourceWarning`. While a call moves it, it
    looks closed; if that fails, it is open again.

    Descriptor(fd) takes ownership of the number ``fd``, and makes it close-on-exec. It raises
    `DescriptorTypeError` for anything but an int, and `Error` (``NO_FD``) for a number that
    cannot be one.
    """

    cdef int fd
    # How many calls have it lent, and whether it was closed under them: the last one closes it.
    cdef int users
    cdef bint close_pending
    # Whether a call has taken the fd out, and will put it back if it fails.
    cdef bint taken
    cdef bint initialised
    cdef unsigned long forks
    cdef object __weakref__

    def __cinit__(self):
        self.fd = -1
        self.forks = forks

    @class_signature
    def __signature__(self, fd: int) -> None: pass  # pragma: no cover

    def __init__(self, fd: int) -> None:
        cdef int number = fd_from(fd, "Descriptor")
        cdef bint initialised
        with cython.critical_section(self):
            initialised = self.initialised
            if not initialised:
                self.initialised = True
                self.fd = number
        if initialised:
            raise Error("this Descriptor was initialised before", ErrType.NO_FD)
        fcntl(number, F_SETFD, <int>FD_CLOEXEC)

    def __dealloc__(self):
        # No call uses it: one that does holds this object.
        cdef int fd = self.fd
        if fd >= 0:
            with nogil:
                close_fd(fd)
            # Without a source: a reference to this object must not outlive it.
            warn_unclosed(f"<conduit.Descriptor {fd}>", NULL, 1)

    def __repr__(self) -> str:
        cdef int fd = self._number()
        return f"<conduit.Descriptor {'closed' if fd < 0 else fd}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it owns nothing any more: closed, detached, or made into another object."""
        return self._number() < 0

    @property
    def kind(self) -> str:
        """What it is, as ``fstat(2)`` says.

        ``"regular file"``, ``"directory"``, ``"fifo"``, ``"socket"``, ``"character device"``,
        ``"block device"``, ``"symlink"`` (opened with ``O_PATH``). Of what has no name, Linux
        tells ``"memfd"``, ``"eventfd"``, ``"epoll"``, ``"timerfd"``, ``"signalfd"``,
        ``"inotify"``, ``"pidfd"``, ``"io_uring"`` and others where ``/proc`` is mounted; else it
        is ``"anonymous"``.

        Raises `Error`: ``NO_FD`` if it is closed, ``UNKNOWN`` if the system does not tell.
        """
        cdef int fd = self.fileno()
        try:
            kind = objects.kind_of(fd)
        except Error:
            self.fileno()
            raise
        # Owned still, it was so all the time, and no other file's.
        self.fileno()
        return kind

    def fileno(self) -> int:
        """Return the number, which stays owned by this object.

        Raises `Error` (``NO_FD``) if it is closed.
        """
        cdef int fd = self._number()
        if fd < 0:
            raise self._unavailable()
        return fd

    def detach(self) -> int:
        """Return the number and forget it: the caller owns it, as after ``socket.detach()``.

        Raises `Error` (``NO_FD``) if it is closed, or if another thread is sending it.
        """
        cdef int fd = self._take()
        if fd < 0:
            raise self._unavailable()
        self._forget()
        return fd

    def close(self) -> None:
        """Close it. A second time does nothing.

        Raises `Error` (``FAILED_CLOSE``) if the system reports a failure (a full disk that
        shows only now, a number closed elsewhere); it is closed for good all the same.
        """
        cdef int fd = self._end(), err = 0
        if fd >= 0:
            with nogil:
                err = close_fd(fd)
        if err:
            raise from_errno(-err, ErrType.FAILED_CLOSE, f"closing descriptor {fd}")

    def to_file(
        self, mode: str | None = None, buffering: int = -1, encoding: str | None = None,
        errors: str | None = None, newline: str | None = None, *, name: str | None = None,
    ) -> IO[Any]:
        """Return a file object that owns the descriptor from now on; this one is closed.

        The arguments are those of ``open()``. Without a mode, the file is binary and allows
        what the descriptor allows: ``"rb"``, ``"wb"`` or ``"r+b"``. Nothing is truncated, and no
        offset is moved, but for ``"a"``, which goes to the end. ``name`` becomes the file's
        ``name``, which is the number otherwise.

        A descriptor that goes both ways and has no offset (a socket, a terminal) becomes an
        `io.BufferedRWPair`. One that does not wait (``O_NONBLOCK``, as pipes of event loops) is
        left so, since it is the sender's as well, but the file waits; with ``buffering=0`` it
        returns None as any raw file.

        Raises `Error` (``BAD_CLONE``) if the descriptor does not allow the mode or is a
        directory, (``NO_FD``) if it is closed; `ValueError`, `TypeError` or `LookupError` for
        arguments that ``open()`` would refuse. After any of these the Descriptor is as it was.
        """
        objects.check_file_arguments(mode, buffering, encoding, errors, newline)
        return open_file(self, mode, buffering, encoding, errors, newline, name)

    def to_conn(self) -> socket.socket:
        """Return a `socket.socket` that owns the descriptor from now on; this one is closed.

        Family, type and protocol are the socket's own. Its timeout says what ``O_NONBLOCK`` of
        the descriptor is, and changes nothing about it: None if it waits, 0.0 if it does not.

        Raises `Error` (``BAD_CLONE``) if the descriptor is no socket, and (``NO_FD``) if it is
        closed. The Descriptor is then as it was.
        """
        return open_socket(self)

    cdef int _number(self) noexcept:
        cdef int fd
        with cython.critical_section(self):
            fd = -1 if self.close_pending else self.fd
        return fd

    cdef object _unavailable(self):
        cdef bint used
        with cython.critical_section(self):
            used = self.taken or (self.users and not self.close_pending)
        return Error(
            "another call is using this Descriptor" if used else
            "this Descriptor is closed, or something else owns its number now", ErrType.NO_FD,
        )

    cdef int _end(self) noexcept:
        """Own nothing any more; the fd, for the caller to close, or -1 if a call does."""
        cdef int fd = -1
        with cython.critical_section(self):
            self._sync()
            self.taken = False
            if self.users:
                self.close_pending = True
            else:
                fd, self.fd = self.fd, -1
        return fd

    cdef int _take(self) noexcept:
        """The fd, for a call that will `_put_back` or `_forget`; -1 if it is not to be had."""
        cdef int fd = -1
        with cython.critical_section(self):
            self._sync()
            if not self.users and self.fd >= 0:
                fd, self.fd = self.fd, -1
                self.taken = True
        return fd

    cdef int _put_back(self, int fd) noexcept:
        """Own the fd again; or it is for the caller to close, if this was closed meanwhile."""
        with cython.critical_section(self):
            if self.taken:
                self.taken = False
                self.fd, fd = fd, -1
        return fd

    cdef void _forget(self) noexcept:
        with cython.critical_section(self):
            self.taken = False

    cdef int _lend(self) noexcept:
        """The fd, for a call that will `_return` it; -1 if it is not to be had."""
        cdef int fd = -1
        with cython.critical_section(self):
            self._sync()
            if self.fd >= 0 and not self.close_pending:
                self.users += 1
                fd = self.fd
        return fd

    cdef int _return(self) noexcept:
        """End what `_lend` began; the fd if the caller is to close it now, else -1."""
        cdef int fd = -1
        with cython.critical_section(self):
            self._sync()
            if self.users:
                self.users -= 1
            if self.close_pending and not self.users:
                self.close_pending = False
                fd, self.fd = self.fd, -1
        return fd

    cdef void _sync(self) noexcept:
        """Forget the calls of the parent's threads, none of which is in a forked child."""
        if self.forks != forks:
            self.forks = forks
            self.users = 0
            self.taken = False
            if self.close_pending:
                self.close_pending = False
                close_fd(self.fd)
                self.fd = -1


cdef void close_returned(int fd) noexcept:
    if fd >= 0:
        with nogil:
            close_fd(fd)


@cython.final
cdef class Message:
    """What one message brought: its bytes, and its descriptors in the order they were sent.

    A context manager: leaving it closes the descriptors that were not taken out, that is,
    detached or made into files or sockets. Without it, each descriptor that is dropped closes
    itself, with a `ResourceWarning`.
    """

    cdef bytes _data
    cdef tuple _fds

    @class_signature
    def __signature__(
        self, data: bytes = b"", fds: Iterable[Descriptor] = ()
    ) -> None: pass  # pragma: no cover

    def __cinit__(self, bytes data not None: bytes = b"", fds: Iterable[Descriptor] = ()) -> None:
        self._data = data
        self._fds = tuple(fds)
        for descriptor in self._fds:
            if not isinstance(descriptor, Descriptor):
                raise TypeError(f"fds must hold Descriptors, not {descriptor!r}")

    @property
    def data(self) -> bytes:
        """The bytes; empty if the message had none."""
        return self._data

    @property
    def fds(self) -> tuple[Descriptor, ...]:
        """A `Descriptor` for each one that came, in the order they were sent."""
        return self._fds

    def __repr__(self) -> str:
        return f"<conduit.Message of {len(self._data)} bytes and {len(self._fds)} descriptors>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors that were not taken out. A second time does nothing.

        Raises `Error` (``FAILED_CLOSE``), once all are closed, if the system reports a failure.
        """
        cdef int fds[SLOTS]
        cdef int count = 0, err, failed = 0
        cdef Descriptor descriptor
        cdef Py_ssize_t left = len(self._fds)
        for descriptor in self._fds:
            left -= 1
            fds[count] = descriptor._end()
            if fds[count] >= 0:
                count += 1
            if count == SLOTS or not left:
                with nogil:
                    err = close_fds(fds, count)
                failed = failed or err
                count = 0
        if failed:
            raise from_errno(-failed, ErrType.FAILED_CLOSE, f"closing what came with {self!r}")


cdef Descriptor empty_descriptor():
    """A Descriptor to put an fd in that is yet to come."""
    cdef Descriptor descriptor = Descriptor.__new__(Descriptor)
    descriptor.initialised = True
    return descriptor


cdef object open_raw(int fd, mode, buffering, owner):
    """Make a raw file on an fd, and let it own that or not; the last step runs in C."""
    try:
        raw_class, raw_mode = objects.raw_file(fd, mode, buffering)
        return raw_class(fd, raw_mode, owner)
    except OSError as exc:
        if isinstance(exc, Error) or from_handler(exc):
            raise
        raise from_errno(exc.errno or EINVAL, ErrType.BAD_CLONE, f"descriptor {fd}") from exc


cdef object open_file(
    Descriptor descriptor, mode, buffering, encoding, errors, newline, name
):
    """Make a file of a Descriptor, which owns the fd until the last step, which runs in C."""
    cdef HeldFds node
    cdef int fd = descriptor._take()
    cdef object file
    if fd < 0:
        raise descriptor._unavailable()
    node.fds = &fd
    node.count = 1
    node.link = NULL
    hold_fds(&node)
    try:
        raw = open_raw(fd, mode, buffering, False)
        file = objects.open_file(raw, mode, buffering, encoding, errors, newline, name)
        if fd < 0:
            # The child of a handler that forked just now: the parent's fd was closed in it.
            raise Error("a handler has forked", ErrType.NO_FD)  # pragma: no cover
        FileIO.__init__(raw, fd, raw.mode)
        if name is not None:
            raw.name = name
    except BaseException:
        release_fds(&node)
        close_returned(descriptor._put_back(fd))
        raise
    release_fds(&node)
    descriptor._forget()
    return file


cdef object open_socket(Descriptor descriptor):
    """Make a socket of a Descriptor, which owns the fd again if that is interrupted."""
    cdef HeldFds node
    sock = objects.blank_socket()
    cdef int fd = descriptor._take()
    if fd < 0:
        raise descriptor._unavailable()
    node.fds = &fd
    node.count = 1
    node.link = NULL
    hold_fds(&node)
    try:
        objects.fill_socket(sock, fd)
    except BaseException:
        release_fds(&node)
        # A signal handler may have raised once the object had the fd.
        if c_socket.fileno(sock) >= 0:
            c_socket.detach(sock)
        close_returned(descriptor._put_back(fd))
        raise
    release_fds(&node)
    descriptor._forget()
    return sock


@cython.final
@cython.no_gc_clear
cdef class Send(Waiter):
    """One message on its way out.

    Send(conduit, items, data, keep) takes what `Conduit.transfer` takes, and raises as that does.
    `step` sends what the socket takes, without waiting, until it returns 0; `cancel` gives up.
    """

    cdef Handle handle
    cdef tuple items
    cdef bint keep
    cdef bint viewed
    cdef Py_buffer view
    cdef const char *data
    cdef size_t size
    cdef size_t bytes_sent
    # What each item resolved to, how it is closed, and what this object itself holds for it.
    cdef int count
    cdef int fds[SLOTS]
    cdef char closing[SLOTS]
    cdef int own[SLOTS]
    # Their row in the list of fds that a forked child closes, and whether it was put there: the
    # links of a row are written by other threads too.
    cdef HeldFds node
    cdef bint listed
    # Whether the descriptors are still to go (with the first byte), and what goes for them.
    cdef bint fds_pending
    cdef int *sending
    # Whether a call was made, and one had to wait or took a part; how far the duplicates are.
    cdef bint tried
    cdef bint waited
    cdef int held
    cdef bint over
    cdef unsigned long forks

    def __cinit__(self, Conduit conduit=None, tuple items=None, data=None, bint keep=False):
        self.forks = forks
        self.node.fds = self.own
        self.sending = self.fds
        if conduit is None:
            return
        self.task = True
        self._load(conduit._handle, items, data, keep)

    def __dealloc__(self):
        if not self.over:
            self._cancel()

    cdef int _load(self, Handle handle, tuple items, object data, bint keep) except -1:
        """Resolve the items and pin the buffer; a failure leaves all as it was."""
        self.handle = handle
        self.keep = keep
        self.items = items
        try:
            if data is not None:
                # First: its __buffer__() may run anything, as nothing must once fds are known.
                PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
                self.viewed = True
                self.data = <const char *>self.view.buf
                self.size = self.view.len
                if not self.size:
                    self._check_packets()
            else:
                self.data = b"\0"
                self.size = 1
            self._resolve()
            if data is None and not self.count:
                raise ValueError("there is nothing to send: neither descriptors nor data")
        except BaseException:
            self._cancel()
            raise
        return 0

    cdef int _check_packets(self) except -1:
        """Raise if the socket cannot carry an empty message."""
        cdef int kind
        self.handle.enter()
        kind = self.handle.kind
        self.handle.leave()
        if kind == SOCK_STREAM:
            raise ValueError(
                "a stream carries no empty message; without data, one NUL byte goes with the "
                "descriptors"
            )
        return 0

    cdef void _load_one(self, Handle handle, int fd, object item, bint keep):
        """Take one descriptor whose fd is known."""
        self.handle = handle
        self.keep = keep
        self.items = (item,)
        self.data = b"\0"
        self.size = 1
        self._add(fd, AS_INT if PyLong_Check(item) else AS_OBJECT)

    cdef void _add(self, int fd, char closing) noexcept:
        self.fds[self.count] = fd
        self.closing[self.count] = closing
        self.own[self.count] = fd if closing == AS_TAKEN else -1
        self.count += 1
        self.node.count = self.count
        self.fds_pending = True
        if closing == AS_TAKEN and not self.listed:
            self.listed = True
            hold_fds(&self.node)

    cdef int _resolve(self) except -1:
        """Make the items ready to leave and find the fd of each."""
        cdef Py_ssize_t count = len(self.items)
        cdef Descriptor descriptor
        cdef bint plain = True
        cdef int i = 0, fd, itself = self.handle.number()
        if count > CONDUIT_MAX_FDS:
            raise from_errno(
                EINVAL, ErrType.BAD_CTRL_MESG, f"{self.handle.describe()}: sending",
                f"one message carries at most {CONDUIT_MAX_FDS} descriptors, not {count}",
            )
        try:
            for i in range(<int>count):
                item = self.items[i]
                if PyLong_Check(item):
                    self._add(fd_from(item, "transfer"), AS_INT)
                elif isinstance(item, Descriptor):
                    descriptor = <Descriptor>item
                    fd = descriptor._lend() if self.keep else descriptor._take()
                    if fd >= 0:
                        self._add(fd, LENT if self.keep else AS_TAKEN)
                    else:
                        self._add(self._fd_again(i), NOT)
                else:
                    objects.prepare(item, self.keep)
                    self._add(-1, AS_OBJECT)
                    plain = False
            if not plain:
                # Only now that nothing runs any more which could close or reopen one.
                for i in range(<int>count):
                    if self.closing[i] == AS_OBJECT:
                        self.fds[i] = fd_of(self.items[i])
        except Error as exc:
            if count > 1:
                prefix_message(exc, f"item {i + 1} of {count}")
            raise
        for i in range(<int>count):
            if self.fds[i] == itself and itself >= 0:
                raise carries_itself(self.handle)
        return 0

    cdef int _fd_again(self, int place) except -1:
        """The fd of a Descriptor that is not to be had, if an earlier item has taken it."""
        cdef int i
        for i in range(place):
            if self.closing[i] == AS_TAKEN and self.items[i] is self.items[place]:
                return self.own[i]
        raise (<Descriptor>self.items[place])._unavailable()

    # Sending

    @property
    def sent(self) -> int:
        """How many bytes have left."""
        return self.bytes_sent

    def step(self, wake: Callable[[], object] | None = None) -> int:
        """Send what the socket takes; 0 once all has left, and the items are closed.

        Else what to wait for: ``POLLOUT``; `PAUSE`, just a moment; `QUEUED`, the turn. Without
        ``wake`` it does not stand in the queue then; with it, it does, and ``wake()`` is called,
        in whatever thread, when this is to be called again.

        Raises as `Conduit.transfer` does, and then it is cancelled.
        """
        cdef int events
        if wake is not None:
            self.wake = wake
        try:
            if self.tried:
                self.handle.check_open("sending", self.bytes_sent)
            self.handle.enter()
            try:
                events = self._step(wake is not None)
            finally:
                self.handle.leave()
        except BaseException:
            self._cancel()
            raise
        if not events:
            self._finish()
        return events

    def cancel(self) -> None:
        """Give up, unless all has left. If some of it has, the conduit sends no more."""
        self._cancel()

    cdef int run(self, double timeout) except -1:
        """Send it all, and wait as long as it takes; for a call that has entered the handle."""
        cdef long long deadline = 0
        cdef int events = -1
        try:
            while events:
                events = self._step(timeout != 0)
                if not events:
                    break
                if timeout == 0:
                    raise from_errno(
                        EAGAIN, ErrType.FAILED_TRANSFER, f"{self.handle.describe()}: sending",
                        "another thread is sending, and the timeout is 0" if events == QUEUED else
                        f"it took {self.bytes_sent} of {self.size} bytes, and the timeout is 0"
                        if self.bytes_sent else None, sent=self.bytes_sent,
                    )
                if not deadline:
                    deadline = deadline_after(timeout)
                if events == QUEUED:
                    self.handle.wait_turn(self, deadline)
                else:
                    self.handle.wait(
                        POLLOUT if events == POLLOUT else 0, deadline, "sending", self.bytes_sent
                    )
        except BaseException:
            self._cancel()
            raise
        self._finish()
        return 0

    cdef int _step(self, bint join) except -1:
        """Send what the socket takes; 0 once all has left, else what to wait for."""
        cdef Handle handle = self.handle
        cdef int fd = handle.fd, turn = TURN
        cdef ssize_t sent
        if self.tried or self.forks != forks:
            handle.check_open("sending", self.bytes_sent)
        if not self.granted:
            turn = BUSY if self.tried else handle.begin_send()
            if turn == TURN:
                self.granted = True
            elif turn == BUSY:
                turn = handle.acquire_send(self, join)
            self.tried = True
            if turn == BUSY:
                if join:
                    self._hold()
                return QUEUED
        handle.check_sound()
        while True:
            with nogil:
                sent = send_message(
                    fd, self.data + self.bytes_sent, self.size - self.bytes_sent,
                    self.sending, self.count if self.fds_pending else 0,
                )
            if sent >= 0:
                self.bytes_sent += sent
                # They went with the first byte, and go no second time.
                self.fds_pending = False
                if self.bytes_sent == self.size:
                    return 0
                # Not to be sent, but to compare the numbers with in the end.
                self._duplicate()
            elif sent == -EAGAIN or sent == -ENOBUFS:
                self._hold()
                if not self.granted and handle.acquire_send(self, join) == BUSY:
                    # Another thread was faster to wait for room on a packet socket.
                    return QUEUED  # pragma: no cover
                # BSDs run out of buffers without poll() knowing when they are back.
                return POLLOUT if sent == -EAGAIN else PAUSE
            elif sent == -EINTR:
                PyErr_CheckSignals()
                handle.check_open("sending", self.bytes_sent)
            else:
                self._raise(<int>-sent)

    cdef int _hold(self) except -1:
        """Send duplicates from now on, and return what was lent."""
        cdef int err
        if self.fds_pending and self.sending != self.own:
            err = self._duplicate()
            if err:
                self._raise(-err)
            self.sending = self.own
        return 0

    cdef int _duplicate(self) noexcept:
        """Duplicate what there is room for; 0, or the failure if that is not all.

        Only once, and before anything waits: later, a number may be another's.
        """
        if self.waited:
            return 0
        self.waited = True
        if self.count:
            hold_fds(&self.node)
        while self.held < self.count:
            if self.closing[self.held] != AS_TAKEN:
                self.own[self.held] = dup_fd(self.fds[self.held])
                if self.own[self.held] < 0:
                    return self.own[self.held]
                if self.closing[self.held] == LENT:
                    self.closing[self.held] = NOT
                    close_returned((<Descriptor>self.items[self.held])._return())
            self.held += 1
        return 0

    cdef int _raise(self, int err) except -1:
        """Raise what a system call failed with, naming the item that it is about."""
        cdef int i
        cdef str why = None
        if err == EBADF:
            why = "its own descriptor was closed elsewhere"
            for i in range(self.count if self.fds_pending else 0):
                if fcntl(self.fds[i], F_GETFD) < 0:
                    why = f"descriptor {self.fds[i]} (item {i + 1} of {self.count}) is not open"
                    break
        raise from_errno(
            err, ErrType.FAILED_TRANSFER, f"{self.handle.describe()}: sending", why,
            sent=self.bytes_sent,
        )

    # The end

    cdef void _release(self):
        """Release the buffer."""
        if self.viewed:
            self.viewed = False
            PyBuffer_Release(&self.view)

    cdef int _cancel(self) except? -1:
        """Give up: put back what was taken, close the duplicates, pass the turn on."""
        cdef int i
        if self.over or self.handle is None:
            return 0
        self.over = True
        if self.forks == forks and 0 < self.bytes_sent < self.size:
            self.handle.mark_broken()
        release_fds(&self.node)
        for i in range(self.count):
            if self.closing[i] == AS_TAKEN:
                self.own[i] = (<Descriptor>self.items[i])._put_back(self.own[i])
            elif self.closing[i] == LENT:
                close_returned((<Descriptor>self.items[i])._return())
        with nogil:
            close_fds(self.own, self.count)
        self._release()
        return self.handle.leave_queue(self)

    cdef int _finish(self) except -1:
        """All has left: pass the turn on, and close each item, once, or return it."""
        cdef int i, err, lost = -1, failed = 0
        self.over = True
        release_fds(&self.node)
        # Before an item is closed: the memory may be its own, as a mapping's.
        self._release()
        failure = None
        try:
            self.handle.leave_queue(self)
        except BaseException as exc:
            failure = exc
        for i in range(self.count):
            if self.closing[i] == LENT:
                self.own[i] = (<Descriptor>self.items[i])._return()
            elif self.closing[i] == AS_TAKEN:
                (<Descriptor>self.items[i])._forget()
        if not self.keep:
            lost = self._close_ints(&failed)
        with nogil:
            err = close_fds(self.own, self.count)
        failed = failed or err
        if failed:
            failure = failure or from_errno(
                -failed, ErrType.FAILED_CLOSE,
                f"{self.handle.describe()}: the message was sent, but closing a descriptor here",
            )
        elif lost >= 0:
            failure = failure or Error(
                f"{self.handle.describe()}: descriptor {lost} was sent, but meanwhile its number "
                "was closed or given to another file here, or the system cannot tell; it is left "
                "alone", ErrType.FAILED_CLOSE,
            )
        for i in range(0 if self.keep else self.count):
            if self.closing[i] == AS_OBJECT and self._is_first_object(i):
                exc = close_owner(self.items[i])
                # An interrupt is raised too, once nothing is left open.
                if exc is not None and (failure is None or not isinstance(exc, Error)):
                    failure = exc
        if failure is not None:
            raise failure
        return 0

    cdef int _close_ints(self, int *failed) noexcept:
        """Put the numbers that are to be closed into ``own``, or close those that were compared.

        The last number that is not known to be the caller's still, or -1.
        """
        cdef int i, err, highest = -1, lost = -1
        cdef bint plain = True
        for i in range(self.count):
            plain = plain and self.closing[i] == AS_INT
        for i in range(self.count):
            if self.closing[i] != AS_INT:
                continue
            if self.fds[i] > highest:
                highest = self.fds[i]
                if not plain and not self._is_first_int(i):
                    continue
            elif not self._is_first_int(i):
                continue
            if not self.waited:
                self.own[i] = self.fds[i]
                continue
            err = close_same(self.fds[i], self.own[i]) if self.own[i] >= 0 else -EBADF
            if err == -EBADF:
                lost = self.fds[i]
            elif err:
                failed[0] = err  # pragma: no cover - a close(2) that fails after a wait
        return lost

    cdef bint _is_first_int(self, int place) noexcept:
        """Whether a number is to be closed: no object has it, and it stood nowhere before."""
        cdef int i
        for i in range(self.count):
            if self.fds[i] == self.fds[place] and i != place and (
                i < place or self.closing[i] == AS_OBJECT or self.closing[i] == AS_TAKEN
            ):
                return False
        return True

    cdef bint _is_first_object(self, int place):
        cdef int i
        for i in range(place):
            if self.items[i] is self.items[place]:
                return False
        return True


cdef object carries_itself(Handle handle):
    return Error(
        f"{handle.describe()}: it cannot carry itself: it would hold its own end open unseen for "
        "ever", ErrType.FAILED_TRANSFER,
    )


@cython.final
@cython.no_gc_clear
cdef class Conduit:
    """One end of a Unix socket that carries open descriptors to and from another process.

    Conduit(fd, name="") borrows the number ``fd`` of a Unix socket: `close` leaves it open. The
    other constructors say what is owned. The name appears in the `repr` and in every error.

    What a call sends is moved: on success it is closed here, once the system has taken the
    message, and on failure it stays open and the caller's. A call that receives returns exactly
    what was sent, or raises with everything closed that had arrived. Received descriptors are
    close-on-exec and never 0, 1 or 2.

    Calls wait no longer than `timeout`; signals run meanwhile and may raise; `close` from
    another thread ends them at once. All calls may be made from several threads; those that
    wait to send are served in the order in which they came. Whether the socket itself is
    blocking makes no difference, and is not changed; a stream socket gets ``SO_OOBINLINE``,
    since a descriptor sent with an out-of-band byte would be lost unseen.

    Every call raises `Error` (``NO_FD``) on a closed conduit, and ``FAILED_TRANSFER`` with an
    errno where the system call fails, on a number that is no Unix socket among others. Three
    of its subclasses tell apart what is met every day: `PeerClosedError`,
    `TransferTimeoutError` and `WouldBlockError`.

    Conduit(fd, name) raises `DescriptorTypeError` if ``fd`` is not an int, and `Error`
    (``NO_FD``) if it cannot be a descriptor.
    """

    cdef readonly Handle _handle
    cdef str own_name
    cdef double seconds
    cdef object source
    cdef object __weakref__

    def __cinit__(self):
        self._handle = Handle.__new__(Handle)
        self.own_name = ""
        self.seconds = -1

    @class_signature
    def __signature__(self, fd: int, name: str = "") -> None: pass  # pragma: no cover

    def __init__(self, fd: int, name: str = "") -> None:
        self._open(fd_from(fd, "Conduit"), name_from(name), False)

    cdef int _open(self, int fd, str name, bint owned) except -1:
        self._handle.open(fd, label(name), owned)
        with cython.critical_section(self):
            self.own_name = name
        return 0

    @classmethod
    def from_file(cls, file: HasFileno, *, name: str | None = None) -> Conduit:
        """Borrow the descriptor of a file or any object with ``fileno()``.

        The conduit keeps a reference to it, so that it is not closed by being forgotten; `close`
        drops that and leaves it open. Without a name, it has the file's.

        Raises `Error` (``NO_FD``) if the object has no descriptor.
        """
        cdef Conduit conduit = Conduit.__new__(Conduit)
        if name is None:
            name = getattr(file, "name", "")
            if not isinstance(name, str):
                name = ""
        conduit._open(objects.fd_of(file, "Conduit"), name_from(name), False)
        conduit.source = file
        return conduit

    @classmethod
    def from_conn(cls, conn: HasFileno, *, name: str = "") -> Conduit:
        """Duplicate the descriptor of a socket or any object with ``fileno()``.

        The conduit owns the duplicate (close-on-exec) and has the object's timeout, if it has
        ``gettimeout()``. The object stays as it is and may be closed at any time.

        Raises `Error`: ``NO_FD`` if the object has no descriptor, ``BAD_CLONE`` if duplicating
        it fails (``EMFILE``: this process has no room).
        """
        cdef Conduit conduit = Conduit.__new__(Conduit)
        cdef str text = name_from(name), what = label(text)
        cdef int fd = objects.fd_of(conn, "Conduit"), duplicate
        conduit.seconds = seconds_from(objects.timeout_of(conn))
        conduit.own_name = text
        duplicate = dup_fd(fd)
        if duplicate < 0:
            raise from_errno(-duplicate, ErrType.BAD_CLONE, f"duplicating descriptor {fd}")
        conduit._handle.open(duplicate, what, True)
        return conduit

    @classmethod
    def pair(cls, *, type: int = socket.SOCK_STREAM) -> tuple[Conduit, Conduit]:
        """Return two conduits that are connected to each other, as ``socketpair(2)`` makes them.

        ``type`` is ``SOCK_STREAM``, or ``SOCK_SEQPACKET``, which keeps messages apart.

        Raises `Error` (``NO_FD``) if the system makes no pair.
        """
        cdef Conduit one = Conduit.__new__(Conduit), other = Conduit.__new__(Conduit)
        cdef tuple both = (one, other)
        cdef int ends[2]
        cdef int err = socket_pair(type_from(type), ends)
        if err:
            raise from_errno(-err, ErrType.NO_FD, "making a pair")
        one._handle.open(ends[0], "conduit", True)
        other._handle.open(ends[1], "conduit", True)
        return both

    @classmethod
    def connect(
        cls, path: StrOrBytesPath, *, type: int = socket.SOCK_STREAM,
        timeout: float | None = None, name: str = "",
    ) -> Conduit:
        """Connect to a Unix socket that listens at a path; ``"@name"`` is abstract on Linux.

        ``timeout`` is how many seconds to wait for room in the listener's backlog, and becomes
        the conduit's own: None for ever, 0 not at all. ``type`` is the listener's.

        Raises `Error` (``NO_FD``) if there is no connection: ``ENOENT``, ``ECONNREFUSED`` (nobody
        listens there any more), ``EACCES``, ``EPROTOTYPE`` (another type), ``ENAMETOOLONG`` (a
        path has 107 bytes at most); `TransferTimeoutError` and `WouldBlockError` as every call.
        """
        cdef Conduit conduit = Conduit.__new__(Conduit)
        cdef str text = name_from(name), what = label(text), doing = f"connecting to {path!r}"
        cdef int kind = type_from(type), fd
        cdef bytes address = address_from(path)
        conduit.seconds = seconds_from(timeout)
        conduit.own_name = text
        fd = socket_fd(kind)
        if fd < 0:
            raise from_errno(-fd, ErrType.NO_FD, doing)
        # Owned from here on, so that what fails or interrupts below closes it.
        conduit._handle.open(fd, what, True)
        try:
            connect_to(fd, address, conduit.seconds, doing)
        except BaseException:
            conduit._handle.shut()
            raise
        return conduit

    @staticmethod
    def _accept(handle: Handle, timeout: float | None = None) -> Conduit:
        """Accept a connection on a handle over a non-blocking listening socket; for `Listener`."""
        cdef Conduit conduit = Conduit.__new__(Conduit)
        cdef Handle listening = handle
        cdef double seconds = seconds_from(timeout)
        listening.enter()
        try:
            conduit._handle.open(accept_on(listening, seconds), "conduit", True)
        finally:
            listening.leave()
        return conduit

    def __del__(self):
        # There is no handle if there was no memory for one.
        if self._handle is not None:
            self._handle.warn_unclosed(self)

    def __repr__(self) -> str:
        cdef int fd = self._handle.number()
        cdef str name = self.name
        state = "closed" if fd < 0 else f"descriptor {fd}"
        return f"<conduit.Conduit{' ' + repr(name) if name else ''} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What the conduit is called in its `repr` and in errors."""
        cdef str name
        with cython.critical_section(self):
            name = self.own_name
        return name

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._handle.number() < 0

    cdef double _seconds(self) noexcept:
        cdef double seconds
        with cython.critical_section(self):
            seconds = self.seconds
        return seconds

    @property
    def timeout(self) -> float | None:
        """How many seconds a call may wait: None for ever, 0 not at all (`WouldBlockError`).

        Counted from the moment a call has to wait; past it, `TransferTimeoutError` is raised.
        Setting it takes effect with the next call. A negative number or NaN is a `ValueError`.
        """
        cdef double seconds = self._seconds()
        return None if seconds < 0 else seconds

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        cdef double seconds = seconds_from(timeout)
        with cython.critical_section(self):
            self.seconds = seconds

    @property
    def peer(self) -> Peer:
        """The `Peer` (pid, uid, gid) this is connected to, as it was when it connected.

        Raises `Error`: ``NO_FD`` if the conduit is closed, ``FAILED_TRANSFER`` if the system
        does not know, as for a socket that is not connected.
        """
        cdef pid_t pid = 0
        cdef uid_t uid = 0
        cdef gid_t gid = 0
        cdef int err = peer_of(self._handle.enter(), &pid, &uid, &gid)
        self._handle.leave()
        if err:
            raise from_errno(
                -err, ErrType.FAILED_TRANSFER, f"{self._handle.describe()}: its peer"
            )
        return Peer(pid, uid, gid)

    def fileno(self) -> int:
        """Return the number of the socket, which stays the conduit's.

        Raises `Error` (``NO_FD``) if the conduit is closed.
        """
        return self._handle.fileno()

    def close(self) -> None:
        """Close what the conduit made itself, and end the calls that wait in other threads.

        Those raise `Error` (``NO_FD``). A borrowed descriptor is left open. The socket of a
        conduit that owns it is closed when the last call under way has left it. A second
        `close` does nothing.

        Raises `Error` (``FAILED_CLOSE``) if the system reports a failure, as when the number
        was closed elsewhere (what has it then is left alone); the conduit is closed all the same.
        """
        try:
            self._handle.close()
        finally:
            with cython.critical_section(self):
                source, self.source = self.source, None
            # Only here: to forget an object may run anything.
            del source

    # Sending

    def transfer_fd(self, fd: int, *, keep: bool = False) -> None:
        """Send one descriptor by its number; on success it is closed here.

        With ``keep`` it is shared instead: the receiver gets its own, and ``fd`` stays open.
        The number must not be in use elsewhere: the file or socket object that owns it would
        close it again. For those there are `transfer_file` and `transfer_conn`.

        Raises `DescriptorTypeError` if ``fd`` is not an int. Raises `Error`: ``NO_FD`` if it
        cannot be a descriptor, ``FAILED_TRANSFER`` if it was not sent (``EBADF``: it is not
        open), and then it stays the caller's; ``FAILED_CLOSE`` if it was sent but not closed
        well here, or if this had to wait and the number is not known to be the same file's still
        (another thread gave it to another file): then it is left alone.
        """
        cdef bint left = False
        self._transfer_one(fd_from(fd, "transfer_fd"), fd, keep, &left)

    def transfer_file(self, file: HasFileno, *, keep: bool = False) -> None:
        """Send an open file; on success its ``close()`` is called.

        What it has not written yet is flushed first, and the receiver reads on where the
        program stopped reading, not where the buffer did. With ``keep`` it is shared instead:
        it stays open here, and has one offset with the receiver's.

        Bytes that were read ahead from a pipe, a socket or a terminal cannot be put back, so a
        file that holds some is refused; so is text in the middle of what its encoding decodes
        at once, and every reader that may have a buffer of its own: only the classes of `io`
        over a plain file or a socket are known (`codecs.open`, `gzip` and others are not).

        Raises `Error`: ``NO_FD`` if the file is closed or has no descriptor,
        ``FAILED_TRANSFER`` if it holds what would be lost, or could not be flushed, positioned
        or sent, and then it is open, where it was, and the caller's; ``FAILED_CLOSE`` if it was
        sent but its ``close()`` failed.
        """
        self._transfer_object(file, keep)

    def transfer_conn(self, conn: HasFileno, *, keep: bool = False) -> None:
        """Send a socket, or anything with ``fileno()`` and ``close()``; on success it is closed.

        With ``keep`` it is shared instead. Take a socket out of its event loop first: there, a
        descriptor that was passed on goes on being watched. The socket of a transport of asyncio
        or uvloop is not moved, only shared. A TLS socket (of `ssl`, pyOpenSSL, gevent) is
        refused, since the state of TLS cannot travel.

        Raises as `transfer_file`; `DescriptorTypeError` for an object that has no descriptor
        by its kind, or that cannot be closed and is not to be kept.
        """
        self._transfer_object(conn, keep)

    def transfer(
        self, *items: int | HasFileno, data: ReadableBuffer | None = None, keep: bool = False
    ) -> None:
        """Send a message: bytes, and any number of descriptors with them.

        Each item is an int, a `Descriptor`, a file, a socket, or anything with ``fileno()`` and
        ``close()``; files are prepared as by `transfer_file`. On success each is closed through
        its own object, and an int by its number: one that stands twice is sent twice and closed
        once. With ``keep`` all stay open here.

        ``data`` is any bytes-like object, sent whole however long it is: on a stream the
        descriptors go with the first byte. Without it one NUL byte is sent with the items, since
        descriptors cannot go alone. An empty one is sent as it is where the socket keeps
        messages apart.

        Raises `Error`, with everything open and the caller's: ``NO_FD`` and
        `DescriptorTypeError` for an item without a descriptor; ``BAD_CTRL_MESG`` (``EINVAL``)
        for more than `MAX_FDS` items; ``FAILED_TRANSFER`` if the message was not sent
        (``EBADF`` names the item that is not open), or not whole: then ``sent`` says how many
        bytes had left, and the conduit sends no more, since the stream is broken there. Raises
        ``FAILED_CLOSE`` if all was sent but something was not closed well here; everything else
        is closed. `ValueError` if there is nothing to send, or ``data`` is empty and the socket
        a stream; `TypeError` or `BufferError` if ``data`` is not bytes-like or not contiguous.
        """
        cdef Send send = Send.__new__(Send)
        send._load(self._handle, items, data, keep)
        try:
            self._handle.enter()
        except BaseException:
            send._cancel()
            raise
        try:
            send.run(self._seconds())
        finally:
            self._handle.leave()

    cdef int _transfer_object(self, object obj, bint keep) except -1:
        cdef bint left = False
        cdef object failure = None
        if isinstance(obj, Descriptor):
            self.transfer(obj, keep=keep)
            return 0
        objects.prepare(obj, keep)
        try:
            self._transfer_one(fd_of(obj), obj, keep, &left)
        except BaseException as exc:
            if not left:
                raise
            failure = exc  # pragma: no cover - a signal handler's
        if left and not keep:
            failure = close_owner(obj) or failure
        if failure is not None:
            raise failure
        return 0

    cdef int _transfer_one(self, int fd, object item, bint keep, bint *left) except -1:
        """Send one descriptor with a NUL byte: at once, or as a `Send`, which closes it.

        ``left`` is whether it left at once; then an int is closed, but not an object.
        """
        cdef Handle handle = self._handle
        cdef int own = handle.enter(), turn, err = 0
        cdef ssize_t sent = -EAGAIN
        cdef bint close = not keep and PyLong_Check(item)
        try:
            if fd == own:
                raise carries_itself(handle)
            turn = handle.begin_send()
            if turn != BUSY:
                with nogil:
                    sent = send_message(own, b"\0", 1, &fd, 1)
                    if sent == 1 and close:
                        err = close_fd(fd)
                left[0] = sent == 1
            if sent != 1:
                self._transfer_on(fd, item, keep, turn, sent)
            elif turn == TURN:
                handle.end_send()
        finally:
            handle.leave()
        if err:
            raise from_errno(
                -err, ErrType.FAILED_CLOSE,
                f"{handle.describe()}: descriptor {fd} was sent, but closing it here",
            )
        return 0

    cdef int _transfer_on(
        self, int fd, object item, bint keep, int turn, ssize_t sent
    ) except -1:
        """Go on with a descriptor that did not leave at once, in the turn that this call has.

        Who came since then comes after it, so the turn is not passed on before.
        """
        cdef Handle handle = self._handle
        cdef double seconds = self._seconds()
        cdef Send send
        try:
            if turn != BUSY and sent == -EAGAIN and seconds == 0:
                raise from_errno(
                    EAGAIN, ErrType.FAILED_TRANSFER, f"{handle.describe()}: sending"
                )
            send = Send.__new__(Send)
        except BaseException:
            if turn == TURN:
                handle.end_send()
            raise
        send.granted = turn == TURN
        send._load_one(handle, fd, item, keep)
        return send.run(seconds)

    # Receiving

    def receive_fd(self) -> int:
        """Receive one descriptor and return its number, which the caller owns.

        A signal handler that raises just as this returns loses the number, as with any int;
        a program with such handlers takes `receive`, `receive_file` or `receive_conn`, whose
        objects close themselves.

        Raises `Error` (``BAD_CTRL_MESG``), with all that came closed, if a message has no
        descriptor or several, or more than the one byte of a plain transfer on a socket that
        keeps messages apart, or if this process has no room for it (``EMFILE``).
        `PeerClosedError` if the peer closed its end.
        """
        cdef int fd = self._receive_one()
        try:
            return PyLong_FromLong(fd)
        except MemoryError:  # pragma: no cover - traced runs do not run out of memory
            close_fd(fd)  # pragma: no cover
            raise  # pragma: no cover

    def receive_file(
        self, mode: str | None = None, buffering: int = -1, encoding: str | None = None,
        errors: str | None = None, newline: str | None = None, *, name: str | None = None,
    ) -> IO[Any]:
        """Receive one descriptor and return a file object that owns it.

        The arguments are those of `Descriptor.to_file`, and are checked before anything is
        received.

        Raises as `receive_fd` and `Descriptor.to_file`; the descriptor is then closed.
        """
        cdef Descriptor descriptor = empty_descriptor()
        cdef object raw = None
        objects.check_file_arguments(mode, buffering, encoding, errors, newline)
        descriptor.fd = self._receive_one()
        try:
            raw = open_raw(descriptor.fd, mode, buffering, True)
            descriptor.fd = -1
            return objects.open_file(raw, mode, buffering, encoding, errors, newline, name)
        except BaseException:
            close_returned(descriptor._end())
            if raw is not None:
                close_owner(raw)
            raise

    def receive_conn(self) -> socket.socket:
        """Receive one descriptor and return a `socket.socket` that owns it.

        See `Descriptor.to_conn` for its family, type, protocol and timeout.

        Raises as `receive_fd`, and `Error` (``BAD_CLONE``) if it is no socket; it is then
        closed.
        """
        cdef Descriptor descriptor = empty_descriptor()
        descriptor.fd = self._receive_one()
        try:
            return open_socket(descriptor)
        except BaseException:
            close_returned(descriptor._end())
            raise

    def receive(self, max_data: int = 65536, max_fds: int = CONDUIT_MAX_FDS) -> Message:
        """Receive one message: what one ``recvmsg(2)`` returns.

        ``max_data`` is the most bytes, at least 1, and ``max_fds`` the most descriptors to take.

        On ``SOCK_SEQPACKET`` and ``SOCK_DGRAM`` that is a message as it was sent, maybe with no
        bytes at all. A stream has no boundaries: what comes is what has arrived, up to the
        descriptors of one message; bytes sent earlier without descriptors stand in front of it,
        and a long payload comes in pieces, the descriptors with the first. Where both ends are
        yours, take ``SOCK_SEQPACKET``.

        Raises `Error` (``BAD_CTRL_MESG``), with all that came closed: for more than ``max_fds``
        descriptors; ``EMSGSIZE`` for a packet longer than ``max_data``; ``EMFILE`` if this
        process has no room for them, and the conduit works on. `PeerClosedError` if the peer
        closed its end. `ValueError` for an impossible limit.
        """
        cdef RecvResult result
        cdef bytes payload
        cdef ssize_t got, size
        cdef int i, count
        cdef tuple fds
        cdef Descriptor descriptor
        cdef Message message = Message.__new__(Message)
        if index(max_data) < 1:
            raise ValueError(f"max_data must be at least 1 byte, not {max_data}")
        if max_data > INT_MAX:
            raise ValueError(f"max_data must be at most 2 GiB, not {max_data}")
        if index(max_fds) < 0:
            raise ValueError(f"max_fds must be at least 0, not {max_fds}")
        size = max_data
        payload = PyBytes_FromStringAndSize(NULL, size)
        got = self._receive(PyBytes_AS_STRING(payload), size, &result)
        count = result.count
        if count > max_fds:
            with nogil:
                close_fds(result.fds, count)
            raise Error(
                f"{self._handle.describe()}: receiving: expected at most {max_fds} descriptors, "
                f"received {count} (all closed)", ErrType.BAD_CTRL_MESG,
            )
        i = 0
        try:
            fds = PyTuple_New(count)
            while i < count:
                descriptor = empty_descriptor()
                descriptor.fd = result.fds[i]
                Py_INCREF(descriptor)
                PyTuple_SET_ITEM(fds, i, descriptor)
                i += 1
            message._fds = fds
            message._data = payload if got == size else payload[:got]
        except MemoryError:  # pragma: no cover - traced runs do not run out of memory
            with nogil:  # pragma: no cover
                close_fds(&result.fds[i], count - i)  # pragma: no cover
            raise  # pragma: no cover
        return message

    cdef int _receive_one(self) except -1:
        """Receive a plain transfer; the fd is the caller's."""
        cdef char nul = 0
        cdef int count
        cdef RecvResult result
        self._receive(&nul, 1, &result)
        count = result.count
        if count != 1:
            with nogil:
                close_fds(result.fds, count)
            raise Error(
                f"{self._handle.describe()}: receiving: expected 1 descriptor, received "
                f"{count}{' (all closed)' if count else ''}; receive() takes messages of any form",
                ErrType.BAD_CTRL_MESG,
            )
        return result.fds[0]

    cdef ssize_t _receive(self, void *data, size_t size, RecvResult *result) except -1:
        """Receive one message of at most ``size`` >= 1 bytes; how many came.

        The descriptors are in ``result`` and the caller's. On failure all that came are closed.
        """
        cdef Handle handle = self._handle
        cdef ssize_t got
        cdef int marked = 0
        handle.enter()
        try:
            got = receive_once(handle, data, size, result, &marked)
            if got <= 0 or result.fds_withheld or result.truncated or result.err:
                got = receive_on(handle, self._seconds(), data, size, result, got, marked)
        finally:
            handle.leave()
        return got


cdef ssize_t receive_once(
    Handle handle, void *data, size_t size, RecvResult *result, int *marked
) noexcept:
    """One system call, or, on a packet socket that may be at its end, some about it."""
    cdef ssize_t got
    cdef int fd = handle.fd
    cdef bint packets = handle.kind == SOCK_SEQPACKET
    if CONDUIT_CMSG_CLOEXEC:
        with nogil:
            if packets:
                marked[0] = conduit_mark_packets(fd)
            got = recv_message(fd, data, size, result)
            if marked[0]:
                conduit_unmark_packets(fd, marked[0])
    else:
        # Python forks with the GIL held, so no child is made before all are close-on-exec. Only
        # for vfork(), which it uses on Linux alone, it gives the GIL up. Without a GIL, os.fork()
        # stops all threads, but nothing keeps subprocess from it.
        got = recv_message(fd, data, size, result)  # pragma: no cover - not on Linux
    return got


cdef ssize_t receive_on(
    Handle handle, double seconds, void *data, size_t size, RecvResult *result, ssize_t got,
    int marked,
) except -1:
    """Go on from a first call that received nothing or not all, or failed."""
    cdef bint reset = False
    cdef long long deadline = 0
    while True:
        if got >= 0:
            check_whole(handle, size, result)
            if got or result.count or not is_end(handle, result.control, marked):
                return got
            raise peer_closed(handle)
        if got == -ECONNRESET and not reset:
            # A packet socket says this before it gives what is still queued.
            reset = True
        elif got == -EAGAIN:
            if handle.kind == SOCK_DGRAM and conduit_at_end(handle.fd):
                # This end was shut for reading, and poll() calls it readable for ever.
                raise peer_closed(handle)
            if reset or seconds == 0:
                raise from_errno(
                    ECONNRESET if reset else EAGAIN, ErrType.FAILED_TRANSFER,
                    f"{handle.describe()}: receiving",
                )
            if not deadline:
                deadline = deadline_after(seconds)
            handle.wait(POLLIN, deadline, "receiving", 0)
        elif got == -EINTR:
            PyErr_CheckSignals()
            handle.check_open("receiving")
        else:
            if got == -EMSGSIZE:
                # BSDs say so where there is no room for the descriptors, and leave the payload,
                # which is not to be taken for a message that has none.
                recv_message(handle.fd, data, size, result)
                close_fds(result.fds, result.count)
                got = -EMFILE
            raise from_errno(
                <int>-got, ErrType.FAILED_TRANSFER, f"{handle.describe()}: receiving",
                "its descriptor was closed elsewhere" if got == -EBADF else None,
            )
        marked = 0
        got = receive_once(handle, data, size, result, &marked)


cdef bint is_end(Handle handle, bint control, int marked) noexcept:
    """Whether nothing received means the end. A datagram socket has none."""
    if handle.kind == SOCK_STREAM:
        return True
    if handle.kind != SOCK_SEQPACKET:
        return False
    return not control if marked else conduit_at_end(handle.fd)


cdef object peer_closed(Handle handle):
    return PeerClosedError(
        f"{handle.describe()}: receiving: the peer closed its end", ErrType.FAILED_TRANSFER
    )


cdef int check_whole(Handle handle, size_t size, RecvResult *result) except -1:
    """Raise, with all that came closed, unless the message came whole."""
    cdef int err = result.err
    cdef str why
    if not (result.fds_withheld or result.truncated or err):
        return 0
    with nogil:
        close_fds(result.fds, result.count)
    if err:
        why = ("this process had no room for the descriptors of a message (all closed); close "
               "others first, or raise RLIMIT_NOFILE (ulimit -n)")
    elif result.fds_withheld:
        raise Error(
            f"{handle.describe()}: receiving: the system withheld a descriptor (all that came are "
            "closed): a security policy, or this process had no room for a moment",
            ErrType.BAD_CTRL_MESG,
        )
    else:
        err = EMSGSIZE
        why = (f"a message was longer than the {size} bytes asked for, and is lost; its "
               "descriptors are closed")
    raise from_errno(err, ErrType.BAD_CTRL_MESG, f"{handle.describe()}: receiving", why)


cdef int connect_to(int fd, bytes address, double seconds, str doing) except -1:
    """Connect a new socket to an address; -1 s waits for ever."""
    cdef const char *path = address
    cdef size_t length = len(address)
    cdef long long deadline = deadline_after(seconds), left
    cdef long long most = CONNECT_SLICE if in_main_thread() else NEVER
    cdef int err
    while True:
        left = NEVER if deadline == NEVER else deadline - now()
        with nogil:
            err = connect_fd(fd, path, length, min(left, most))
        if err == 0:
            return 0
        PyErr_CheckSignals()
        if err not in (-EAGAIN, -EINTR):
            raise from_errno(-err, ErrType.NO_FD, doing)
        if deadline != NEVER and deadline <= now():
            raise from_errno(
                ETIMEDOUT if seconds else EAGAIN, ErrType.NO_FD, doing,
                "the listener's backlog was full all the time",
            )


cdef int accept_on(Handle handle, double seconds) except -1:
    """Accept a connection on a listening socket with O_NONBLOCK; its fd is the caller's."""
    cdef long long deadline = 0
    cdef int fd = accept_once(handle)
    while fd < 0:
        if fd == -EAGAIN:
            if seconds == 0:
                raise from_errno(
                    EAGAIN, ErrType.FAILED_TRANSFER, f"{handle.describe()}: accepting",
                    "no pending connection (timeout is 0)",
                )
            if not deadline:
                deadline = deadline_after(seconds)
            handle.wait(POLLIN, deadline, "accepting", 0)
        elif fd == -EINTR:
            PyErr_CheckSignals()
            handle.check_open("accepting")
        elif fd != -ECONNABORTED:
            raise from_errno(-fd, ErrType.NO_FD, f"{handle.describe()}: accepting")
        fd = accept_once(handle)
    return fd


cdef int accept_once(Handle handle) noexcept:
    cdef int fd
    if CONDUIT_SOCK_CLOEXEC:
        with nogil:
            fd = accept_fd(handle.fd)
    else:
        # As in receiving: no child is made before it is close-on-exec.
        fd = accept_fd(handle.fd)  # pragma: no cover - not on Linux
    return fd


def check_number(value: object) -> None:
    """Check that a value is an int that can be a descriptor, and raise as `Descriptor` does."""
    fd_from(value, "transfer_fd")
