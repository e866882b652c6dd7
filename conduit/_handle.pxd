"""The C interface of ``_handle``, for ``_conduit``."""

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_type_lock

from conduit._syscalls cimport FileId


cdef struct HeldFds:
    int *fds
    int count
    HeldFds *next
    HeldFds **link


cdef enum:
    # What step() of a message answers besides POLLOUT: wait for the turn, or just a moment.
    QUEUED = 1 << 16
    PAUSE = 1 << 17
    # Whether a call may send at once, and whether it must pass the turn on afterwards.
    BUSY = 0
    FREE = 1
    TURN = 2


cdef class Waiter:
    cdef PyThread_type_lock lock
    cdef object wake
    cdef unsigned long thread
    # Whether it is one of an event loop, which may wait behind others of its thread.
    cdef bint task
    cdef bint granted

    cdef bint wake_up(self) except -1


cdef class Handle:
    cdef int fd
    cdef int kind
    cdef str name
    cdef bint opened
    cdef bint owned
    cdef bint closed
    cdef bint broken
    cdef int users
    cdef unsigned long forks
    cdef FileId known
    cdef int held[3]
    cdef HeldFds node
    cdef bint sending
    cdef unsigned long sender
    cdef list queue

    cdef int open(self, int fd, str name, bint owned) except -1
    cdef str describe(self)
    cdef int number(self) noexcept
    cpdef int enter(self) except -1
    cpdef leave(self)
    cdef int shut(self) except? -1
    cdef int mark_broken(self) noexcept
    cdef int check_open(self, str doing, ssize_t sent=*) except -1
    cdef int wait(self, short events, long long deadline, str doing, ssize_t sent) except -1
    cdef int begin_send(self) except -1
    cdef int check_sound(self) except -1
    cdef int end_send(self) except? -1
    cdef int acquire_send(self, Waiter waiter, bint join) except -1
    cdef int wait_turn(self, Waiter waiter, long long deadline) except -1
    cdef int leave_queue(self, Waiter waiter) except? -1

    cdef int _release(self) noexcept
    cdef void _sync(self) noexcept
    cdef int _identify(self) except -1
    cdef bint _has_waker(self) noexcept
    cdef bint _waits(self, unsigned long thread)


# How many forks this process is away from the one that imported the module.
cdef unsigned long forks

cdef void hold_fds(HeldFds *node) noexcept
cdef void release_fds(HeldFds *node) noexcept
cdef long long deadline_after(double timeout) noexcept
cdef bint in_main_thread() except -1
cdef void warn_unclosed(str what, PyObject *source, Py_ssize_t level) noexcept
