/* A read of the tier for a thread of a reader: reserve a chunk, wait until it is due, map it. Part of shim.c and inject.c. */
#ifndef HBF_BRING_H
#define HBF_BRING_H

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "reader.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define SPIN_NS 60000 /* the end of a wait: a sleeping thread would wake too late */

/* A thread, its credit as in pacing/credit.py (0: none), and the chunk that it last found reserved by another one. */
struct reader { uint32_t thread, process; int64_t last_due_ns, last_done_ns; const void *met; };

static _Atomic int64_t mapping_ns, dropping_ns; /* what a chunk usually costs: see learn */

static void watch(uintptr_t low, uintptr_t high) {
    struct uffdio_register range = {.range = {low, high - low}, .mode = UFFDIO_REGISTER_MODE_MINOR};
    if (ioctl(uffd, UFFDIO_REGISTER, &range)) die("cannot watch the mapping", errno);
}

/* Before the first chunk. */
static void guess_costs(void) { mapping_ns = dropping_ns = 1000 + shared->chunk / PAGE * 250; }

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
        struct uffdio_continue range = {.range = {low, high - low}, .mode = CONTINUE_MODE};
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
static struct record *reserved(
    const struct reader *who, uint32_t file, uint64_t chunk, int64_t arrival_ns, _Atomic int64_t *due, int *timed
) {
    int64_t offset, end = span(shared, &files[file], chunk, &offset), owed_ns = who->last_done_ns - who->last_due_ns;
    struct record *record = NULL;
    lock(shared);
    int64_t began_ns = arrival_ns - shared->floor_ns;
    if (who->last_due_ns && began_ns - who->last_done_ns <= EXPIRES_NS && owed_ns <= MOST_OWED_NS) began_ns -= owed_ns;
    if (!atomic_load(due)) {
        int64_t due_ns = reserve_all(shared, &files[file], began_ns, offset, end, timed);
        uint64_t place = atomic_load(&shared->record_end);
        record = AT(shared, struct record, records_at) + place % RECORDS;
        *record = (struct record){arrival_ns, due_ns, 0, offset, end - offset, who->thread, file, who->process};
        atomic_store(&shared->record_end, place + 1);
        keep(shared, file, chunk);
        atomic_store(due, most(1, due_ns));
    }
    unlock(shared);
    return record;
}

/* Bring the chunk at this address. 0 if there is none: beyond the file's end, or unmapped meanwhile. */
static int bring(struct reader *who, struct mapping *m, uintptr_t address, int64_t arrival_ns) {
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
    if (!atomic_load(due)) record = reserved(who, file, chunk, arrival_ns, due, &timed);
    int64_t due_ns = record ? record->due_ns : atomic_load(due);
    if (shared->limit) drop_until(due_ns - atomic_load(&mapping_ns));
    wait_until(due_ns - (record ? atomic_load(&mapping_ns) : 0));
    int64_t began_ns = now_ns();
    uintptr_t first = low + most(0, offset - (int64_t)m->offset), last = least(high, low + (end - (int64_t)m->offset));
    uintptr_t page = address / PAGE * PAGE;
    /* A thread of this process that reserved the chunk maps all of it just now, and to do it twice takes an ioctl for
     * each page. Whoever comes again for the same chunk is of another process, and maps it all. */
    if (record || who->met == due) who->met = NULL;
    else {
        who->met = due;
        first = page;
        last = page + PAGE;
    }
    if (!map_pages(first, last) && !map_pages(page, page + PAGE)) atomic_fetch_add(&shared->failed, 1);
    if (!record) return 1;
    int64_t done_ns = now_ns();
    learn(&mapping_ns, done_ns - began_ns);
    who->last_due_ns = timed ? record->due_ns : 0;
    who->last_done_ns = done_ns;
    atomic_store(&record->done_ns, done_ns);
    return 1;
}

#endif
