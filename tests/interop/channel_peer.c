/* The other process of test_channel_c.py: docs/channel.md in C, with no library.

   channel_peer NUMBER, with a Unix socket under NUMBER: answers each message {"n": ..., "files":
   [...]} with the contents of its files, and gives a new file for each, until the peer closes. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MESSAGE = 1, FDS = 2, ABANDON = 3, IN_FILE = 1, MOST = 253, PACKET = 65536, ALL = 2000 };

struct header {
    uint8_t magic[2], version, size, kind, flags;
    uint16_t count;
    uint32_t total, length;
    uint64_t number;
};
_Static_assert(sizeof(struct header) == 24, "as on the wire, on a machine that is little-endian");

static int sock, type;

/* Receive at most size bytes, or on a stream exactly so many; 0 at the end. */
static size_t receive(void *data, size_t size, int *fds, int *count)
{
    size_t got = 0;

    *count = 0;
    do {
        static _Alignas(struct cmsghdr) char control[CMSG_SPACE(MOST * sizeof(int))];
        struct iovec iov = {(char *)data + got, size - got};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = control, .msg_controllen = sizeof control,
        };
        ssize_t n = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);

        if (n < 0 || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
            err(1, "recvmsg");
        if (header && header->cmsg_type == SCM_RIGHTS) {
            size_t bytes = header->cmsg_len - CMSG_LEN(0);
            memcpy(fds + *count, CMSG_DATA(header), bytes);
            *count += bytes / sizeof(int);
        }
        if (!n)
            break;
        got += n;
    } while (type == SOCK_STREAM && got < size);
    return got;
}

static void send_frame(struct header *header, const char *body, const int *fds)
{
    static _Alignas(struct cmsghdr) char control[CMSG_SPACE(MOST * sizeof(int))];
    struct iovec iov[2] = {{header, sizeof *header}, {(void *)body, body ? header->length : 0}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    size_t bytes = header->count * sizeof(int);

    header->magic[0] = 0xFD;
    header->magic[1] = 'C';
    header->version = 1;
    header->size = sizeof *header;
    if (header->count) {
        struct cmsghdr *rights = (struct cmsghdr *)control;
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(bytes);
        memcpy(CMSG_DATA(rights), fds, bytes);
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(bytes);
    }
    while (iov[0].iov_len + iov[1].iov_len) {
        ssize_t sent = sendmsg(sock, &message, MSG_NOSIGNAL);
        if (sent < 0)
            err(1, "sendmsg");
        /* The descriptors have left with the first byte. */
        message.msg_control = NULL;
        message.msg_controllen = 0;
        for (int i = 0; i < 2; i++) {
            size_t part = (size_t)sent < iov[i].iov_len ? (size_t)sent : iov[i].iov_len;
            iov[i].iov_base = (char *)iov[i].iov_base + part;
            iov[i].iov_len -= part;
            sent -= part;
        }
    }
}

static int file_with(const char *text, size_t size, int seals)
{
    int fd = memfd_create("channel_peer", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || write(fd, text, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET) < 0)
        err(1, "making a file");
    if (seals && fcntl(fd, F_ADD_SEALS, seals) < 0)
        err(1, "sealing");
    return fd;
}

static void send_message(const char *body, const int *fds, uint32_t total)
{
    struct header header = {.total = total, .length = strlen(body)};
    int last[MOST], begin = 0, count;

    for (; total - begin > MOST - 1; begin += MOST - 1) {
        header.kind = FDS;
        header.number = 42;
        header.count = MOST - 1;
        header.length = 0;
        send_frame(&header, NULL, fds + begin);
    }
    header.kind = MESSAGE;
    header.length = strlen(body);
    count = total - begin;
    if (type == SOCK_SEQPACKET && sizeof header + header.length > PACKET) {
        header.flags = IN_FILE;
        header.count = count + 1;
        last[0] = file_with(body, header.length, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
        memcpy(last + 1, fds + begin, count * sizeof(int));
        send_frame(&header, NULL, last);
        close(last[0]);
    } else {
        header.count = count;
        send_frame(&header, body, fds + begin);
    }
}

/* Answer with what the files hold, and as many new ones. */
static void answer(const char *body, const int *fds, int count)
{
    size_t room = strlen(body) + count * 64 + 64;
    char *text = malloc(room);
    int made[ALL], at;

    at = snprintf(text, room, "{\"echo\":%s,\"held\":[", strchr(body, ':') ? "true" : "false");
    for (int i = 0; i < count; i++) {
        char held[32] = "";
        if (pread(fds[i], held, sizeof held - 1, 0) < 0)
            err(1, "reading");
        at += snprintf(text + at, room - at, "%s\"%s\"", i ? "," : "", held);
        strcat(held, " in C");
        made[i] = file_with(held, strlen(held), 0);
        close(fds[i]);
    }
    at += snprintf(text + at, room - at, "],\"files\":[");
    for (int i = 0; i < count; i++)
        at += snprintf(text + at, room - at, "%s{\"$fd\":%d}", i ? "," : "", i);
    snprintf(text + at, room - at, "],\"length\":%zu}", strlen(body));
    send_message(text, made, count);
    for (int i = 0; i < count; i++)
        close(made[i]);
    free(text);
}

int main(int argc, char **argv)
{
    static int fds[ALL];
    static char packet[PACKET];
    int held = 0, count;
    socklen_t size = sizeof type;

    if (argc != 2)
        errx(2, "channel_peer NUMBER");
    sock = atoi(argv[1]);
    if (getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        err(1, "getsockopt");
    for (;;) {
        struct header header;
        char *body;
        size_t wanted = type == SOCK_STREAM ? sizeof header : sizeof packet;
        int first;

        if (!receive(packet, wanted, fds + held, &count))
            return 0;
        memcpy(&header, packet, sizeof header);
        if (header.magic[0] != 0xFD || header.magic[1] != 'C' || header.version != 1 ||
            header.size != sizeof header || header.count != count)
            errx(1, "no frame");
        first = held;
        held += count;
        if (header.kind == FDS)
            continue;
        if (header.kind == ABANDON) {
            while (held)
                close(fds[--held]);
            continue;
        }
        body = calloc(1, header.length + 1);
        if (header.flags & IN_FILE) {
            /* A peer that is not trusted: its seals are to be checked first. */
            if (pread(fds[first], body, header.length, 0) != (ssize_t)header.length)
                err(1, "reading the body");
            close(fds[first]);
            memmove(fds + first, fds + first + 1, (held - first - 1) * sizeof(int));
            held--;
        } else if (type == SOCK_STREAM) {
            if (receive(body, header.length, fds + held, &count) != header.length || count)
                errx(1, "half a message");
        } else {
            memcpy(body, packet + sizeof header, header.length);
        }
        if ((uint32_t)held != header.total)
            errx(1, "%d descriptors, not %u", held, header.total);
        answer(body, fds, held);
        held = 0;
        free(body);
    }
}
