/* Touches one byte of each chunk of a mapping: `memory_reader FILE CHUNK READERS`, each reader every READERS-th chunk.
 *
 * Prints the time from the first touch to the last one's end, and the median touch, in ns. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#define MOST_READERS 64

static volatile const char *at;
static size_t size, chunk;
static int readers;
static int64_t *took, begins[MOST_READERS], ends[MOST_READERS];
static pthread_barrier_t start;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *read_all(void *number) {
    int me = (int)(intptr_t)number;
    pthread_barrier_wait(&start);
    int64_t before = begins[me] = now_ns();
    for (size_t place = me; place * chunk < size; place += readers) {
        (void)at[place * chunk];
        int64_t after = now_ns();
        took[place] = after - before;
        before = after;
    }
    ends[me] = before;
    return NULL;
}

static int by_size(const void *one, const void *other) {
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

int main(int count, char **words) {
    struct stat info;
    if (count != 4) return 2;
    int fd = open(words[1], O_RDONLY);
    chunk = strtoul(words[2], NULL, 10);
    readers = atoi(words[3]);
    if (fd < 0 || fstat(fd, &info) || readers < 1 || readers > MOST_READERS) return 1;
    size = info.st_size;
    size_t chunks = (size + chunk - 1) / chunk;
    took = calloc(chunks, sizeof *took);
    at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (!took || at == MAP_FAILED) return 1;
    pthread_t threads[MOST_READERS];
    pthread_barrier_init(&start, NULL, readers);
    for (int each = 0; each < readers; each++) pthread_create(&threads[each], NULL, read_all, (void *)(intptr_t)each);
    int64_t begin = INT64_MAX, end = 0;
    for (int each = 0; each < readers; each++) {
        pthread_join(threads[each], NULL);
        if (begins[each] < begin) begin = begins[each];
        if (ends[each] > end) end = ends[each];
    }
    qsort(took, chunks, sizeof *took, by_size);
    printf("{\"ns\": %lld, \"p50_ns\": %lld}\n", (long long)(end - begin), (long long)took[chunks / 2]);
    return 0;
}
