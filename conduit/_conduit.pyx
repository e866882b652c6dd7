# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
# cython: annotation_typing=False
"""The public classes: who owns which descriptor, and nothing else."""

import os
import socket
from io import FileIO

cimport cython
from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches, PyErr_WriteUnraisable
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.object cimport PyObject_AsFileDescriptor
from cpython.ref cimport Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.errno cimport EINVAL, errno
from libc.math cimport isnan

from conduit._posix cimport CONDUIT_MAX_FDS, conduit_socketpair
from conduit._wire cimport (
    SLOTS,
    Arrival,
    Shipment,
    Transport,
    close_number,
    close_numbers,
    connect_to,
    duplicate,
    forks,
    move_up,
)

from _socket import socket as c_socket

from conduit import mistakes, objects
from conduit._wire import address_from, peer_of
from conduit.errors import Error, ErrType, blame, from_errno
from conduit.peer import Peer
from conduit.signature import class_signature

cdef enum:
    # How many calls use a Descriptor that one of them is about to move.
    ALONE = -1


cdef extern from "Python.h":
    int PyErr_ResourceWarning(PyObject *source, Py_ssize_t stack_level, const char *format, ...)


cdef void warn_unclosed(str what, PyObject *source) noexcept:
    """Warn that an object was dropped while it was open.

    In C, and not by warnings.warn(): at the interpreter's exit an object may live longer than
    the names of this module, and than the module warnings.
    """
    if PyErr_ResourceWarning(source, 1, "unclosed %U", <PyObject *>what) < 0:
        if PyErr_ExceptionMatches(Warning):
            # One that is an error cannot be raised from where objects end.
            PyErr_WriteUnraisable(what)
        else:
            # The interpreter has not enough left to warn with.
            PyErr_Clear()


cdef int number_from(object value, str call) except -1:
    """The number an int argument of a call stands for; only ints are (1.5 and True are not)."""
    cdef int overflow = 0
    cdef long long number
    if not PyLong_Check(value) or PyBool_Check(value):
        raise mistakes.not_an_int(call, value)
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not 0 <= number <= 0x7FFFFFFF:
        raise Error(f"there is no descriptor {value}", ErrType.NO_FD)
    return <int>number


cdef int number_of(object obj) except -1:
    """The number an object has right now."""
    try:
        return PyObject_AsFileDescriptor(obj)
    except Exception as exc:
        raise Error(f"{obj!r} has no descriptor: {exc}", ErrType.NO_FD) from exc


cdef double seconds_from(object timeout) except? -2:
    """A timeout in seconds; -1 for None."""
    cdef double seconds
    if timeout is None:
        return -1
    seconds = timeout
    if isnan(seconds) or seconds < 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    return seconds


