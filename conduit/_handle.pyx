# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
# cython: annotation_typing=False
"""One descriptor that several threads use: in use, closed, waited for, forked, sent on in turn.

Theory of operation
===================

**Use.** Every call enters, uses ``fd``, and leaves. ``shut()`` marks the handle closed and wakes
all that wait; the last call to leave closes the fd. So an fd is never closed, and never another
file's, under a call that uses it. A handle is opened once and never again: nothing that a call
has read from it changes, but for ``closed``. (Version 0.1 let a handle take another fd later, and
needed a proof for each field.)

**One lock.** Every field is read and written in ``critical_section(self)``: a lock where there is
no GIL, nothing where there is one, which then does the same. No Python code runs inside, and no
two are nested. Exempt are ``fd`` and ``kind`` between enter and leave: they are written before
the first call is in and after the last is out.

**Waiting** is ``poll(2)`` on the fd and on a waker that ``shut()`` writes to. Signals
run when poll ends: at once if the signal struck this thread, within SIGNAL_SLICE if it struck
another, for only the main thread runs handlers. If there is no descriptor for a waker, ``closed``
is looked at every BLIND_SLICE. Time is a count of nanoseconds from the system's clock.

**Turns.** A payload on a stream may take many calls, and no other may come between. Whoever sends
has ``sending``, the others stand in ``queue`` in the order in which they came; who is done hands
the turn to the first of them, so that nobody overtakes. (A lock that is released and taken again
let one thread send 46,786 messages and five others one each.) A packet leaves in one call; there
the queue orders only those for which the socket had no room. A waiter in the queue is a thread
that sleeps on a lock, or a task of an event loop, which has a function to be woken by. A thread
that waits for itself, as a signal handler would that sends on the conduit it interrupted, gets an
Error. `shut` empties the queue and wakes all who stood in it.

**Fork.** A child has the fds of its parent and none of its threads. What an open object holds is
the child's object's to close. What only a call under way holds (the fd of a handle closed under
it, a waker, the descriptors and duplicates of a message that waits) nobody would close: each such
row of fds stands in the list ``held_fds``, and the child closes all that are there. The
order of writes keeps it whole at any instant, and rows are linked without an allocation, so that
linking cannot fail. The fields of each handle are put right when the child first uses it
(``_sync``). A call that a signal handler interrupted to fork ends in
the child with an Error. Not covered is the instant in which another thread is inside close(2) or
recvmsg(2) itself, as with any ``os.close`` or ``os.open``: who forks a program with threads has
the child exec, and all descriptors here are close-on-exec.
"""

import os
from threading import get_ident, main_thread

cimport cython
from cpython.exc cimport (
    PyErr_CheckSignals,
    PyErr_Clear,
    PyErr_ExceptionMatches,
    PyErr_WriteUnraisable,
)
from cpython.object cimport PyObject
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_get_thread_ident, PyThread_release_lock, PyThread_type_lock,
)
from libc.errno cimport EBADF, EINTR, ETIMEDOUT
from libc.limits cimport INT_MAX
from posix.unistd cimport write

from conduit._posix cimport (
    EDEADLK, POLLIN, SOCK_STREAM, PyThread_acquire_lock_timed, conduit_prepare, conduit_result,
    conduit_waker, poll, pollfd,
)
from conduit._syscalls cimport NEVER, close_fd, close_fds, close_known, dup_fd, identify, now

from conduit.errors import Error, ErrType, from_errno

cdef extern from "Python.h":
    int PyErr_ResourceWarning(PyObject *source, Py_ssize_t level, const char *format, ...)


cdef enum:
    # Milliseconds between two looks for a signal that the system handed to another thread, and
    # for close() where there is no descriptor to be woken by.
    SIGNAL_SLICE = 250
    BLIND_SLICE = 10

forks = 0

cdef HeldFds *held_fds = NULL
cdef PyThread_type_lock held_lock = PyThread_allocate_lock()

if held_lock == NULL:
    raise MemoryError  # pragma: no cover - no memory for a lock


