"""All of C and of Python's C interface that is called here: first what Cython ships."""

from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport (
    PyErr_CheckSignals, PyErr_Clear, PyErr_ExceptionMatches, PyErr_WriteUnraisable,
)
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check, PyLong_FromLong
from cpython.object cimport PyObject, PyObject_AsFileDescriptor
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_release_lock, PyThread_type_lock,
)
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_CheckExact
from libc.errno cimport (
    EAGAIN, EBADF, ECONNABORTED, ECONNRESET, EINTR, EINVAL, EMFILE, EMSGSIZE, ENOBUFS, ETIMEDOUT,
)
from libc.limits cimport INT_MAX
from libc.string cimport memcpy, memset
from posix.fcntl cimport (
    F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, FD_CLOEXEC, O_NONBLOCK, fcntl,
)
from posix.stat cimport fstat, struct_stat
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.types cimport gid_t, pid_t, uid_t
from posix.uio cimport iovec
from posix.unistd cimport close


cdef extern from "_posix.h" nogil:
    enum:
        CONDUIT_CMSG_CLOEXEC
        CONDUIT_MAX_FDS
        CONDUIT_NOSIGNAL
        CONDUIT_SOCK_CLOEXEC
        CONDUIT_SCM_CREDENTIALS
        CONDUIT_SCM_PIDFD

    ctypedef struct conduit_sender:
        pid_t pid
        uid_t uid
        gid_t gid

    ctypedef struct conduit_control:
        pass

    size_t conduit_cmsg_size(msghdr *msg, cmsghdr *cmsg)
    ssize_t conduit_result(ssize_t returned)
    ssize_t conduit_sendmsg(int fd, const msghdr *msg, int flags)
    int conduit_accept(int fd)
    long long conduit_offset(int fd)
    int conduit_mode(int fd)
    int conduit_peer(int fd, pid_t *pid, uid_t *uid, gid_t *gid)
    int conduit_prepare(int fd, int *kind)
    int conduit_socket_options(int fd, int *family, int *kind, int *protocol)
    int conduit_move_up(int fd)
    int conduit_waker(int *ends)
    void conduit_wake(int end)
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
    int shutdown(int fd, int how)


cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
        POLLOUT

    struct pollfd:
        int fd
        short events
        short revents

    int poll(pollfd *fds, size_t count, int timeout)


cdef extern from "Python.h":
    int PyErr_ResourceWarning(PyObject *source, Py_ssize_t level, const char *format, ...)


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