@cython.final
cdef class Descriptor:
    """One descriptor that this object owns: the file it names is closed with it.

    What `Conduit.receive` returns. Close it, give it to a file (`to_file`) or a socket
    (`to_conn`), or take the number out (`detach`); left as a context manager it is closed. One
    that is dropped still open is closed too, with a `ResourceWarning`.

    Descriptor(fd) takes ownership of the number ``fd``. It raises `DescriptorTypeError` for
    anything but an int, and `Error` (``NO_FD``) for a number that cannot be one.
    """

    cdef int number
    # How many calls share the number; ALONE if one is about to move it. What is closed under
    # them is parting: the last of them closes it, so that none ever uses another file's number.
    cdef int users
    cdef int parting
    cdef unsigned long forks
    cdef object __weakref__

    def __cinit__(self):
        self.number = self.parting = -1
        self.forks = forks

    @class_signature
    def __signature__(self, fd: int) -> None: pass

    def __init__(self, fd: int) -> None:
        cdef int number = number_from(fd, "Descriptor")
        cdef bint free
        self.close()
        with cython.critical_section(self):
            free = self.number < 0 and not self.users
            if free:
                self.number = number
        if not free:
            raise Error("another call is using this Descriptor", ErrType.NO_FD)

    def __dealloc__(self):
        # Nothing is parting: a call that uses the number holds this object.
        cdef int number = self.number
        if number >= 0:
            with nogil:
                close_number(number)
            # Without a source: a reference to this object must not outlive it.
            warn_unclosed(f"<conduit.Descriptor {number}>", NULL)

    def __repr__(self):
        return f"<conduit.Descriptor {'closed' if self.number < 0 else self.number}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it owns nothing any more: closed, detached, or made into another object."""
        return self.number < 0

    @property
    def kind(self) -> str:
        """What it is, as ``fstat(2)`` says.

        ``"regular file"``, ``"directory"``, ``"fifo"``, ``"socket"``, ``"character device"``,
        ``"block device"``, or ``"anonymous"`` (an epoll, an eventfd and the like).

        Raises `Error`: ``NO_FD`` if it is closed, ``UNKNOWN`` if the system does not tell.
        """
        cdef int number = self._held()
        try:
            kind = objects.kind_of(os.fstat(number).st_mode)
        except OSError as exc:
            self._held()
            raise from_errno(
                exc.errno, ErrType.UNKNOWN, f"the kind of descriptor {number}"
            ) from exc
        # Owned still, it was so all the time, and no other file's.
        self._held()
        return kind

    cdef int _held(self) except -1:
        cdef int number
        with cython.critical_section(self):
            number = self.number
        if number < 0:
            raise Error(
                "this Descriptor is closed, or something else owns its number now",
                ErrType.NO_FD,
            )
        return number

    cdef int _take(self) noexcept:
        """Take the number out, so that it is closed once; -1 if that is not up to the caller."""
        cdef int number
        with cython.critical_section(self):
            self._check_fork()
            number = self.number
            self.number = -1
            if number >= 0 and self.users:
                self.parting = number
                number = -1
        return number

    cdef int _try_lend(self, bint alone) noexcept:
        """Let a call use the number, which it must ``_give_back`` or ``_forget``; -1 if not."""
        cdef int number = -1
        with cython.critical_section(self):
            self._check_fork()
            if self.number >= 0 and (not self.users if alone else self.users >= 0):
                number = self.number
                self.users = ALONE if alone else self.users + 1
        return number

    cdef int _lend(self, bint alone) except -1:
        cdef int number = self._try_lend(alone)
        if number < 0:
            self._held()
            raise Error("another call is using this Descriptor", ErrType.NO_FD)
        return number

    cdef void _give_back(self) noexcept:
        cdef int number = -1
        with cython.critical_section(self):
            self._check_fork()
            if self.users:
                self.users = self.users - 1 if self.users > 0 else 0
            if not self.users:
                number = self.parting
                self.parting = -1
        if number >= 0:
            with nogil:
                close_number(number)

    cdef void _forget(self) noexcept:
        """Own nothing any more: the call that uses the number alone owns it from now on."""
        with cython.critical_section(self):
            self.number = self.parting = -1
            self.users = 0

    cdef void _check_fork(self) noexcept:
        """Forget the calls of the parent's threads, none of which is in a forked child."""
        if self.forks != forks:
            self.forks = forks
            self.users = 0
            if self.parting >= 0:
                close_number(self.parting)
                self.parting = -1

    def fileno(self) -> int:
        """Return the number, which stays owned by this object.

        Raises `Error` (``NO_FD``) if it is closed.
        """
        return self._held()

    def detach(self) -> int:
        """Return the number and forget it: the caller owns it, as after ``socket.detach()``.

        Raises `Error` (``NO_FD``) if it is closed, or if another thread is sending it.
        """
        cdef int number = self._lend(True)
        self._forget()
        return number

    def close(self) -> None:
        """Close it. A second time does nothing.

        Raises `Error` (``FAILED_CLOSE``) if the system reports a failure (a full disk that
        shows only now, a number closed elsewhere); it is closed for good all the same.
        """
        self._close(self._take())

    cdef int _close_sent(self) except -1:
        """Close what a call had alone and has sent."""
        cdef int number = max(self.number, self.parting)
        self._forget()
        return self._close(number)

    cdef int _close(self, int number) except -1:
        cdef int err = 0
        if number >= 0:
            with nogil:
                err = close_number(number)
        if err:
            raise from_errno(err, ErrType.FAILED_CLOSE, f"closing descriptor {number}")
        return 0

    def to_file(
        self,
        mode: str | None = None,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> IO[Any]:
        """Return a file object that owns the descriptor from now on; this one is closed.

        The arguments are those of ``open()``. Without a mode, the file is binary and allows
        what the descriptor allows: ``"rb"``, ``"wb"`` or ``"r+b"``. Nothing is truncated and no
        offset is moved. ``name`` becomes the file's ``name``, which is the number otherwise.
        A descriptor that goes both ways and has no offset (a socket, a terminal) becomes an
        `io.BufferedRWPair`.

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
    def __signature__(self, data: bytes = b"", fds: Iterable[Descriptor] = ()) -> None: pass

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

    def __repr__(self):
        return f"<conduit.Message of {len(self._data)} bytes and {len(self._fds)} descriptors>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors that were not taken out. A second time does nothing.

        Raises `Error` (``FAILED_CLOSE``), once all are closed, if the system reports a failure.
        """
        cdef int numbers[SLOTS]
        cdef int count = 0, err, failed = 0
        cdef Descriptor descriptor
        cdef Py_ssize_t left = len(self._fds)
        for descriptor in self._fds:
            left -= 1
            numbers[count] = descriptor._take()
            if numbers[count] >= 0:
                count += 1
            if count == SLOTS or not left:
                with nogil:
                    err = close_numbers(numbers, count)
                failed = failed or err
                count = 0
        if failed:
            raise from_errno(failed, ErrType.FAILED_CLOSE, f"closing what came with {self!r}")


cdef Descriptor own(int number):
    """A Descriptor for a number that came in. Runs no Python code that could lose it."""
    cdef Descriptor descriptor = Descriptor.__new__(Descriptor)
    descriptor.number = number
    return descriptor


cdef object open_file(
    Descriptor descriptor, mode, buffering, encoding, errors, newline, name
):
    cdef int number = descriptor._lend(True)
    try:
        raw_mode = objects.file_mode(number, mode)
        # All in C, so no signal handler can raise between here and the line that forgets.
        raw = FileIO(number, raw_mode)
    except BaseException as exc:
        descriptor._give_back()
        if isinstance(exc, OSError) and not isinstance(exc, Error):
            raise from_errno(exc.errno, ErrType.BAD_CLONE, f"descriptor {number}") from exc
        raise
    descriptor._forget()
    return objects.open_file(raw, mode, buffering, encoding, errors, newline, name)


cdef object open_socket(Descriptor descriptor):
    sock = objects.blank_socket()
    cdef int number = descriptor._lend(True)
    try:
        objects.fill_socket(sock, number)
    except BaseException:
        # A signal handler may have raised once the object had the number.
        if c_socket.fileno(sock) == number:
            c_socket.detach(sock)
        descriptor._give_back()
        raise
    descriptor._forget()
    return sock


@cython.final
cdef class Conduit:
    """One end of a Unix socket that carries open descriptors to and from another process.

    Conduit(fd, name="") borrows the number ``fd`` of a Unix socket: `close` leaves it open. The
    other constructors say who owns what. The name appears in the `repr` and in every error.

    What a call sends is moved: on success it is closed here, once the system has taken the
    message, and on failure it stays open and the caller's. A call that receives returns exactly
    what was sent, or raises with everything closed that had arrived. Received descriptors are
    close-on-exec and never 0, 1 or 2.

    Calls wait no longer than `timeout`; signals run meanwhile and may raise; `close` from
    another thread ends them at once. All calls may be made from several threads. Whether the
    socket itself is blocking makes no difference, and is not changed; a stream socket gets
    ``SO_OOBINLINE``, since a descriptor sent with an out-of-band byte would be lost unseen.

    Every call raises `Error` (``NO_FD``) on a closed conduit, and ``FAILED_TRANSFER`` with an
    errno where the system call fails, on a number that is no Unix socket among others. Three
    of its subclasses tell apart what is met every day: `PeerClosedError`,
    `TransferTimeoutError` and `WouldBlockError`.

    Conduit(fd, name) raises `DescriptorTypeError` if ``fd`` is not an int, and `Error`
    (``NO_FD``) if it cannot be a descriptor.
    """

    cdef Transport transport
    cdef object lender
    cdef object __weakref__

    def __cinit__(self):
        self.transport = Transport()

    @class_signature
    def __signature__(self, fd: int, name: str = "") -> None: pass

    def __init__(self, fd: int, str name not None: str = "") -> None:
        self.transport.adopt(number_from(fd, "Conduit"), name)

    @classmethod
    def from_file(cls, file: HasFileno, *, str name: str | None = None) -> Conduit:
        """Borrow the descriptor of a file or any object with ``fileno()``.

        The conduit keeps a reference to it, so that it is not closed by being forgotten; `close`
        lets go of it and leaves it open. Without a name, it has the file's.

        Raises `Error` (``NO_FD``) if the object has no descriptor.
        """
        cdef Conduit conduit = Conduit.__new__(Conduit)
        if name is None:
            own_name = getattr(file, "name", "")
            name = own_name if isinstance(own_name, str) else ""
        conduit.transport = Transport(objects.number_of(file, "Conduit"), name)
        conduit.lender = file
        return conduit

    @classmethod
    def from_conn(cls, conn: HasFileno, *, str name not None: str = "") -> Conduit:
        """Duplicate the descriptor of a socket or any object with ``fileno()``.

        The conduit owns the duplicate (close-on-exec) and has the object's timeout, if it has
        ``gettimeout()``. The object stays as it is and may be closed at any time.

        Raises `Error`: ``NO_FD`` if the object has no descriptor, ``BAD_CLONE`` if duplicating
        it fails (``EMFILE``: this process has no room).
        """
        cdef int number = objects.number_of(conn, "Conduit")
        timeout = objects.timeout_of(conn)
        cdef double seconds = seconds_from(timeout)
        cdef int fd = duplicate(number)
        if fd < 0:
            raise from_errno(errno, ErrType.BAD_CLONE, f"duplicating descriptor {number}")
        return owner(fd, seconds, name)

    @classmethod
    def pair(cls, *, type: int = socket.SOCK_STREAM) -> tuple[Conduit, Conduit]:
        """Return two conduits that are connected to each other, as ``socketpair(2)`` makes them.

        ``type`` is ``SOCK_STREAM``, or ``SOCK_SEQPACKET``, which keeps messages apart.

        Raises `Error` (``NO_FD``) if the system makes no pair.
        """
        cdef int ends[2]
        cdef int i, err = 0
        cdef int kind = type
        if conduit_socketpair(kind, ends) < 0:
            raise from_errno(errno, ErrType.NO_FD, "making a pair")
        for i in range(2):
            ends[i] = move_up(ends[i])
            if ends[i] < 0:
                err = errno
        if err:
            close_numbers(ends, 2)
            raise from_errno(err, ErrType.NO_FD, "making a pair")
        first, second = own(ends[0]), own(ends[1])
        return owner(first.detach(), -1), owner(second.detach(), -1)

    @classmethod
    def connect(
        cls,
        path: StrOrBytesPath,
        *,
        type: int = socket.SOCK_STREAM,
        timeout: float | None = None,
        str name not None: str = "",
    ) -> Conduit:
        """Connect to a Unix socket that listens at a path; ``"@name"`` is abstract on Linux.

        ``timeout`` is how many seconds to wait for room in the listener's backlog, and becomes
        the conduit's own: None for ever, 0 not at all. ``type`` is the listener's.

        Raises `Error` (``NO_FD``) if there is no connection: ``ENOENT``, ``ECONNREFUSED`` (nobody
        listens there any more), ``EACCES``, ``EPROTOTYPE`` (another type), ``ENAMETOOLONG`` (a
        path has 107 bytes at most); `TransferTimeoutError` and `WouldBlockError` as every call.
        """
        cdef double seconds = seconds_from(timeout)
        return owner(
            connect_to(address_from(path), type, seconds, f"connecting to {path!r}"), seconds, name
        )

    def __del__(self):
        if self.transport.owned and not self.transport.closed:
            warn_unclosed(repr(self), <PyObject *>self)

    def __repr__(self):
        cdef Transport transport = self.transport
        name = transport.get_name()
        name = f" {name!r}" if name else ""
        state = "closed" if transport.closed else f"descriptor {transport.fd}"
        return f"<conduit.Conduit{name} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What the conduit is called in its `repr` and in errors."""
        return self.transport.get_name()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.transport.closed

    @property
    def timeout(self) -> float | None:
        """How many seconds a call may wait: None for ever, 0 not at all (`WouldBlockError`).

        Counted from the moment a call has to wait; past it, `TransferTimeoutError` is raised.
        Setting it takes effect with the next call. A negative number or NaN is a `ValueError`.
        """
        cdef double timeout = self.transport.timeout
        return None if timeout < 0 else timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self.transport.timeout = seconds_from(timeout)

    @property
    def peer(self) -> Peer:
        """The `Peer` (pid, uid, gid) this is connected to, as it was when it connected.

        Raises `Error`: ``NO_FD`` if the conduit is closed, ``FAILED_TRANSFER`` if the system
        does not know, as for a socket that is not connected.
        """
        self.transport.enter()
        try:
            peer = Peer(*peer_of(self.transport.fd))
        except OSError as exc:
            raise from_errno(
                exc.errno, ErrType.FAILED_TRANSFER, f"{self.transport.describe()}: its peer"
            ) from exc
        finally:
            self.transport.leave()
        return peer

    def fileno(self) -> int:
        """Return the number of the socket, which stays the conduit's.

        Raises `Error` (``NO_FD``) if the conduit is closed.
        """
        cdef int number = self.transport.number()
        if number < 0:
            raise Error(f"{self.transport.describe()}: it has no descriptor", ErrType.NO_FD)
        return number

    def close(self) -> None:
        """Close what the conduit made itself, and end the calls that wait in other threads.

        Those raise `Error` (``NO_FD``). A borrowed descriptor is left open. The socket of a
        conduit that owns it is closed when the last call under way has left it. A second
        `close` does nothing.

        Raises `Error` (``FAILED_CLOSE``) if the system reports a failure, as when the number
        was closed elsewhere; the conduit is closed all the same.
        """
        described = self.transport.describe()
        cdef int err = self.transport.shut()
        with cython.critical_section(self):
            lender, self.lender = self.lender, None
        # Only here: to forget an object may run anything.
        del lender
        if err:
            raise from_errno(err, ErrType.FAILED_CLOSE, f"{described}: closing")

    def transfer_fd(self, fd: int, *, bint keep: bool = False) -> None:
        """Send one descriptor by its number; on success it is closed here.

        With ``keep`` it is shared instead: the receiver gets its own, and ``fd`` stays open.
        The number must not be in use elsewhere: the file or socket object that owns it would
        close it again. For those there are `transfer_file` and `transfer_conn`.

        Raises `DescriptorTypeError` if ``fd`` is not an int. Raises `Error`: ``NO_FD`` if it
        cannot be a descriptor, ``FAILED_TRANSFER`` if it was not sent (``EBADF``: it is not
        open), and then it stays the caller's; ``FAILED_CLOSE`` if it was sent but not closed
        well here, or if another thread gave the number to another file while this waited
        (that file is left alone).
        """
        cdef int number = number_from(fd, "transfer_fd")
        cdef int err
        self._refuse_itself(number)
        err = self.transport.send(b"\0", 1, &number, 1, not keep)
        if number < 0 and not keep:
            raise self._lost(fd)
        if err:
            raise from_errno(
                err, ErrType.FAILED_CLOSE,
                f"{self.transport.describe()}: descriptor {fd} was sent, but closing it here",
            )

    def transfer_file(self, file: HasFileno, *, bint keep: bool = False) -> None:
        """Send an open file; on success its ``close()`` is called.

        What it has not written yet is flushed first, and the receiver reads on where the
        program stopped reading, not where the buffer did. With ``keep`` it is shared instead:
        it stays open here, and has one offset with the receiver's.

        Raises `Error`: ``NO_FD`` if the file is closed or has no descriptor,
        ``FAILED_TRANSFER`` if it could not be flushed, positioned or sent, and then it is open
        and the caller's; ``FAILED_CLOSE`` if it was sent but its ``close()`` failed.
        """
        self._transfer_object(file, keep)

    def transfer_conn(self, conn: HasFileno, *, bint keep: bool = False) -> None:
        """Send a socket, or anything with ``fileno()`` and ``close()``; on success it is closed.

        With ``keep`` it is shared instead. Take a socket out of its event loop first: there, a
        descriptor that was passed on goes on being watched. An `ssl.SSLSocket` is refused,
        since the state of TLS cannot travel.

        Raises as `transfer_file`; `DescriptorTypeError` for an object that has no descriptor
        by its kind, or that cannot be closed and is not to be kept.
        """
        self._transfer_object(conn, keep)

    cdef int _transfer_object(self, object obj, bint keep) except -1:
        cdef int number
        if isinstance(obj, Descriptor):
            self.transfer(obj, keep=keep)
            return 0
        objects.prepare(obj, keep)
        number = number_of(obj)
        self._refuse_itself(number)
        self.transport.send(b"\0", 1, &number, 1, False)
        if not keep:
            objects.close(obj)
        return 0

    cdef int _refuse_itself(self, int number) except -1:
        if number == self.transport.fd and number >= 0:
            raise Error(
                f"{self.transport.describe()}: it cannot carry itself: it would hold its own "
                "end open unseen for ever", ErrType.FAILED_TRANSFER,
            )
        return 0

    cdef int _receive_number(self) except -1:
        """Receive a plain transfer; the number is the caller's."""
        cdef char nul = 0
        cdef int count
        cdef Arrival arrival
        self.transport.receive(&nul, 1, &arrival)
        count = arrival.count
        if count != 1:
            with nogil:
                close_numbers(arrival.fds, count)
            raise Error(
                f"{self.transport.describe()}: receiving: a message came with {count} "
                f"descriptors where one was awaited{', and they are closed' if count else ''}; "
                "receive() takes messages of any form", ErrType.BAD_CTRL_MESG,
            )
        return arrival.fds[0]

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
        return self._receive_number()

    def receive_file(
        self,
        mode: str | None = None,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> IO[Any]:
        """Receive one descriptor and return a file object that owns it.

        The arguments are those of `Descriptor.to_file`, and are checked before anything is
        received.

        Raises as `receive_fd` and `Descriptor.to_file`; the descriptor is then closed.
        """
        objects.check_file_arguments(mode, buffering, encoding, errors, newline)
        with own(self._receive_number()) as descriptor:
            return open_file(descriptor, mode, buffering, encoding, errors, newline, name)

    def receive_conn(self) -> socket.socket:
        """Receive one descriptor and return a `socket.socket` that owns it.

        See `Descriptor.to_conn` for its family, type, protocol and timeout.

        Raises as `receive_fd`, and `Error` (``BAD_CLONE``) if it is no socket; it is then
        closed.
        """
        with own(self._receive_number()) as descriptor:
            return open_socket(descriptor)

    def transfer(
        self, *items: int | HasFileno, data: ReadableBuffer = b"", bint keep: bool = False
    ) -> None:
        """Send a message: bytes, and any number of descriptors with them.

        Each item is an int, a `Descriptor`, a file, a socket, or anything with ``fileno()`` and
        ``close()``; files are prepared as by `transfer_file`. On success each is closed through
        its own object, and an int by its number: one that stands twice is sent twice and closed
        once. With ``keep`` all stay open here.

        ``data`` is any bytes-like object, sent whole however long it is: on a stream the
        descriptors go with the first byte. With items and no data one NUL byte is sent, since
        descriptors cannot go alone.

        Raises `Error`, with everything open and the caller's: ``NO_FD`` and
        `DescriptorTypeError` for an item without a descriptor; ``BAD_CTRL_MESG`` (``EINVAL``)
        for more than `MAX_FDS` items; ``FAILED_TRANSFER`` if the message was not sent
        (``EBADF`` names the item that is not open), or not whole: then ``sent`` says how many
        bytes had left, and the conduit sends no more, since the stream is broken there. Raises
        ``FAILED_CLOSE`` if all was sent but something was not closed well here; everything else
        is closed. `ValueError` if there is nothing to send, `TypeError` or `BufferError` if
        ``data`` is not bytes-like or not contiguous.
        """
        cdef int numbers[SLOTS]
        cdef int count
        cdef Py_buffer payload
        cdef list lent = []
        try:
            # First: its __buffer__() may run anything, as nothing must once the numbers are known.
            PyObject_GetBuffer(data, &payload, PyBUF_SIMPLE)
            try:
                count = self._number(items, numbers, lent, keep)
                if payload.len:
                    self.transport.send(payload.buf, payload.len, numbers, count, False)
                else:
                    _check_any(count)
                    self.transport.send(b"\0", 1, numbers, count, False)
            finally:
                PyBuffer_Release(&payload)
            if not keep and count:
                self._close_sent(items, numbers, lent)
        finally:
            give_back(lent)

    cdef int _number(self, tuple items, int *numbers, list lent, bint keep) except -1:
        """Make the items ready to leave and put their numbers, which stay theirs, in a row.

        Every `Descriptor` in ``lent`` is to be given back, in the end and after a failure.
        """
        cdef Py_ssize_t count = len(items)
        cdef int i
        cdef bint plain = True
        if count > CONDUIT_MAX_FDS:
            raise from_errno(
                EINVAL, ErrType.BAD_CTRL_MESG, f"{self.transport.describe()}: sending",
                f"one message carries at most {CONDUIT_MAX_FDS} descriptors, not {count}",
            )
        i = 0
        try:
            for i in range(<int>count):
                item = items[i]
                if PyLong_Check(item):
                    numbers[i] = number_from(item, "transfer")
                elif isinstance(item, Descriptor):
                    numbers[i] = lend(<Descriptor>item, lent, not keep)
                else:
                    objects.prepare(item, keep)
                    plain = False
            if not plain:
                # Only now that nothing runs any more which could close or reopen one.
                for i in range(<int>count):
                    if not PyLong_Check(items[i]) and not isinstance(items[i], Descriptor):
                        numbers[i] = number_of(items[i])
        except Error as exc:
            if count > 1:
                blame(exc, f"item {i + 1} of {count}")
            raise
        for i in range(<int>count):
            self._refuse_itself(numbers[i])
        return <int>count

    cdef int _close_sent(self, tuple items, int *numbers, list lent) except -1:
        """Close each item that was sent, once, the ones with an object through it.

        Each `Descriptor` among them was lent for this, and is not to be given back any more.
        """
        cdef int ours[SLOTS]
        cdef int i, j, err, through_objects, n = 0
        cdef list owners = []
        failure = None
        lent.clear()
        for i in range(<int>len(items)):
            if not PyLong_Check(items[i]):
                if not any([items[i] is other for other in owners]):
                    owners.append(items[i])
                ours[n] = numbers[i]
                n += 1
        # A number that stands for an object as well is left to the object.
        through_objects = n
        for i in range(<int>len(items)):
            if not PyLong_Check(items[i]):
                continue
            if numbers[i] < 0:
                failure = self._lost(items[i])
                continue
            for j in range(n):
                if ours[j] == numbers[i]:
                    break
            else:
                ours[n] = numbers[i]
                n += 1
        with nogil:
            err = close_numbers(&ours[through_objects], n - through_objects)
        if err:
            failure = from_errno(
                err, ErrType.FAILED_CLOSE,
                f"{self.transport.describe()}: the message was sent, but closing a descriptor here",
            )
        for owner in owners:
            try:
                if isinstance(owner, Descriptor):
                    (<Descriptor>owner)._close_sent()
                else:
                    objects.close(owner)
            except BaseException as exc:
                # An interrupt is raised too, once nothing is left open.
                if failure is None or not isinstance(exc, Error):
                    failure = exc
        if failure is not None:
            raise failure
        return 0

    cdef object _lost(self, fd):
        return Error(
            f"{self.transport.describe()}: descriptor {fd} was sent, but meanwhile its number was "
            "closed or given to another file here, which is left alone", ErrType.FAILED_CLOSE,
        )

    def receive(
        self, Py_ssize_t max_data: int = 65536, Py_ssize_t max_fds: int = CONDUIT_MAX_FDS
    ) -> Message:
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
        cdef Arrival arrival
        cdef bytes payload
        cdef ssize_t got
        cdef int i, count
        cdef tuple fds
        cdef Descriptor descriptor
        cdef Message message = Message.__new__(Message)
        if max_data < 1:
            raise ValueError(f"max_data must be at least 1 byte, not {max_data}")
        if max_fds < 0:
            raise ValueError(f"max_fds must be at least 0, not {max_fds}")
        payload = PyBytes_FromStringAndSize(NULL, max_data)
        got = self.transport.receive(PyBytes_AS_STRING(payload), max_data, &arrival)
        count = arrival.count
        if count > max_fds:
            with nogil:
                close_numbers(arrival.fds, count)
            raise Error(
                f"{self.transport.describe()}: receiving: a message came with {count} "
                f"descriptors where at most {max_fds} were awaited, and they are closed",
                ErrType.BAD_CTRL_MESG,
            )
        i = 0
        try:
            fds = PyTuple_New(count)
            while i < count:
                descriptor = own(arrival.fds[i])
                Py_INCREF(descriptor)
                PyTuple_SET_ITEM(fds, i, descriptor)
                i += 1
        except BaseException:  # pragma: no cover - no memory for an object
            with nogil:  # pragma: no cover
                close_numbers(&arrival.fds[i], count - i)  # pragma: no cover
            raise  # pragma: no cover
        message._fds = fds
        message._data = payload if got == max_data else payload[:got]
        return message


cdef int lend(Descriptor descriptor, list lent, bint alone) except -1:
    """The number of a Descriptor that is to be sent, once or several times in a message."""
    cdef int number = descriptor._try_lend(alone)
    if number >= 0:
        lent.append(descriptor)
        return number
    if any([descriptor is other for other in lent]):
        return max(descriptor.number, descriptor.parting)
    return descriptor._lend(alone)


cdef void give_back(list lent):
    cdef Descriptor descriptor
    while lent:
        descriptor = lent.pop()
        descriptor._give_back()


cdef int _check_any(int count) except -1:
    if not count:
        raise ValueError("there is nothing to send: neither descriptors nor data")
    return 0


@cython.final
cdef class Departure:
    """A message that leaves a conduit in as many attempts as it takes, none of which waits.

    Departure(conduit, items, data, keep) takes what `Conduit.transfer` takes, and raises as that
    does. For those who wait in their own way, and send one message at a time.
    """

    cdef Conduit conduit
    cdef tuple items
    cdef bint keep
    cdef bint viewed
    cdef Py_buffer payload
    cdef int numbers[SLOTS]
    cdef int count
    cdef list lent
    cdef Shipment shipment

    def __cinit__(self, Conduit conduit not None, tuple items not None, data, bint keep):
        self.conduit = conduit
        self.items = items
        self.keep = keep
        self.shipment = Shipment()
        self.lent = []
        try:
            PyObject_GetBuffer(data, &self.payload, PyBUF_SIMPLE)
            self.viewed = True
            self.count = conduit._number(items, self.numbers, self.lent, keep)
            if self.payload.len:
                self.shipment.load(
                    conduit.transport, self.payload.buf, self.payload.len, self.numbers, self.count
                )
            else:
                _check_any(self.count)
                self.shipment.load(conduit.transport, b"\0", 1, self.numbers, self.count)
        except BaseException:
            give_back(self.lent)
            raise

    def __dealloc__(self):
        self._let_go()

    cdef void _let_go(self):
        give_back(self.lent)
        self._release()

    cdef void _release(self):
        if self.viewed:
            self.viewed = False
            PyBuffer_Release(&self.payload)

    @property
    def sent(self) -> int:
        """How many bytes have left."""
        return self.shipment.gone

    def hold(self) -> None:
        """Hold the descriptors from now on, whatever becomes of the caller's.

        Raises `Error` (``FAILED_TRANSFER``, ``EMFILE``) if this process has no room for that.
        """
        self.shipment.hold()

    def attempt(self) -> bool:
        """Send what the socket takes; whether all has left, and the items are closed.

        Raises as `Conduit.transfer` does, but does not wait.
        """
        cdef int events
        try:
            events = self.shipment.start()
        except BaseException:
            self.abandon()
            raise
        if events:
            return False
        self.shipment.abandon()
        # Before an item is closed: the memory may be its own, as a mapping's.
        self._release()
        if self.keep:
            give_back(self.lent)
        elif self.count:
            self.conduit._close_sent(self.items, self.numbers, self.lent)
        return True

    def abandon(self) -> None:
        """Give up. If some of the message has left, the conduit sends no more."""
        self.shipment.abandon()
        self._let_go()


cdef Conduit owner(int fd, double timeout, str name=""):
    """A conduit that owns its number, which is closed if there can be none."""
    cdef Descriptor descriptor = own(fd)
    cdef Conduit conduit = Conduit.__new__(Conduit)
    conduit.transport = Transport(fd, name, True, timeout)
    descriptor._take()
    return conduit


def check_number(value: object) -> None:
    """Check that a value is an int that can be a descriptor, and raise as `Descriptor` does."""
    number_from(value, "transfer_fd")


def accept(
    Conduit listening not None: Conduit, timeout: float | None = None
) -> Conduit:
    """Accept a connection on a conduit over a non-blocking listening socket; for `Listener`."""
    return owner(listening.transport.accept(seconds_from(timeout)), -1)


def enter(Conduit conduit not None: Conduit) -> int:
    """Begin a call that waits in its own way; the number, which stays open until it leaves.

    Raises `Error` (``NO_FD``) if the conduit is closed.
    """
    conduit.transport.enter()
    return conduit.transport.fd


def leave(Conduit conduit not None: Conduit) -> None:
    """End a call that `enter` began; the last one out of a closed conduit closes its number."""
    conduit.transport.leave()
