/* The least a transfer can cost: its system calls alone, made from C.
 *
 * Each line on standard input, "MODE COUNT ITERATIONS", runs one round, and the nanoseconds it took
 * in all are printed on a line. COUNT descriptors travel in one message, with one NUL byte, over a
 * socket pair within this process. MODE is
 *   move: duplicate, send, close what was sent, receive, close what came;
 *   keep: send, receive, close what came.
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

static void close_fds(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        check(close(fds[i]) == 0, "close");
}

static long long run(int move, size_t count, long iterations, int fd, const int *ends)
{
    struct timespec from, to;
    int sent[MAX_FDS], came[MAX_FDS];

    for (size_t i = 0; i < count; i++)
        sent[i] = fd;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (long n = 0; n < iterations; n++) {
        for (size_t i = 0; move && i < count; i++)
            check((sent[i] = fcntl(fd, F_DUPFD_CLOEXEC, 0)) >= 0, "fcntl");
        send_fds(ends[0], sent, count);
        if (move)
            close_fds(sent, count);
        receive_fds(ends[1], came, count);
        close_fds(came, count);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    return (to.tv_sec - from.tv_sec) * 1000000000LL + (to.tv_nsec - from.tv_nsec);
}

int main(void)
{
    char mode[8];
    size_t count;
    long iterations;
    int ends[2], fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    check(fd >= 0, "/dev/null");
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    while (scanf("%7s %zu %ld", mode, &count, &iterations) == 3) {
        errno = EINVAL;
        check(count >= 1 && count <= MAX_FDS, "count");
        printf("%lld\n", run(strcmp(mode, "move") == 0, count, iterations, fd, ends));
        fflush(stdout);
    }
    return 0;
}
