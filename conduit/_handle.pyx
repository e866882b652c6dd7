# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
# cython: annotation_typing=False
"""One descriptor that several calls use: borrowing, closing, waiting, turns to send, forks.

Theory of operation
===================

**Use.** Every call borrows the fd and gives it back. ``close()`` marks the object, and the last
call to end closes the fd. So no call uses an fd that is another file's. A closed object stays so.

**One lock.** Every field is read and written in ``critical_section(self)``, which without a GIL is
a lock. No Python code runs inside, and no two are nested. Two exceptions: while a call has borrowed
the fd, ``fd`` and what `Handle.open` wrote; and, once the last call has ended, every field.

**Waiting** is ``poll(2)`` on the fd and on a waker that ``close()`` writes to; for a turn, it is a
lock. Signal handlers run when the wait ends: at once if the signal struck this thread, within
SIGNAL_SLICE if it struck another. With no descriptor left for a waker, it looks every BLIND_SLICE.

**Turns.** A payload on a stream may take many calls, and no other may come between. The call that
sends is the ``sender``; the others stand in ``queue``, first in, first out. A sender that is done
makes the first of them the sender. (A lock that is released and taken again let one thread send
46,786 messages and five others one each.) A packet leaves in one call, so only packets that found
no room in the socket queue. A thread that would wait for itself, such as a signal handler that
sends on the conduit it interrupted, gets an Error.

**Fork.** A child has the fds of its parent and none of its threads. Its copy of an open object
closes what the object holds. But no object would close what only a call under way holds: an fd
closed under it, a waker, the descriptors and duplicates of a message that waits. Each such row of
fds stands in the list ``held_fds``, and the child closes them. Linking allocates nothing, and the
order of writes keeps the list whole at any instant. ``sync`` corrects an object's fields when the
child first uses it. A call that a signal handler interrupted to fork ends in the child with an
Error. Not covered: a fork while another thread is inside close(2) or recvmsg(2). In a program with
threads the child must exec, which closes these.
"""

import os
import sys

cimport cython
from conduit._posix cimport *
from conduit._syscalls cimport (
    LOWEST, NEVER, close_fd, close_fds, close_known, dup_fd, identify, now,
)

from _socket import socket

from conduit.errors import Error, ErrType, from_errno

forks = 0

# A ring, of which this is the one node without fds.
cdef HeldFds held_fds
held_fds.next = held_fds.previous = &held_fds
cdef PyThread_type_lock held_lock = PyThread_allocate_lock()
if held_lock == NULL:
    raise MemoryError  # pragma: no cover - no memory for a lock


cdef void hold_fds(HeldFds *node, int *fds, int count) noexcept:
    """Let a forked child close a row of fds until `release_fds`; no-op if the node is linked."""
    if node.fds != NULL:
        return
    node.fds = fds
    node.count = count
    PyThread_acquire_lock(held_lock, WAIT_LOCK)
    node.next = held_fds.next
    node.previous = &held_fds
    held_fds.next.previous = node
    held_fds.next = node
    PyThread_release_lock(held_lock)


cdef void release_fds(HeldFds *node) noexcept:
    """Take a row out of the list; close its fds only after that, as a number may be reused."""
    if node.fds == NULL:
        return
    PyThread_acquire_lock(held_lock, WAIT_LOCK)
    node.previous.next = node.next
    node.next.previous = node.previous
    PyThread_release_lock(held_lock)
    node.fds = NULL


def _close_in_child():
    global forks, held_lock
    cdef HeldFds *node = held_fds.next
    cdef int i
    forks += 1
    while node != &held_fds:
        close_fds(node.fds, node.count)
        for i in range(node.count):
            node.fds[i] = -1
        node.fds = NULL
        node = node.next
    held_fds.next = held_fds.previous = &held_fds
    # Without a GIL, a thread that does not exist here may hold the old one.
    held_lock = PyThread_allocate_lock()


os.register_at_fork(after_in_child=_close_in_child)


