# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
# cython: annotation_typing=False
"""One message out, one message in: bytes and descriptors to and from one system call.

`Transport` is a socket number in use: it sends and receives on it, waits for it with a deadline,
and is closed under no call. All system calls of the package that touch descriptors are here.
"""

import os
import sys
from threading import get_ident, main_thread
from time import monotonic

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
)
from libc.errno cimport (
    EAGAIN,
    EBADF,
    ECONNABORTED,
    ECONNRESET,
    EINTR,
    EMFILE,
    EMSGSIZE,
    ENOBUFS,
    ETIMEDOUT,
    errno,
)
from libc.limits cimport INT_MAX
from libc.math cimport INFINITY, ceil
from libc.string cimport memcpy
from posix.fcntl cimport F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, FD_CLOEXEC, fcntl
from posix.types cimport gid_t, pid_t, uid_t
from posix.uio cimport iovec
from posix.unistd cimport close, write

from conduit._posix cimport (
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    CMSG_SPACE,
    CONDUIT_CMSG_CLOEXEC,
    CONDUIT_MAX_FDS,
    CONDUIT_NOSIGNAL,
    CONDUIT_SCM_PIDFD,
    CONDUIT_SOCK_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_TRUNC,
    POLLHUP,
    POLLIN,
    POLLOUT,
    PY_LOCK_ACQUIRED,
    PY_LOCK_INTR,
    SCM_RIGHTS,
    SO_TYPE,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    PyThread_acquire_lock_timed,
    cmsghdr,
    conduit_accept,
    conduit_at_end,
    conduit_cmsg_size,
    conduit_connect,
    conduit_control,
    conduit_peer,
    conduit_prepare,
    conduit_same_file,
    conduit_socket,
    conduit_waker,
    getsockopt,
    msghdr,
    poll,
    pollfd,
    recvmsg,
    sendmsg,
    socklen_t,
)

from conduit.errors import Error, ErrType, PeerClosedError, from_errno
from conduit.mistakes import path_from

MAX_FDS = CONDUIT_MAX_FDS

cdef enum:
    # Standard input, output and error are never given to a descriptor that arrives.
    LOWEST = 3
    # How often, in milliseconds, the main thread looks for a signal that the system handed to
    # another thread, and a thread for which there is no descriptor to be woken by for close().
    SIGNAL_SLICE = 250
    BLIND_SLICE = 10

forks = 0


def _count_fork():
    global forks
    forks += 1


os.register_at_fork(after_in_child=_count_fork)


cdef int close_number(int fd) noexcept nogil:
    """Close a number once; 0 or the errno. Interrupted, it is closed all the same (close(2))."""
    if close(fd) < 0 and errno != EINTR:
        return errno
    return 0


cdef int close_numbers(const int *fds, int count) noexcept nogil:
    """Close numbers, each once, but for those that are -1; 0 or the first errno."""
    cdef int i, err, first = 0
    for i in range(count):
        err = close_number(fds[i]) if fds[i] >= 0 else 0
        if err and not first:
            first = err
    return first


cdef int duplicate(int fd) noexcept nogil:
    """A close-on-exec duplicate, or -1 and errno."""
    return fcntl(fd, F_DUPFD_CLOEXEC, <int>LOWEST)


cdef int move_up(int fd) noexcept nogil:
    """The same file under a number above standard error; -1 and errno with it closed, or for -1."""
    cdef int moved, err
    if fd < 0 or fd >= LOWEST:
        return fd
    moved = duplicate(fd)
    err = errno
    close_number(fd)
    (&errno)[0] = err
    return moved


def socket_type(int fd: int) -> int:
    """Return the type of a socket (``SO_TYPE``); an `OSError` if the number is of none."""
    cdef int kind = 0
    cdef socklen_t size = sizeof(kind)
    if getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size) < 0:
        raise OSError(errno, os.strerror(errno))
    return kind