cdef void hold_fds(HeldFds *node) noexcept:
    """Let a forked child close a row of fds, until `release_fds`."""
    global held_fds
    PyThread_acquire_lock(held_lock, WAIT_LOCK)
    if node.link == NULL:
        node.next = held_fds
        node.link = &held_fds
        if held_fds != NULL:
            held_fds.link = &node.next
        held_fds = node
    PyThread_release_lock(held_lock)


cdef void release_fds(HeldFds *node) noexcept:
    """Take a row out of the list. Its fds are closed after that: a number may be reused then."""
    PyThread_acquire_lock(held_lock, WAIT_LOCK)
    if node.link != NULL:
        node.link[0] = node.next
        if node.next != NULL:
            node.next.link = node.link
        node.link = NULL
    PyThread_release_lock(held_lock)


def _close_in_child():
    global forks, held_fds, held_lock
    cdef HeldFds *node = held_fds
    cdef int i
    forks += 1
    while node != NULL:
        close_fds(node.fds, node.count)
        for i in range(node.count):
            node.fds[i] = -1
        node.link = NULL
        node = node.next
    held_fds = NULL
    # Where there is no GIL, a thread that is not here may have had it.
    held_lock = PyThread_allocate_lock()


os.register_at_fork(after_in_child=_close_in_child)


cdef void warn_unclosed(str what, PyObject *source, Py_ssize_t level) noexcept:
    """Warn that an object was dropped while it was open.

    In C, and not by warnings.warn(): at the interpreter's exit an object may live longer than
    the names of this module, and than the module warnings.
    """
    if PyErr_ResourceWarning(source, level, "unclosed %U", <PyObject *>what) < 0:
        if PyErr_ExceptionMatches(Warning):
            # One that is an error cannot be raised from where objects end.
            PyErr_WriteUnraisable(what)
        else:
            # The interpreter has not enough left to warn with.
            PyErr_Clear()  # pragma: no cover - coverage has ended by then


cdef long long deadline_after(double timeout) noexcept:
    """The moment that is so many seconds from now; NEVER, for a negative or a huge timeout."""
    return NEVER if timeout < 0 or timeout > 9e9 else now() + <long long>(timeout * 1e9)


cdef bint in_main_thread() except -1:
    """Whether this is the thread that runs Python's signal handlers."""
    return get_ident() == main_thread().ident


cdef class Waiter:
    """Who waits for the turn to send: a thread, or a task of an event loop.

    ``lock`` is what a thread sleeps on, and ``wake`` what is called in the place of a ``task``.
    """

    def __cinit__(self):
        self.thread = PyThread_get_thread_ident()

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef bint wake_up(self) except -1:
        """Wake it; False if its loop has ended, and it has no use for the turn."""
        if self.lock != NULL:
            PyThread_release_lock(self.lock)
            return True
        try:
            self.wake()
        except RuntimeError:
            return False
        except BaseException:
            # A signal handler's. Once is enough, and twice does no harm.
            self.wake()
            raise
        return True


