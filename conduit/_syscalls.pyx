# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
# cython: annotation_typing=False
"""The system calls, one function each: no state, no policy, no Python object.

Each returns a value, or minus the errno. None waits. All run without the GIL, in any number of
threads.

Each descriptor that is made here is close-on-exec from the first instant (where the system can do
that in one step), and above 2: where a program has closed its standard streams, what it prints must
not go to a peer.
"""

import os

from conduit._posix cimport *

MAX_FDS = CONDUIT_MAX_FDS


cdef long long now() noexcept nogil:
    """The monotonic clock in nanoseconds. Not Python's, which a test may have frozen."""
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <long long>at.tv_sec * 1000000000 + at.tv_nsec


def monotonic() -> float:
    """Return the seconds of the monotonic clock, whatever replaced ``time.monotonic``."""
    return now() / 1e9


cdef int close_fd(int fd) noexcept nogil:
    """Close once. Interrupted, it is closed all the same (close(2))."""
    cdef int err = <int>conduit_result(close(fd))
    return 0 if err == -EINTR else err


cdef int close_fds(const int *fds, int count) noexcept nogil:
    """Close each once, but for those that are -1; 0 or the first failure."""
    cdef int i, err, first = 0
    for i in range(count):
        err = close_fd(fds[i]) if fds[i] >= 0 else 0
        if err and not first:
            first = err
    return first


cdef int dup_fd(int fd) noexcept nogil:
    return <int>conduit_result(fcntl(fd, F_DUPFD_CLOEXEC, <int>LOWEST))


cdef int move_up(int fd) noexcept nogil:
    """The same open file above standard error; a failure is passed on, with ``fd`` closed."""
    cdef int moved
    if fd < 0 or fd >= LOWEST:
        return fd
    moved = dup_fd(fd)
    close_fd(fd)
    return moved


cdef int identify(int fd, FileId *found) noexcept nogil:
    """What tells a socket from every other file while it is open."""
    cdef struct_stat status
    cdef int err = <int>conduit_result(fstat(fd, &status))
    if err:
        return err
    found.device, found.inode = status.st_dev, status.st_ino
    return 0


cdef int close_known(int fd, const FileId *known) noexcept nogil:
    """Close a socket, unless other code has closed it and the fd is another file's by now."""
    cdef FileId found
    cdef int err = identify(fd, &found)
    if err:
        return err
    if found.device != known.device or found.inode != known.inode:
        return -EBADF
    return close_fd(fd)


cdef void set_header(msghdr *msg, iovec *part, const void *data, size_t size) noexcept nogil:
    memset(msg, 0, sizeof(msghdr))
    part.iov_base = <void *>data
    part.iov_len = size
    msg.msg_iov = part
    msg.msg_iovlen = 1


cdef ssize_t send_message(
    int fd, const void *data, size_t size, const int *fds, int count
) noexcept nogil:
    """Send bytes and descriptors in one message; how many bytes were taken."""
    cdef msghdr msg
    cdef iovec part
    cdef conduit_control control
    cdef cmsghdr *head
    set_header(&msg, &part, data, size)
    if count:
        msg.msg_control = &control
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * count)
        head = CMSG_FIRSTHDR(&msg)
        memset(head, 0, sizeof(cmsghdr))
        head.cmsg_level = SOL_SOCKET
        head.cmsg_type = SCM_RIGHTS
        head.cmsg_len = CMSG_LEN(sizeof(int) * count)
        memcpy(CMSG_DATA(head), fds, sizeof(int) * count)
        # The exact length: macOS takes no other, and the padding would hold stack bytes.
        msg.msg_controllen = head.cmsg_len
    return conduit_result(conduit_sendmsg(fd, &msg, MSG_DONTWAIT | CONDUIT_NOSIGNAL))