def peer_of(int fd: int) -> tuple[int, int, int]:
    """Return the (pid, uid, gid) of the process that a Unix socket is connected to.

    It is who called ``connect(2)``, or ``listen(2)``, or made the pair, as they were then
    (``SO_PEERCRED``); an `OSError` if the system does not know.
    """
    cdef pid_t pid = 0
    cdef uid_t uid = 0
    cdef gid_t gid = 0
    if conduit_peer(fd, &pid, &uid, &gid) < 0:
        raise OSError(errno, os.strerror(errno))
    return pid, uid, gid


def address_from(path: StrOrBytesPath) -> bytes:
    """Return the bytes of a Unix socket's address: ``@name`` is an abstract one on Linux."""
    address = os.fsencode(path_from(path))
    if address.startswith(b"@") and sys.platform == "linux":
        return b"\0" + address[1:]
    if b"\0" in address[1:] and address[:1] != b"\0":
        raise ValueError(f"embedded null byte in path {path!r}")
    return address


cdef int connect_to(bytes path, int kind, double timeout, str doing) except -1:
    """A new socket connected to a path, whose number is the caller's; -1 s waits for ever."""
    cdef const char *address = path
    cdef size_t length = len(path)
    cdef int fd = move_up(conduit_socket(kind)), connected, err = errno
    cdef double deadline = deadline_after(timeout)
    cdef double patience
    cdef long long microseconds
    try:
        if fd < 0:
            raise from_errno(err, ErrType.NO_FD, doing)
        while True:
            patience = max(deadline - monotonic(), 0)
            if in_main_thread():
                patience = min(patience, SIGNAL_SLICE / 1000)
            # 0 is for ever, so what is left may not be rounded to it.
            microseconds = max(<long long>(patience * 1e6), 1) if patience < 1e9 else 0
            with nogil:
                connected = conduit_connect(fd, address, length, microseconds)
                err = errno
            if connected == 0:
                return fd
            PyErr_CheckSignals()
            if err not in (EAGAIN, EINTR):
                raise from_errno(err, ErrType.NO_FD, doing)
            if deadline <= monotonic():
                raise from_errno(
                    ETIMEDOUT if timeout else EAGAIN, ErrType.NO_FD, doing,
                    "the listener's backlog was full all the time",
                )
    except BaseException:
        if fd >= 0:
            close_number(fd)
        raise


cdef double deadline_after(double timeout):
    """The moment that is so many seconds from now; never, for a negative timeout."""
    return INFINITY if timeout < 0 else <double>monotonic() + timeout


cdef bint in_main_thread():
    """Whether this is the thread that runs Python's signal handlers."""
    return get_ident() == main_thread().ident


cdef ssize_t send_once(
    int fd, const void *data, size_t size, const int *fds, int count
) noexcept nogil:
    """Send bytes and descriptors in one message; how many bytes went, or minus the errno."""
    cdef msghdr msg
    cdef iovec part
    cdef conduit_control control
    cdef cmsghdr *head
    cdef ssize_t sent
    part.iov_base = <void *>data
    part.iov_len = size
    msg.msg_name = NULL
    msg.msg_namelen = 0
    msg.msg_iov = &part
    msg.msg_iovlen = 1
    msg.msg_control = NULL
    msg.msg_controllen = 0
    msg.msg_flags = 0
    if count:
        msg.msg_control = &control
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * count)
        head = CMSG_FIRSTHDR(&msg)
        head.cmsg_level = SOL_SOCKET
        head.cmsg_type = SCM_RIGHTS
        head.cmsg_len = CMSG_LEN(sizeof(int) * count)
        memcpy(CMSG_DATA(head), fds, sizeof(int) * count)
        # The exact length: macOS takes no other, and the padding would hold stack bytes.
        msg.msg_controllen = head.cmsg_len
    sent = sendmsg(fd, &msg, MSG_DONTWAIT | CONDUIT_NOSIGNAL)
    return -errno if sent < 0 else sent


