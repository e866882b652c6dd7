"""What the C headers offer and Cython does not ship."""

from cpython.pythread cimport PyThread_type_lock
from posix.types cimport gid_t, pid_t, uid_t
from posix.uio cimport iovec


cdef extern from "_posix.h" nogil:
    enum:
        CONDUIT_CMSG_CLOEXEC
        CONDUIT_MAX_FDS
        CONDUIT_NOSIGNAL
        CONDUIT_SOCK_CLOEXEC
        CONDUIT_SCM_PIDFD

    ctypedef struct conduit_control:
        pass

    size_t conduit_cmsg_size(msghdr *msg, cmsghdr *cmsg)
    ssize_t conduit_result(ssize_t returned)
    ssize_t conduit_sendmsg(int fd, const msghdr *msg, int flags)
    int conduit_accept(int fd)
    int conduit_connect(int fd, const char *path, size_t length)
    long long conduit_offset(int fd)
    int conduit_peer(int fd, pid_t *pid, uid_t *uid, gid_t *gid)
    int conduit_prepare(int fd, int *kind)
    int conduit_socket(int kind)
    int conduit_socket_options(int fd, int *family, int *kind, int *protocol)
    int conduit_socketpair(int kind, int *ends)
    int conduit_waker(int *ends)
    bint conduit_at_end(int fd)
    int conduit_mark_packets(int fd)
    void conduit_unmark_packets(int fd, int marked)
    bint conduit_same_file(int one, int other)


cdef extern from "<errno.h>" nogil:
    enum:
        EDEADLK


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t

    enum:
        MSG_CTRUNC
        MSG_DONTWAIT
        MSG_TRUNC
        SCM_RIGHTS
        SOCK_DGRAM
        SOCK_SEQPACKET
        SOCK_STREAM
        SOL_SOCKET

    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags

    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type

    cmsghdr *CMSG_FIRSTHDR(msghdr *msg)
    cmsghdr *CMSG_NXTHDR(msghdr *msg, cmsghdr *cmsg)
    unsigned char *CMSG_DATA(cmsghdr *cmsg)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)

    ssize_t recvmsg(int fd, msghdr *msg, int flags)


cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
        POLLOUT

    struct pollfd:
        int fd
        short events
        short revents

    int poll(pollfd *fds, size_t count, int timeout)


cdef extern from "pythread.h" nogil:
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR

    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock lock, long long microseconds, int interruptible
    )

    # Cython's own says long, which is negative where all of 32 bits are used.
    unsigned long PyThread_get_thread_ident()