cdef void collect(msghdr *msg, RecvResult *result) noexcept nogil:
    """Take every descriptor, and who sent it, out of every control message."""
    cdef cmsghdr *head = CMSG_FIRSTHDR(msg)
    cdef const int *fds
    cdef int i, fd
    while head != NULL:
        if head.cmsg_level == SOL_SOCKET and head.cmsg_type in (SCM_RIGHTS, CONDUIT_SCM_PIDFD):
            fds = <const int *>CMSG_DATA(head)
            for i in range(<int>(conduit_cmsg_size(msg, head) // sizeof(int))):
                fd = fds[i]
                if fd < 0:
                    # Where a descriptor was withheld, Linux 7.3 and a pidfd say why.
                    if head.cmsg_type == SCM_RIGHTS:
                        result.flaw = WITHHELD
                elif head.cmsg_type != SCM_RIGHTS or result.count == SLOTS:
                    close_fd(fd)
                else:
                    if not CONDUIT_CMSG_CLOEXEC:
                        fcntl(fd, F_SETFD, <int>FD_CLOEXEC)  # pragma: no cover - not on Linux
                    fd = move_up(fd)
                    if fd < 0:
                        result.err = -fd
                    else:
                        result.fds[result.count] = fd
                        result.count += 1
        elif (
            head.cmsg_level == SOL_SOCKET and head.cmsg_type == CONDUIT_SCM_CREDENTIALS
            and conduit_cmsg_size(msg, head) == sizeof(conduit_sender)
        ):
            result.told = True
            memcpy(&result.sender, CMSG_DATA(head), sizeof(conduit_sender))
        head = CMSG_NXTHDR(msg, head)


cdef ssize_t recv_message(
    int fd, int kind, void *data, size_t size, RecvResult *result
) noexcept nogil:
    """Receive one message, with all its descriptors and its flaw, if any; how many bytes came."""
    cdef msghdr msg
    cdef iovec part
    cdef conduit_control control
    cdef ssize_t got
    cdef int probe, marked = conduit_mark_packets(fd) if kind == SOCK_SEQPACKET else 0
    result.count = result.err = result.flaw = result.told = 0
    set_header(&msg, &part, data, size)
    msg.msg_control = &control
    msg.msg_controllen = sizeof(control)
    got = conduit_result(recvmsg(fd, &msg, MSG_DONTWAIT | CONDUIT_CMSG_CLOEXEC))
    if got == -ECONNRESET:
        # A packet socket says this once before it gives what is still queued.
        got = conduit_result(recvmsg(fd, &msg, MSG_DONTWAIT | CONDUIT_CMSG_CLOEXEC))
        if got == -EAGAIN:
            got = -ECONNRESET
    if marked:
        conduit_unmark_packets(fd, marked)
    if got < 0:
        if got == -EAGAIN and kind == SOCK_DGRAM and conduit_at_end(fd):
            # This end was shut for reading, and poll() calls it readable for ever.
            result.flaw = ENDED
            return 0
        if got == -EMSGSIZE:
            # BSDs say so where there is no room for the descriptors, and leave the payload,
            # which is not to be taken for a message that has none.
            recv_message(fd, kind, data, size, result)
            close_fds(result.fds, result.count)
            return -EMFILE
        return got
    if msg.msg_flags & MSG_TRUNC:
        result.flaw = TRUNCATED
    if msg.msg_flags & MSG_CTRUNC:
        result.flaw = WITHHELD
    if msg.msg_controllen:
        collect(&msg, result)
    if result.flaw == WITHHELD:
        # The buffer always has room. Whether the table had is looked at here and now: before
        # this thread has the GIL again, others may have closed something.
        probe = dup_fd(fd)
        if probe < 0:
            result.err = EMFILE
        else:
            close_fd(probe)
    if result.err:
        result.flaw = NO_ROOM
    elif result.flaw == TRUNCATED:
        result.err = EMSGSIZE
    elif got == 0 and not result.count and not result.flaw:
        # The end, or an empty packet; of a datagram socket always the latter.
        if kind == SOCK_STREAM or (kind == SOCK_SEQPACKET and (
            not msg.msg_controllen if marked else conduit_at_end(fd)
        )):
            result.flaw = ENDED
    return got


cdef int accept_fd(int fd) noexcept nogil:
    return move_up(<int>conduit_result(conduit_accept(fd)))


cdef int peer_of(int fd, conduit_sender *peer) noexcept nogil:
    """The process that a Unix socket is connected to, as it was then (``SO_PEERCRED``)."""
    return <int>conduit_result(conduit_peer(fd, &peer.pid, &peer.uid, &peer.gid))


def socket_options(fd: int) -> tuple[int, int, int, bool]:
    """Return family, type, protocol (-1 where not told), and whether a socket waits, or raise."""
    cdef int family = -1, kind = 0, protocol = -1
    cdef ssize_t flags = conduit_result(conduit_socket_options(fd, &family, &kind, &protocol))
    if flags < 0:
        raise OSError(-flags, os.strerror(-flags))
    return family, kind, protocol, not flags & O_NONBLOCK


def offset_of(fd: int) -> int:
    """Return the offset of a descriptor, or minus the errno: ``ESPIPE``, if it has none."""
    return conduit_offset(fd)
