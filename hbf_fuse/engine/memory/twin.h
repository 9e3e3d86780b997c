/* The tier in C: hbf_fuse/tier/ line by line, in memory that processes share. tests/test_memory.py compares both.
 *
 * Times are int64_t in ns, up to FOREVER_NS. Nothing here uses a clock, allocates, or is safe for concurrent
 * callers: shared.h has the lock. Floating point is used in the same order as in tier/draws.py; compile it with
 * -ffp-contract=off. */
#ifndef HBF_TWIN_H
#define HBF_TWIN_H

#include <math.h>
#include <stdint.h>

#define FOREVER_NS (1LL << 61)
#define REMEMBERED_NS 100000000LL
#define SECOND_NS 1000000000LL
#define PIECE_BYTES 9000000000LL
#define MAX_GAPS 4096
#define GAPS_ROOM (2 * MAX_GAPS)
#define MAX_PARTS 16
#define MAX_PLANES 65536
#define MAX_DEPTH 65536
#define MOST_PAGES (1LL << 20)

enum jitter { UNIFORM, NORMAL, LOGNORMAL, EXPONENTIAL, TAIL }; /* as in draws.KINDS */

struct part { int64_t kind; double first, last; };

/* What a tier is; twin.py fills it in from a TierSpec. parts: of the latency. retries: of a page (kind TAIL, ms). */
struct spec {
    int64_t rate, latency_ns, depth, seek_ns, page_bytes, sense_ns, planes, hashed, seed, throttled;
    double latency_ms;
    int64_t parts, retries;
    struct part part[MAX_PARTS], retry[MAX_PARTS];
};

/* tier/link.py: idle times, oldest first, at places first up to end. */
struct link { int64_t free_ns, first, end, starts[GAPS_ROOM], ends[GAPS_ROOM]; };

struct tier {
    struct spec spec;
    int64_t remainder, arm_ns, arm_at;
    uint64_t latency_draws, page_draws;
    double firsts[MAX_PARTS];
    int64_t plane_free[MAX_PLANES], plane_held[MAX_PLANES];
    int64_t working, done[MAX_DEPTH]; /* a heap of deadlines */
    struct link link;
};

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* tier/draws.py */

static inline uint64_t bits(uint64_t *state) {
    uint64_t mixed = *state += 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return mixed ^ (mixed >> 31);
}

static inline uint64_t seeded(int64_t seed) {
    uint64_t state = (uint64_t)seed;
    return bits(&state);
}

static inline double uniform(uint64_t *state) { return ((double)(bits(state) >> 12) + 0.5) * 0x1p-52; }

static inline double normal(uint64_t *state) {
    double far = sqrt(-2.0 * log(uniform(state)));
    return far * cos(6.283185307179586 * uniform(state));
}

static inline double of_part(uint64_t *state, int64_t kind, double first, double last) {
    switch (kind) {
    case UNIFORM: return first * (2.0 * uniform(state) - 1.0);
    case NORMAL: return first * normal(state);
    case LOGNORMAL: return first * exp(last * normal(state));
    case EXPONENTIAL: return first * -log(uniform(state));
    default: return uniform(state) < first ? last : 0.0;
    }
}

static inline int64_t latency_ns(struct tier *t) {
    if (!t->spec.parts) return t->spec.latency_ns;
    double drawn_ms = t->spec.latency_ms;
    for (int64_t at = 0; at < t->spec.parts; at++)
        drawn_ms += of_part(&t->latency_draws, t->spec.part[at].kind, t->firsts[at], t->spec.part[at].last);
    double drawn_ns = (drawn_ms > 0.0 ? drawn_ms : 0.0) * 1e6 + 0.5;
    return (int64_t)(drawn_ns < 1e18 ? drawn_ns : 1e18);
}

/* tier/link.py */

static inline void gap_insert(struct link *l, int64_t at, int64_t start_ns, int64_t end_ns) {
    if (l->end == GAPS_ROOM) {
        at -= l->first;
        for (int64_t place = l->first; place < l->end; place++) {
            l->starts[place - l->first] = l->starts[place];
            l->ends[place - l->first] = l->ends[place];
        }
        l->end -= l->first;
        l->first = 0;
    }
    for (int64_t place = l->end; place > at; place--) {
        l->starts[place] = l->starts[place - 1];
        l->ends[place] = l->ends[place - 1];
    }
    l->starts[at] = start_ns;
    l->ends[at] = end_ns;
    l->end++;
    l->first = most(l->first, l->end - MAX_GAPS);
}

