"""The C interface of ``_syscalls``."""

from conduit._posix cimport CONDUIT_MAX_FDS, conduit_sender


cdef enum:
    # Standard input, output and error are never given to a descriptor that arrives.
    LOWEST = 3
    # One more than a message may hold, for systems whose limit is one higher.
    SLOTS = CONDUIT_MAX_FDS + 1
    # What is wrong with a message that came: it is none, but the end; this process had no room for
    # its descriptors (err says why); the system withheld one; it was longer than asked for.
    ENDED = 1
    NO_ROOM = 2
    WITHHELD = 3
    TRUNCATED = 4


cdef struct RecvResult:
    int fds[SLOTS]
    int count
    int flaw
    int err
    # Who sent it, where the system told.
    bint told
    conduit_sender sender


cdef struct FileId:
    long long device
    unsigned long long inode


cdef extern from "<stdint.h>" nogil:
    # As a moment, and as a time to wait.
    const long long NEVER "INT64_MAX"


cdef long long now() noexcept nogil
cdef int close_fd(int fd) noexcept nogil
cdef int close_fds(const int *fds, int count) noexcept nogil
cdef int dup_fd(int fd) noexcept nogil
cdef int move_up(int fd) noexcept nogil
cdef int identify(int fd, FileId *found) noexcept nogil
cdef int close_known(int fd, const FileId *known) noexcept nogil
cdef ssize_t send_message(
    int fd, const void *data, size_t size, const int *fds, int count
) noexcept nogil
cdef ssize_t recv_message(
    int fd, int kind, void *data, size_t size, RecvResult *result
) noexcept nogil
cdef int accept_fd(int fd) noexcept nogil
cdef int peer_of(int fd, conduit_sender *peer) noexcept nogil
