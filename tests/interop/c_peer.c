/* The other process of test_c.py, in C: c_peer TASK NUMBER, with a Unix socket under NUMBER. */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 253

static int file(int turn)
{
    int number = memfd_create("test", MFD_CLOEXEC);

    if (number < 0 || dprintf(number, "file %d", turn) < 0 || lseek(number, 0, SEEK_SET) < 0)
        err(1, "making a file");
    return number;
}

/* Send a payload, and files in as many control messages as counts has numbers before its 0;
   with credentials between the first and the second. */
static void give(int sock, const char *payload, const int *counts, int credentials)
{
    static _Alignas(struct cmsghdr) char control[8192];
    struct iovec iov = {(void *)payload, strlen(payload) + 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
    size_t used = 0;
    int turn = 0, i, j;

    for (i = 0; counts[i]; i++) {
        struct cmsghdr *header = (struct cmsghdr *)(control + used);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(counts[i] * sizeof(int));
        for (j = 0; j < counts[i]; j++) {
            int number = file(turn++);
            memcpy(CMSG_DATA(header) + j * sizeof(int), &number, sizeof number);
        }
        used += CMSG_SPACE(counts[i] * sizeof(int));
        if (credentials && !i) {
            struct ucred who = {getpid(), getuid(), getgid()};
            header = (struct cmsghdr *)(control + used);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_CREDENTIALS;
            header->cmsg_len = CMSG_LEN(sizeof who);
            memcpy(CMSG_DATA(header), &who, sizeof who);
            used += CMSG_SPACE(sizeof who);
        }
    }
    message.msg_controllen = used;
    if (sendmsg(sock, &message, 0) != (ssize_t)iov.iov_len)
        err(1, "sendmsg");
}

/* Receive messages to the end; print each, and write to each file that comes. */
static void take(int sock)
{
    for (;;) {
        static _Alignas(struct cmsghdr) char control[CMSG_SPACE(MOST * sizeof(int))];
        char payload[4096];
        struct iovec iov = {payload, sizeof payload};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = control, .msg_controllen = sizeof control,
        };
        struct cmsghdr *header;
        int count = 0, headers = 0;
        ssize_t got = recvmsg(sock, &message, 0);

        if (got < 0)
            err(1, "recvmsg");
        if (!got && !message.msg_controllen)
            return;
        for (header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
            size_t i, length = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            headers++;
            if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
                errx(1, "an unexpected control message");
            for (i = 0; i < length; i++) {
                int number;
                memcpy(&number, CMSG_DATA(header) + i * sizeof(int), sizeof number);
                if (dprintf(number, "%d in C", count++) < 0)
                    err(1, "writing");
                close(number);
            }
        }
        printf("%zd bytes, %d control messages, %d descriptors, flags %d\n",
               got, headers, count, message.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    static const int one[] = {1, 0}, most[] = {MOST, 0}, split[] = {2, 3, 1, 0};
    int sock;

    if (argc != 3)
        errx(2, "c_peer TASK NUMBER");
    sock = atoi(argv[2]);
    if (!strcmp(argv[1], "take"))
        take(sock);
    else if (!strcmp(argv[1], "one"))
        give(sock, "", one, 0);
    else if (!strcmp(argv[1], "most"))
        give(sock, "as many as go", most, 0);
    else if (!strcmp(argv[1], "split"))
        give(sock, "three control messages", split, 0);
    else if (!strcmp(argv[1], "credentials"))
        give(sock, "credentials in between", split, 1);
    else
        errx(2, "no such task: %s", argv[1]);
    return 0;
}
