"""The C interface of ``_wire``, for ``_conduit``."""

from cpython.pythread cimport PyThread_type_lock

from conduit._posix cimport CONDUIT_MAX_FDS


cdef enum:
    # One slot more than a message may hold, for systems whose limit is one higher.
    SLOTS = CONDUIT_MAX_FDS + 1


cdef struct Arrival:
    int fds[SLOTS]
    int count
    bint rights_cut
    bint data_cut
    int err


cdef class Shipment


cdef class Transport:
    cdef int fd
    cdef int kind
    cdef double timeout
    cdef str name
    cdef bint owned
    cdef bint closed
    cdef bint broken
    cdef int users
    cdef int wake[2]
    cdef bint sending
    cdef bint called
    cdef int waiting
    cdef PyThread_type_lock turn
    cdef unsigned long forks

    cdef int adopt(self, int fd, str name) except -1
    cdef int number(self) noexcept
    cdef str get_name(self)
    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef int shut(self)
    cdef int send(
        self, const void *data, size_t size, int *fds, int count, bint move
    ) except -1
    cdef ssize_t receive(self, void *data, size_t size, Arrival *arrival) except -1

    cdef int accept(self, double timeout) except -1
    cdef int _accept_once(self, int *err) noexcept

    cdef str describe(self)
    cdef int _identify(self) except -1
    cdef void _after_fork(self) noexcept
    cdef bint _free(self) noexcept
    cdef int _take_turn(self, double timeout, double deadline) except -1
    cdef void _pass_turn(self) noexcept
    cdef bint _has_waker(self) noexcept
    cdef int _wait(self, short events, double deadline, str doing, ssize_t sent) except -1
    cdef int _check_sound(self) except -1
    cdef int _send_on(
        self, const void *data, size_t size, int *fds, int count, ssize_t sent
    ) except -1
    cdef int _send_in_turn(self, const void *data, size_t size, int *fds, int count) except -1
    cdef int _finish(
        self, Shipment shipment, ssize_t sent, double timeout, double deadline
    ) except -1
    cdef int _raise_send(self, int err, const int *fds, int count, size_t gone) except -1
    cdef ssize_t _receive_once(self, void *data, size_t size, Arrival *arrival) noexcept
    cdef bint _at_end(self)
    cdef int _check_whole(self, size_t size, Arrival *arrival) except -1
    cdef int _check_open(self, str doing, ssize_t sent=*) except -1
    cdef int _release(self)
    cdef ssize_t _receive_on(
        self, void *data, size_t size, Arrival *arrival, ssize_t got
    ) except -1


cdef class Shipment:
    cdef Transport transport
    cdef const char *data
    cdef size_t size
    cdef size_t gone
    cdef int *fds
    cdef int *sending
    cdef int due
    cdef int held
    cdef int own[SLOTS]

    cdef void load(
        self, Transport transport, const void *data, size_t size, int *fds, int count
    ) noexcept
    cdef int hold(self) except -1
    cdef int _duplicate(self) noexcept
    cdef ssize_t send_rest(self) noexcept nogil
    cdef int go(self, ssize_t sent) except -1
    cdef int start(self) except -1
    cdef void abandon(self) noexcept


# How many forks this process is away from the one that imported the module.
cdef unsigned long forks

cdef int close_number(int fd) noexcept nogil
cdef int close_numbers(const int *fds, int count) noexcept nogil
cdef int duplicate(int fd) noexcept nogil
cdef int move_up(int fd) noexcept nogil
cdef int connect_to(bytes path, int kind, double timeout, str doing) except -1
