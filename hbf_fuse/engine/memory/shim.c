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
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "reader.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define SPIN_NS 60000 /* the end of a wait: a sleeping thread would wake too late */
#define OF_THREAD static __thread __attribute__((tls_model("initial-exec")))

static struct sigaction theirs; /* what the program wants for SIGBUS */
static int installed;
static _Atomic int64_t mapping_ns, dropping_ns; /* what a chunk usually costs: see learn */
OF_THREAD int64_t last_due_ns, last_done_ns; /* credit, as in pacing/credit.py; 0: none */
OF_THREAD uint32_t thread;
OF_THREAD const void *met; /* the chunk that this thread last found reserved by another one */
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
    mapping_ns = dropping_ns = 1000 + shared->chunk / PAGE * 250;
    installed = 1;
}

static void watch(uintptr_t low, uintptr_t high) {
    struct uffdio_register range = {.range = {low, high - low}, .mode = UFFDIO_REGISTER_MODE_MINOR};
    if (uffd < 0) {
        struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_SIGBUS};
        uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
        if (uffd < 0) die("userfaultfd(2) is not permitted here (a container's seccomp?) or not in this kernel", errno);
        if (ioctl(uffd, UFFDIO_API, &api)) die("this kernel has no minor faults of shared memory (Linux 5.14)", errno);
    }
    if (ioctl(uffd, UFFDIO_REGISTER, &range)) die("cannot watch the mapping", errno);
}

/* A read of the tier */

static void wait_until(int64_t moment_ns) {
    for (int64_t now; (now = now_ns()) < moment_ns;) {
        int64_t sleep_ns = moment_ns - now - SPIN_NS;
        if (sleep_ns > SPIN_NS / 3) {
            struct timespec t = {sleep_ns / SECOND_NS, sleep_ns % SECOND_NS};
            int slack = prctl(PR_GET_TIMERSLACK);
            prctl(PR_SET_TIMERSLACK, 1);
            syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, NULL);
            prctl(PR_SET_TIMERSLACK, slack);
        } else relax();
    }
}

/* What something costs a chunk, usually: times in which another thread had the CPU do not count. */
static void learn(_Atomic int64_t *cost_ns, int64_t took_ns) {
    int64_t usual_ns = atomic_load(cost_ns), most_ns = 4000 + shared->chunk / PAGE * 500;
    atomic_store(cost_ns, least(most_ns, (7 * usual_ns + least(took_ns, 2 * usual_ns)) / 8));
}

static int map_pages(uintptr_t low, uintptr_t high) {
    while (low < high) {
        struct uffdio_continue range = {.range = {low, high - low}};
        if (!ioctl(uffd, UFFDIO_CONTINUE, &range)) break;
        if (range.mapped > 0) low += range.mapped;
        else if (errno == EEXIST) low += PAGE;
        else if (errno != EAGAIN) return 0;
    }
    return 1;
}

/* Unmap a chunk that is no longer in the emulated DRAM. What the program may have written to stays. */
static void drop(const struct file *f, uint32_t file, uint64_t chunk) {
    int64_t offset, end = span(shared, f, chunk, &offset);
    for (int64_t until; offset < end; offset = until) {
        uint64_t tier;
        until = piece_end(shared, f, offset, end, &tier);
        for (struct mapping *m = mappings; (int64_t)tier != shared->dram && m < mappings + MAPPINGS; m++) {
            uintptr_t low = atomic_load(&m->low), high = atomic_load(&m->high);
            if (low >= high || m->file != file || m->writable) continue;
            int64_t first = most(offset, m->offset), last = least(until, m->offset + (high - low));
            if (first < last) syscall(SYS_madvise, low + (first - m->offset), last - first, MADV_DONTNEED);
        }
    }
}

/* Drop while there is time, and always if too much has piled up. */
static void drop_until(int64_t moment_ns) {
    for (uint64_t at, end; (at = atomic_load(&next_drop)) < (end = atomic_load(&shared->drop_end));) {
        int64_t began_ns = now_ns();
        if (began_ns + atomic_load(&dropping_ns) > moment_ns && (int64_t)(end - at) * shared->chunk < HEADROOM) return;
        if (!atomic_compare_exchange_strong(&next_drop, &at, end - at > DROPS ? end - DROPS : at + 1)) continue;
        uint64_t oldest = AT(shared, uint64_t, drops_at)[at % DROPS], file = oldest >> 32, chunk = oldest & UINT32_MAX;
        if (file >= shared->files || atomic_load(&AT(shared, _Atomic int64_t, due_at)[files[file].first_chunk + chunk]))
            continue;
        drop(&files[file], file, chunk);
        learn(&dropping_ns, now_ns() - began_ns);
    }
}