cdef void warn_unclosed(str what, PyObject *source, Py_ssize_t level) noexcept:
    """Warn that an object was dropped while open, also at exit, when modules are gone already."""
    if PyErr_ResourceWarning(source, level, "unclosed %U", <PyObject *>what) < 0:
        if PyErr_ExceptionMatches(Warning):
            # A deallocator cannot raise a warning that was turned into an error.
            PyErr_WriteUnraisable(what)
        else:
            # At exit, the interpreter can no longer warn.
            PyErr_Clear()  # pragma: no cover - coverage has ended by then


@cython.freelist(256)
cdef class FdHolder:
    """An fd that calls borrow: the base of `Handle` and `Descriptor`. See the module."""

    def __cinit__(self):
        self.fd = FRESH
        self.owned = True
        self.forks = forks

    @property
    def name(self) -> str:
        """The name it was given by the program, by systemd or over a `Channel`; else ""."""
        cdef str name
        with cython.critical_section(self):
            name = self.label
        return name or ""

    @property
    def closed(self) -> bool:
        """Whether it was closed, detached, or made into another object."""
        return self.number() < 0

    cdef int number(self, bint mode=False) noexcept:
        """Return the fd, or its ``st_mode``; less than 0 if closed, or one call has it alone."""
        cdef int fd
        with cython.critical_section(self):
            fd = -1 if self.close_pending or self.users == ALONE else self.fd
            fd = conduit_mode(fd) if mode else fd
        return fd

    @cython.final
    cdef int borrow(self, bint alone) noexcept:
        """Return the fd until `give_back`, to one call only if ``alone``; less than 0 if in use."""
        cdef int fd = -1
        with cython.critical_section(self):
            if self.forks != forks:
                self.sync()
            if not self.close_pending and not (self.users if alone else self.users == ALONE):
                fd = self.fd
            if fd >= 0:
                self.users = ALONE if alone else self.users + 1
        return fd

    @cython.final
    cdef int give_back(self, bint gone, bint borrowed) noexcept:
        """End what `borrow` began; return the fd if the caller must close it. ``gone``: for all."""
        cdef int fd = -1
        with cython.critical_section(self):
            if self.forks != forks:
                self.sync()
            if borrowed:
                # A fork in a signal handler under this call may have set the count to 0.
                self.users = self.users - 1 if self.users > 0 else 0
            self.close_pending = self.close_pending or gone
            if self.close_pending and not self.users:
                self.close_pending = False
                fd, self.fd = self.fd, -1
                release_fds(&self.node)
            elif self.close_pending and self.owned and self.users != ALONE:
                hold_fds(&self.node, &self.fd, 1)
        return fd

    cdef void sync(self) noexcept:
        """In a child, forget the parent's calls; `_close_in_child` closed what they held."""
        if self.forks != forks:
            self.forks = forks
            if self.close_pending or self.users == ALONE:
                self.fd = -1
            self.users = 0
            self.close_pending = False


cdef class Waiter:
    """A call that may wait for the turn to send: a thread on ``lock``, a task until ``wake()``."""

    def __cinit__(self):
        self.thread = PyThread_get_thread_ident()

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef object wake_up(self):
        """Wake it; return None, what a signal handler raised, or False if its loop has ended."""
        if self.lock != NULL:
            PyThread_release_lock(self.lock)
            return None
        try:
            self.wake()
        except RuntimeError:
            return False
        except BaseException as exc:
            # A signal handler's. Once is enough, and twice does no harm.
            self.wake()
            return exc


