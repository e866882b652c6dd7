# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The public classes: who owns which descriptor, and nothing else."""

import socket
import warnings
from io import FileIO

cimport cython
from cpython.bool cimport PyBool_Check
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.object cimport PyObject_AsFileDescriptor
from libc.errno cimport errno
from libc.math cimport isnan

from conduit._posix cimport SOCK_STREAM, conduit_socketpair
from conduit._wire cimport (
    Arrival,
    Transport,
    close_number,
    close_numbers,
    duplicate,
    move_up,
)

from _socket import socket as c_socket

from conduit import objects
from conduit.errors import DescriptorTypeError, Error, ErrType, from_errno


cdef int number_from(object value) except -1:
    """The number an int argument stands for; only ints are numbers (1.5 and True are not)."""
    cdef int overflow = 0
    cdef long long number
    if not PyLong_Check(value) or PyBool_Check(value):
        raise DescriptorTypeError(
            f"a descriptor is an int, not {value!r} of type {type(value).__name__}",
            ErrType.NO_FD,
        )
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not 0 <= number <= 0x7FFFFFFF:
        raise Error(f"there is no descriptor {value}", ErrType.NO_FD)
    return <int>number


cdef int number_of(object obj) except -1:
    """The number an object has right now."""
    try:
        return PyObject_AsFileDescriptor(obj)
    except (OSError, ValueError) as exc:
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
    cdef object __weakref__

    def __cinit__(self):
        self.number = -1

    def __init__(self, fd):
        cdef int number = number_from(fd)
        self.close()
        self.number = number

    def __del__(self):
        if self.number >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self)
            self.close()

    def __dealloc__(self):
        cdef int number = self._take()
        if number >= 0:
            with nogil:
                close_number(number)

    def __repr__(self):
        return f"<conduit.Descriptor {'closed' if self.number < 0 else self.number}>"

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def closed(self):
        """Whether it owns nothing any more: closed, detached, or made into another object."""
        return self.number < 0

    cdef int _take(self) noexcept:
        """Take the number out, so that it is closed once; -1 if it is gone already."""
        cdef int number
        with cython.critical_section(self):
            number = self.number
            self.number = -1
        return number

    cdef int _held(self) except -1:
        if self.number < 0:
            raise Error(
                "this Descriptor is closed, or something else owns its number now",
                ErrType.NO_FD,
            )
        return self.number

    def fileno(self):
        """Return the number, which stays owned by this object.

        Raises `Error` (``NO_FD``) if it is closed.
        """
        return self._held()

    def detach(self):
        """Return the number and forget it: the caller owns it, as after ``socket.detach()``.

        Raises `Error` (``NO_FD``) if it is closed.
        """
        self._held()
        return self._take()

    def close(self):
        """Close it. A second time does nothing.

        Raises `Error` (``FAILED_CLOSE``) if the system reports a failure (a full disk that
        shows only now, a number closed elsewhere); it is closed for good all the same.
        """
        cdef int err = 0, number = self._take()
        if number >= 0:
            with nogil:
                err = close_number(number)
        if err:
            raise from_errno(err, ErrType.FAILED_CLOSE, f"closing descriptor {number}")

    def to_file(
        self, mode=None, buffering=-1, encoding=None, errors=None, newline=None, *, name=None
    ):
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

    def to_conn(self):
        """Return a `socket.socket` that owns the descriptor from now on; this one is closed.

        Family, type and protocol are the socket's own. Its timeout says what ``O_NONBLOCK`` of
        the descriptor is, and changes nothing about it: None if it waits, 0.0 if it does not.

        Raises `Error` (``BAD_CLONE``) if the descriptor is no socket, and (``NO_FD``) if it is
        closed. The Descriptor is then as it was.
        """
        return open_socket(self)


cdef Descriptor own(int number):
    """A Descriptor for a number that came in. Runs no Python code that could lose it."""
    cdef Descriptor descriptor = Descriptor.__new__(Descriptor)
    descriptor.number = number
    return descriptor


