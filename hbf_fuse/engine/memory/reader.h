/* What a reader knows: the server of the mount, and where its files are mapped. Part of shim.c and inject.c. */
#ifndef HBF_READER_H
#define HBF_READER_H

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "shared.h"

#define ALIVE_NS 10000000
#define LOOK_SECONDS 5
#define MAPPINGS 512
#define GONE 125
#define SMALL 65536

/* Memory that is a file's bytes from `offset` on. Free if low is high. */
struct mapping { _Atomic uintptr_t low, high; uint64_t offset; uint32_t file; int writable; };
enum order { GIVE, LOOK, TRACED }; /* TRACED: `file` is the process that this one traces, and reads for */
struct message { uint32_t order, file; };

static const char *address_of_server;
static struct shared *shared;
static struct file *files;
static int channel = -1, uffd = -1, *memory; /* memory: a descriptor for each file, or -1 */
static struct mapping mappings[MAPPINGS];
static _Atomic uint64_t next_drop; /* of the list of dropped chunks */
static _Atomic int64_t seen_alive_ns;

static void die(const char *why, int code) {
    const char *error = code ? strerror(code) : "";
    struct iovec said[] = {{"hbf: ", 5}, {(char *)why, strlen(why)}, {": ", code ? 2 : 0},
                           {(char *)error, strlen(error)}, {"\n", 1}};
    if (syscall(SYS_writev, 2, said, 5) < 0) { /* nobody listens */ }
    _exit(GONE);
}

/* The server */

static int receive(int from, int *fd) {
    char byte, room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec one = {&byte, 1};
    struct msghdr m = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t got;
    do got = recvmsg(from, &m, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    struct cmsghdr *head = got == 1 ? CMSG_FIRSTHDR(&m) : NULL;
    *fd = -1;
    if (head && head->cmsg_type == SCM_RIGHTS) memcpy(fd, CMSG_DATA(head), sizeof *fd);
    return got == 1;
}

/* Its answer, and a descriptor if there is one. */
static int ask(enum order order, uint32_t file) {
    struct message m = {order, file};
    int fd;
    if (send(channel, &m, sizeof m, MSG_NOSIGNAL) != sizeof m || !receive(channel, &fd))
        die("the mount's server has ended or does not answer", 0);
    return fd;
}

static void reach_server(void) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct timeval patience = {LOOK_SECONDS, 0};
    int fd;
    if (strlen(address_of_server) >= sizeof to.sun_path) die("$HBF_MEMORY is too long", 0);
    strcpy(to.sun_path, address_of_server);
    channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (channel < 0 || connect(channel, (struct sockaddr *)&to, sizeof to))
        die("cannot reach the mount's server ($HBF_MEMORY): it has ended, or is another user's", errno);
    setsockopt(channel, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (!receive(channel, &fd) || fd < 0) die("the mount's server refused this process", 0);
    if (!shared) {
        struct stat info;
        fstat(fd, &info);
        shared = (struct shared *)syscall(SYS_mmap, 0, info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared == MAP_FAILED) die("cannot map the tier's state", errno);
        if (strncmp(shared->digest, HBF_DIGEST, sizeof shared->digest))
            die("the mount's server is of another version: mount again", 0);
        files = AT(shared, struct file, files_at);
        memory = malloc(shared->files * sizeof *memory);
        for (uint64_t at = 0; at < shared->files; at++) memory[at] = -1;
        atomic_store(&next_drop, atomic_load(&shared->drop_end));
    }
    close(fd);
}

static void require_server(int64_t now) {
    char byte;
    if (now - atomic_load(&seen_alive_ns) < ALIVE_NS) return;
    atomic_store(&seen_alive_ns, now);
    if (recv(channel, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
        die("the mount's server has ended: its tier is gone, and so this program ends", 0);
}

/* Mappings */

static struct mapping *found(uintptr_t address) {
    for (struct mapping *m = mappings; m < mappings + MAPPINGS; m++)
        if (address >= atomic_load(&m->low) && address < atomic_load(&m->high)) return m;
    return NULL;
}

static int is_ours(const void *address, size_t length) {
    uintptr_t low = (uintptr_t)address, high = low + length;
    for (struct mapping *m = mappings; shared && m < mappings + MAPPINGS; m++)
        if (atomic_load(&m->low) < high && low < atomic_load(&m->high)) return 1;
    return 0;
}

static void remember(uintptr_t low, uintptr_t high, uint32_t file, uint64_t offset, int writable) {
    for (struct mapping *m = mappings; m < mappings + MAPPINGS; m++) {
        if (atomic_load(&m->high)) continue;
        m->file = file;
        m->offset = offset;
        m->writable = writable;
        atomic_store(&m->low, low);
        atomic_store(&m->high, high);
        return;
    }
    die("more mappings of the model than this engine knows", 0);
}

/* Memory of this range is no longer ours. */
static void forget(const void *address, size_t length) {
    uintptr_t low = (uintptr_t)address, high = low + (length + PAGE - 1) / PAGE * PAGE;
    for (struct mapping *m = mappings; m < mappings + MAPPINGS; m++) {
        uintptr_t begin = atomic_load(&m->low), end = atomic_load(&m->high);
        if (begin >= high || low >= end) continue;
        if (high < end) remember(high, end, m->file, m->offset + (high - begin), m->writable);
        if (begin < low) atomic_store(&m->high, low);
        else {
            atomic_store(&m->low, UINTPTR_MAX);
            atomic_store(&m->high, 0);
        }
    }
}

/* The place of the mount's file, or -1. */
static int64_t file_like(const struct stat *info) {
    for (uint64_t at = 0; S_ISREG(info->st_mode) && at < shared->files; at++)
        for (int name = 0; name < 2; name++)
            if (files[at].inode[name] == info->st_ino && files[at].device[name] == info->st_dev) return at;
    return -1;
}

#endif
