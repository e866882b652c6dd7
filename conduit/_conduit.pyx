# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
# cython: annotation_typing=False
"""The public classes: which object owns which descriptor, and one message out or in.

**One owner.** A descriptor belongs to one object at a time. A received one belongs to its
`Descriptor` before any Python code, and so any signal handler, can run.

**A message out** is a `Send`. It resolves each item once, to an fd and how to close it, and makes
one system call at a time. In between, `Conduit.transfer` waits and `conduit.aio` awaits. A single
descriptor that leaves at once, by far the most common message, needs no `Send`: ``_transfer_one``.

**Items** stay the caller's until all of the message has left. Then they are closed:

- a `Descriptor` is *borrowed*. To move it, a call borrows it alone: of many threads that try, one
  succeeds. To share it, a call borrows it for one system call.
- a file, a socket, any object with ``fileno()`` and ``close()`` is closed by its own ``close()``.
- an int has no owner here, and may be closed and reused while the message waits. So the message
  sends a duplicate, and at the end closes the int only if it is still the same open file.

**Exceptions.** What a user's object raises becomes an `Error`, unless a signal handler raised it
(`errors.from_handler`). Python code runs only before the first byte leaves, and after everything
that C closes is closed.
"""

import socket
from io import FileIO

cimport cython
from conduit._handle cimport (
    BUSY, FRESH, PAUSE, QUEUED, TURN, FdHolder, Handle, HeldFds, Limit, Use, Waiter, forks,
    hold_fds, release_fds, warn_unclosed,
)
from conduit._posix cimport *
from conduit._syscalls cimport (
    ENDED, SLOTS, WITHHELD, RecvResult, accept_fd, close_fd, close_fds, dup_fd, peer_of,
    recv_message, send_message,
)

from _operator import index
from _socket import socket as c_socket

from conduit import endpoint, mistakes, objects
from conduit.closing import Closing
from conduit.errors import (
    Error, ErrType, PeerClosedError, from_errno, from_handler, prefix_message, refusal, reraise,
)
from conduit.objects import blank_socket, fill_socket, open_file, prepare, raw_file
from conduit.peer import Peer
from conduit.signature import class_signature

cdef str UNAVAILABLE = "this Descriptor is closed or detached, or another call is using it"
# For the steps of conduit.aio.
globals()["PAUSE"], globals()["QUEUED"] = PAUSE, QUEUED


cdef enum:
    # How an item is closed once it was sent: not by this message; by its number; by its object's
    # close(); a Descriptor that is moved; a Descriptor that is shared, which is only given back.
    NOT, AS_INT, AS_OBJECT, MOVED, SHARED
    PIECE = 1 << 18  # The bytes that receive_exactly() makes room for before any have come.


cdef int fd_from(object value, str call) except -1:
    """Return an int argument of a call as a descriptor; 1.5 and True are refused."""
    cdef int overflow = 0
    cdef long long number
    if not PyLong_Check(value) or PyBool_Check(value):
        raise mistakes.not_an_int(call, value)
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not 0 <= number <= INT_MAX:
        raise Error(f"there is no descriptor {value}", ErrType.NO_FD)
    return <int>number


cdef int fd_of(object obj) except -1:
    """Return what an object's ``fileno()`` says now."""
    try:
        return PyObject_AsFileDescriptor(obj)
    except Exception as exc:
        if from_handler(exc):
            raise  # pragma: no cover - a signal handler's
        raise Error(f"{obj!r} has no descriptor: {exc}", ErrType.NO_FD) from exc


cdef object close_owner(object owner):
    """Close a file or socket that was sent; return None, or the exception to raise."""
    try:
        owner.close()
    except BaseException as exc:
        return objects.close_failure(owner, exc)


cdef int close_all(const int *fds, int count) noexcept:
    """Close what `give_back` returned, skipping -1; return 0 or the first failure."""
    with nogil:
        return close_fds(fds, count)


cdef int close_now(int fd) noexcept:
    return close_all(&fd, 1)


cdef object open_raw(int fd, mode, buffering, owner):
    """Make a raw file on an fd; ``owner`` says whether it owns it. The last step runs in C."""
    cdef int flags = <int>conduit_result(fcntl(fd, F_GETFL))
    if flags < 0:
        raise from_errno(-flags, ErrType.BAD_CLONE, f"descriptor {fd}")
    try:
        raw_class, raw_mode = raw_file(flags, mode, buffering)
        return raw_class(fd, raw_mode, owner)
    except OSError as exc:
        reraise(exc, f"descriptor {fd}", ErrType.BAD_CLONE)


