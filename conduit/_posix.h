/* Where systems differ: what one of them lacks, done another way.
 *
 * Each fallback is a branch on what the headers define, so CONDUIT_PORTABLE, which hides the
 * extras of Linux, compiles the branches of macOS and FreeBSD here, where the suite runs them.
 */
#ifndef CONDUIT_POSIX_H
#define CONDUIT_POSIX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

#ifdef CONDUIT_PORTABLE
#undef MSG_CMSG_CLOEXEC
#undef MSG_NOSIGNAL
#undef POLLRDHUP
#undef SOCK_CLOEXEC
#undef SO_DOMAIN
#undef SO_PROTOCOL
#define CONDUIT_SEND_TIMEOUT
/* What the BSDs have instead of SO_PEERCRED, made of it where there is nothing else. */
static inline int getpeereid(int fd, uid_t *uid, gid_t *gid)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    int failed = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    *uid = peer.uid;
    *gid = peer.gid;
    return failed;
}
enum { SOL_LOCAL = SOL_SOCKET, CONDUIT_PEERPID = SO_PEERCRED };  /* a ucred begins with the pid */
#define LOCAL_PEERPID CONDUIT_PEERPID
#undef SO_PEERCRED
#elif defined(__FreeBSD__)
#include <sys/param.h>
#include <sys/ucred.h>
#elif defined(__APPLE__)
#define CONDUIT_SEND_TIMEOUT
#elif defined(__linux__)
#include <sys/eventfd.h>
#include <sys/syscall.h>
#define CONDUIT_EVENTFD
#define CONDUIT_MARK_PACKETS
/* Linux 6.10 (F_DUPFD_QUERY); before, kcmp(KCMP_FILE), which a sandbox may forbid. The headers
 * may be older than the kernel. */
#define CONDUIT_DUPFD_QUERY (1024 + 3)
#ifdef SYS_kcmp
#define CONDUIT_KCMP
#endif
#endif

#ifdef MSG_CMSG_CLOEXEC
#define CONDUIT_CMSG_CLOEXEC MSG_CMSG_CLOEXEC
#else
#define CONDUIT_CMSG_CLOEXEC 0
#endif

#ifdef SOCK_CLOEXEC
#define CONDUIT_SOCK_CLOEXEC SOCK_CLOEXEC
#else
#define CONDUIT_SOCK_CLOEXEC 0
#endif

#ifdef MSG_NOSIGNAL
#define CONDUIT_NOSIGNAL MSG_NOSIGNAL
#else
#define CONDUIT_NOSIGNAL 0
#endif

/* SCM_MAX_FD of Linux's net/scm.h, which user space does not see. The BSDs take one more in a
 * 2 kB cluster; one figure everywhere keeps programs portable. */
#define CONDUIT_MAX_FDS 253

/* Linux 6.5; the C library's headers may be older than the kernel. */
#if defined(SCM_PIDFD)
#define CONDUIT_SCM_PIDFD SCM_PIDFD
#elif defined(__linux__)
#define CONDUIT_SCM_PIDFD 4
#else
#define CONDUIT_SCM_PIDFD -1
#endif

/* Who sent a message, which each message tells where SO_PASSCRED is set (unix(7)). */
#if defined(__linux__)
#define CONDUIT_SCM_CREDENTIALS SCM_CREDENTIALS
typedef struct ucred conduit_sender;
#else
#define CONDUIT_SCM_CREDENTIALS -1
typedef struct { pid_t pid; uid_t uid; gid_t gid; } conduit_sender;
#endif

/* What a system call returned, or minus the errno, read before anything else can change it: even a
 * line of its own is too late where lines are traced. */
static inline ssize_t conduit_result(ssize_t returned)
{
    return returned < 0 ? -errno : returned;
}

/* musl before 1.2.4 copies the control data to a buffer of 1024 bytes, too few for 253 descriptors:
 * there the system call itself is made. Its caller zeroes the padding that musl's structs have. */
static inline ssize_t conduit_sendmsg(int fd, const struct msghdr *msg, int flags)
{
#if defined(__linux__) && !defined(__GLIBC__) && defined(SYS_sendmsg)
    return syscall(SYS_sendmsg, fd, msg, flags);
#else
    return sendmsg(fd, msg, flags);
#endif
}

/* Room for all that can come with one message: descriptors, credentials (ucred, or the BSDs'
 * with groups), a pidfd, a security label of up to a page, time stamps. */
typedef union {
    char bytes[CMSG_SPACE(sizeof(int) * (CONDUIT_MAX_FDS + 1)) + CMSG_SPACE(128)
               + CMSG_SPACE(sizeof(int)) + CMSG_SPACE(4096) + CMSG_SPACE(64)];
    struct cmsghdr align;
} conduit_control;