cdef object open_file(
    Descriptor descriptor, mode, buffering, encoding, errors, newline, name
):
    cdef int number = descriptor._held()
    raw_mode = objects.file_mode(number, mode)
    try:
        # All in C, so no signal handler can raise between here and the line that forgets.
        raw = FileIO(number, raw_mode)
    except OSError as exc:
        raise from_errno(exc.errno, ErrType.BAD_CLONE, f"descriptor {number}") from exc
    descriptor._take()
    return objects.open_file(raw, mode, buffering, encoding, errors, newline, name)


cdef object open_socket(Descriptor descriptor):
    cdef int number = descriptor._held()
    sock = objects.blank_socket()
    try:
        objects.fill_socket(sock, number)
    except BaseException:
        # A signal handler may have raised once the object had the number.
        if c_socket.fileno(sock) == number:
            c_socket.detach(sock)
        raise
    descriptor._take()
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
    another thread ends them at once. All calls may be made from several threads. The system
    calls need no help from a blocking or non-blocking mode of the socket, and change none.

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

    def __init__(self, fd, str name not None=""):
        self.transport = Transport(number_from(fd), name)

    @classmethod
    def from_file(cls, file):
        """Borrow the descriptor of a file or any object with ``fileno()``.

        The conduit keeps a reference to it, so that it is not closed by being forgotten; `close`
        lets go of it and leaves it open.

        Raises `Error` (``NO_FD``) if the object has no descriptor.
        """
        cdef Conduit conduit = Conduit.__new__(Conduit)
        name = getattr(file, "name", "")
        conduit.transport = Transport(
            objects.number_of(file), name if isinstance(name, str) else ""
        )
        conduit.lender = file
        return conduit

    @classmethod
    def from_conn(cls, conn):
        """Duplicate the descriptor of a socket or any object with ``fileno()``.

        The conduit owns the duplicate (close-on-exec) and has the object's timeout, if it has
        ``gettimeout()``. The object stays as it is and may be closed at any time.

        Raises `Error`: ``NO_FD`` if the object has no descriptor, ``BAD_CLONE`` if duplicating
        it fails (``EMFILE``: this process has no room).
        """
        cdef int number = objects.number_of(conn)
        timeout = objects.timeout_of(conn)
        cdef double seconds = seconds_from(timeout)
        cdef int fd = duplicate(number)
        if fd < 0:
            raise from_errno(errno, ErrType.BAD_CLONE, f"duplicating descriptor {number}")
        return owner(fd, seconds)

    @classmethod
    def pair(cls, *, type=socket.SOCK_STREAM):
        """Return two conduits that are connected to each other, as ``socketpair(2)`` makes them.

        ``type`` is ``SOCK_STREAM``, or ``SOCK_SEQPACKET``, which keeps messages apart.

        Raises `Error` (``NO_FD``) if the system makes no pair.
        """
        cdef int ends[2]
        cdef int kind = type, err
        if conduit_socketpair(kind, ends) < 0:
            raise from_errno(errno, ErrType.NO_FD, "making a pair")
        first, second = own(ends[0]), own(ends[1])
        return owner(raised(first), -1), owner(raised(second), -1)

    def __del__(self):
        if self.transport.owned and not self.transport.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self)

    def __repr__(self):
        cdef Transport transport = self.transport
        name = f" {transport.name!r}" if transport.name else ""
        state = "closed" if transport.closed else f"descriptor {transport.fd}"
        return f"<conduit.Conduit{name} {state}>"

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def name(self):
        """What the conduit is called in its `repr` and in errors."""
        return self.transport.name

    @property
    def closed(self):
        """Whether `close` was called."""
        return self.transport.closed

    @property
    def timeout(self):
        """How many seconds a call may wait: None for ever, 0 not at all (`WouldBlockError`).

        Counted from the moment a call has to wait; past it, `TransferTimeoutError` is raised.
        Setting it takes effect with the next call. A negative number or NaN is a `ValueError`.
        """
        return None if self.transport.timeout < 0 else self.transport.timeout

    @timeout.setter
    def timeout(self, timeout):
        self.transport.timeout = seconds_from(timeout)

    def fileno(self):
        """Return the number of the socket, which stays the conduit's.

        Raises `Error` (``NO_FD``) if the conduit is closed.
        """
        if self.transport.closed:
            raise Error(f"{self.transport.describe()}: it has no descriptor", ErrType.NO_FD)
        return self.transport.fd

    def close(self):
        """Close what the conduit made itself, and end the calls that wait in other threads.

        Those raise `Error` (``NO_FD``). A borrowed descriptor is left open. The socket of a
        conduit that owns it is closed when the last call under way has left it. A second
        `close` does nothing.

        Raises `Error` (``FAILED_CLOSE``) if the system reports a failure, as when the number
        was closed elsewhere; the conduit is closed all the same.
        """
        described = self.transport.describe()
        cdef int err = self.transport.shut()
        self.lender = None
        if err:
            raise from_errno(err, ErrType.FAILED_CLOSE, f"{described}: closing")

    def transfer_fd(self, fd, *, bint keep=False):
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
        cdef int number = number_from(fd)
        cdef int err = 0
        self._refuse_itself(number)
        self.transport.send(b"\0", 1, &number, 1)
        if keep:
            return
        if number < 0:
            raise Error(
                f"{self.transport.describe()}: descriptor {fd} was sent, but meanwhile its "
                "number was closed or given to another file here, which is left alone",
                ErrType.FAILED_CLOSE,
            )
        with nogil:
            err = close_number(number)
        if err:
            raise from_errno(
                err, ErrType.FAILED_CLOSE,
                f"{self.transport.describe()}: descriptor {fd} was sent, but closing it here",
            )

    def transfer_file(self, file, *, bint keep=False):
        """Send an open file; on success its ``close()`` is called.

        What it has not written yet is flushed first, and the receiver reads on where the
        program stopped reading, not where the buffer did. With ``keep`` it is shared instead:
        it stays open here, and has one offset with the receiver's.

        Raises `Error`: ``NO_FD`` if the file is closed or has no descriptor,
        ``FAILED_TRANSFER`` if it could not be flushed, positioned or sent, and then it is open
        and the caller's; ``FAILED_CLOSE`` if it was sent but its ``close()`` failed.
        """
        self._transfer_object(file, keep)

    def transfer_conn(self, conn, *, bint keep=False):
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
        objects.prepare(obj, keep)
        number = number_of(obj)
        self._refuse_itself(number)
        self.transport.send(b"\0", 1, &number, 1)
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
        cdef char nul
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

    def receive_fd(self):
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
        self, mode=None, buffering=-1, encoding=None, errors=None, newline=None, *, name=None
    ):
        """Receive one descriptor and return a file object that owns it.

        The arguments are those of `Descriptor.to_file`, and are checked before anything is
        received.

        Raises as `receive_fd` and `Descriptor.to_file`; the descriptor is then closed.
        """
        objects.check_file_arguments(mode, buffering, encoding, errors, newline)
        with own(self._receive_number()) as descriptor:
            return open_file(descriptor, mode, buffering, encoding, errors, newline, name)

    def receive_conn(self):
        """Receive one descriptor and return a `socket.socket` that owns it.

        See `Descriptor.to_conn` for its family, type, protocol and timeout.

        Raises as `receive_fd`, and `Error` (``BAD_CLONE``) if it is no socket; it is then
        closed.
        """
        with own(self._receive_number()) as descriptor:
            return open_socket(descriptor)


cdef int raised(Descriptor descriptor) except -1:
    """The number of a descriptor made here, moved above standard error, and the caller's."""
    cdef int number = move_up(descriptor._take())
    if number < 0:
        raise from_errno(errno, ErrType.NO_FD, "making a pair")
    return number


cdef Conduit owner(int fd, double timeout):
    """A conduit that owns its number, which is closed if there can be none."""
    cdef Descriptor descriptor = own(fd)
    cdef Conduit conduit = Conduit.__new__(Conduit)
    conduit.transport = Transport(fd, "", True, timeout)
    descriptor._take()
    return conduit
