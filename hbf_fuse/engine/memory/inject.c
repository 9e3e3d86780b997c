/* Runs a program that no library can be preloaded into, with a tier under its mapping of a model: `inject CMD ...`.
 *
 * The program is traced. A seccomp filter stops it at mmap, munmap, mremap and exit_group. In place of an mmap of the
 * model it maps the server's sealed memory (opened by /proc), and makes a userfaultfd, of which this process takes a
 * copy. Threads of this process serve the faults: they reserve the chunk, wait until it is due, map it, and wake the
 * program's thread. One process may map the model at a time. docs/memory-speed.md tells what other calls do here.
 *
 * $HBF_MEMORY names the server's socket. If this process ends, the kernel kills the program. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

/* The thread goes on when its read is on record: it may fault again at once. */
#define CONTINUE_MODE UFFDIO_CONTINUE_MODE_DONTWAKE
#include "bring.h"

#ifndef __x86_64__
int main(void) { die("--inject knows no other architecture than x86_64", 0); }
#else

#define SERVERS 64  /* faults that wait at a time */
#define READERS 512 /* threads of the program whose credit is remembered */
#define STACK (128 << 10)
#define RED_ZONE 192 /* below the stack pointer, with room for a path */
#define SYSCALL_BYTES 2
#define OPTIONS (PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEEXEC \
                 | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK)

typedef struct user_regs_struct registers;

static pid_t command, target; /* target: the process that maps the model, or 0 */
static int held_signal;       /* came while its thread made calls for us */
static struct reader readers[READERS];
static pthread_mutex_t of_readers = PTHREAD_MUTEX_INITIALIZER, busy[READERS];

/* Faults */

static struct reader *reader_of(uint32_t thread) {
    pthread_mutex_lock(&of_readers);
    struct reader *found = &readers[thread % READERS];
    for (int at = 0; at < READERS; at++) {
        struct reader *one = &readers[(thread + at) % READERS];
        if (one->thread && one->thread != thread) continue;
        found = one;
        break;
    }
    if (found->thread != thread) *found = (struct reader){.thread = thread, .process = target};
    pthread_mutex_unlock(&of_readers);
    return found;
}

/* Another thread's fault on the same page can wake this one before its read is on record: its next read waits for that. */
static void bring_for(uint32_t thread, struct mapping *m, uintptr_t address, int64_t arrival_ns) {
    struct reader *who = reader_of(thread);
    pthread_mutex_lock(&busy[who - readers]);
    bring(who, m, address, most(arrival_ns, who->last_done_ns));
    pthread_mutex_unlock(&busy[who - readers]);
}

/* Of one memory. Threads of a memory that is gone wait for ever, at no cost. */
struct faults { int uffd; pthread_mutex_t turn; };

/* Whose turn it is takes the next fault; the others wait for theirs. So each fault wakes one thread. */
static void *serve(void *faults) {
    struct faults *from = faults;
    for (struct uffd_msg said;;) {
        pthread_mutex_lock(&from->turn);
        ssize_t got = read(from->uffd, &said, sizeof said);
        int64_t arrival_ns = now_ns();
        pthread_mutex_unlock(&from->turn);
        if (got != sizeof said) {
            if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
            return NULL;
        }
        if (said.event != UFFD_EVENT_PAGEFAULT) continue;
        uintptr_t address = said.arg.pagefault.address;
        struct mapping *m = found(address);
        if (m) bring_for(said.arg.pagefault.feat.ptid, m, address, arrival_ns);
        struct uffdio_range page = {address / PAGE * PAGE, PAGE};
        ioctl(from->uffd, UFFDIO_WAKE, &page);
    }
}

static void start_servers(void) {
    pthread_attr_t small;
    struct faults *faults = malloc(sizeof *faults);
    *faults = (struct faults){uffd, PTHREAD_MUTEX_INITIALIZER};
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK);
    for (int each = 0; each < SERVERS; each++) {
        pthread_t one;
        if (pthread_create(&one, &small, serve, faults)) die("cannot start a thread", errno);
    }
}

/* Calls that the program makes for us */

/* Let a stopped thread go on up to its next stop at a system call. 0 if it ended. */
static int step(pid_t thread) {
    for (int status;;) {
        ptrace(PTRACE_SYSCALL, thread, 0, 0);
        if (waitpid(thread, &status, __WALL) != thread || !WIFSTOPPED(status)) return 0;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) return 1;
        if (!(status >> 16)) held_signal = WSTOPSIG(status);
    }
}

/* A system call of the thread, which has stopped at the end of one: `was` are its registers there. */
static long call(pid_t thread, const registers *was, long number, const long *arguments) {
    registers now = *was;
    now.rip -= SYSCALL_BYTES;
    now.rax = number;
    now.orig_rax = -1;
    now.rdi = arguments[0], now.rsi = arguments[1], now.rdx = arguments[2];
    now.r10 = arguments[3], now.r8 = arguments[4], now.r9 = arguments[5];
    if (ptrace(PTRACE_SETREGS, thread, 0, &now) || !step(thread) || !step(thread)
        || ptrace(PTRACE_GETREGS, thread, 0, &now))
        die("the program ended while it mapped the model", 0);
    return now.rax;
}
#define CALL(number, ...) call(thread, was, number, (const long[6]){__VA_ARGS__})

