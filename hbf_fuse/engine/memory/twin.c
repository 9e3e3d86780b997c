/* What the server needs of shared.h, as functions for ctypes (library.py), and the twin for its test. */
#include <string.h>

#include "shared.h"

const char *hbf_digest(void) { return HBF_DIGEST; }

static uint64_t after(uint64_t *end, uint64_t bytes) {
    uint64_t at = (*end + PAGE - 1) / PAGE * PAGE;
    *end = at + bytes;
    return at;
}

/* Where everything lies. Returns the whole size in bytes. `s` may be a copy that is only measured. */
static uint64_t placed(struct shared *s) {
    uint64_t end = sizeof *s;
    s->files_at = after(&end, s->files * sizeof(struct file));
    s->regions_at = after(&end, (s->regions + 1) * sizeof(struct region));
    s->tiers_at = after(&end, s->tiers * sizeof(struct tier));
    s->due_at = after(&end, s->chunks * sizeof(int64_t));
    s->queue_at = after(&end, s->chunks * sizeof(uint64_t));
    s->drops_at = after(&end, DROPS * sizeof(uint64_t));
    s->records_at = after(&end, RECORDS * sizeof(struct record));
    return s->size = (end + PAGE - 1) / PAGE * PAGE;
}

/* counts: files, chunks, tiers, regions */
uint64_t hbf_size(const uint64_t *counts) {
    struct shared s = {.files = counts[0], .chunks = counts[1], .tiers = counts[2], .regions = counts[3]};
    return placed(&s);
}

/* Lay out zeroed memory. settings: chunk, limit, pin_limit in bytes; the place of the tier `dram`, or -1. */
void hbf_lay_out(struct shared *s, const uint64_t *counts, const int64_t *settings) {
    strncpy(s->digest, HBF_DIGEST, sizeof s->digest - 1);
    s->files = counts[0];
    s->chunks = counts[1];
    s->tiers = counts[2];
    s->regions = counts[3];
    s->chunk = settings[0];
    s->limit = settings[1];
    s->pin_limit = settings[2];
    s->dram = settings[3];
    placed(s);
}

void hbf_set_file(struct shared *s, uint64_t at, const struct file *file) { AT(s, struct file, files_at)[at] = *file; }

void hbf_set_region(struct shared *s, uint64_t at, uint64_t start, uint64_t tier) {
    AT(s, struct region, regions_at)[at] = (struct region){start, tier};
}

void hbf_set_floor(struct shared *s, int64_t floor_ns) { s->floor_ns = floor_ns; }

/* The mount's own name of a file. */
void hbf_name_file(struct shared *s, uint64_t at, uint64_t device, uint64_t inode) {
    AT(s, struct file, files_at)[at].device[0] = device;
    AT(s, struct file, files_at)[at].inode[0] = inode;
}

/* Make a tier another one, with its floor. Returns how many reads were reserved before. The server gives the tier's place: where s
 * says that it is may be anything once there are readers. */
uint64_t hbf_exchange(struct shared *s, struct tier *tier, const struct spec *spec, int64_t floor_ns) {
    lock(s);
    s->floor_ns = floor_ns;
    tier_begin(tier, spec);
    uint64_t reads = atomic_load(&s->record_end);
    unlock(s);
    return reads;
}

uint64_t hbf_tiers_at(const struct shared *s) { return s->tiers_at; }

uint64_t hbf_records_at(const struct shared *s) { return s->records_at; }

/* counts: reads reserved, chunks dropped, locks broken, pages failed; bytes resident, pinned, dropped. */
void hbf_look(struct shared *s, int64_t *counts) {
    int64_t found[] = {atomic_load(&s->record_end), atomic_load(&s->drop_end), atomic_load(&s->broken),
                       atomic_load(&s->failed), s->resident, s->pinned, s->dropped};
    memcpy(counts, found, sizeof found);
}

/* For the test: a tier by itself. */

uint64_t hbf_tier_size(void) { return sizeof(struct tier); }

void hbf_tier_begin(struct tier *t, const struct spec *spec) { tier_begin(t, spec); }

void hbf_reserve(struct tier *t, const int64_t *reads, int64_t *deadlines, uint64_t count) {
    for (uint64_t at = 0; at < count; at++)
        deadlines[at] = reserve(t, reads[3 * at], reads[3 * at + 1], reads[3 * at + 2]);
}
