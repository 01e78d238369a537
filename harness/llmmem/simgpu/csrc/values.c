#include "values.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Copies longer than this are not remembered: what programs read back to decide something is short
 * (token ids, masks, sizes), what is long are weights. */
#define LONGEST_COPY ((size_t)1 << 20)
#define MOST_BYTES ((size_t)32 << 20)
#define MOST_ENTRIES ((size_t)8192)

typedef struct {
    uintptr_t address;
    size_t size;
    uint64_t written; /* grows with every write: the age of the entry */
    unsigned char *bytes; /* size bytes, or NULL for a repeated pattern */
    unsigned char pattern[16];
    size_t width;
} entry;

static entry *entries; /* by address, none overlapping */
static size_t count, capacity, bytes_held;
static uint64_t clock_now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void keep_lock_across_fork(void) { pthread_atfork(acquire, release, release); }

/* The first entry that ends after address. */
static size_t first_after(uintptr_t address) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (entries[middle].address + entries[middle].size <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void drop(size_t from, size_t to) {
    for (size_t i = from; i < to; i++) {
        if (entries[i].bytes) bytes_held -= entries[i].size;
        free(entries[i].bytes);
    }
    memmove(entries + from, entries + to, (count - to) * sizeof *entries);
    count -= to - from;
}

/* Forget the older half when there is too much. */
static void make_room(size_t size) {
    if (count < MOST_ENTRIES && bytes_held + size <= MOST_BYTES) return;
    uint64_t oldest = clock_now;
    for (size_t i = 0; i < count; i++)
        if (entries[i].written < oldest) oldest = entries[i].written;
    uint64_t middle = oldest + (clock_now - oldest) / 2;
    for (size_t i = count; i-- > 0;)
        if (entries[i].written <= middle) drop(i, i + 1);
}

static void insert(entry e) {
    make_room(e.bytes ? e.size : 0);
    if (count == capacity) {
        capacity = capacity ? 2 * capacity : 256;
        entries = realloc(entries, capacity * sizeof *entries);
        if (!entries) abort();
    }
    size_t at = first_after(e.address);
    memmove(entries + at + 1, entries + at, (count - at) * sizeof *entries);
    e.written = ++clock_now;
    entries[at] = e;
    count++;
    if (e.bytes) bytes_held += e.size;
}

static void insert_bytes(uintptr_t address, const unsigned char *data, size_t n) {
    if (!n) return;
    entry e = {.address = address, .size = n, .bytes = malloc(n)};
    if (!e.bytes) return;
    memcpy(e.bytes, data, n);
    insert(e);
}

static void insert_pattern(uintptr_t address, size_t n, const unsigned char *pattern, size_t width) {
    if (!n) return;
    entry e = {.address = address, .size = n, .width = width};
    memcpy(e.pattern, pattern, width);
    insert(e);
}

static void part_of(const entry *e, uintptr_t address, unsigned char *out, size_t n) {
    size_t offset = address - e->address;
    if (e->bytes) {
        memcpy(out, e->bytes + offset, n);
        return;
    }
    for (size_t i = 0; i < n; i++) out[i] = e->pattern[(offset + i) % e->width];
}

/* Put back the piece [from, to) of an entry that is being replaced. */
static void keep_piece(const entry *e, uintptr_t from, uintptr_t to) {
    if (from >= to) return;
    size_t offset = from - e->address;
    if (e->bytes) {
        insert_bytes(from, e->bytes + offset, to - from);
        return;
    }
    unsigned char turned[16];
    part_of(e, from, turned, e->width);
    insert_pattern(from, to - from, turned, e->width);
}

static void forget(uintptr_t address, size_t n) {
    size_t i = first_after(address);
    size_t end = i;
    while (end < count && entries[end].address < address + n) end++;
    if (i == end) return;
    entry first = entries[i], last = entries[end - 1];
    entries[i].bytes = NULL;
    entries[end - 1].bytes = NULL;
    if (first.bytes) bytes_held -= first.size;
    if (last.bytes && end - i > 1) bytes_held -= last.size;
    drop(i, end);
    keep_piece(&first, first.address, address);
    keep_piece(&last, address + n, last.address + last.size);
    free(first.bytes);
    if (end - i > 1) free(last.bytes);
}

void sim_values_forget(uintptr_t address, size_t n) {
    acquire();
    forget(address, n);
    release();
}

void sim_values_forget_at(uintptr_t address) {
    acquire();
    size_t i = first_after(address);
    if (i < count && entries[i].address <= address) drop(i, i + 1);
    release();
}

void sim_values_store(uintptr_t address, const void *data, size_t n) {
    acquire();
    forget(address, n);
    if (n <= LONGEST_COPY) insert_bytes(address, data, n);
    release();
}

void sim_values_fill(uintptr_t address, size_t n, const void *pattern, size_t width) {
    acquire();
    forget(address, n);
    insert_pattern(address, n, pattern, width);
    release();
}

/* The index after the last of the entries that hold all n bytes, or 0 if they do not. */
static size_t covered(uintptr_t address, size_t n) {
    uintptr_t at = address;
    size_t i = first_after(address);
    while (i < count && at < address + n && entries[i].address <= at) at = entries[i].address + entries[i].size, i++;
    return n && at >= address + n ? i : 0;
}

static void read_bytes(uintptr_t address, unsigned char *out, size_t n) {
    memset(out, 0, n);
    if (!covered(address, n)) return;
    for (size_t i = first_after(address); i < count && entries[i].address < address + n; i++) {
        const entry *e = &entries[i];
        uintptr_t from = e->address > address ? e->address : address;
        uintptr_t to = e->address + e->size < address + n ? e->address + e->size : address + n;
        part_of(e, from, out + (from - address), to - from);
    }
}

void sim_values_read(uintptr_t address, void *out, size_t n) {
    acquire();
    read_bytes(address, out, n);
    release();
}

void sim_values_copy(uintptr_t to, uintptr_t from, size_t n) {
    acquire();
    size_t i = first_after(from);
    bool whole = i < count && entries[i].address <= from && entries[i].address + entries[i].size >= from + n;
    if (!whole) {
        forget(to, n);
    } else if (entries[i].bytes) {
        unsigned char *copy = malloc(n);
        if (copy) part_of(&entries[i], from, copy, n);
        forget(to, n);
        if (copy) insert_bytes(to, copy, n);
        free(copy);
    } else {
        unsigned char pattern[16];
        size_t width = entries[i].width;
        part_of(&entries[i], from, pattern, width);
        forget(to, n);
        insert_pattern(to, n, pattern, width);
    }
    release();
}

sim_knowledge sim_values_know(uintptr_t address, size_t n, size_t width, uint64_t *value) {
    acquire();
    sim_knowledge answer = SIM_UNKNOWN;
    size_t end = covered(address, n);
    if (end) {
        const entry *e = &entries[end - 1];
        bool repeats = e->address <= address && !e->bytes && width % e->width == 0;
        answer = repeats || n == width ? SIM_CONSTANT : SIM_VARIED;
        *value = 0;
        if (answer == SIM_CONSTANT) read_bytes(address, (unsigned char *)value, width);
    }
    release();
    return answer;
}