/* How many bytes of a control message came: macOS leaves cmsg_len as it was before the cut. */
static inline size_t conduit_cmsg_size(struct msghdr *msg, struct cmsghdr *cmsg)
{
    char *data = (char *)CMSG_DATA(cmsg);
    char *end = (char *)msg->msg_control + msg->msg_controllen;
    char *said = (char *)cmsg + cmsg->cmsg_len;
    if (said > end)
        said = end;
    return said > data ? (size_t)(said - data) : 0;
}

/* Who is connected: 0, or -1 and errno. Where the system does not tell the process, pid is 0. */
static inline int conduit_peer(int fd, pid_t *pid, uid_t *uid, gid_t *gid)
{
#if defined(SO_PEERCRED)
#ifdef __OpenBSD__
    struct sockpeercred peer;
#else
    struct ucred peer;
#endif
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size))
        return -1;
    *pid = peer.pid;
    *uid = peer.uid;
    *gid = peer.gid;
#elif defined(__FreeBSD__)
    struct xucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_LOCAL, LOCAL_PEERCRED, &peer, &size))
        return -1;
    *uid = peer.cr_uid;
    *gid = peer.cr_gid;
#if __FreeBSD_version >= 1300000
    *pid = peer.cr_pid;
#else
    *pid = 0;
#endif
#elif defined(LOCAL_PEEREID)  /* NetBSD */
    struct unpcbid peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_LOCAL, LOCAL_PEEREID, &peer, &size))
        return -1;
    *pid = peer.unp_pid;
    *uid = peer.unp_euid;
    *gid = peer.unp_egid;
#else
    if (getpeereid(fd, uid, gid))
        return -1;
    *pid = 0;
#ifdef LOCAL_PEERPID
    /* macOS forgets it, ENOTCONN, once the peer has closed, and knows the user still. */
    socklen_t size = sizeof *pid;
    if (getsockopt(fd, SOL_LOCAL, LOCAL_PEERPID, pid, &size)) {
        if (errno != ENOTCONN)
            return -1;
        *pid = 0;
    }
#endif
#endif
    if (*uid == (uid_t)-1) {
        errno = ENOTCONN;
        return -1;
    }
    return 0;
}

/* Accept a connection, close-on-exec; the descriptor, or -1 and errno. */
static inline int conduit_accept(int fd)
{
#ifdef SOCK_CLOEXEC
    return accept4(fd, NULL, NULL, SOCK_CLOEXEC);
#else
    int conn = accept(fd, NULL, NULL);
    if (conn >= 0) {
        fcntl(conn, F_SETFD, FD_CLOEXEC);
        /* On BSDs it has O_NONBLOCK from its listener, and need not. */
        fcntl(conn, F_SETFL, fcntl(conn, F_GETFL) & ~O_NONBLOCK);
    }
    return conn;
#endif
}

/* Set an option. XNU answers EINVAL once the peer has closed, and what it sent is still there. */
static inline int conduit_set(int fd, int option, const void *value, socklen_t size)
{
    return setsockopt(fd, SOL_SOCKET, option, value, size) && errno != EINVAL ? -1 : 0;
}

/* Make a descriptor fit to carry others, and tell the type of its socket: it must be a Unix one,
 * for any other takes the bytes and drops the descriptors. No SIGPIPE, and out-of-band bytes in
 * line, for a descriptor that comes with one is dropped unseen otherwise, and poll() calls the
 * socket readable for ever. Where a blocking socket ignores MSG_DONTWAIT in sending (XNU), such a
 * call is bounded to a millisecond. 0, or -1 and errno. */
static inline int conduit_prepare(int fd, int *kind)
{
    int on = 1;
    socklen_t size;
#ifdef SO_DOMAIN
    int family = AF_UNSPEC;
    size = sizeof family;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size))
        return -1;
#else
    struct sockaddr_storage address;
    size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size))
        return -1;
    int family = address.ss_family;
#endif
    if (family != AF_UNIX) {
        errno = EAFNOSUPPORT;
        return -1;
    }
#ifdef SO_NOSIGPIPE
    /* Also where MSG_NOSIGNAL is defined: the system may be older than its headers. */
    if (conduit_set(fd, SO_NOSIGPIPE, &on, sizeof on))
        return -1;
#endif
#ifdef CONDUIT_SEND_TIMEOUT
    struct timeval millisecond = {0, 1000};
    if (conduit_set(fd, SO_SNDTIMEO, &millisecond, sizeof millisecond))
        return -1;
#endif
    size = sizeof *kind;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, kind, &size))
        return -1;
    if (*kind == SOCK_STREAM)
        return conduit_set(fd, SO_OOBINLINE, &on, sizeof on);
    return 0;
}

/* What a socket is. Family and protocol are left alone where the system has no option for them. Its
 * status flags, or -1 and errno. */
static inline int conduit_socket_options(int fd, int *family, int *kind, int *protocol)
{
    socklen_t size;
#ifdef SO_DOMAIN
    size = sizeof *family;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, family, &size))
        return -1;
#endif
#ifdef SO_PROTOCOL
    size = sizeof *protocol;
    if (getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, protocol, &size))
        return -1;