@cython.final
cdef class Descriptor(FdHolder):
    """One descriptor that this object owns, as `Conduit.receive` returns it.

    Close it (or use ``with``), turn it into a file (`to_file`) or a socket (`to_conn`), or take the
    number out (`detach`). If it is dropped while open, it is closed with a `ResourceWarning`.
    While a call moves it, it looks closed; if that call fails, it is open again. A method that
    needs it open raises `Error` (``NO_FD``) if it is closed.

    Descriptor(fd, name="") takes ownership of the number and sets close-on-exec. Anything but an
    int is a `DescriptorTypeError`.
    """

    __reduce__, __enter__, __exit__ = Closing.__reduce__, Closing.__enter__, Closing.__exit__

    @class_signature
    def __signature__(self, fd: int, name: str = "") -> None: pass  # pragma: no cover

    def __init__(self, fd: int, name: str = "") -> None:
        cdef int number = fd_from(fd, "Descriptor")
        # For a plain str no Python code runs here, so no signal handler can raise.
        cdef str text = name if PyUnicode_CheckExact(name) else mistakes.name_from(name)
        cdef bint fresh
        with cython.critical_section(self):
            fresh = self.fd == FRESH
            if fresh:
                self.fd, self.label = number, text
        if not fresh:
            raise Error("this Descriptor was initialised before", ErrType.NO_FD)
        fcntl(number, F_SETFD, <int>FD_CLOEXEC)

    def __dealloc__(self):
        # No call uses it: a call holds this object. But a forked child may have its parent's calls.
        if self.fd >= 0:
            self.sync()
            release_fds(&self.node)
        if self.fd >= 0:
            close_now(self.fd)
            warn_unclosed(f"<conduit.Descriptor {self.fd}>", NULL, 1)  # A source would outlive it.

    def __repr__(self) -> str:
        cdef int fd = self.number()
        name = f" {self.name!r}" if self.name else ""
        return f"<conduit.Descriptor{name} {'closed' if fd < 0 else fd}>"

    def fileno(self) -> int:
        """Return the number; this object still owns it."""
        cdef int fd = self.number()
        if fd < 0:
            raise Error(UNAVAILABLE, ErrType.NO_FD)
        return fd

    def detach(self) -> int:
        """Return the number, which the caller now owns. `Error` while another call uses it."""
        cdef int fd = self.borrow(True)
        if fd < 0:
            raise Error(UNAVAILABLE, ErrType.NO_FD)
        self.give_back(True, True)
        return fd

    def close(self) -> None:
        """Close it; a second `close` does nothing. Raises ``FAILED_CLOSE`` as `Conduit.close`."""
        cdef int fd = self.give_back(True, False), err = close_now(fd)
        if err:
            raise from_errno(-err, ErrType.FAILED_CLOSE, f"closing descriptor {fd}")

    def _mode(self) -> int:
        """Return the ``st_mode``, or minus the errno. No thread can close it during the call."""
        return self.number(True)

    # See `objects`.
    kind = property(objects.kind)
    is_same_file = objects.is_same_file
    to_file = objects.to_file
    to_conn = objects.to_conn

    cpdef object _open_as(self, tuple arguments, bint close):
        """Turn it into a file, or for None a socket; on failure ``close`` it or leave it open."""
        cdef HeldFds node
        made = blank_socket() if arguments is None else None
        cdef int fd = self.borrow(True)
        if fd < 0:
            raise Error(UNAVAILABLE, ErrType.NO_FD)
        node.fds = NULL
        hold_fds(&node, &fd, 1)
        try:
            if arguments is None:
                fill_socket(made, fd)
            else:
                raw = open_raw(fd, arguments[0], arguments[1], False)
                made = open_file(raw, *arguments)
                if fd < 0:
                    # A handler forked just now. This is the child, which closed the fd.
                    raise Error("a handler has forked", ErrType.NO_FD)  # pragma: no cover
                FileIO.__init__(raw, fd, raw.mode)
                if arguments[5] is not None:
                    raw.name = arguments[5]
        except BaseException:
            release_fds(&node)
            # A signal handler may have raised once the socket had the fd.
            if arguments is None and c_socket.fileno(made) >= 0:
                c_socket.detach(made)
            close_now(self.give_back(close, True))
            raise
        release_fds(&node)
        self.give_back(True, True)
        return made


