/* LD_PRELOAD: mappings of the files of one mount become mappings of its server's memory, without FUSE's copy.
 *
 * Only mmap of these files (known by device and inode) is replaced: by a private mapping of the server's sealed memory
 * file, registered with userfaultfd for minor faults that raise SIGBUS. The thread that touches a page which is not
 * mapped yet gets the signal, reserves its chunk in the tier's schedule, waits until it is due, maps it
 * (UFFDIO_CONTINUE) and goes on. docs/memory-speed.md tells what other calls do here, and why.
 *
 * $HBF_MEMORY names the server's socket. A reader whose server has ended ends, too, with exit code 125. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>

#define CONTINUE_MODE 0
#include "bring.h"

#define OF_THREAD static __thread __attribute__((tls_model("initial-exec")))

static struct sigaction theirs; /* what the program wants for SIGBUS */
static int installed;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
OF_THREAD struct reader me;
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);
static int (*real_mask[2])(int, const sigset_t *, sigset_t *);

static void on_bus(int number, siginfo_t *info, void *context);
static void in_child(void);

static void install(void) {
    struct sigaction ours = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    if (installed) return;
    sigfillset(&ours.sa_mask);
    real_sigaction(SIGBUS, &ours, &theirs);
    pthread_atfork(NULL, NULL, in_child);
    guess_costs();
    installed = 1;
}

static void open_uffd(void) {
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_SIGBUS};
    uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (uffd < 0) die("userfaultfd(2) is not permitted here (a container's seccomp?) or not in this kernel", errno);
    if (ioctl(uffd, UFFDIO_API, &api)) die("this kernel has no minor faults of shared memory (Linux 5.14)", errno);
}

/* A fault that is not ours: as if this library were not there. */
static void pass_on(int number, siginfo_t *info, void *context) {
    struct sigaction wanted = theirs;
    if (wanted.sa_flags & SA_RESETHAND) theirs = (struct sigaction){.sa_handler = SIG_DFL};
    if (wanted.sa_handler == SIG_IGN && info->si_code <= 0) return;
    if (wanted.sa_handler == SIG_DFL || wanted.sa_handler == SIG_IGN) {
        struct sigaction usual = {.sa_handler = SIG_DFL};
        real_sigaction(number, &usual, NULL);
        if (info->si_code <= 0) raise(number); /* sent by kill(2); a fault comes again by itself */
    } else if (wanted.sa_flags & SA_SIGINFO) wanted.sa_sigaction(number, info, context);
    else wanted.sa_handler(number);
}

static void on_bus(int number, siginfo_t *info, void *context) {
    int64_t arrival_ns = now_ns();
    int before = errno;
    uintptr_t address = (uintptr_t)info->si_addr;
    struct mapping *m = info->si_code > 0 ? found(address) : NULL;
    if (!me.thread) me.thread = syscall(SYS_gettid), me.process = getpid();
    if (!m || !bring(&me, m, address, arrival_ns)) pass_on(number, info, context);
    errno = before;
}

/* Read one byte of each chunk of a range, as far as it is ours. */
static void touch(const void *address, size_t length) {
    uintptr_t low = (uintptr_t)address, high = low + length;
    for (struct mapping *m = mappings; shared && m < mappings + MAPPINGS; m++) {
        uintptr_t begin = most(low, atomic_load(&m->low)), end = least(high, atomic_load(&m->high));
        uint64_t base = m->offset - atomic_load(&m->low), size = (files[m->file].size + PAGE - 1) / PAGE * PAGE;
        if (begin >= end || atomic_load(&m->low) >= atomic_load(&m->high)) continue;
        for (uintptr_t at = begin; at < end && at + base < size;) {
            (void)*(volatile const char *)at;
            at += shared->chunk - (at + base) % shared->chunk;
        }
    }
}

/* A forked child's copies of the mappings are not watched, and the descriptors are its parent's. */
static void in_child(void) {
    pthread_mutex_init(&mutex, NULL);
    close(channel);
    if (uffd >= 0) close(uffd);
    uffd = channel = -1;
    memset(&me, 0, sizeof me);
    reach_server();
    open_uffd();
    for (struct mapping *m = mappings; m < mappings + MAPPINGS; m++)
        if (atomic_load(&m->low) < atomic_load(&m->high)) watch(atomic_load(&m->low), atomic_load(&m->high));
}

/* The calls that are replaced */

/* The place of the mount's file that is open, or -1. */
static int64_t file_of(int fd) {
    struct stat info;
    if (fd < 0 || !address_of_server || fstat(fd, &info) || !S_ISREG(info.st_mode)) return -1;
    pthread_mutex_lock(&mutex);
    if (channel < 0) reach_server();
    pthread_mutex_unlock(&mutex);
    return file_like(&info);
}

static void *result(long value) { return (void *)value; }

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    int64_t file = file_of(fd);
    if (file < 0) {
        if ((flags & MAP_FIXED) && is_ours(address, length)) {
            pthread_mutex_lock(&mutex);
            forget(address, length);
            pthread_mutex_unlock(&mutex);
        }
        return result(syscall(SYS_mmap, address, length, protection, flags, fd, offset));
    }
    pthread_mutex_lock(&mutex);
    if (memory[file] < 0 && (memory[file] = ask(GIVE, file)) < 0) die("the mount's server gave no memory", 0);
    if (flags & MAP_FIXED) forget(address, length);
    int kept = (flags & ~(MAP_SHARED | MAP_SHARED_VALIDATE | MAP_POPULATE | MAP_LOCKED)) | MAP_PRIVATE;
    char *at = result(syscall(SYS_mmap, address, length, protection, kept, memory[file], offset));
    if (at != MAP_FAILED) {
        uintptr_t low = (uintptr_t)at, high = low + (length + PAGE - 1) / PAGE * PAGE;
        if (uffd < 0) open_uffd();
        watch(low, high);
        install();
        remember(low, high, file, offset, protection & PROT_WRITE);
    }
    pthread_mutex_unlock(&mutex);
    if (at != MAP_FAILED && (protection & PROT_READ) && flags & (MAP_POPULATE | MAP_LOCKED)) touch(at, length);
    if (at != MAP_FAILED && (flags & MAP_LOCKED)) syscall(SYS_mlock, at, length);
    return at;
}
void *mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));