/* Remove begin_ns to end_ns from an idle time. Returns the place of the next one. */
static inline int64_t gap_use(struct link *l, int64_t at, int64_t begin_ns, int64_t end_ns) {
    int64_t start_ns = l->starts[at], stop_ns = l->ends[at];
    if (start_ns == begin_ns && end_ns == stop_ns) {
        l->end--;
        for (int64_t place = at; place < l->end; place++) {
            l->starts[place] = l->starts[place + 1];
            l->ends[place] = l->ends[place + 1];
        }
        return at;
    }
    if (start_ns == begin_ns) {
        l->starts[at] = end_ns;
        return at + 1;
    }
    l->ends[at] = begin_ns;
    if (end_ns == stop_ns) return at + 1;
    int64_t behind = l->end - at - 1;
    gap_insert(l, at + 1, end_ns, stop_ns);
    return l->end - behind;
}

static inline int64_t carry(struct link *l, int64_t arrival_ns, int64_t duration_ns, int64_t now_ns) {
    int64_t free_ns = l->free_ns;
    if (arrival_ns >= free_ns) {
        if (arrival_ns > free_ns && free_ns > 0) {
            gap_insert(l, l->end, free_ns, arrival_ns);
            int64_t oldest_ns = least(now_ns, arrival_ns) - REMEMBERED_NS;
            while (l->ends[l->first] < oldest_ns) l->first++;
        }
        return l->free_ns = least(arrival_ns + duration_ns, FOREVER_NS);
    }
    int64_t end_ns = arrival_ns, left_ns = duration_ns, low = l->first, high = l->end;
    while (low < high) { /* the first idle time that ends after the arrival */
        int64_t middle = (low + high) / 2;
        if (l->ends[middle] > arrival_ns) high = middle;
        else low = middle + 1;
    }
    for (int64_t at = low; left_ns && at < l->end;) {
        int64_t begin_ns = most(l->starts[at], arrival_ns);
        end_ns = least(l->ends[at], begin_ns + left_ns);
        left_ns -= end_ns - begin_ns;
        at = gap_use(l, at, begin_ns, end_ns);
    }
    if (left_ns || !duration_ns) l->free_ns = end_ns = least(free_ns + left_ns, FOREVER_NS);
    return end_ns;
}

/* tier/flash.py */

static inline int64_t turn(const struct tier *t, int64_t row) {
    uint64_t mixed = (uint64_t)row * 0x9E3779B97F4A7C15u;
    return t->spec.hashed ? (int64_t)(((mixed >> 32) * (uint64_t)t->spec.planes) >> 32) : 0;
}

static inline int64_t page_ready(struct tier *t, int64_t plane, int64_t page, int64_t start_ns) {
    int64_t ready_ns = most(start_ns, t->plane_free[plane]);
    if (t->plane_held[plane] == page) return ready_ns;
    ready_ns += t->spec.sense_ns;
    for (int64_t at = 0; at < t->spec.retries; at++)
        if (uniform(&t->page_draws) < t->spec.retry[at].first)
            ready_ns += (int64_t)nearbyint(t->spec.retry[at].last * 1e6);
    t->plane_held[plane] = page;
    return t->plane_free[plane] = least(ready_ns, FOREVER_NS);
}

static inline void skip_rows(struct tier *t, int64_t rows) {
    double each_ns = (double)t->spec.sense_ns;
    for (int64_t at = 0; at < t->spec.retries; at++)
        each_ns += t->spec.retry[at].first * nearbyint(t->spec.retry[at].last * 1e6);
    double all_ns = (double)rows * each_ns;
    int64_t more_ns = (int64_t)(all_ns < 1e18 ? all_ns : 1e18);
    for (int64_t plane = 0; plane < t->spec.planes; plane++)
        t->plane_free[plane] = least(t->plane_free[plane] + more_ns, FOREVER_NS);
}