@cython.final
cdef class Message:
    """A received message; as a context manager, it closes the descriptors not taken out of it."""

    cdef bytes _data
    cdef tuple _fds
    cdef object _sender

    __reduce__, __enter__, __exit__ = Closing.__reduce__, Closing.__enter__, Closing.__exit__

    @class_signature
    def __signature__(
        self, data: bytes = b"", fds: Iterable[Descriptor] = (), sender: Peer | None = None
    ) -> None: pass  # pragma: no cover

    def __cinit__(
        self, bytes data not None: bytes = b"", fds: Iterable[Descriptor] = (),
        sender: Peer | None = None,
    ) -> None:
        self._data, self._fds, self._sender = data, tuple(fds), sender
        for descriptor in self._fds:
            if not isinstance(descriptor, Descriptor):
                raise TypeError(f"fds must hold Descriptors, not {descriptor!r}")

    @property
    def data(self) -> bytes:
        """The bytes; empty if the message had none."""
        return self._data

    @property
    def fds(self) -> tuple[Descriptor, ...]:
        """The received descriptors, in the order they were sent."""
        return self._fds

    @property
    def sender(self) -> Peer | None:
        """The process that sent it, where the socket passes credentials, as `Conduit.bind`'s does.

        The kernel attaches it to each message (``SCM_CREDENTIALS``), so datagrams have it too. A
        user not mapped in this user namespace shows as the overflow uid, 65534: it may be anyone.
        """
        return self._sender and Peer(*self._sender)

    def __repr__(self) -> str:
        return f"<conduit.Message of {len(self._data)} bytes and {len(self._fds)} descriptors>"

    def close(self) -> None:
        """Close the descriptors not taken out; then raise the first failure, if any."""
        cdef int fds[SLOTS]
        cdef int count = 0, err = 0
        cdef Descriptor descriptor
        for descriptor in self._fds:
            if count == SLOTS:
                err, count = close_all(fds, count) or err, 0
            fds[count] = descriptor.give_back(True, False)
            count += 1
        err = close_all(fds, count) or err
        if err:
            raise from_errno(-err, ErrType.FAILED_CLOSE, f"closing what came with {self!r}")


cdef Message message_of(RecvResult *result, bytes payload, ssize_t size):
    """Return the received message; its Descriptors own the fds. On MemoryError, close them."""
    cdef int i = 0
    cdef tuple fds
    cdef Descriptor descriptor
    cdef Message message
    try:
        message = Message.__new__(Message)
        message._fds = fds = PyTuple_New(result.count)
        while i < result.count:
            descriptor = Descriptor.__new__(Descriptor)
            descriptor.fd = result.fds[i]
            Py_INCREF(descriptor)
            PyTuple_SET_ITEM(fds, i, descriptor)
            i += 1
        message._data = payload if size == len(payload) else payload[:size]
        if result.told:
            message._sender = result.sender.pid, result.sender.uid, result.sender.gid
        return message
    except MemoryError:  # pragma: no cover - traced runs do not run out of memory
        close_fds(&result.fds[i], result.count - i)  # pragma: no cover
        raise  # pragma: no cover