#endif
    size = sizeof *kind;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, kind, &size) ? -1 : fcntl(fd, F_GETFL);
}

/* The offset of a descriptor, or minus the errno; ESPIPE if it has none. What is neither a file nor
 * a block device and says 0 has none: many devices, and inotify, say so whatever was read. */
static inline long long conduit_offset(int fd)
{
    struct stat status;
    off_t offset = lseek(fd, 0, SEEK_CUR);
    if (offset < 0 || (offset == 0 && fstat(fd, &status)))
        return -errno;
    if (offset == 0 && !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
        return -ESPIPE;
    return offset;
}

/* The st_mode of a descriptor, or minus the errno. Linux tells it without asking the server of a
 * file system on the net or in user space (FUSE), which may take long, or for ever. */
static inline int conduit_mode(int fd)
{
    struct stat status;
#if defined(STATX_TYPE) && !defined(CONDUIT_PORTABLE)
    struct statx known;
    if (!statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &known))
        return known.stx_mode;
#endif
    return fstat(fd, &status) ? -errno : (int)status.st_mode;
}

/* Move an fd above standard error; it is closed, also on failure: -1 and errno. */
static inline int conduit_move_up(int fd)
{
    int moved, err;
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    err = errno;
    close(fd);
    errno = err;
    return moved;
}

/* Something close-on-exec to wake poll() by: [to poll, to write to]; 0, or -1 and no ends. */
static inline int conduit_waker(int ends[2])
{
#ifdef CONDUIT_EVENTFD
    ends[0] = ends[1] = conduit_move_up(eventfd(0, EFD_CLOEXEC));
#else
    if (pipe(ends)) {
        ends[0] = ends[1] = -1;
        return -1;
    }
    ends[0] = conduit_move_up(ends[0]);
    ends[1] = conduit_move_up(ends[1]);
    if (ends[0] < 0 || ends[1] < 0) {
        close(ends[0] < 0 ? ends[1] : ends[0]);
        ends[0] = ends[1] = -1;
        return -1;
    }
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
#endif
    return ends[0] < 0 ? -1 : 0;
}

static inline void conduit_wake(int end)
{
    /* An eventfd takes a count of 64 bits, a pipe anything. */
    uint64_t one = 1;
    ssize_t ignored = write(end, &one, sizeof one);
    (void)ignored;
}

/* Whether the peer of a socket has ended what it sends, or this end was shut for reading, and
 * nothing with bytes is queued. Without POLLRDHUP, readable is the most that can be told. */
static inline int conduit_at_end(int fd)
{
    int queued = 0;
#ifdef POLLRDHUP
    struct pollfd ask = {fd, POLLRDHUP, 0};
#else
    struct pollfd ask = {fd, POLLIN, 0};
#endif
    if (poll(&ask, 1, 0) == 0)
        return 0;
    return ioctl(fd, FIONREAD, &queued) != 0 || queued == 0;
}

/* Before a call that receives from a packet socket: whether it may tell the end. At the end
 * recvmsg() returns 0, as for an empty packet, so time stamps are asked for then: a packet comes
 * with one, the end does not. 0 if not, else what is for conduit_unmark_packets() afterwards. */
static inline int conduit_mark_packets(int fd)
{
#ifdef CONDUIT_MARK_PACKETS
    int queued = 0, before = 0, on = 1;
    socklen_t size = sizeof before;
    if (ioctl(fd, FIONREAD, &queued) || queued || !conduit_at_end(fd))
        return 0;
    if (getsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &before, &size))
        return 0;
    if (before)
        return 1;
    return setsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on) ? 0 : 2;
#else
    (void)fd;
    return 0;
#endif
}

static inline void conduit_unmark_packets(int fd, int marked)
{
#ifdef CONDUIT_MARK_PACKETS
    int off = 0;
    if (marked == 2)
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &off, sizeof off);
#else
    (void)fd, (void)marked;
#endif
}

/* Whether two descriptors are known to be duplicates of one open file: 0 too where the system does
 * not tell. As files they can be compared everywhere; but a file may have been opened anew, which
 * is then not seen, and what is no file, socket or pipe may share its inode with others. */
static inline int conduit_same_file(int one, int other)
{
    struct stat a, b;
#ifdef CONDUIT_DUPFD_QUERY
    int same = fcntl(one, CONDUIT_DUPFD_QUERY, other);
    if (same >= 0)
        return same;
    if (errno == EBADF)
        return 0;
#endif
#ifdef CONDUIT_KCMP
    long order = syscall(SYS_kcmp, (long)getpid(), (long)getpid(), 0L, (long)one, (long)other);
    if (order >= 0)
        return order == 0;
#endif
    return fstat(one, &a) == 0 && fstat(other, &b) == 0
        && a.st_dev == b.st_dev && a.st_ino == b.st_ino && (a.st_mode & S_IFMT) != 0;
}

#endif