@cython.final
cdef class Handle:
    """The descriptor of a Unix socket, and the calls under way on it; see the module."""

    def __cinit__(self):
        self.fd = -1
        self.name = "conduit"
        self.closed = True
        self.forks = forks
        self.held[0] = self.held[1] = self.held[2] = -1
        self.node.fds = self.held
        self.node.count = 3

    def __dealloc__(self):
        # Whoever is in a call, or waits for a turn, holds this object. But in a forked child...
        self._sync()
        if self.fd >= 0:
            self._release()
        release_fds(&self.node)

    @staticmethod
    def duplicate(fd: int, name: str) -> Handle:
        """Return a handle over a duplicate of a descriptor, which it owns.

        Raises `Error` (``BAD_CLONE``) if it cannot be duplicated.
        """
        cdef Handle handle = Handle.__new__(Handle)
        cdef int duplicate = dup_fd(fd)
        if duplicate < 0:
            raise from_errno(-duplicate, ErrType.BAD_CLONE, f"duplicating descriptor {fd}")
        handle.open(duplicate, name, True)
        return handle

    cdef int open(self, int fd, str name, bint owned) except -1:
        """Use a descriptor from now on, once for all. What is owned is closed with the handle."""
        cdef bint opened
        cdef FileId known
        known.device = known.inode = 0
        if owned:
            with nogil:
                identify(fd, &known)
        with cython.critical_section(self):
            opened = self.opened
            if not opened:
                self.opened = True
                self.known = known
                self.owned = owned
                self.fd = fd
                self.name = name
                self.closed = False
        if opened:
            raise Error(f"{self.describe()}: it was initialised before", ErrType.NO_FD)
        return 0

    cdef int number(self) noexcept:
        """The fd, or -1 once it is closed."""
        cdef int fd
        with cython.critical_section(self):
            fd = -1 if self.closed else self.fd
        return fd

    cdef str describe(self):
        cdef int fd
        cdef str name
        with cython.critical_section(self):
            fd = -1 if self.closed else self.fd
            name = self.name
        return f"{name} (closed)" if fd < 0 else f"{name} (fd {fd})"

    def __repr__(self) -> str:
        return self.describe()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self.number() < 0

    def fileno(self) -> int:
        """Return the descriptor. `Error` (``NO_FD``) if it is closed."""
        cdef int fd = self.number()
        if fd < 0:
            raise Error(f"{self.describe()}: it has no descriptor", ErrType.NO_FD)
        return fd

    # Use

    cpdef int enter(self) except -1:
        """Begin a call, which must `leave`; the fd, which is nobody else's until then.

        `Error` (``NO_FD``) if it is closed, (``FAILED_TRANSFER``) if it is no Unix socket.
        """
        cdef int fd = -1
        cdef bint known = False
        with cython.critical_section(self):
            self._sync()
            if not self.closed:
                self.users += 1
                fd = self.fd
                known = self.kind != 0
        if fd < 0:
            raise Error(f"{self.describe()}: it is closed", ErrType.NO_FD)
        if not known:
            try:
                self._identify()
            except BaseException:
                self.leave()
                raise
        return fd

    cpdef leave(self):
        """End a call; the last one out of a closed handle closes the descriptor."""
        cdef bint last
        with cython.critical_section(self):
            # A fork in a signal handler under this call may have set the count to 0.
            if self.users:
                self.users -= 1
            last = self.closed and not self.users and self.fd >= 0
        if last:
            self._release()

    cdef int _identify(self) except -1:
        """Check, once, that it is a Unix socket, and make it fit."""
        cdef int kind = 0
        cdef int err = <int>conduit_result(conduit_prepare(self.fd, &kind))
        if err:
            raise from_errno(
                -err, ErrType.FAILED_TRANSFER, f"{self.describe()}: cannot be used",
                "its descriptor was closed elsewhere" if err == -EBADF else None,
            )
        with cython.critical_section(self):
            if not self.kind:
                self.kind = kind
        return 0

    # Closing

    def close(self) -> None:
        """Close it, and end the calls that wait in other threads.

        Raises `Error` (``FAILED_CLOSE``) if the system reports a failure; it is closed all the
        same.
        """
        described = self.describe()
        cdef int err = self.shut()
        if err:
            raise from_errno(
                -err, ErrType.FAILED_CLOSE, f"{described}: closing",
                "its descriptor was closed elsewhere, and what has it now was left alone"
                if err == -EBADF else None,
            )

    def warn_unclosed(self, source: object, level: int = 1) -> None:
        """Warn that an object over this handle was dropped while it was open.

        ``level`` is how many frames of Python up the object was dropped: 2 for a ``__del__``.
        """
        cdef bint unclosed
        with cython.critical_section(self):
            unclosed = self.owned and not self.closed
        if unclosed:
            warn_unclosed(repr(source), <PyObject *>source, level)

    cdef int shut(self) except? -1:
        """Close once no call is under way; 0 or the failure of closing it now."""
        cdef char one[8]
        cdef bint last = False, closed
        cdef list queue = None
        with cython.critical_section(self):
            self._sync()
            closed = self.closed
            self.closed = True
            if not closed:
                queue, self.queue = self.queue, None
                last = not self.users
                if not last:
                    if self.owned:
                        self.held[2] = self.fd
                        hold_fds(&self.node)
                    if self.held[1] >= 0:
                        # An eventfd takes a 64-bit count in the machine's order, a pipe anything.
                        one[:] = [1, 0, 0, 0, 0, 0, 0, 1]
                        write(self.held[1], one, 8)
        cdef Waiter waiter
        if queue is not None:
            for waiter in queue:
                waiter.wake_up()
        return self._release() if last else 0

    cdef int _release(self) noexcept:
        """Close the descriptor, if owned, and the waker."""
        cdef int fd, err = 0
        cdef bint owned
        cdef int waker[2]
        cdef FileId known
        with cython.critical_section(self):
            fd, self.fd = self.fd, -1
            owned = self.owned
            known = self.known
            waker[0] = self.held[0]
            waker[1] = self.held[1] if self.held[1] != self.held[0] else -1
            release_fds(&self.node)
            self.held[0] = self.held[1] = self.held[2] = -1
        with nogil:
            if owned and fd >= 0:
                err = close_known(fd, &known)
            close_fds(waker, 2)
        return err

    cdef void _sync(self) noexcept:
        """In a child, forget the parent's calls; what they held was closed as the child began."""
        if self.forks != forks:
            self.forks = forks
            self.users = 0
            self.sending = False
            self.queue = None
            if self.closed:
                self.fd = -1

    # Waiting

    cdef int check_open(self, str doing, ssize_t sent=0) except -1:
        """Raise if a call that is under way has lost what it uses."""
        cdef bint forked, closed
        with cython.critical_section(self):
            forked = self.forks != forks
            closed = self.closed
        if closed or forked:
            raise Error(
                f"{self.describe()}: {doing} ended, since "
                + ("this process was forked by a signal handler"
                   if forked else "it was closed meanwhile"),
                ErrType.NO_FD, sent=sent,
            )
        return 0

    cdef bint _has_waker(self) noexcept:
        """Whether there is a descriptor for close() to wake those who wait, or room for one.

        It does not take the last room, which belongs to what is waited for.
        """
        cdef int spare
        if self.held[0] < 0:
            spare = dup_fd(self.fd)
            if spare >= 0:
                if conduit_waker(self.held) == 0:
                    hold_fds(&self.node)
                close_fd(spare)
        return self.held[0] >= 0

    cdef int wait(self, short events, long long deadline, str doing, ssize_t sent) except -1:
        """Wait until the socket may be ready, or for a moment if there are no events to wait for.

        Raises if it is closed, at the deadline, and what a signal handler raises.
        """
        cdef pollfd watched[2]
        cdef long long left
        cdef int ready, slice_ms, wait_ms
        cdef bint blind
        with cython.critical_section(self):
            blind = self.closed or not self._has_waker()
            watched[0].fd = self.fd
            watched[0].events = events
            watched[1].fd = self.held[0]
            watched[1].events = POLLIN
        self.check_open(doing, sent)
        slice_ms = SIGNAL_SLICE if in_main_thread() else INT_MAX
        if blind or not events:
            slice_ms = BLIND_SLICE
        while True:
            left = deadline - now() if deadline != NEVER else NEVER
            if left <= 0:
                raise from_errno(
                    ETIMEDOUT, ErrType.FAILED_TRANSFER, f"{self.describe()}: {doing}",
                    f"the deadline passed after {sent} bytes of the payload were sent"
                    if sent else "the deadline passed, and nothing was transferred", sent=sent,
                )
            wait_ms = slice_ms
            if left < <long long>slice_ms * 1000000:
                wait_ms = <int>((left + 999999) // 1000000)
            with nogil:
                ready = <int>conduit_result(poll(watched, 2, wait_ms))
            PyErr_CheckSignals()
            self.check_open(doing, sent)
            if ready > 0 or not events:
                return 0
            if ready < 0 and ready != -EINTR:
                raise from_errno(
                    -ready, ErrType.FAILED_TRANSFER, f"{self.describe()}: {doing}", sent=sent
                )

    # Turns to send

    cdef int mark_broken(self) noexcept:
        """Send no more: an earlier message has left in part."""
        with cython.critical_section(self):
            self.broken = True
        return 0

    cdef int begin_send(self) except -1:
        """Whether one system call may be made now, before which nobody stands in the queue.

        TURN if `end_send` must follow it, FREE on a packet socket, BUSY if not. Raises if an
        earlier message was cut off.
        """
        cdef int free
        with cython.critical_section(self):
            free = BUSY if self.sending else FREE
            if self.broken:
                free = -1
            elif free and self.kind == SOCK_STREAM:
                self.sending = True
                self.sender = PyThread_get_thread_ident()
                free = TURN
        if free < 0:
            self.check_sound()
        return free

    cdef int check_sound(self) except -1:
        """Raise if an earlier message was cut off, for a message that waited for the turn."""
        cdef bint broken
        with cython.critical_section(self):
            broken = self.broken
        if broken:
            raise Error(
                f"{self.describe()}: cannot send: an earlier message was only partly sent; close "
                "and reconnect", ErrType.FAILED_TRANSFER,
            )
        return 0

    cdef int end_send(self) except? -1:
        """Hand the turn to the first in the queue, and past those whose loops have ended."""
        cdef Waiter waiter
        while True:
            waiter = None
            with cython.critical_section(self):
                self.sending = False
                if self.queue:
                    waiter = self.queue.pop(0)
                    waiter.granted = self.sending = True
                    self.sender = waiter.thread
            if waiter is None or waiter.wake_up():
                return 0

    cdef int acquire_send(self, Waiter waiter, bint join) except -1:
        """TURN if a waiter has the turn, until `leave_queue`; BUSY if not.

        With ``join`` it then stands in the queue, and is woken when it has the turn. A thread
        that would wait for itself gets an `Error` (``EDEADLK``).
        """
        cdef int turn = -1
        while True:
            with cython.critical_section(self):
                if waiter.granted or not self.sending:
                    waiter.granted = self.sending = True
                    self.sender = waiter.thread
                    turn = TURN
                elif not join:
                    turn = BUSY
                elif not waiter.task and self._waits(waiter.thread):
                    turn = FREE
                elif waiter.task or waiter.lock != NULL:
                    if self.queue is None:
                        self.queue = []
                    self.queue.append(waiter)
                    turn = BUSY
            if turn == FREE:
                raise from_errno(
                    EDEADLK, ErrType.FAILED_TRANSFER, f"{self.describe()}: sending",
                    "this thread is sending on it already, and was interrupted by a signal "
                    "handler or the like, for which it cannot wait",
                )
            if turn >= 0:
                return turn
            waiter.lock = PyThread_allocate_lock()
            if waiter.lock == NULL:
                raise MemoryError  # pragma: no cover - no memory for a lock
            PyThread_acquire_lock(waiter.lock, NOWAIT_LOCK)

    cdef bint _waits(self, unsigned long thread):
        """Whether a thread has the turn or stands in the queue."""
        cdef Waiter other
        if self.sender == thread:
            return True
        for other in self.queue or ():
            if other.thread == thread:
                return True
        return False

    cdef int wait_turn(self, Waiter waiter, long long deadline) except -1:
        """Let a thread wait until it has the turn; raises as `wait` does."""
        cdef long long left, slice_us
        cdef bint granted
        slice_us = SIGNAL_SLICE * 1000 if in_main_thread() else 3600000000
        while True:
            left = deadline - now() if deadline != NEVER else NEVER
            if left <= 0:
                raise from_errno(
                    ETIMEDOUT, ErrType.FAILED_TRANSFER, f"{self.describe()}: sending",
                    "timed out waiting for another thread's send",
                )
            with nogil:
                PyThread_acquire_lock_timed(
                    waiter.lock, min(left // 1000 + 1, slice_us), True
                )
            PyErr_CheckSignals()
            self.check_open("sending")
            with cython.critical_section(self):
                granted = waiter.granted
            if granted:
                return 0

    cdef int leave_queue(self, Waiter waiter) except? -1:
        """Give up the turn, or the place in the queue."""
        cdef bint granted, forked
        cdef Py_ssize_t i
        with cython.critical_section(self):
            granted = waiter.granted
            waiter.granted = False
            forked = self.forks != forks
            if not granted and self.queue is not None:
                for i in range(len(self.queue)):
                    if self.queue[i] is waiter:
                        del self.queue[i]
                        break
        if granted and not forked:
            self.end_send()
        return 0