@cython.final
@cython.no_gc_clear
cdef class Send(Waiter):
    """A message being sent. Send(conduit, items, data, keep) takes what `Conduit.transfer` does."""

    cdef Handle handle
    cdef tuple items
    cdef Py_buffer view
    cdef const char *data
    cdef size_t size, bytes_sent
    # For each item: the fd it resolved to, how to close it, and the fd that this object holds for
    # it, which is sent once it ``waited``. ``fds_pending`` until the first byte has left.
    cdef int count
    cdef int fds[SLOTS]
    cdef char closing[SLOTS]
    cdef int own[SLOTS]
    cdef HeldFds node
    cdef bint viewed, waited, over, fds_pending, running, cancelled
    cdef unsigned long forks

    def __cinit__(self, Conduit conduit=None, tuple items=None, data=None, bint keep=False):
        self.forks = forks
        if conduit is not None:
            self._load(conduit._handle, items, data, keep)

    def __dealloc__(self):
        self._end(False)

    cdef int _load(self, Handle handle, tuple items, object data, bint keep) except -1:
        """Pin the buffer and resolve the items; on failure ``__dealloc__`` undoes it."""
        handle.enter()
        self.handle, self.items, self.data, self.size = handle, items, b"\0", 1
        if data is not None:
            # First: its __buffer__() may run any code, and none may run once the fds are known.
            PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
            self.viewed = True
            self.data, self.size = <const char *>self.view.buf, self.view.len
            if not self.size and handle.kind == SOCK_STREAM:
                raise ValueError("a stream carries no empty message; omit data to send one NUL")
        elif not items:
            raise ValueError("there is nothing to send: neither descriptors nor data")
        return self._resolve(keep)

    cdef int _resolve(self, bint keep) except -1:
        """Prepare each item and find its fd."""
        cdef Py_ssize_t count = len(self.items)
        cdef int i = 0, fd = -1, highest = -1
        cdef char how = NOT
        if count > CONDUIT_MAX_FDS:
            raise self.handle.error(
                "sending", EINVAL,
                f"one message carries at most {CONDUIT_MAX_FDS} descriptors, not {count}",
                ErrType.BAD_CTRL_MESG,
            )
        if count:
            self.fds_pending = True
            hold_fds(&self.node, self.own, 0)
        try:
            for i in range(<int>count):
                item = self.items[i]
                if PyLong_Check(item):
                    fd, how = fd_from(item, "transfer"), NOT if keep else AS_INT
                elif isinstance(item, Descriptor):
                    fd = self._borrow(<Descriptor>item, keep, &how)
                else:
                    prepare(item, keep)
                    fd, how = -1, NOT if keep else AS_OBJECT
                self.fds[i], self.closing[i], self.own[i] = fd, how, fd if how == MOVED else -1
                self.count = self.node.count = i + 1
            # Only now: from here on no Python code runs that could close or reopen one.
            for i in range(self.count):
                if self.fds[i] < 0:
                    self.fds[i] = fd_of(self.items[i])
                if self.fds[i] == self.handle.fd:
                    raise self.handle.error("it cannot carry itself: its own end would stay open")
                if self.fds[i] > highest:
                    highest = self.fds[i]
                elif not keep:
                    self._close_once(i)
        except Error as exc:
            if count > 1:
                prefix_message(exc, f"item {i + 1} of {count}")
            raise
        return 0

    cdef int _borrow(self, Descriptor descriptor, bint keep, char *how) except -1:
        """Borrow a Descriptor, unless it is an earlier item too."""
        cdef int i, fd = descriptor.borrow(not keep)
        how[0] = SHARED if keep else MOVED
        for i in range(self.count if fd < 0 else 0):
            if self.closing[i] == MOVED and self.items[i] is descriptor:
                how[0], fd = NOT, self.fds[i]
        if fd < 0:
            raise Error(UNAVAILABLE, ErrType.NO_FD)
        return fd

    cdef void _close_once(self, int last) noexcept:
        """Close only one of the items that have the last one's fd, an object rather than an int."""
        cdef int i
        for i in range(last):
            if self.fds[i] != self.fds[last]:
                continue
            if self.closing[last] == AS_INT or (
                self.closing[last] == AS_OBJECT and self.items[i] is self.items[last]
            ):
                self.closing[last] = NOT
            elif self.closing[i] == AS_INT:
                self.closing[i] = NOT

    @property
    def sent(self) -> int:
        """How many bytes have left."""
        return self.bytes_sent

    def step(self, wake: Callable[[], object] | None = None) -> int:
        """Send what the socket takes now; return 0 once all has left and the items are closed.

        Otherwise return what to wait for: ``POLLOUT``; `PAUSE`, a moment; `QUEUED`, the turn to
        send, until any thread calls ``wake()``. Raises as `Conduit.transfer`; then it is cancelled.
        """
        if wake is not None:
            self.wake = wake
        return self._run(NULL, wake is not None)

    def cancel(self) -> None:
        """Give up, unless all has left. If only a part has left, the conduit sends no more.

        May be called in another thread or a signal handler: a step under way ends the send then.
        """
        cdef bint running
        with cython.critical_section(self):
            running = self.cancelled = self.running
        if not running:
            self._end(False)

    cdef int _run(self, Limit *limit, bint join) except -1:
        """Send what the socket takes, or with a limit all; return 0 or what to wait for."""
        cdef int events = 0
        cdef str why
        self.running = True
        try:
            while not self.over and not self.cancelled:
                events = self._step(join)
                if not events or limit == NULL:
                    break
                why = None
                if events == QUEUED:
                    why = "another thread is sending"
                elif self.bytes_sent:
                    why = f"it took {self.bytes_sent} of {self.size} bytes"
                self.handle.wait(
                    events, self, limit, "sending", why, ErrType.FAILED_TRANSFER, self.bytes_sent
                )
        except BaseException:
            self._end(False)
            raise
        with cython.critical_section(self):
            self.running = False
        if self.cancelled or not events:
            self._end(not events and self.bytes_sent == self.size)
        return events

    cdef int _step(self, bint join) except -1:
        """Send what the socket takes; return 0 once all has left, else what to wait for."""
        cdef Handle handle = self.handle
        cdef int turn = handle.acquire_send(self, False, join)
        cdef ssize_t sent
        handle.check("sending", self.bytes_sent, True)
        if turn == BUSY:
            if join:
                self._hold()
            return QUEUED
        while True:
            with nogil:
                sent = send_message(
                    handle.fd, self.data + self.bytes_sent, self.size - self.bytes_sent,
                    &self.own[0] if self.waited else &self.fds[0],
                    self.count if self.fds_pending else 0,
                )
            if sent >= 0:
                self.bytes_sent += sent
                # The descriptors left with the first byte.
                self.fds_pending = False
                if self.bytes_sent == self.size:
                    return 0
                # These duplicates are not sent: `_end` compares the ints with them.
                self._hold()
            elif sent == -EAGAIN or sent == -ENOBUFS:
                self._hold()
                if handle.acquire_send(self, True, join) == BUSY:
                    # Another thread was faster to wait for room on a packet socket.
                    return QUEUED  # pragma: no cover
                # ENOBUFS on BSDs: poll() does not tell when there are buffers again.
                return POLLOUT if sent == -EAGAIN else PAUSE
            elif sent == -EINTR:
                PyErr_CheckSignals()
                handle.check("sending", self.bytes_sent)
            else:
                self._raise(<int>-sent)

    cdef int _hold(self) except -1:
        """Before the first wait, duplicate what others may close and give back what is shared."""
        cdef int i
        if self.waited:
            return 0
        self.waited = True
        for i in range(self.count):
            if self.closing[i] != MOVED:
                self.own[i] = dup_fd(self.fds[i])
                if self.own[i] < 0:
                    if self.fds_pending:
                        self._raise(-self.own[i])
                    break
                if self.closing[i] == SHARED:
                    self.closing[i] = NOT
                    close_now((<Descriptor>self.items[i]).give_back(False, True))
        return 0

    cdef int _raise(self, int err) except -1:
        """Raise the error of a send; for EBADF it names the item."""
        cdef int i
        cdef str why = None
        for i in range(self.count if self.fds_pending and err == EBADF else 0):
            if fcntl(self.fds[i], F_GETFD) < 0:
                why = f"descriptor {self.fds[i]} (item {i + 1} of {self.count}) is not open"
                break
        raise self.handle.error("sending", err, why, ErrType.FAILED_TRANSFER, self.bytes_sent)

    cdef int _end(self, bint sent) except -1:
        """End it, once: pass on the turn, close or give back what is held; if sent, close items."""
        cdef Descriptor descriptor
        cdef int i, err, failed = 0, lost = -1
        if self.over or self.handle is None:
            return 0
        self.over = True
        release_fds(&self.node)
        # Before an item is closed: data may be that item's memory, such as an mmap's.
        if self.viewed:
            PyBuffer_Release(&self.view)
        failure = self.handle.end_send(
            self, self.forks == forks and 0 < self.bytes_sent < self.size
        )
        for i in range(self.count):
            if self.closing[i] == MOVED or self.closing[i] == SHARED:
                descriptor = <Descriptor>self.items[i]
                self.own[i] = descriptor.give_back(sent and self.closing[i] == MOVED, True)
            elif sent and self.closing[i] == AS_INT:
                if not self.waited:
                    self.own[i] = self.fds[i]
                elif self.own[i] >= 0 and conduit_same_file(self.fds[i], self.own[i]):
                    failed = close_fd(self.fds[i]) or failed
                else:
                    failed, lost = -EBADF, self.fds[i]
        err = close_all(self.own, self.count)
        self.handle.leave()
        failed = failed or err
        if failure is None and sent and failed:
            which = "a descriptor" if lost < 0 else f"descriptor {lost}"
            failure = self.handle.error(f"the message was sent, but closing {which} here", -failed,
                                        None, ErrType.FAILED_CLOSE)
        for i in range(self.count if sent else 0):
            if self.closing[i] == AS_OBJECT:
                exc = close_owner(self.items[i])
                # A handler's exception comes first, but only once nothing is left open.
                if exc is not None and (failure is None or not isinstance(exc, Error)):
                    failure = exc
        if failure is not None:
            raise failure
        return 0


