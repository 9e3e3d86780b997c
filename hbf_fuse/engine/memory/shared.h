/* What the server of a mount and the readers of its mappings share: one memory file, which both can write.
 *
 * So nothing that a verdict rests on is taken from it unchecked: the server does every record's arithmetic again,
 * see follow.py and proof.py. Places (`..._at`) are bytes from the beginning. */
#ifndef HBF_SHARED_H
#define HBF_SHARED_H

#include <stdatomic.h>
#include <time.h>

#include "twin.h"

#define PAGE 4096
#define RECORDS (1 << 17) /* reads that the server can be behind */
#define DROPS (1 << 16)   /* dropped chunks that a process can be behind */
#define HEADROOM (4 << 20)
#define BROKEN_NS 200000000LL
#define EXPIRES_NS 100000000LL /* credit: pacing/bounds.py */
#define MOST_OWED_NS 1000000000LL

/* A read, in the order of reservation. done: 0 until the data is visible. */
struct record {
    int64_t arrival_ns, due_ns;
    _Atomic int64_t done_ns;
    int64_t offset;
    uint32_t nbytes, reader, file, process;
};

/* A file: the (device, inode) pairs that it is known by, its first chunk, and its regions. */
struct file { uint64_t size, first_chunk, first_region, regions, device[2], inode[2]; };

/* From this byte on, a file's bytes are in this tier; up to the next region. */
struct region { uint64_t start, tier; };

struct shared {
    char digest[64]; /* of the sources: both sides must have been built from the same */
    int64_t chunk, floor_ns, limit, pin_limit, dram;
    uint64_t files, chunks, tiers, regions;
    uint64_t files_at, tiers_at, regions_at, due_at, queue_at, drops_at, records_at, size;
    _Atomic uint32_t lock;
    _Atomic uint64_t broken, failed; /* locks taken from a stopped holder; pages that could not be mapped */
    /* Behind the lock. Bytes in the emulated DRAM; a ring of the chunks that may be dropped, oldest first. */
    int64_t resident, pinned, dropped;
    uint64_t queue_first, queue_end;
    _Atomic uint64_t drop_end;     /* how many chunks were dropped so far */
    _Atomic uint64_t record_end;   /* how many reads were reserved so far */
};

#define AT(shared, kind, place) ((kind *)((char *)(shared) + (shared)->place))

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Held for less than a microsecond. A holder that was stopped or killed loses it, which is counted: from then on the
 * server trusts no figure of this mount. */
static inline void lock(struct shared *s) {
    int64_t began_ns = 0;
    for (uint32_t free = 0; !atomic_compare_exchange_weak(&s->lock, &free, 1); free = 0) {
        relax();
        if (!began_ns) began_ns = now_ns();
        else if (now_ns() - began_ns > BROKEN_NS) {
            atomic_fetch_add(&s->broken, 1);
            return;
        }
    }
}

static inline void unlock(struct shared *s) { atomic_store(&s->lock, 0); }

/* The end of the piece from `offset` on that is in one tier, at most `end`. Sets that tier. */
static inline int64_t piece_end(struct shared *s, const struct file *f, int64_t offset, int64_t end, uint64_t *tier) {
    const struct region *regions = AT(s, struct region, regions_at) + f->first_region;
    uint64_t low = 0, high = f->regions;
    *tier = 0;
    if (!high) return end;
    while (high - low > 1) {
        uint64_t middle = (low + high) / 2;
        if (regions[middle].start <= (uint64_t)offset) low = middle;
        else high = middle;
    }
    *tier = regions[low].tier;
    return low + 1 < f->regions ? least(end, (int64_t)regions[low + 1].start) : end;
}

/* As Pacer.admit: a read over several tiers is due when the last has brought its part. timed: whether any throttles. */
static inline int64_t reserve_all(
    struct shared *s, const struct file *f, int64_t began_ns, int64_t offset, int64_t end, int *timed
) {
    int64_t due_ns = 0;
    *timed = 0;
    for (int64_t until; offset < end; offset = until) {
        uint64_t tier;
        until = piece_end(s, f, offset, end, &tier);
        struct tier *t = AT(s, struct tier, tiers_at) + tier;
        due_ns = most(due_ns, reserve(t, began_ns, offset, until - offset));
        *timed |= t->spec.throttled != 0;
    }
    return due_ns;
}

/* Bytes of a range that count against the budget: all but those of tier `dram`. */
static inline int64_t held(struct shared *s, const struct file *f, int64_t offset, int64_t end) {
    int64_t bytes = 0;
    for (int64_t until; offset < end; offset = until) {
        uint64_t tier;
        until = piece_end(s, f, offset, end, &tier);
        if ((int64_t)tier != s->dram) bytes += (until - offset + PAGE - 1) / PAGE * PAGE;
    }
    return bytes;
}

/* The bytes of a chunk of a file, from *offset up to the result. */
static inline int64_t span(const struct shared *s, const struct file *f, uint64_t chunk, int64_t *offset) {
    *offset = (int64_t)chunk * s->chunk;
    return least(*offset + s->chunk, (int64_t)f->size);
}

/* A chunk comes into the emulated DRAM: it stays (policy pin, while there is room) or is dropped when it is the
 * oldest. What must go now is marked as gone, and listed for every process to drop. Behind the lock. */
static inline void keep(struct shared *s, uint64_t file, uint64_t chunk) {
    if (!s->limit) return;
    struct file *files = AT(s, struct file, files_at);
    uint64_t *queue = AT(s, uint64_t, queue_at), *drops = AT(s, uint64_t, drops_at);
    int64_t offset, end = span(s, &files[file], chunk, &offset), bytes = held(s, &files[file], offset, end);
    s->resident += bytes;
    if (s->pinned + bytes <= s->pin_limit) s->pinned += bytes;
    else queue[s->queue_end++ % s->chunks] = file << 32 | chunk;
    while (s->resident > s->limit && s->queue_first + 1 < s->queue_end) {
        uint64_t oldest = queue[s->queue_first++ % s->chunks];
        struct file *f = &files[oldest >> 32];
        end = span(s, f, oldest & UINT32_MAX, &offset);
        bytes = held(s, f, offset, end);
        s->resident -= bytes;
        s->dropped += bytes;
        atomic_store(&AT(s, _Atomic int64_t, due_at)[f->first_chunk + (oldest & UINT32_MAX)], 0);
        drops[s->drop_end % DROPS] = oldest;
        atomic_fetch_add(&s->drop_end, 1);
    }
}

#endif
