"""The C interface of ``_handle``, for ``_conduit``."""

from conduit._posix cimport PyObject, PyThread_type_lock
from conduit._syscalls cimport FileId


cdef struct HeldFds:
    int *fds
    int count
    HeldFds *next
    HeldFds *previous


cdef struct Limit:
    # How long a call may wait: so many seconds (less than 0: for ever) from when it first has to,
    # which then sets a deadline.
    double seconds
    long long deadline


cdef enum:
    # What else than POLLIN and POLLOUT can be waited for: the turn to send, or just a moment.
    QUEUED = 1 << 16
    PAUSE = 1 << 17
    # Whether a call may send at once, and whether it must pass the turn on afterwards.
    BUSY = 0
    FREE = 1
    TURN = 2
    # The fd of an object that was not initialised yet.
    FRESH = -2
    # As the users of an fd: one call alone.
    ALONE = -1
    # Milliseconds between two looks for a signal that the system handed to another thread, and
    # for close() where there is no descriptor to be woken by.
    SIGNAL_SLICE = 250
    BLIND_SLICE = 10


cdef class FdHolder:
    cdef int fd, users
    cdef bint owned, close_pending
    cdef unsigned long forks
    cdef HeldFds node
    # What it is called: None for most. A str, which keeps the class out of the garbage collector.
    cdef str label
    cdef object __weakref__

    cdef int number(self, bint mode=*) noexcept
    cdef int borrow(self, bint alone) noexcept
    cdef int give_back(self, bint gone, bint borrowed) noexcept
    cdef void sync(self) noexcept


cdef class Waiter:
    cdef PyThread_type_lock lock
    cdef object wake
    cdef unsigned long thread

    cdef object wake_up(self)


cdef class Handle(FdHolder):
    cdef int kind, unfit
    cdef str what
    cdef bint broken
    cdef FileId known
    cdef int waker[2]
    cdef HeldFds waker_node
    # The message that is being sent, or None; ``single`` stands for any that does not wait.
    cdef Waiter sender, single
    cdef list queue

    cpdef int open(self, int fd, str what, str name, bint owned) except -1
    cdef object error(self, str doing, int err=*, str why=*, object type=*, ssize_t sent=*)
    cdef int enter(self) except -1
    cdef int leave(self) noexcept
    cdef int check(self, str doing, ssize_t sent=*, bint to_send=*) except -1
    cdef int wait(
        self, int events, Waiter waiter, Limit *limit, str doing, str why=*, object type=*,
        ssize_t sent=*,
    ) except -1
    cdef int retry(
        self, ssize_t result, Limit *limit, str doing, str why=*, object type=*
    ) except -1
    cdef int acquire_send(self, Waiter waiter, bint for_room, bint join) except -1
    cdef object end_send(self, Waiter waiter, bint broken)

    cdef int _release(self, int fd) noexcept


cdef class Use:
    cdef Handle handle
    cdef int fd

    cpdef object close(self)


# How many forks this process is away from the one that imported the module.
cdef unsigned long forks

cdef void hold_fds(HeldFds *node, int *fds, int count) noexcept
cdef void release_fds(HeldFds *node) noexcept
cdef void warn_unclosed(str what, PyObject *source, Py_ssize_t level) noexcept
