/* Programs that do odd things with a mapping of a file: `mapping WAY FILE`. Prints "right", or ends with a failed check. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { fprintf(stderr, "not so: %s (%s)\n", #what, strerror(errno)); exit(1); } } while (0)
#define MIB (1 << 20)
#define PAGE 4096

static int fd;
static size_t size;
static char *truth; /* by read(2) */
static sigjmp_buf back;
static volatile int caught;

static char *map(int protection, int flags) {
    char *at = mmap(NULL, size, protection, flags, fd, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

static void same(const char *at, size_t from, size_t length) { CHECK(!memcmp(at, truth + from, length)); }

static void on_bus(int number) { caught = number; siglongjmp(back, 1); }

static void *compare(void *at) { same(at, 0, size); return NULL; }

int main(int count, char **words) {
    CHECK(count == 3);
    const char *way = words[1];
    struct stat info;
    fd = open(words[2], O_RDONLY);
    CHECK(fd >= 0 && !fstat(fd, &info));
    size = info.st_size;
    truth = malloc(size);
    CHECK(pread(fd, truth, size, 0) == (ssize_t)size);
    if (!strcmp(way, "seccomp")) {
        struct sock_filter filter[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
        struct sock_fprog program = {4, filter};
        CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    }
    if (!strcmp(way, "handler")) signal(SIGBUS, on_bus);
    char *at = map(PROT_READ, !strcmp(way, "populate") ? MAP_SHARED | MAP_POPULATE : MAP_SHARED);
    if (!strcmp(way, "handler")) {
        /* Its handler was there before, gets what is beyond the end of a file, and not what is ours. */
        FILE *other = tmpfile();
        CHECK(other && !ftruncate(fileno(other), 1));
        volatile char *beyond = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fileno(other), 0);
        if (!sigsetjmp(back, 1)) (void)beyond[PAGE];
        CHECK(caught == SIGBUS);
        caught = 0;
        same(at, 0, size);
        CHECK(!caught);
        struct sigaction known;
        CHECK(!sigaction(SIGBUS, NULL, &known) && known.sa_handler == on_bus);
        if (!sigsetjmp(back, 1)) raise(SIGBUS);
        CHECK(caught == SIGBUS);
    } else if (!strcmp(way, "blocked")) {
        sigset_t all;
        sigfillset(&all);
        CHECK(!pthread_sigmask(SIG_SETMASK, &all, NULL) && !sigprocmask(SIG_BLOCK, &all, NULL));
        same(at, 0, size);
    } else if (!strcmp(way, "unmap")) {
        CHECK(!munmap(at + MIB, MIB) && !munmap(at, PAGE) && !munmap(at + size / PAGE * PAGE, size % PAGE ? PAGE : 1));
        same(at + PAGE, PAGE, MIB - PAGE);
        same(at + 2 * MIB, 2 * MIB, MIB);
        CHECK(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_ANONYMOUS | MAP_PRIVATE, -1, 0) == at && !at[1]);
    } else if (!strcmp(way, "fixed")) {
        char *over = mmap(at + MIB, MIB, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
        CHECK(over == at + MIB && !over[0] && !over[MIB - 1]);
        over = mmap(at + MIB, MIB, PROT_READ, MAP_FIXED | MAP_SHARED, fd, 2 * MIB);
        CHECK(over == at + MIB);
        same(over, 2 * MIB, MIB);
        same(at, 0, MIB);
    } else if (!strcmp(way, "remap")) {
        char *there = mremap(at, size, size + PAGE, MREMAP_MAYMOVE);
        CHECK(there != MAP_FAILED);
        there = mremap(there, size + PAGE, 2 * MIB, 0);
        CHECK(there != MAP_FAILED);
        char *room = mmap(NULL, 3 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(mremap(there + MIB, MIB, MIB, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
        same(room, MIB, MIB);
        same(there, 0, MIB);
    } else if (!strcmp(way, "protect")) {
        char *own = map(PROT_READ, MAP_PRIVATE);
        CHECK(!mprotect(own, MIB, PROT_READ | PROT_WRITE));
        own[5] ^= 1;
        CHECK(own[5] == (truth[5] ^ 1) && at[5] == truth[5]);
        own[5] ^= 1;
        same(own, 0, size);
        own = map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
        memset(own, 7, 3 * PAGE);
        same(own + 3 * PAGE, 3 * PAGE, size - 3 * PAGE);
        CHECK(own[0] == 7);
    } else if (!strcmp(way, "write") || !strcmp(way, "direct")) {
        char path[] = "copy-XXXXXX", *again = malloc(size);
        int to = mkstemp(path);
        CHECK(to >= 0);
        if (!strcmp(way, "direct")) CHECK(!fcntl(to, F_SETFL, O_DIRECT) || errno == EINVAL);
        CHECK(write(to, at, MIB) == MIB && pwrite(to, at + MIB, MIB, MIB) == MIB);
        CHECK(pread(to, again, 2 * MIB, 0) == 2 * MIB || !fcntl(to, F_SETFL, 0));
        CHECK(pread(to, again, 2 * MIB, 0) == 2 * MIB && !unlink(path));
        same(again, 0, 2 * MIB);
    } else if (!strcmp(way, "lock")) {
        CHECK(!mlock(at, size));
        same(at, 0, size);
    } else if (!strcmp(way, "willneed")) {
        CHECK(!madvise(at, size, MADV_WILLNEED));
        same(at, 0, size);
    } else if (!strcmp(way, "drop")) {
        same(at, 0, size);
        CHECK(!madvise(at, size, MADV_DONTNEED));
        same(at, 0, size);
    } else if (!strcmp(way, "fork")) {
        same(at, 0, MIB);
        pid_t child = fork();
        if (!child) {
            same(at, 0, size);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && !status);
        same(at, 0, size);
    } else if (!strcmp(way, "threads")) {
        pthread_t threads[8];
        for (int each = 0; each < 8; each++) CHECK(!pthread_create(&threads[each], NULL, compare, at));
        for (int each = 0; each < 8; each++) pthread_join(threads[each], NULL);
    } else if (!strcmp(way, "for-ever")) {
        puts("begun");
        fflush(stdout);
        for (;;) {
            same(at, 0, size);
            CHECK(!munmap(at, size));
            at = map(PROT_READ, MAP_SHARED);
        }
    } else if (!strcmp(way, "killed")) {
        same(at, 0, size);
        raise(SIGKILL);
    } else same(at, 0, size);
    puts("right");
    return 0;
}
