/* The least a job can cost: its system calls alone, made from C.
 *
 * Each line on standard input, "MODE COUNT ITERATIONS", runs one round, and the nanoseconds it took
 * are printed on a line. COUNT descriptors travel in one message, with one NUL byte, over a socket
 * pair within this process. MODE says which calls a job makes, and which of them are timed:
 *   one:   duplicate, send, close what was sent, receive, close what came;
 *   move:  the same, but the clock does not run while they are duplicated;
 *   share: send, receive, close what came;
 *   relay: send, close what was sent, receive what is sent next.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_CMSG_CLOEXEC
#define MSG_CMSG_CLOEXEC 0
#endif

#define MAX_FDS 253

union control {
    char bytes[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    struct cmsghdr align;
};

static void check(int worked, const char *what)
{
    if (!worked) {
        perror(what);
        exit(1);
    }
}

static void send_fds(int sock, const int *fds, size_t count)
{
    union control control;
    char nul = 0;
    struct iovec part = {&nul, 1};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes};
    struct cmsghdr *head;

    msg.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    head = CMSG_FIRSTHDR(&msg);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int) * count);
    msg.msg_controllen = head->cmsg_len;
    memcpy(CMSG_DATA(head), fds, sizeof(int) * count);
    check(sendmsg(sock, &msg, 0) == 1, "sendmsg");
}

static void receive_fds(int sock, int *fds, size_t count)
{
    union control control;
    char nul;
    struct iovec part = {&nul, 1};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes};
    struct cmsghdr *head;

    msg.msg_controllen = sizeof control.bytes;
    check(recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) == 1, "recvmsg");
    head = CMSG_FIRSTHDR(&msg);
    errno = EBADMSG;
    check(head != NULL && head->cmsg_len == CMSG_LEN(sizeof(int) * count), "recvmsg");
    memcpy(fds, CMSG_DATA(head), sizeof(int) * count);
}

static void duplicate_fd(int fd, int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        check((fds[i] = fcntl(fd, F_DUPFD_CLOEXEC, 0)) >= 0, "fcntl");
}

static void close_fds(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        check(close(fds[i]) == 0, "close");
}

static long long now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static long long run_one(size_t count, long iterations, int fd, const int *ends)
{
    int sent[MAX_FDS], came[MAX_FDS];
    long long begun = now();

    for (long n = 0; n < iterations; n++) {
        duplicate_fd(fd, sent, count);
        send_fds(ends[0], sent, count);
        close_fds(sent, count);
        receive_fds(ends[1], came, count);
        close_fds(came, count);
    }
    return now() - begun;
}

static long long run_move(size_t count, long iterations, int fd, const int *ends)
{
    int sent[MAX_FDS], came[MAX_FDS];
    long long begun, took = 0;

    for (long n = 0; n < iterations; n++) {
        duplicate_fd(fd, sent, count);
        begun = now();
        send_fds(ends[0], sent, count);
        close_fds(sent, count);
        receive_fds(ends[1], came, count);
        close_fds(came, count);
        took += now() - begun;
    }
    return took;
}

static long long run_share(size_t count, long iterations, int fd, const int *ends)
{
    int sent[MAX_FDS], came[MAX_FDS];
    long long took;

    duplicate_fd(fd, sent, count);
    took = -now();
    for (long n = 0; n < iterations; n++) {
        send_fds(ends[0], sent, count);
        receive_fds(ends[1], came, count);
        close_fds(came, count);
    }
    took += now();
    close_fds(sent, count);
    return took;
}

static long long run_relay(size_t count, long iterations, int fd, const int *ends)
{
    int fds[MAX_FDS];
    long long took;

    duplicate_fd(fd, fds, count);
    took = -now();
    for (long n = 0; n < iterations; n++) {
        send_fds(ends[0], fds, count);
        close_fds(fds, count);
        receive_fds(ends[1], fds, count);
    }
    took += now();
    close_fds(fds, count);
    return took;
}

static const struct {
    const char *name;
    long long (*run)(size_t count, long iterations, int fd, const int *ends);
} modes[] = {{"one", run_one}, {"move", run_move}, {"share", run_share}, {"relay", run_relay}};

int main(void)
{
    char name[8];
    size_t count, mode;
    long iterations;
    int ends[2], fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    check(fd >= 0, "/dev/null");
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    while (scanf("%7s %zu %ld", name, &count, &iterations) == 3) {
        for (mode = 0; mode < sizeof modes / sizeof *modes; mode++)
            if (strcmp(name, modes[mode].name) == 0)
                break;
        errno = EINVAL;
        check(count >= 1 && count <= MAX_FDS && mode < sizeof modes / sizeof *modes, "input");
        printf("%lld\n", modes[mode].run(count, iterations, fd, ends));
        fflush(stdout);
    }
    return 0;
}