static pid_t process_of(pid_t thread) {
    char name[64], line[128];
    int process = thread;
    snprintf(name, sizeof name, "/proc/%d/status", thread);
    FILE *status = fopen(name, "re");
    while (status && fgets(line, sizeof line, status) && sscanf(line, "Tgid: %d", &process) != 1) {}
    if (status) fclose(status);
    return process;
}

/* The program makes the userfaultfd: it is of its memory. */
static void take_uffd(pid_t thread, const registers *was) {
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_THREAD_ID};
    long made = CALL(SYS_userfaultfd, O_CLOEXEC);
    /* Without privileges the kernel's own touches are not served: write(2) from the mapping gives EFAULT. */
    if (made < 0) made = CALL(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (made < 0) die("userfaultfd(2) is not permitted here (a container's seccomp?) or not in this kernel", -made);
    int process = syscall(SYS_pidfd_open, target, 0);
    uffd = process < 0 ? -1 : syscall(SYS_pidfd_getfd, process, made, 0);
    if (uffd < 0) die("cannot take a descriptor of the program (pidfd_getfd)", errno);
    close(process);
    CALL(SYS_close, made);
    if (ioctl(uffd, UFFDIO_API, &api)) die("this kernel has no minor faults of shared memory (Linux 5.14)", errno);
    guess_costs();
    start_servers();
}

/* Read a chunk after the other, as MAP_POPULATE does, for the thread that stands still meanwhile. Nobody has to wake up:
 * the floor, which every read begins earlier by, passes before. */
static void populate(pid_t thread, struct mapping *m) {
    uint64_t size = (files[m->file].size + PAGE - 1) / PAGE * PAGE;
    for (uintptr_t at = m->low; at < m->high && m->offset + (at - m->low) < size;) {
        int64_t arrival_ns = now_ns() + shared->floor_ns;
        wait_until(arrival_ns);
        bring_for(thread, m, at, arrival_ns);
        at += shared->chunk - (m->offset + (at - m->low)) % shared->chunk;
    }
}

/* The program is about to map a file of the mount: it maps the server's memory instead. */
static void map(pid_t thread, const registers *was, int64_t file) {
    pid_t process = process_of(thread);
    registers done = *was;
    if (target && target != process) die("a second process maps the model: --inject follows one", 0);
    if (!target) {
        target = process;
        ask(TRACED, target);
    }
    if (memory[file] < 0 && (memory[file] = ask(GIVE, file)) < 0) die("the mount's server gave no memory", 0);
    done.orig_rax = -1; /* instead of the call */
    if (ptrace(PTRACE_SETREGS, thread, 0, &done) || !step(thread)) die("the program ended while it mapped the model", 0);
    if (uffd < 0) take_uffd(thread, was);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), memory[file]);
    uintptr_t place = (was->rsp - RED_ZONE) & ~15UL;
    struct iovec here = {path, sizeof path}, there = {(void *)place, sizeof path};
    if (process_vm_writev(target, &here, 1, &there, 1, 0) != sizeof path) die("cannot write to the program", errno);
    long fd = CALL(SYS_open, place, O_RDONLY | O_CLOEXEC);
    if (fd < 0) die("the program cannot open the server's memory by /proc", -fd);
    int asked = was->r10, kept = (asked & ~(MAP_SHARED | MAP_SHARED_VALIDATE | MAP_POPULATE | MAP_LOCKED)) | MAP_PRIVATE;
    long at = CALL(SYS_mmap, was->rdi, was->rsi, was->rdx, kept, fd, was->r9);
    CALL(SYS_close, fd);
    if (at > 0 || at < -PAGE) {
        uintptr_t low = at, high = low + (was->rsi + PAGE - 1) / PAGE * PAGE;
        if (asked & MAP_FIXED) forget((void *)low, high - low);
        /* A child's copy would not be watched: it has none. */
        CALL(SYS_madvise, low, high - low, MADV_DONTFORK);
        watch(low, high);
        remember(low, high, file, was->r9, was->rdx & PROT_WRITE);
        if ((was->rdx & PROT_READ) && asked & (MAP_POPULATE | MAP_LOCKED)) populate(thread, found(low));
        if (asked & MAP_LOCKED) CALL(SYS_mlock, low, high - low);
    }
    done = *was;
    done.rax = at;
    done.orig_rax = -1;
    ptrace(PTRACE_SETREGS, thread, 0, &done);
}