@cython.final
cdef class Handle(FdHolder):
    """The descriptor of a Unix socket, and the calls under way on it; see the module."""

    def __cinit__(self):
        self.what = "conduit"
        self.waker[0] = self.waker[1] = -1
        self.single = Waiter.__new__(Waiter)
        self.queue = []

    def __dealloc__(self):
        # A call, or one that waits, holds this object. But a child may have its parent's calls.
        self.sync()
        if self.fd >= 0:
            self._release(self.fd)
        release_fds(&self.node)
        release_fds(&self.waker_node)

    @staticmethod
    def duplicate(fd: int, what: str, name: str, type: ErrType = ErrType.BAD_CLONE) -> Handle:
        """Return a handle that owns a duplicate of a descriptor, or raise `Error` (``type``)."""
        cdef Handle handle = Handle.__new__(Handle)
        cdef int duplicate = dup_fd(fd)
        if duplicate < 0:
            raise from_errno(-duplicate, type, f"duplicating descriptor {fd}")
        handle.open(duplicate, what, name, True)
        return handle

    @staticmethod
    def adopt(sock: socket, what: str, name: str) -> Handle:
        """Return a handle that owns a socket's descriptor, or a duplicate of a standard one."""
        cdef Handle handle = Handle.__new__(Handle)
        cdef int fd = socket.fileno(sock)
        if fd < LOWEST:
            return Handle.duplicate(fd, what, name, ErrType.NO_FD)
        handle.open(fd, what, name, True)
        # The C class's: no signal handler runs in it, and the object no longer has the fd, even if
        # there was no memory for the result.
        socket.detach(sock)
        return handle

    cpdef int open(self, int fd, str what, str name, bint owned) except -1:
        """Use a descriptor from now on; only once. If ``owned``, it is closed with the handle."""
        cdef int kind = 0, unfit
        cdef FileId known
        cdef bint fresh
        with nogil:
            unfit = <int>conduit_result(conduit_prepare(fd, &kind))
            identify(fd, &known)
        with cython.critical_section(self):
            fresh = self.fd == FRESH
            if fresh:
                self.kind, self.unfit, self.known, self.owned = kind, -unfit, known, owned
                self.what, self.label, self.fd = what, name, fd
        if not fresh:
            raise self.error("it was initialised before", 0, None, ErrType.NO_FD)
        return 0

    cdef object error(
        self, str doing, int err=0, str why=None, object type=ErrType.FAILED_TRANSFER,
        ssize_t sent=0,
    ):
        """Return the `Error` of a call; without an errno, ``doing`` is all of its message."""
        cdef str what = f"{self!r}: {doing}"
        if err:
            return from_errno(err, type, what, why, sent=sent)
        return Error(what, type, sent=sent)

    def __repr__(self) -> str:
        name, fd = self.name, self.number()
        with cython.critical_section(self):
            what = self.what
        return f"{what}{f' {name!r}' if name else ''} ({'closed' if fd < 0 else f'fd {fd}'})"

    def fileno(self) -> int:
        """Return the descriptor. `Error` (``NO_FD``) if it is closed."""
        cdef int fd = self.number()
        if fd < 0:
            raise self.error("it has no descriptor", 0, None, ErrType.NO_FD)
        return fd

    cdef int enter(self) except -1:
        """Begin a call; return the fd, which stays this file's until `leave`."""
        cdef int fd = self.borrow(False)
        if fd < 0:
            raise self.error("it is closed", 0, None, ErrType.NO_FD)
        if self.unfit:
            self.leave()
            raise self.error("cannot be used", self.unfit)
        return fd

    cdef int leave(self) noexcept:
        """End a call; the last one out of a closed handle closes the fd. 0 or the failure."""
        cdef int fd = self.give_back(False, True)
        return self._release(fd) if fd >= 0 else 0

    def close(self) -> None:
        """Close it once no call is under way, and wake all that wait. See `Conduit.close`."""
        cdef int err
        cdef list queue
        cdef Waiter waiter
        cdef str described = repr(self)
        cdef object woken, failure = None
        if self.borrow(False) < 0:
            return
        # From here no call can begin. What is woken may fork; the child closes the fd, too.
        self.give_back(True, False)
        with cython.critical_section(self):
            queue, self.queue = self.queue, []
            if self.waker[1] >= 0:
                conduit_wake(self.waker[1])
        for waiter in queue:
            woken = waiter.wake_up()
            if isinstance(woken, BaseException):
                failure = woken
        err = self.leave()
        if failure is not None:
            raise failure
        if err:
            raise from_errno(-err, ErrType.FAILED_CLOSE, f"{described}: closing")

    def warn_unclosed(self, source: object, level: int = 1) -> None:
        """Warn that an object over this handle was dropped open; level as `warnings.warn`."""
        if self.owned and self.number() >= 0:
            warn_unclosed(repr(source), <PyObject *>source, level)

    cdef int _release(self, int fd) noexcept:
        """Close the descriptor, if owned, and the waker; called by the last call to end."""
        cdef int err = 0
        release_fds(&self.waker_node)
        with nogil:
            if self.owned:
                err = close_known(fd, &self.known)
            # An eventfd is both ends at once.
            close_fds(self.waker, 1 if self.waker[0] == self.waker[1] else 2)
        return err

    cdef void sync(self) noexcept:
        if self.forks != forks:
            self.sender = None
            self.queue = []
        FdHolder.sync(self)

    cdef int check(self, str doing, ssize_t sent=0, bint to_send=False) except -1:
        """Raise if the fd was closed under this call, or if it may not send any more."""
        cdef str why = None
        cdef bint broken
        with cython.critical_section(self):
            if self.forks != forks:
                why = "this process was forked by a signal handler"
            elif self.close_pending or self.fd < 0:
                why = "it was closed meanwhile"
            broken = to_send and self.broken
        if why is not None:
            raise self.error(f"{doing} ended, since {why}", 0, None, ErrType.NO_FD, sent)
        if broken:
            raise self.error(
                "cannot send: an earlier message was only partly sent; close and reconnect"
            )
        return 0

    cdef int wait(
        self, int events, Waiter waiter, Limit *limit, str doing, str why=None,
        object type=ErrType.FAILED_TRANSFER, ssize_t sent=0,
    ) except -1:
        """Wait until the socket may be ready, or the waiter has the turn, or just a moment.

        ``why`` tells what it waits for. Raises on close, at the limit, and what a handler raises.
        """
        cdef pollfd watched[2]
        cdef long long left
        cdef double seconds = limit.seconds
        cdef int ready, spare, wait_ms, slice_ms = SIGNAL_SLICE
        # Only the main thread runs signal handlers; without `threading`, this may be it.
        main_thread = getattr(sys.modules.get("threading"), "main_thread", None)
        if main_thread is not None and PyThread_get_thread_ident() != main_thread().ident:
            slice_ms = INT_MAX
        if seconds == 0:
            raise self.error(doing, EAGAIN, why, type, sent)
        if not limit.deadline:
            # 9e9 seconds, 285 years, are the most that fit in nanoseconds.
            limit.deadline = now() + <long long>(seconds * 1e9) if 0 < seconds < 9e9 else NEVER
        with cython.critical_section(self):
            if self.waker[0] < 0 and not self.close_pending and events != QUEUED:
                # A waker, but not in the last free slots: the message needs those.
                spare = dup_fd(self.fd)
                if spare >= 0:
                    if conduit_waker(self.waker) == 0:
                        hold_fds(&self.waker_node, self.waker, 2)
                    close_fd(spare)
            # A PAUSE does not watch the fd: POLLHUP would end it at once.
            watched[0].fd = self.fd if events != PAUSE else -1
            watched[0].events = <short>(events & 0xFFFF)
            watched[1].fd = self.waker[0]
            watched[1].events = POLLIN
        if events == PAUSE or events != QUEUED and watched[1].fd < 0:
            slice_ms = BLIND_SLICE
        self.check(doing, sent)
        while True:
            left = limit.deadline - now() if limit.deadline != NEVER else NEVER
            if left <= 0:
                raise self.error(doing, ETIMEDOUT, why, type, sent)
            wait_ms = <int>min(left // 1000000 + 1, <long long>slice_ms)
            with nogil:
                if events == QUEUED:
                    ready = PY_LOCK_ACQUIRED == PyThread_acquire_lock_timed(
                        waiter.lock, <long long>wait_ms * 1000, True
                    )
                else:
                    ready = <int>conduit_result(poll(watched, 2, wait_ms))
            PyErr_CheckSignals()
            self.check(doing, sent)
            if ready > 0 or events == PAUSE:
                return 0
            if ready < 0 and ready != -EINTR:
                raise self.error(doing, -ready, None, type, sent)

    cdef int retry(
        self, ssize_t result, Limit *limit, str doing, str why=None,
        object type=ErrType.FAILED_TRANSFER,
    ) except -1:
        """After a receive or accept that failed, wait until it may be retried, or raise."""
        if result == -EAGAIN:
            self.wait(POLLIN, None, limit, doing, why, type)
        elif result == -EINTR:
            PyErr_CheckSignals()
            self.check(doing)
        else:
            raise self.error(doing, <int>-result, None, type)
        return 0

    cdef int acquire_send(self, Waiter waiter, bint for_room, bint join) except -1:
        """Ask to send: TURN, until `end_send`; FREE, a packet needs no turn; or BUSY.

        A packet needs the turn only to wait ``for_room``. With ``join``, a BUSY waiter enters the
        queue and is woken once it has the turn.
        """
        cdef int turn = BUSY
        cdef Waiter other
        cdef bint itself = False
        if join and waiter.wake is None and waiter.lock == NULL:
            waiter.lock = PyThread_allocate_lock()
            if waiter.lock == NULL:
                raise MemoryError  # pragma: no cover - no memory for a lock
            PyThread_acquire_lock(waiter.lock, NOWAIT_LOCK)
        with cython.critical_section(self):
            if self.sender is waiter:
                # All calls share ``single``: if it is the sender, another call has the turn.
                turn = TURN if waiter is not self.single else BUSY
            elif self.sender is None:
                # Broken: `check` tells a call that waits that nothing is sent any more.
                if not self.broken or waiter is not self.single:
                    turn = TURN if for_room or self.kind == SOCK_STREAM else FREE
                if turn == TURN:
                    waiter.thread = PyThread_get_thread_ident()
                    self.sender = waiter
            elif join:
                if waiter.wake is None:
                    itself = self.sender.thread == waiter.thread
                    for other in self.queue:
                        itself = itself or other.thread == waiter.thread
                if not itself:
                    self.queue.append(waiter)
        if itself:
            raise self.error("sending", EDEADLK)
        return turn

    cdef object end_send(self, Waiter waiter, bint broken):
        """Pass the turn to the first in the queue, or leave the queue.

        If a message left in part, it is ``broken``, and nothing is sent any more. Returns None, or
        what a signal handler raised, for the caller to raise once all else is done.
        """
        cdef object woken = False
        cdef Py_ssize_t i
        while woken is False:
            with cython.critical_section(self):
                self.sync()
                self.broken = self.broken or broken
                if self.sender is waiter:
                    # The next waiter; or the one after it, if its loop has ended.
                    self.sender = waiter = self.queue.pop(0) if self.queue else None
                else:
                    # In place: there may be no memory for a new list.
                    for i in range(len(self.queue)):
                        if self.queue[i] is waiter:
                            del self.queue[i]
                            break
                    waiter = None
            woken = waiter.wake_up() if waiter is not None else None
        return woken


@cython.final
@cython.no_gc_clear
cdef class Use:
    """Python code's use of a handle, where a signal handler may raise between any two calls."""

    def __cinit__(self, Handle handle not None):
        self.fd = handle.enter()
        self.handle = handle

    def __dealloc__(self):
        self.close()

    def fileno(self) -> int:
        """Return the fd, which stays this file's until `close`."""
        return self.fd

    cpdef object close(self):
        """Leave the handle, as does dropping this object; no-op the second time."""
        handle, self.handle = self.handle, None
        if handle is not None:
            (<Handle>handle).leave()