/* Reserve a chunk, if nobody has yet. Returns the new read; its deadline is in *due. */
static struct record *reserved(uint32_t file, uint64_t chunk, int64_t arrival_ns, _Atomic int64_t *due, int *timed) {
    int64_t offset, end = span(shared, &files[file], chunk, &offset), began_ns = arrival_ns - shared->floor_ns;
    struct record *record = NULL;
    if (last_due_ns && began_ns - last_done_ns <= EXPIRES_NS && last_done_ns - last_due_ns <= MOST_OWED_NS)
        began_ns -= last_done_ns - last_due_ns;
    if (!thread) thread = syscall(SYS_gettid);
    lock(shared);
    if (!atomic_load(due)) {
        int64_t due_ns = reserve_all(shared, &files[file], began_ns, offset, end, timed);
        uint64_t place = atomic_load(&shared->record_end);
        record = AT(shared, struct record, records_at) + place % RECORDS;
        *record = (struct record){arrival_ns, due_ns, 0, offset, end - offset, thread, file, getpid()};
        atomic_store(&shared->record_end, place + 1);
        keep(shared, file, chunk);
        atomic_store(due, most(1, due_ns));
    }
    unlock(shared);
    return record;
}

/* Bring the chunk at this address. 0 if there is none: beyond the file's end, or unmapped meanwhile. */
static int bring(struct mapping *m, uintptr_t address, int64_t arrival_ns) {
    uintptr_t low = atomic_load(&m->low), high = atomic_load(&m->high);
    uint32_t file = m->file;
    const struct file *f = &files[file];
    uint64_t place = m->offset + (address - low), chunk = place / shared->chunk;
    if (address < low || address >= high || place >= (f->size + PAGE - 1) / PAGE * PAGE) return 0;
    int64_t offset, end = (span(shared, f, chunk, &offset) + PAGE - 1) / PAGE * PAGE;
    _Atomic int64_t *due = AT(shared, _Atomic int64_t, due_at) + f->first_chunk + chunk;
    struct record *record = NULL;
    int timed = 0;
    require_server(arrival_ns);
    if (!atomic_load(due)) record = reserved(file, chunk, arrival_ns, due, &timed);
    int64_t due_ns = record ? record->due_ns : atomic_load(due);
    if (shared->limit) drop_until(due_ns - atomic_load(&mapping_ns));
    wait_until(due_ns - (record ? atomic_load(&mapping_ns) : 0));
    int64_t began_ns = now_ns();
    uintptr_t first = low + most(0, offset - (int64_t)m->offset), last = least(high, low + (end - (int64_t)m->offset));
    uintptr_t page = address / PAGE * PAGE;
    /* A thread of this process that reserved the chunk maps all of it just now, and to do it twice takes an ioctl for
     * each page. Whoever comes again for the same chunk is of another process, and maps it all. */
    if (record || met == due) met = NULL;
    else {
        met = due;
        first = page;
        last = page + PAGE;
    }
    if (!map_pages(first, last) && !map_pages(page, page + PAGE)) atomic_fetch_add(&shared->failed, 1);
    if (!record) return 1;
    int64_t done_ns = now_ns();
    learn(&mapping_ns, done_ns - began_ns);
    last_due_ns = timed ? record->due_ns : 0;
    last_done_ns = done_ns;
    atomic_store(&record->done_ns, done_ns);
    return 1;
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
    if (!m || !bring(m, address, arrival_ns)) pass_on(number, info, context);
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
    last_due_ns = thread = 0;
    reach_server();
    for (struct mapping *m = mappings; m < mappings + MAPPINGS; m++)
        if (atomic_load(&m->low) < atomic_load(&m->high)) watch(atomic_load(&m->low), atomic_load(&m->high));
}

/* The calls that are replaced */

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