int munmap(void *address, size_t length) {
    if (is_ours(address, length)) {
        pthread_mutex_lock(&mutex);
        if (length > SMALL) ask(LOOK, 0); /* what is mapped, before it goes */
        forget(address, length);
        pthread_mutex_unlock(&mutex);
    }
    return syscall(SYS_munmap, address, length);
}

void *mremap(void *old, size_t old_length, size_t length, int flags, ...) {
    va_list more;
    va_start(more, flags);
    void *wanted = flags & MREMAP_FIXED ? va_arg(more, void *) : NULL;
    va_end(more);
    struct mapping *m = shared ? found((uintptr_t)old) : NULL;
    pthread_mutex_lock(&mutex);
    struct mapping was = {0};
    uint64_t skipped = 0;
    if (m) memcpy(&was, m, sizeof was), skipped = (uintptr_t)old - was.low;
    void *at = result(syscall(SYS_mremap, old, old_length, length, flags, wanted));
    if (at != MAP_FAILED && (flags & MREMAP_FIXED)) forget(at, length);
    if (at != MAP_FAILED && m) {
        uintptr_t low = (uintptr_t)at, high = low + (length + PAGE - 1) / PAGE * PAGE;
        forget(old, old_length);
        watch(low, high);
        remember(low, high, was.file, was.offset + skipped, was.writable);
    }
    pthread_mutex_unlock(&mutex);
    return at;
}

int mprotect(void *address, size_t length, int protection) {
    for (struct mapping *m = mappings; (protection & PROT_WRITE) && m < mappings + MAPPINGS; m++)
        if (m->low < (uintptr_t)address + length && (uintptr_t)address < m->high) m->writable = 1;
    return syscall(SYS_mprotect, address, length, protection);
}

int madvise(void *address, size_t length, int advice) {
    int ours = is_ours(address, length);
    if (ours && (advice == MADV_WILLNEED || advice == 22 /* MADV_POPULATE_READ */)) touch(address, length);
    return ours && advice == MADV_WILLNEED ? 0 : syscall(SYS_madvise, address, length, advice);
}

int posix_madvise(void *address, size_t length, int advice) {
    /* As glibc has it, which ignores POSIX_MADV_DONTNEED. */
    if (advice == POSIX_MADV_DONTNEED) return 0;
    return madvise(address, length, advice) ? errno : 0;
}

int mlock(const void *address, size_t length) {
    touch(address, length);
    return syscall(SYS_mlock, address, length);
}

/* The kernel does not wait for a tier: bytes that a call takes from a mapping must be there before. */
ssize_t write(int fd, const void *from, size_t length) {
    touch(from, length);
    return syscall(SYS_write, fd, from, length);
}

ssize_t pwrite(int fd, const void *from, size_t length, off_t offset) {
    touch(from, length);
    return syscall(SYS_pwrite64, fd, from, length, offset);
}
ssize_t pwrite64(int, const void *, size_t, off_t) __attribute__((alias("pwrite")));

ssize_t writev(int fd, const struct iovec *parts, int count) {
    for (int at = 0; shared && at < count; at++) touch(parts[at].iov_base, parts[at].iov_len);
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t send(int fd, const void *from, size_t length, int flags) {
    touch(from, length);
    return syscall(SYS_sendto, fd, from, length, flags, NULL, 0);
}

__attribute__((constructor)) static void begin(void) {
    *(void **)&real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    *(void **)&real_mask[0] = dlsym(RTLD_NEXT, "sigprocmask");
    *(void **)&real_mask[1] = dlsym(RTLD_NEXT, "pthread_sigmask");
    address_of_server = getenv("HBF_MEMORY");
}

/* SIGBUS is this library's: the program's own handler gets what is not ours, and no thread may block it. */
int sigaction(int number, const struct sigaction *wanted, struct sigaction *was) {
    struct sigaction other;
    if (number == SIGBUS && installed) {
        other = theirs;
        if (wanted) theirs = *wanted;
        if (was) *was = other;
        return 0;
    }
    if (!real_sigaction) begin(); /* called by another library's constructor */
    if (wanted) {
        other = *wanted;
        sigdelset(&other.sa_mask, SIGBUS);
    }
    return real_sigaction(number, wanted ? &other : NULL, was);
}

sighandler_t signal(int number, sighandler_t handler) {
    struct sigaction wanted = {.sa_handler = handler, .sa_flags = SA_RESTART}, was;
    return sigaction(number, &wanted, &was) ? SIG_ERR : was.sa_handler;
}

static int masked(int which, int how, const sigset_t *set, sigset_t *was) {
    sigset_t others;
    if (!real_mask[which]) begin();
    if (set) {
        others = *set;
        if (how != SIG_UNBLOCK) sigdelset(&others, SIGBUS);
    }
    return real_mask[which](how, set ? &others : NULL, was);
}
int sigprocmask(int how, const sigset_t *set, sigset_t *was) { return masked(0, how, set, was); }
int pthread_sigmask(int how, const sigset_t *set, sigset_t *was) { return masked(1, how, set, was); }

__attribute__((destructor)) static void end(void) {
    if (is_ours(NULL, UINTPTR_MAX)) ask(LOOK, 0);
}
