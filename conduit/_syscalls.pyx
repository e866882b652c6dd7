# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
# cython: annotation_typing=False
"""The system calls, one function each: no state, no policy, no Python object.

Each returns a value or minus the errno. None waits. All run without the GIL, in any number of
threads.

A descriptor made here is close-on-exec from the first instant, where the system can do that in one
step. It is above 2: if a program has closed its standard streams, its output must not go to a peer.
"""

import os

from conduit._posix cimport *

MAX_FDS = CONDUIT_MAX_FDS


cdef long long now() noexcept nogil:
    """Return the monotonic clock in nanoseconds. Not Python's, which a test may have frozen."""
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <long long>at.tv_sec * 1000000000 + at.tv_nsec


def monotonic() -> float:
    """Return the seconds of the monotonic clock, whatever replaced ``time.monotonic``."""
    return now() / 1e9


cdef int close_fd(int fd) noexcept nogil:
    """Close once. After EINTR, too, it is closed (close(2))."""
    cdef int err = <int>conduit_result(close(fd))
    return 0 if err == -EINTR else err


cdef int close_fds(const int *fds, int count) noexcept nogil:
    """Close each once, skipping -1; return 0 or the first failure."""
    cdef int i, err, first = 0
    for i in range(count):
        err = close_fd(fds[i]) if fds[i] >= 0 else 0
        if err and not first:
            first = err
    return first


cdef int dup_fd(int fd) noexcept nogil:
    return <int>conduit_result(fcntl(fd, F_DUPFD_CLOEXEC, <int>LOWEST))


cdef int move_up(int fd) noexcept nogil:
    """Move an fd above standard error; ``fd`` is closed, also on failure. Passes an errno on."""
    return fd if fd < 0 else <int>conduit_result(conduit_move_up(fd))


cdef int identify(int fd, FileId *found) noexcept nogil:
    """Get device and inode, which tell a socket from every other file while it is open."""
    cdef struct_stat status
    cdef int err = <int>conduit_result(fstat(fd, &status))
    if not err:
        found.device, found.inode = status.st_dev, status.st_ino
    return err


cdef int close_known(int fd, const FileId *known) noexcept nogil:
    """Close a socket; EBADF if other code has closed it and the fd is another file's."""
    cdef FileId found
    cdef int err = identify(fd, &found)
    if not err and (found.device != known.device or found.inode != known.inode):
        err = -EBADF
    return err or close_fd(fd)


cdef void set_header(msghdr *msg, iovec *part, const void *data, size_t size) noexcept nogil:
    memset(msg, 0, sizeof(msghdr))
    part.iov_base = <void *>data
    part.iov_len = size
    msg.msg_iov = part
    msg.msg_iovlen = 1


cdef ssize_t send_message(
    int fd, const void *data, size_t size, const int *fds, int count
) noexcept nogil:
    """Send bytes and descriptors in one message; return how many bytes were taken."""
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
        # Exact, without padding: macOS takes no other length, and padding would leak stack bytes.
        msg.msg_controllen = head.cmsg_len
    return conduit_result(conduit_sendmsg(fd, &msg, MSG_DONTWAIT | CONDUIT_NOSIGNAL))


cdef void collect(msghdr *msg, RecvResult *result) noexcept nogil:
    """Take every descriptor, and the sender's credentials, out of all control messages."""
    cdef cmsghdr *head = CMSG_FIRSTHDR(msg)
    cdef const int *fds
    cdef int i, fd
    while head != NULL:
        if head.cmsg_level == SOL_SOCKET and head.cmsg_type in (SCM_RIGHTS, CONDUIT_SCM_PIDFD):
            fds = <const int *>CMSG_DATA(head)
            for i in range(<int>(conduit_cmsg_size(msg, head) // sizeof(int))):
                fd = fds[i]
                if fd < 0:
                    # An errno: Linux 7.3 puts it in place of a withheld descriptor, or of a pidfd.
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
    """Receive one message, its descriptors and its flaw, if any; return how many bytes came."""
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
        # A packet socket reports this once, before what is still queued.
        got = conduit_result(recvmsg(fd, &msg, MSG_DONTWAIT | CONDUIT_CMSG_CLOEXEC))
        if got == -EAGAIN:
            got = -ECONNRESET
    if marked:
        conduit_unmark_packets(fd, marked)
    if got < 0:
        if got == -EAGAIN and kind == SOCK_DGRAM and conduit_at_end(fd):
            # This end was shut down for reading; poll() reports it readable for ever.
            result.flaw = ENDED
            return 0
        if got == -EMSGSIZE:
            # A BSD had no room for the descriptors, and keeps the payload queued. Discard it, or
            # it would pass for a message without descriptors.
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
        # The control buffer always has room. Look now whether the fd table had: by the time this
        # thread has the GIL again, others may have closed something.
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
        # The end, or an empty packet; on a datagram socket always an empty packet.
        if kind == SOCK_STREAM or (kind == SOCK_SEQPACKET and (
            not msg.msg_controllen if marked else conduit_at_end(fd)
        )):
            result.flaw = ENDED
    return got


cdef int accept_fd(int fd) noexcept nogil:
    return move_up(<int>conduit_result(conduit_accept(fd)))


cdef int peer_of(int fd, conduit_sender *peer) noexcept nogil:
    """Get the process that a Unix socket is connected to, as of connect(2) (``SO_PEERCRED``)."""
    return <int>conduit_result(conduit_peer(fd, &peer.pid, &peer.uid, &peer.gid))


def socket_options(fd: int) -> tuple[int, int, int, bool]:
    """Return family, type, protocol (-1 if unknown), and whether a socket blocks, or raise."""
    cdef int family = -1, kind = 0, protocol = -1
    cdef ssize_t flags = conduit_result(conduit_socket_options(fd, &family, &kind, &protocol))
    if flags < 0:
        raise OSError(-flags, os.strerror(-flags))
    return family, kind, protocol, not flags & O_NONBLOCK


def offset_of(fd: int) -> int:
    """Return the offset of a descriptor, or minus the errno: ``ESPIPE`` if it has none."""
    return conduit_offset(fd)


def same_file(fd: int, other: int) -> bool:
    """Whether two descriptors refer to one open file description, as `Descriptor.is_same_file`."""
    return conduit_same_file(fd, other)