@cython.final
@cython.no_gc_clear
cdef class Conduit:
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

    cdef readonly Handle _handle
    cdef double seconds
    # source: the object that owns a borrowed fd. place: the path it is bound at. early: what an
    # interrupted receive_exactly() received; the first ``early_size`` bytes of it.
    cdef object source, place
    cdef Message early
    cdef Py_ssize_t early_size
    cdef object __weakref__

    def __cinit__(self):
        self._handle = Handle.__new__(Handle)
        self.seconds = -1

    __reduce__, __enter__, __exit__ = Closing.__reduce__, Closing.__enter__, Closing.__exit__

    @class_signature
    def __signature__(self, fd: int, name: str = "") -> None: pass  # pragma: no cover

    def __init__(self, fd: int, name: str = "") -> None:
        self._handle.open(fd_from(fd, "Conduit"), "conduit", mistakes.name_from(name), False)

    # See `endpoint`.
    from_file = classmethod(endpoint.from_file)
    from_conn = classmethod(endpoint.from_conn)
    pair = classmethod(endpoint.pair)
    bind = classmethod(endpoint.bind)
    connect = classmethod(endpoint.connect)

    @staticmethod
    def _over(
        handle: Handle, timeout: float | None = None, source: object = None,
        place: Place | None = None,
    ) -> Conduit:
        """Return a conduit over a handle. ``source`` owns a borrowed fd; ``place`` is its path."""
        cdef Conduit conduit = Conduit.__new__(Conduit)
        conduit.seconds = mistakes.seconds_from(timeout)
        conduit.source, conduit.place, conduit._handle = source, place, handle
        return conduit

    @staticmethod
    def _accept(Handle handle not None: Handle, timeout: float | None = None) -> Conduit:
        """Accept a connection on a handle over a non-blocking listening socket; for `Listener`."""
        cdef Conduit conduit = Conduit.__new__(Conduit)
        cdef Limit limit = Limit(mistakes.seconds_from(timeout), 0)
        cdef Use listening = Use(handle)
        cdef int fd = -EINTR
        while fd < 0:
            if CONDUIT_SOCK_CLOEXEC:
                with nogil:
                    fd = accept_fd(listening.fd)
            else:
                fd = accept_fd(listening.fd)  # pragma: no cover - as in receiving
            if fd < 0 and fd != -ECONNABORTED:
                handle.retry(fd, &limit, "accepting", "no connection is pending", ErrType.NO_FD)
        conduit._handle.open(fd, "conduit", "", True)
        return conduit

    def __del__(self):
        # There is no handle if there was no memory for one.
        if self._handle is not None:
            self._handle.warn_unclosed(self)

    def __repr__(self) -> str:
        cdef int fd = self._handle.number()
        name = f" {self.name!r}" if self.name else ""
        return f"<conduit.Conduit{name} {'closed' if fd < 0 else f'descriptor {fd}'}>"

    @property
    def name(self) -> str:
        """What the conduit is called in its `repr` and in errors."""
        return self._handle.name

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._handle.number() < 0

    cdef Limit _limit(self, object deadline=None) except *:
        """How long a call may wait: its timeout, or until a time of `monotonic`."""
        cdef Limit limit
        limit.deadline = 0 if deadline is None else <long long>(min(<double>deadline, 9e9) * 1e9)
        with cython.critical_section(self):
            limit.seconds = self.seconds
        return limit

    @property
    def timeout(self) -> float | None:
        """How many seconds a call may wait: None for ever, 0 not at all (`WouldBlockError`).

        They count from its first wait; then `TransferTimeoutError`. A new value holds from the next
        call on. A negative number or NaN is a `ValueError`.
        """
        cdef double seconds = self._limit().seconds
        return None if seconds < 0 else seconds

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        cdef double seconds = mistakes.seconds_from(timeout)
        with cython.critical_section(self):
            self.seconds = seconds

    @property
    def peer(self) -> Peer:
        """The `Peer` (pid, uid, gid) as of connect(2) (``SO_PEERCRED``); `Error` without one."""
        cdef conduit_sender peer
        cdef int err = peer_of(self._handle.enter(), &peer)
        self._handle.leave()
        if err:
            raise self._handle.error("its peer", -err)
        return Peer(peer.pid, peer.uid, peer.gid)

    def fileno(self) -> int:
        """Return the number of the socket; the conduit still owns it."""
        return self._handle.fileno()

    def close(self) -> None:
        """Close what the conduit owns, and end the calls that wait in other threads.

        Those calls raise `Error` (``NO_FD``), and the last one to end closes the socket. A borrowed
        descriptor is left open. A second `close` does nothing. `Error` (``FAILED_CLOSE``) if
        close(2) fails, or if other code has closed the number (a file that has it now is left
        alone); the conduit is closed all the same.
        """
        with cython.critical_section(self):
            source, self.source = self.source, None
            place, self.place = self.place, None
            early, self.early = self.early, None
        try:
            if place is not None:
                place.release()
        finally:
            try:
                self._handle.close()
            finally:
                if early is not None:
                    early.close()
                # Last: dropping an object may run any code.
                del source

    def shutdown(self, how: int = socket.SHUT_WR) -> None:
        """Shut down sending, so that the peer reads the end; or ``SHUT_RD``, ``SHUT_RDWR``.

        See ``shutdown(2)``. It affects all processes that share the socket.
        """
        cdef int err, direction = index(how)
        if direction not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise ValueError(f"how must be SHUT_RD, SHUT_WR or SHUT_RDWR, not {how!r}")
        err = <int>conduit_result(shutdown(self._handle.enter(), direction))
        self._handle.leave()
        if err:
            raise self._handle.error("shutting down", -err)

    def transfer_fd(self, fd: int, *, keep: bool = False) -> None:
        """Send one descriptor by number; no object may own the number. See `transfer`."""
        self._transfer_one(fd_from(fd, "transfer_fd"), fd, keep)

    def transfer_file(self, file: HasFileno, *, keep: bool = False) -> None:
        """Send an open file; on success its ``close()`` is called. See `transfer`.

        It is flushed first, and its offset is set to where the program stopped reading, not to
        where the buffer did. With ``keep``, both processes share that offset.

        A file with a buffer that cannot be put back is refused (``FAILED_TRANSFER``), unchanged: a
        pipe's, or one in the middle of what an encoding decodes at once. So is any reader that may
        have a buffer of its own, except those of `io` over a file or a socket.
        """
        self._transfer_object(file, keep)

    def transfer_conn(self, conn: HasFileno, *, keep: bool = False) -> None:
        """Send a socket, or anything with ``fileno()`` and ``close()``; on success it is closed.

        Remove a socket from its event loop first, or the loop goes on watching the number. A
        socket of an asyncio or uvloop transport can only be shared. A TLS socket is refused: its
        state cannot travel. See `transfer`.
        """
        self._transfer_object(conn, keep)

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
        self._send(items, data, keep, None)

    cpdef int _send(self, tuple items, data, bint keep, deadline) except -1:
        """Send as `transfer`, with a deadline as in `_receive_by`."""
        cdef Send send = Send.__new__(Send)
        cdef Limit limit = self._limit(deadline)
        send._load(self._handle, items, data, keep)
        return send._run(&limit, limit.seconds != 0)

    cdef int _transfer_object(self, object obj, bint keep) except -1:
        if isinstance(obj, Descriptor):
            return self._send((obj,), None, keep, None)
        prepare(obj, keep)
        return self._transfer_one(fd_of(obj), obj, keep)

    cdef int _transfer_one(self, int fd, object item, bint keep) except -1:
        """Send one descriptor with a NUL byte: at once if possible, else by a `Send`."""
        cdef Handle handle = self._handle
        cdef Limit limit
        cdef int own = handle.enter(), turn = BUSY, err = 0
        cdef ssize_t sent = -EAGAIN
        cdef bint is_int = PyLong_Check(item)
        cdef Send send
        failure = None
        try:
            if fd != own:
                turn = handle.acquire_send(handle.single, False, False)
            if turn != BUSY:
                with nogil:
                    sent = send_message(own, b"\0", 1, &fd, 1)
                    if sent == 1 and is_int and not keep:
                        err = close_fd(fd)
            if sent != 1:
                limit = self._limit()
                if sent == -EAGAIN and limit.seconds == 0 and turn != BUSY:
                    raise handle.error("sending", EAGAIN)
                # The Send takes over this call's turn, so nobody in the queue gets ahead of it.
                send = Send.__new__(Send)
                if turn == TURN:
                    with cython.critical_section(handle):
                        handle.sender = send
                turn = BUSY
                send._load(handle, (item,), None, keep)
                return send._run(&limit, limit.seconds != 0)
        finally:
            if turn == TURN:
                failure = handle.end_send(handle.single, False)
            handle.leave()
        if not keep and not is_int:
            failure = close_owner(item) or failure
        if failure is None and err:
            failure = handle.error(f"the message was sent, but closing descriptor {fd} here", -err,
                                   None, ErrType.FAILED_CLOSE)
        if failure is not None:
            raise failure
        return 0

    def receive_fd(self) -> int:
        """Receive one descriptor and return its number, which the caller owns.

        If a signal handler raises just as this returns, the number is lost and stays open. Raises
        `Error` (``BAD_CTRL_MESG``), with all that came closed, for a message with no descriptor,
        with several, or with more than one byte, and if this process has no room (``EMFILE``).
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
        """Receive one descriptor and return a file that owns it, as `Descriptor.to_file` makes it.

        The arguments are checked before anything is received. Raises as `receive_fd` and
        `Descriptor.to_file`, with the descriptor closed.
        """
        cdef Descriptor descriptor = Descriptor.__new__(Descriptor)
        raw = None
        objects.check_file_arguments(mode, buffering, encoding, errors, newline)
        descriptor.fd = self._receive_one()
        try:
            raw = open_raw(descriptor.fd, mode, buffering, True)
            descriptor.fd = -1
            return open_file(raw, mode, buffering, encoding, errors, newline, name)
        except BaseException:
            close_now(descriptor.give_back(True, False))
            if raw is not None:
                close_owner(raw)
            raise

    def receive_conn(self) -> socket.socket:
        """Receive one descriptor and return a socket that owns it, as `Descriptor.to_conn` does.

        Raises as `receive_fd` and `Descriptor.to_conn`, with the descriptor closed.
        """
        cdef Descriptor descriptor = Descriptor.__new__(Descriptor)
        descriptor.fd = self._receive_one()
        return descriptor._open_as(None, True)

    def receive(self, max_data: int = 65536, max_fds: int = CONDUIT_MAX_FDS) -> Message:
        """Receive one message: what one ``recvmsg(2)`` returns.

        ``max_data`` is the most bytes, at least 1, and ``max_fds`` the most descriptors to take.
        Packets come as they were sent. A stream has no boundaries: this returns the bytes that have
        arrived, with the descriptors of at most one message. Bytes sent earlier may come in front
        of that message's, and a long payload comes in pieces.

        Raises `Error` (``BAD_CTRL_MESG``), with all that came closed, and can be called again: for
        more than ``max_fds`` descriptors; ``EMSGSIZE`` for a packet longer than ``max_data``;
        ``EMFILE`` if this process has no room. `ValueError` for an impossible limit.
        """
        return self._receive_by(max_data, max_fds, None)

    def _receive_by(self, max_data: int, max_fds: int, deadline: float | None) -> Message:
        """Receive as `receive`, until a time of `monotonic`; None: as the timeout says."""
        cdef RecvResult result
        cdef bytes payload
        cdef ssize_t got
        cdef Limit limit = self._limit(deadline)
        if not (1 <= index(max_data) <= INT_MAX and index(max_fds) >= 0):
            raise mistakes.not_a_limit(max_data, max_fds)
        payload = PyBytes_FromStringAndSize(NULL, max_data)
        got = self._receive(
            PyBytes_AS_STRING(payload), len(payload), 0, min(max_fds, SLOTS), &result, &limit
        )
        return message_of(&result, payload, got)

    def receive_exactly(self, size: int, max_fds: int = CONDUIT_MAX_FDS) -> Message:
        """Receive exactly ``size`` bytes, and the descriptors that came with them.

        For protocols that say the length of what follows: it keeps the descriptors of one message
        apart from those of the next. If a deadline, a signal handler or a cancellation ends it, the
        next call continues with what had come; until then other receiving calls raise. On packets,
        it receives as many as make up the size.

        Raises as `receive`. `PeerClosedError` says how many bytes came before the end. On that, and
        on more than ``max_fds`` descriptors, all that had come is closed and lost.
        """
        cdef long long room, got, have, wanted = mistakes.size_from(size)
        cdef bytes payload, grown
        cdef Message early, message
        cdef RecvResult result
        cdef Limit limit = self._limit()
        self._handle.fileno()
        with cython.critical_section(self):
            early = self.early or Message()
            fds, self.early = list(early._fds), None
            have, self.early_size = self.early_size, 0
        # Not copied where its room can be used, since a call may be interrupted very often.
        fits = self._handle.kind == SOCK_STREAM and len(early._data) <= wanted
        payload, sender = early._data if fits else early._data[:have], early._sender
        try:
            if have > wanted:
                raise ValueError(f"{have} bytes have come already, more than {size}")
            while have < wanted:
                if have == len(payload):
                    # On a stream, a multiple of what came at most: a peer may choose the size.
                    room = wanted if self._handle.kind != SOCK_STREAM else PIECE + 8 * have
                    grown = PyBytes_FromStringAndSize(NULL, min(room, wanted))
                    memcpy(PyBytes_AS_STRING(grown), PyBytes_AS_STRING(payload), have)
                    payload = grown
                got = self._receive(
                    PyBytes_AS_STRING(payload) + have, min(len(payload) - have, INT_MAX), 0,
                    min(max(max_fds - len(fds), 0), SLOTS), &result, &limit,
                )
                message = message_of(&result, b"", 0)
                fds.extend(message._fds)
                sender = sender or message._sender
                have += got
                if not got:
                    # An empty packet: the deadline must hold however many of them come.
                    use = Use(self._handle)
                    self._handle.wait(POLLIN, None, &limit, "receiving")
                    use.close()
        except BaseException as exc:
            early = Message(payload, fds, sender)
            if isinstance(exc, PeerClosedError) and (have or fds):
                prefix_message(exc, f"after {have} of {wanted} bytes")
            if isinstance(exc, PeerClosedError) or isinstance(exc, Error) and (
                exc.type is ErrType.BAD_CTRL_MESG or self._handle.number() < 0
            ):
                early.close()
            elif have or fds:
                with cython.critical_section(self):
                    if self.early is not None:  # Left by another call.
                        payload = self.early._data[:self.early_size] + payload[:have]
                        early = Message(payload, self.early._fds + early._fds, early._sender)
                    self.early, self.early_size = early, have + self.early_size
            raise
        return Message(payload[:wanted], fds, sender)

    def __iter__(self) -> Iterator[Message]:
        """Receive messages until the peer closes."""
        try:
            while True:
                yield self.receive()
        except PeerClosedError:
            return

    cdef int _receive_one(self) except -1:
        """Receive one fd, which the caller owns, with one byte."""
        cdef char nul = 0
        cdef RecvResult result
        cdef Limit limit = self._limit()
        self._receive(&nul, 1, 1, 1, &result, &limit)
        return result.fds[0]

    cdef ssize_t _receive(
        self, void *data, size_t size, int least, int most, RecvResult *result, Limit *limit
    ) except -1:
        """Receive a message of at most ``size`` >= 1 bytes; return how many came."""
        cdef Handle handle = self._handle
        cdef ssize_t got = 0
        cdef int fd = handle.enter()
        cdef bint is_early
        try:
            with cython.critical_section(self):
                is_early = self.early is not None
            if is_early:
                raise handle.error("receiving: an interrupted receive_exactly() left bytes; take "
                                   "them with another one first")
            while True:
                if CONDUIT_CMSG_CLOEXEC:
                    with nogil:
                        got = recv_message(fd, handle.kind, data, size, result)
                else:
                    # Python forks with the GIL held, so all are close-on-exec before there is a
                    # child. It releases the GIL only for vfork(), which it uses on Linux alone.
                    # In a free-threaded Python os.fork() stops all threads; subprocess does not.
                    got = recv_message(fd, handle.kind, data, size, result)  # pragma: no cover
                if got >= 0:
                    break
                handle.retry(got, limit, "receiving")
        finally:
            handle.leave()
        if result.flaw or result.count < least or result.count > most:
            close_all(result.fds, result.count)
            raise refusal(
                repr(handle), size, least, most, result.count, result.err,
                result.flaw == ENDED, result.flaw == WITHHELD,
            )
        return got