static inline int64_t sense(struct tier *t, int64_t start_ns, int64_t offset, int64_t nbytes) {
    int64_t size = t->spec.page_bytes, planes = t->spec.planes, looked_at = most(2, MOST_PAGES / 2 / planes);
    int64_t first = offset / size, last = (offset + most(1, nbytes) - 1) / size;
    int64_t row = first / planes, place = first % planes, last_row = last / planes;
    int64_t rotated = turn(t, row), begin_ns = start_ns, skipped = 0;
    for (int64_t page = first; page <= last;) {
        int64_t plane = place + rotated;
        if (plane >= planes) plane -= planes;
        int64_t ready_ns = page_ready(t, plane, page, start_ns), before_ns = 0;
        if (t->spec.rate && page > first)
            before_ns = (int64_t)((double)(page * size - offset) * 1e9 / (double)t->spec.rate);
        begin_ns = most(begin_ns, ready_ns - before_ns);
        page++;
        if (++place == planes) {
            row++;
            place = 0;
            if (!skipped && last_row - row > 2 * looked_at) {
                int64_t rows = last_row - row - 2 * looked_at;
                skipped = 1;
                skip_rows(t, rows);
                row += rows;
                page += rows * planes;
            }
            rotated = turn(t, row);
        }
    }
    return begin_ns;
}

/* tier/heap.py, for keys alone */

static inline void heap_push(struct tier *t, int64_t key) {
    int64_t at = t->working++;
    for (; at && key < t->done[(at - 1) / 2]; at = (at - 1) / 2) t->done[at] = t->done[(at - 1) / 2];
    t->done[at] = key;
}

static inline int64_t heap_pop(struct tier *t) {
    int64_t first = t->done[0], key = t->done[--t->working], at = 0;
    for (int64_t child = 1; child < t->working; child = 2 * at + 1) {
        if (child + 1 < t->working && t->done[child + 1] < t->done[child]) child++;
        if (key <= t->done[child]) break;
        t->done[at] = t->done[child];
        at = child;
    }
    t->done[at] = key;
    return first;
}

/* tier/device.py */

/* Make a tier that is idle; `link` stays as it is, so that one that takes another's place goes on with its link. */
static inline void tier_begin(struct tier *t, const struct spec *spec) {
    t->spec = *spec;
    t->remainder = t->arm_ns = t->working = 0;
    t->arm_at = -1;
    t->latency_draws = t->page_draws = seeded(spec->seed);
    for (int64_t at = 0; at < spec->parts; at++) {
        const struct part *part = &spec->part[at];
        t->firsts[at] = part->first;
        if (part->kind == LOGNORMAL) t->firsts[at] *= exp(-part->last * part->last / 2.0);
    }
    for (int64_t plane = 0; plane < spec->planes; plane++) {
        t->plane_free[plane] = 0;
        t->plane_held[plane] = -1;
    }
}

/* Put one read into the schedule. Returns when its data is visible. */
static inline int64_t reserve(struct tier *t, int64_t arrival_ns, int64_t offset, int64_t nbytes) {
    const struct spec *spec = &t->spec;
    int64_t taken_ns = least(arrival_ns, FOREVER_NS);
    if (spec->depth && t->working == spec->depth) taken_ns = least(most(taken_ns, heap_pop(t)), FOREVER_NS);
    if (spec->seek_ns) {
        int64_t free_ns = most(taken_ns, t->arm_ns);
        taken_ns = offset == t->arm_at ? free_ns : least(free_ns + spec->seek_ns, FOREVER_NS);
    }
    if (spec->planes) taken_ns = sense(t, taken_ns, offset, nbytes);
    int64_t carried_ns = taken_ns, transfer_ns = 0;
    if (spec->rate) {
        for (int64_t left = nbytes; left > 0; left -= PIECE_BYTES) {
            int64_t units = least(left, PIECE_BYTES) * SECOND_NS + t->remainder, piece_ns = units / spec->rate;
            t->remainder = units - piece_ns * spec->rate;
            transfer_ns = least(transfer_ns + least(piece_ns, FOREVER_NS), FOREVER_NS);
        }
        carried_ns = carry(&t->link, taken_ns, transfer_ns, arrival_ns);
    }
    if (spec->seek_ns) {
        t->arm_ns = carried_ns;
        t->arm_at = offset + nbytes;
    }
    int64_t deadline_ns = carried_ns + latency_ns(t);
    if (spec->depth) heap_push(t, deadline_ns);
    return deadline_ns;
}

#endif