cdef void collect(msghdr *msg, Arrival *arrival) noexcept nogil:
    """Take every descriptor out of every control message, before anything can fail."""
    cdef cmsghdr *head = CMSG_FIRSTHDR(msg)
    cdef const int *numbers
    cdef int i, fd
    while head != NULL:
        if head.cmsg_level == SOL_SOCKET and head.cmsg_type in (SCM_RIGHTS, CONDUIT_SCM_PIDFD):
            numbers = <const int *>CMSG_DATA(head)
            for i in range(<int>(conduit_cmsg_size(msg, head) // sizeof(int))):
                fd = numbers[i]
                if fd < 0:
                    # Where a descriptor was withheld, Linux 7.3 and a pidfd say why.
                    if head.cmsg_type == SCM_RIGHTS:
                        arrival.rights_cut = True
                elif head.cmsg_type != SCM_RIGHTS or arrival.count == SLOTS:
                    close_number(fd)
                else:
                    arrival.fds[arrival.count] = fd
                    arrival.count += 1
        head = CMSG_NXTHDR(msg, head)


cdef ssize_t receive_once(int fd, void *data, size_t size, Arrival *arrival) noexcept nogil:
    """Receive one message; how many bytes came, or minus the errno.

    Every descriptor that came is in ``arrival``, close-on-exec and above standard error.
    """
    cdef msghdr msg
    cdef iovec part
    cdef conduit_control control
    cdef ssize_t got
    cdef int i
    arrival.count = 0
    arrival.err = 0
    arrival.rights_cut = False
    arrival.data_cut = False
    part.iov_base = data
    part.iov_len = size
    msg.msg_name = NULL
    msg.msg_namelen = 0
    msg.msg_iov = &part
    msg.msg_iovlen = 1
    msg.msg_control = &control
    msg.msg_controllen = sizeof(control)
    msg.msg_flags = 0
    got = recvmsg(fd, &msg, MSG_DONTWAIT | CONDUIT_CMSG_CLOEXEC)
    if got < 0:
        return -errno
    arrival.data_cut = (msg.msg_flags & MSG_TRUNC) != 0
    arrival.rights_cut = (msg.msg_flags & MSG_CTRUNC) != 0
    if msg.msg_controllen:
        collect(&msg, arrival)
    i = 0
    while i < arrival.count:
        if not CONDUIT_CMSG_CLOEXEC:
            fcntl(arrival.fds[i], F_SETFD, <int>FD_CLOEXEC)  # pragma: no cover - not on Linux
        if arrival.fds[i] < LOWEST:
            arrival.fds[i] = move_up(arrival.fds[i])
            if arrival.fds[i] < 0:
                arrival.err = errno
                arrival.count -= 1
                arrival.fds[i] = arrival.fds[arrival.count]
                continue
        i += 1
    return got


@cython.final
cdef class Transport:
    """A Unix socket's number and the calls under way on it.

    A call enters before it uses the number and leaves afterwards. ``shut()`` marks the transport
    closed and wakes the calls that wait; the last one to leave closes what is owned, so that no
    number is ever closed, and given to another file, under a call that uses it.
    """

    def __cinit__(self, int fd=-1, str name="", bint owned=False, double timeout=-1.0):
        self.fd = fd
        self.name = name
        self.owned = owned
        self.timeout = timeout
        self.closed = fd < 0
        self.wake[0] = self.wake[1] = -1
        self.forks = forks

    def __dealloc__(self):
        self.shut()
        if self.turn != NULL:
            PyThread_free_lock(self.turn)

    cdef int adopt(self, int fd, str name) except -1:
        """Use another number from now on, borrowed; what is owned is closed before."""
        cdef bint free
        self.shut()
        with cython.critical_section(self):
            # The last call may have left, and what it used not be closed yet.
            free = self.closed and self.fd < 0 and not self.users
            if free:
                self.fd = fd
                self.name = name
                self.owned = self.broken = False
                self.kind = 0
                self.timeout = -1
                self.closed = False
        if not free:
            raise Error(f"{self.describe()}: another call is using it", ErrType.NO_FD)
        return 0

    cdef int number(self) noexcept:
        """The number, or -1 once it is closed."""
        cdef int fd
        with cython.critical_section(self):
            fd = -1 if self.closed else self.fd
        return fd

    cdef str get_name(self):
        """The name, which another thread may replace, and so free, in the middle of a read."""
        cdef str name
        with cython.critical_section(self):
            name = self.name
        return name

    cdef str describe(self):
        cdef str name = self.get_name()
        name = f"conduit {name!r}" if name else "conduit"
        return f"{name} (closed)" if self.closed else f"{name} (descriptor {self.fd})"

    cdef int enter(self) except -1:
        """Begin a call. Every one that began must ``leave()``."""
        cdef bint closed
        with cython.critical_section(self):
            if self.forks != forks:
                self._after_fork()
            closed = self.closed
            if not closed:
                self.users += 1
        if closed:
            raise Error(f"{self.describe()}: it is closed", ErrType.NO_FD)
        if not self.kind:
            try:
                self._identify()
            except BaseException:
                self.leave()
                raise
        return 0

    cdef void leave(self) noexcept:
        cdef bint last
        with cython.critical_section(self):
            # A fork in a signal handler under this call may have set the count to nought.
            if self.users:
                self.users -= 1
            last = self.closed and not self.users
        if last:
            self._release()

    cdef int shut(self):
        """Close what is owned, once no call is under way; 0 or the errno of closing it now."""
        cdef char one[8]
        cdef bint last = False
        with cython.critical_section(self):
            if self.forks != forks:
                self._after_fork()
            if self.closed:
                return 0
            self.closed = True
            last = not self.users
            if not last and self.wake[1] >= 0:
                # An eventfd takes a 64-bit count in the machine's order, a pipe anything.
                one[:] = [1, 0, 0, 0, 0, 0, 0, 1]
                write(self.wake[1], one, 8)
        return self._release() if last else 0

    cdef int _release(self):
        cdef int fd = -1, err = 0
        cdef int wake[2]
        with cython.critical_section(self):
            if self.owned:
                fd = self.fd
            self.fd = -1
            wake[0] = self.wake[0]
            wake[1] = self.wake[1]
            self.wake[0] = self.wake[1] = -1
        with nogil:
            if fd >= 0:
                err = close_number(fd)
            if wake[0] >= 0:
                close_number(wake[0])
            if wake[1] != wake[0]:
                close_number(wake[1])  # pragma: no cover - an eventfd has one number
        return err

    cdef void _after_fork(self) noexcept:
        """Forget the parent's calls: none of its threads is here, and its waker is not ours."""
        self.forks = forks
        self.users = 0
        if self.wake[0] >= 0:
            close_number(self.wake[0])
            if self.wake[1] != self.wake[0]:
                close_number(self.wake[1])  # pragma: no cover - an eventfd has one number
            self.wake[0] = self.wake[1] = -1
        self.sending = self.called = False
        if self.waiting:
            # Whoever waits on it is in the parent: its memory is lost.
            self.waiting = 0
            self.turn = NULL

    cdef int _identify(self) except -1:
        """Check, once, that the number is that of a Unix socket, and make it fit."""
        cdef int err, kind = 0
        if conduit_prepare(self.fd, &kind) < 0:
            err = errno
            raise from_errno(
                err, ErrType.FAILED_TRANSFER, f"{self.describe()}: cannot be used",
                "its number was closed elsewhere" if err == EBADF else None,
            )
        self.kind = kind
        return 0

    cdef int _check_open(self, str doing, ssize_t sent=0) except -1:
        if self.closed:
            raise Error(
                f"{self.describe()}: {doing} ended, since it was closed meanwhile",
                ErrType.NO_FD, sent=sent,
            )
        return 0

    cdef bint _has_waker(self) noexcept:
        """Whether there is a descriptor for close() to wake those who wait, or room for one.

        It does not take the last room, which belongs to what is waited for: then close() is
        looked for now and then.
        """
        cdef int spare
        if self.wake[0] < 0:
            spare = duplicate(self.fd)
            if spare >= 0:
                conduit_waker(self.wake)
                close_number(spare)
        return self.wake[0] >= 0

    cdef int _wait(self, short events, double deadline, str doing, ssize_t sent) except -1:
        """Wait until the socket may be ready; raise if closed, at the deadline, or by a signal."""
        cdef pollfd watched[2]
        cdef double left
        cdef int ready, err, slice_ms, wait_ms
        cdef bint blind
        with cython.critical_section(self):
            self._check_open(doing, sent)
            blind = not self._has_waker()
            watched[0].fd = self.fd
            watched[0].events = events
            watched[1].fd = self.wake[0]
            watched[1].events = POLLIN
        slice_ms = INT_MAX
        if in_main_thread():
            slice_ms = SIGNAL_SLICE
        if blind or events == POLLHUP:
            slice_ms = BLIND_SLICE
        while True:
            left = deadline - monotonic()
            if left <= 0:
                raise from_errno(
                    ETIMEDOUT, ErrType.FAILED_TRANSFER, f"{self.describe()}: {doing}",
                    f"the deadline passed after {sent} bytes of the payload had left"
                    if sent else
                    "the deadline passed, and nothing was transferred",
                    sent=sent,
                )
            wait_ms = <int>ceil(left * 1000) if left * 1000 < slice_ms else slice_ms
            with nogil:
                ready = poll(watched, 2, wait_ms)
                err = errno
            PyErr_CheckSignals()
            self._check_open(doing, sent)
            if ready > 0 or events == POLLHUP:
                return 0
            if ready < 0 and err != EINTR:
                raise from_errno(
                    err, ErrType.FAILED_TRANSFER, f"{self.describe()}: {doing}", sent=sent
                )

    cdef bint _free(self) noexcept:
        """Take the turn if nobody has it."""
        cdef bint free
        with cython.critical_section(self):
            free = not self.sending
            self.sending = True
        return free

    cdef int _take_turn(self, double timeout, double deadline) except -1:
        """Wait until no other call of this process is sending: a long payload takes many calls.

        Whoever passes the turn releases the lock, which is never held otherwise than by being
        waited on, so that taking a free turn costs no system's lock.
        """
        cdef double left
        cdef int got
        with cython.critical_section(self):
            if self.turn == NULL:
                self.turn = PyThread_allocate_lock()
                if self.turn != NULL:
                    PyThread_acquire_lock(self.turn, NOWAIT_LOCK)
            if self.turn != NULL:
                self.waiting += 1
        if self.turn == NULL:
            raise MemoryError  # pragma: no cover - no memory for a lock
        try:
            while not self._free():
                # At a timeout of 0, a moment: who sends now does not wait either.
                left = max(deadline - <double>monotonic(), 0.001)
                with nogil:
                    got = PyThread_acquire_lock_timed(
                        self.turn, <long long>(min(left, 3600.0) * 1e6), True
                    )
                if got == PY_LOCK_ACQUIRED:
                    with cython.critical_section(self):
                        self.called = False
                elif got == PY_LOCK_INTR:
                    PyErr_CheckSignals()
                elif deadline <= monotonic():
                    raise from_errno(
                        ETIMEDOUT if timeout else EAGAIN, ErrType.FAILED_TRANSFER,
                        f"{self.describe()}: sending", "another thread was sending all the time",
                    )
        finally:
            with cython.critical_section(self):
                # As for users: a fork in a signal handler.
                if self.waiting:
                    self.waiting -= 1
        if self.closed:
            self._pass_turn()
            self._check_open("sending")
        return 0

    cdef void _pass_turn(self) noexcept:
        with cython.critical_section(self):
            self.sending = False
            if self.waiting and not self.called:
                self.called = True
                PyThread_release_lock(self.turn)

    cdef int _check_sound(self) except -1:
        if self.broken:
            raise Error(
                f"{self.describe()}: sending is over, since an earlier message was cut off in "
                "its middle; close it and connect anew", ErrType.FAILED_TRANSFER,
            )
        return 0

    cdef int send(
        self, const void *data, size_t size, int *fds, int count, bint move
    ) except -1:
        """Send ``size`` >= 1 bytes, all of them, the descriptors with the first.

        With ``move`` the numbers are closed on success, and the result is 0 or the errno of
        closing them. On success, a number that another thread closed or gave to another file
        while this call waited is -1 in ``fds`` and not closed (the descriptor itself was sent).
        On failure nothing is closed and ``fds`` is as it was.
        """
        cdef ssize_t sent
        cdef int err = 0
        cdef bint stream
        self.enter()
        stream = self.kind == SOCK_STREAM
        try:
            if stream and not self._free():
                self._send_in_turn(data, size, fds, count)
                if move:
                    with nogil:
                        err = close_numbers(fds, count)
                return err
            try:
                self._check_sound()
                with nogil:
                    sent = send_once(self.fd, data, size, fds, count)
                    if move and sent == <ssize_t>size:
                        err = close_numbers(fds, count)
                if sent != <ssize_t>size:
                    self._send_on(data, size, fds, count, sent)
                    if move:
                        with nogil:
                            err = close_numbers(fds, count)
            finally:
                if stream:
                    self._pass_turn()
        finally:
            self.leave()
        return err

    cdef int _send_in_turn(self, const void *data, size_t size, int *fds, int count) except -1:
        """Send a message once no other is being sent, and until then hold its descriptors."""
        cdef Shipment shipment = Shipment.__new__(Shipment)
        cdef double timeout = self.timeout, deadline = deadline_after(timeout)
        cdef ssize_t sent
        shipment.load(self, data, size, fds, count)
        try:
            shipment.hold()
            self._take_turn(timeout, deadline)
            try:
                self._check_sound()
                with nogil:
                    sent = shipment.send_rest()
                self._finish(shipment, sent, timeout, deadline)
            finally:
                self._pass_turn()
        finally:
            shipment.abandon()
        return 0

    cdef int _send_on(
        self, const void *data, size_t size, int *fds, int count, ssize_t sent
    ) except -1:
        """Go on with a message of which a first call sent ``sent`` bytes, or failed."""
        cdef Shipment shipment
        cdef double timeout = self.timeout
        if sent == -EAGAIN and timeout == 0:
            self._raise_send(EAGAIN, fds, count, 0)
        shipment = Shipment.__new__(Shipment)
        shipment.load(self, data, size, fds, count)
        try:
            self._finish(shipment, sent, timeout, deadline_after(timeout))
        finally:
            shipment.abandon()
        return 0

    cdef int _finish(
        self, Shipment shipment, ssize_t sent, double timeout, double deadline
    ) except -1:
        """Send the rest of a message, and wait as long as it takes."""
        cdef short events = shipment.go(sent)
        while events:
            if timeout == 0:
                raise from_errno(
                    EAGAIN, ErrType.FAILED_TRANSFER, f"{self.describe()}: sending",
                    f"it took {shipment.gone} of {shipment.size} bytes, and the timeout is 0"
                    if shipment.gone else None, sent=shipment.gone,
                )
            self._wait(events, deadline, "sending", shipment.gone)
            with nogil:
                sent = shipment.send_rest()
            events = shipment.go(sent)
        return 0

    cdef int _raise_send(self, int err, const int *fds, int count, size_t gone) except -1:
        """Raise what a send failed with, naming the descriptor that is to blame."""
        cdef int i
        cdef str why = None
        if err == EBADF:
            why = "its own number was closed elsewhere"
            for i in range(count):
                if fcntl(fds[i], F_GETFD) < 0:
                    why = f"descriptor {fds[i]} (item {i + 1} of {count}) is not open"
                    break
        raise from_errno(
            err, ErrType.FAILED_TRANSFER, f"{self.describe()}: sending", why, sent=gone
        )

    cdef ssize_t receive(self, void *data, size_t size, Arrival *arrival) except -1:
        """Receive one message of at most ``size`` >= 1 bytes; how many came.

        The descriptors are in ``arrival`` and the caller's. On failure all that came are closed.
        """
        cdef ssize_t got
        self.enter()
        try:
            got = self._receive_once(data, size, arrival)
            if got <= 0 or arrival.rights_cut or arrival.data_cut or arrival.err:
                got = self._receive_on(data, size, arrival, got)
        finally:
            self.leave()
        return got

    cdef ssize_t _receive_once(self, void *data, size_t size, Arrival *arrival) noexcept:
        cdef ssize_t got
        if CONDUIT_CMSG_CLOEXEC:
            with nogil:
                got = receive_once(self.fd, data, size, arrival)
        else:
            # Python forks with the GIL held, so no child is made before all are close-on-exec.
            # Without a GIL, os.fork() stops all threads, but nothing keeps subprocess from it.
            got = receive_once(self.fd, data, size, arrival)  # pragma: no cover - not on Linux
        return got

    cdef ssize_t _receive_on(
        self, void *data, size_t size, Arrival *arrival, ssize_t got
    ) except -1:
        """Go on from a first call that received nothing or not all, or failed."""
        cdef bint reset = False
        cdef double timeout = self.timeout, deadline = 0
        while True:
            if got >= 0:
                self._check_whole(size, arrival)
                if got or arrival.count or not self._at_end():
                    return got
                raise PeerClosedError(
                    f"{self.describe()}: receiving: the peer closed its end",
                    ErrType.FAILED_TRANSFER,
                )
            if got == -ECONNRESET and not reset:
                # A packet socket says this before it gives what is still queued.
                reset = True
            elif got == -EAGAIN:
                if reset or timeout == 0:
                    raise from_errno(
                        ECONNRESET if reset else EAGAIN, ErrType.FAILED_TRANSFER,
                        f"{self.describe()}: receiving",
                    )
                if not deadline:
                    deadline = deadline_after(timeout)
                self._wait(POLLIN, deadline, "receiving", 0)
            elif got == -EINTR:
                PyErr_CheckSignals()
                self._check_open("receiving")
            else:
                # BSDs say EMSGSIZE where there is no room for the descriptors.
                raise from_errno(
                    EMFILE if got == -EMSGSIZE else <int>-got, ErrType.FAILED_TRANSFER,
                    f"{self.describe()}: receiving",
                    "its number was closed elsewhere" if got == -EBADF else None,
                )
            got = self._receive_once(data, size, arrival)

    cdef bint _at_end(self):
        """Whether nothing received means the end. A datagram socket has none."""
        if self.kind == SOCK_STREAM:
            return True
        return self.kind == SOCK_SEQPACKET and conduit_at_end(self.fd)

    cdef int _check_whole(self, size_t size, Arrival *arrival) except -1:
        """Raise, with all that came closed, unless the message came whole."""
        cdef int err = arrival.err, probe
        cdef str why = None
        if not (arrival.rights_cut or arrival.data_cut or err):
            return 0
        if arrival.rights_cut and not err:
            # There is always room in the buffer. If the table has none, that is why.
            probe = duplicate(self.fd)
            if probe < 0:
                err = EMFILE
            else:
                close_number(probe)
        with nogil:
            close_numbers(arrival.fds, arrival.count)
        if err:
            why = ("this process had no room for the descriptors of a message, and all of them "
                   "are closed; close others first, or raise RLIMIT_NOFILE (ulimit -n)")
        elif arrival.rights_cut:
            raise Error(
                f"{self.describe()}: receiving: the system withheld a descriptor (a security "
                "policy, or a control message longer than any known), and all that came with it "
                "are closed", ErrType.BAD_CTRL_MESG,
            )
        else:
            err = EMSGSIZE
            why = (f"a message was longer than the {size} bytes asked for, and is lost; its "
                   "descriptors are closed")
        raise from_errno(err, ErrType.BAD_CTRL_MESG, f"{self.describe()}: receiving", why)

    cdef int accept(self, double timeout) except -1:
        """Accept a connection on a listening socket with O_NONBLOCK; its number is the caller's.

        ``timeout`` is in seconds: -1 waits for ever, 0 not at all.
        """
        cdef double deadline = deadline_after(timeout)
        cdef int fd = -1, err = 0
        self.enter()
        try:
            fd = self._accept_once(&err)
            while fd < 0:
                if err == EAGAIN:
                    if timeout == 0:
                        raise from_errno(
                            EAGAIN, ErrType.FAILED_TRANSFER, f"{self.describe()}: accepting",
                            "nobody is waiting to be accepted, and the timeout is 0",
                        )
                    self._wait(POLLIN, deadline, "accepting", 0)
                elif err == EINTR:
                    PyErr_CheckSignals()
                    self._check_open("accepting")
                elif err != ECONNABORTED:
                    raise from_errno(err, ErrType.NO_FD, f"{self.describe()}: accepting")
                fd = self._accept_once(&err)
        finally:
            self.leave()
        return fd

    cdef int _accept_once(self, int *err) noexcept:
        cdef int fd
        if CONDUIT_SOCK_CLOEXEC:
            with nogil:
                fd = move_up(conduit_accept(self.fd))
                err[0] = errno
        else:
            # As in receiving: no child is made before it is close-on-exec.
            fd = move_up(conduit_accept(self.fd))  # pragma: no cover - not on Linux
            err[0] = errno  # pragma: no cover
        return fd


@cython.final
cdef class Shipment:
    """A message on its way, of which one system call could not take all.

    It holds its own duplicates of descriptors that must wait: meanwhile another thread may close
    a number and open another file under it, and what is sent is what the caller gave.
    """

    def __dealloc__(self):
        self.abandon()

    cdef void load(
        self, Transport transport, const void *data, size_t size, int *fds, int count
    ) noexcept:
        """Say what is to be sent. The memory stays the caller's, and must stay."""
        self.transport = transport
        self.data = <const char *>data
        self.size = size
        self.fds = self.sending = fds
        self.due = count

    cdef int hold(self) except -1:
        """Duplicate the descriptors that have not left yet, to send these in their place."""
        cdef int err = self._duplicate()
        if err:
            self.transport._raise_send(err, self.fds, self.due, self.gone)
        self.sending = self.own
        return 0

    cdef int _duplicate(self) noexcept:
        """Duplicate what there is room for; 0, or the errno if that is not all."""
        while self.held < self.due:
            self.own[self.held] = duplicate(self.fds[self.held])
            if self.own[self.held] < 0:
                return errno
            self.held += 1
        return 0

    cdef ssize_t send_rest(self) noexcept nogil:
        """One system call for what has not left yet; its result is for ``go``."""
        return send_once(
            self.transport.fd, self.data + self.gone, self.size - self.gone,
            self.sending, self.due,
        )

    cdef int go(self, ssize_t sent) except -1:
        """Go on after a call with this result; 0 once all is sent, else what to wait for.

        That is ``POLLOUT``, or ``POLLHUP`` where there is nothing to wait for but time.
        """
        cdef int i
        while True:
            if sent >= 0:
                self.gone += sent
                if self.gone < self.size:
                    # Not to be sent, but to know in the end whose the numbers are by then.
                    self._duplicate()
                # They went with the first byte, and go no second time.
                self.due = 0
                if self.gone == self.size:
                    break
            elif sent == -EAGAIN:
                self.hold()
                return POLLOUT
            elif sent == -ENOBUFS:
                # BSDs run out of buffers without poll() knowing when they are back.
                self.hold()
                return POLLHUP
            elif sent == -EINTR:
                PyErr_CheckSignals()
                self.transport._check_open("sending", self.gone)
            else:
                self.transport._raise_send(<int>-sent, self.fds, self.due, self.gone)
            with nogil:
                sent = self.send_rest()
        for i in range(self.held):
            if not conduit_same_file(self.fds[i], self.own[i]):
                self.fds[i] = -1
        return 0

    cdef int start(self) except -1:
        """Attempt, without waiting, to send what has not left yet; the result is that of ``go``.

        For those who take turns and wait in their own way.
        """
        cdef ssize_t sent
        cdef int events
        if self.gone:
            self.transport._check_open("sending", self.gone)
        self.transport.enter()
        try:
            self.transport._check_sound()
            with nogil:
                sent = self.send_rest()
            events = self.go(sent)
        finally:
            self.transport.leave()
        return events

    cdef void abandon(self) noexcept:
        """Let go of the duplicates. A message cut off in its middle ends the stream."""
        cdef int held = self.held
        self.held = 0
        if 0 < self.gone < self.size:
            self.transport.broken = True
        with nogil:
            close_numbers(self.own, held)