static void follow_mremap(pid_t thread, const registers *was) {
    struct mapping *m = found(was->rdi);
    if (!m) return;
    uint32_t file = m->file;
    uint64_t offset = m->offset + (was->rdi - m->low);
    int writable = m->writable;
    registers done;
    if (!step(thread) || ptrace(PTRACE_GETREGS, thread, 0, &done)) return;
    if (done.rax > (unsigned long)-PAGE) return;
    uintptr_t low = done.rax, high = low + (was->rdx + PAGE - 1) / PAGE * PAGE;
    forget((void *)was->rdi, was->rsi);
    if (was->r10 & MREMAP_FIXED) forget((void *)low, high - low);
    watch(low, high);
    remember(low, high, file, offset, writable);
}

/* A thread has stopped at a call of the filter. */
static void on_call(pid_t thread) {
    registers was;
    struct stat info;
    char name[64];
    if (ptrace(PTRACE_GETREGS, thread, 0, &was)) return;
    if (was.orig_rax == SYS_mmap && (int)was.r8 >= 0 && !(was.r10 & MAP_ANONYMOUS)) {
        snprintf(name, sizeof name, "/proc/%d/fd/%d", thread, (int)was.r8);
        int64_t file = stat(name, &info) ? -1 : file_like(&info);
        if (file >= 0) {
            map(thread, &was, file);
            return;
        }
    }
    if (!target || process_of(thread) != target) return;
    int ours = is_ours((void *)was.rdi, was.rsi);
    if (was.orig_rax == SYS_exit_group) ask(LOOK, 0);
    else if (was.orig_rax == SYS_mremap && ours) follow_mremap(thread, &was);
    else if (ours && (was.orig_rax == SYS_munmap || (was.orig_rax == SYS_mmap && was.r10 & MAP_FIXED))) {
        if (was.rsi > SMALL) ask(LOOK, 0); /* what is mapped, before it goes */
        forget((void *)was.rdi, was.rsi);
    }
}

/* The memory that was watched is gone: another program, or none. */
static void leave_target(void) {
    forget(NULL, UINTPTR_MAX - PAGE);
    for (int at = 0; at < READERS; at++) readers[at].thread = 0;
    uffd = -1;
    target = 0;
}

/* The program */

static void begin(char **words, int go) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    char byte;
    if (read(go, &byte, 1) != 1) _exit(GONE); /* not traced */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
        die("seccomp filters are not permitted here: --inject needs one", errno);
    execvp(words[0], words);
    int code_of_shells = errno == ENOENT ? 127 : 126;
    perror(words[0]);
    _exit(code_of_shells);
}

/* A terminal's signals reach the program by themselves. */
static void pass_on(int number, siginfo_t *info, void *context) {
    (void)context;
    if (info->si_code <= 0) kill(command, number);
}

static void go_on(pid_t thread, int status) {
    int event = status >> 16, number = WSTOPSIG(status);
    if (event == PTRACE_EVENT_STOP) {
        int is_stop = number == SIGSTOP || number == SIGTSTP || number == SIGTTIN || number == SIGTTOU;
        ptrace(is_stop ? PTRACE_LISTEN : PTRACE_CONT, thread, 0, 0);
        return;
    }
    if (event == PTRACE_EVENT_SECCOMP) on_call(thread);
    if (event == PTRACE_EVENT_EXEC && thread == target) leave_target();
    ptrace(PTRACE_CONT, thread, 0, event ? 0 : number);
    if (held_signal) syscall(SYS_tgkill, process_of(thread), thread, held_signal);
    held_signal = 0;
}

int main(int count, char **words) {
    struct sigaction passing = {.sa_sigaction = pass_on, .sa_flags = SA_SIGINFO | SA_RESTART};
    static const int passed[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    int go[2];
    address_of_server = getenv("HBF_MEMORY");
    if (count < 2 || !address_of_server) die("inject is started by `hbf exec --inject`", 0);
    reach_server();
    for (int at = 0; at < READERS; at++) pthread_mutex_init(&busy[at], NULL);
    if (pipe2(go, O_CLOEXEC)) die("cannot make a pipe", errno);
    command = fork();
    if (command < 0) die("cannot start a process", errno);
    if (!command) begin(words + 1, go[0]);
    for (size_t at = 0; at < sizeof passed / sizeof *passed; at++) sigaction(passed[at], &passing, NULL);
    if (ptrace(PTRACE_SEIZE, command, 0, OPTIONS)) {
        int why = errno;
        kill(command, SIGKILL);
        die("ptrace(2) is not permitted here (kernel.yama.ptrace_scope, or a container): --inject needs it", why);
    }
    if (write(go[1], "", 1) != 1) die("cannot write to a pipe", errno);
    for (int status;;) {
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0 && errno == EINTR) continue;
        if (thread < 0) die("the program was lost", errno);
        if (WIFSTOPPED(status)) {
            go_on(thread, status);
            continue;
        }
        if (thread == target) leave_target();
        if (thread != command) continue;
        if (WIFEXITED(status)) _exit(WEXITSTATUS(status));
        signal(WTERMSIG(status), SIG_DFL);
        raise(WTERMSIG(status));
        _exit(128 + WTERMSIG(status));
    }
}
#endif
