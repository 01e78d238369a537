#include "values/values.h"


#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Copies from the host that are longer are not looked at: what programs read back to decide something
 * is short (token ids, masks, indices), what is long are weights. */
#define LONGEST_FROM_HOST ((size_t)16 << 20)
/* Results that are longer are kept only where they are one value all along. */
#define LONGEST ((size_t)128 << 20)
#define MOST_BYTES ((size_t)384 << 20)
#define MOST_ENTRIES ((size_t)8192)
/* What is known here and there, in more pieces than this, is one entry with holes. */
#define MOST_RUNS ((size_t)8)

typedef struct {
    uintptr_t address;
    size_t size;
    uint64_t written; /* grows with every write: the age of the entry */
    unsigned char *bytes; /* size bytes, or NULL for a repeated pattern */
    unsigned char *marks; /* of each of them, or NULL: all have the same */
    unsigned char mark;
    unsigned char pattern[16];
    size_t width;
} entry;

static entry **entries; /* by address, none overlapping */
static size_t count, capacity, bytes_held;
static uint64_t clock_now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

/* Before the account's own (what is registered last is locked first): memory is forgotten with the account
 * locked, so that a fork has to take its lock before this one. */
__attribute__((constructor(101))) static void keep_lock_across_fork(void) {
    pthread_atfork(acquire, release, release);
}

/* The first entry that ends after address. */
static size_t first_after(uintptr_t address) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (entries[middle]->address + entries[middle]->size <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static size_t held_by(const entry *e) { return e->bytes ? e->size * (e->marks ? 2 : 1) : 0; }

static void free_bytes(const entry *e) {
    free(e->bytes);
    free(e->marks);
}

static void drop(size_t from, size_t to) {
    for (size_t i = from; i < to; i++) {
        bytes_held -= held_by(entries[i]);
        free_bytes(entries[i]);
        free(entries[i]);
    }
    memmove(entries + from, entries + to, (count - to) * sizeof *entries);
    count -= to - from;
}

/* Forget the older half when there is too much. */
static void make_room(size_t size) {
    if (count < MOST_ENTRIES && bytes_held + size <= MOST_BYTES) return;
    uint64_t oldest = clock_now;
    for (size_t i = 0; i < count; i++)
        if (entries[i]->written < oldest) oldest = entries[i]->written;
    uint64_t middle = oldest + (clock_now - oldest) / 2;
    for (size_t i = count; i-- > 0;)
        if (entries[i]->written <= middle) drop(i, i + 1);
}

static void forget(uintptr_t address, size_t n);

/* What is written again, all of it and nothing else: the usual case, without moving other entries. */
static bool overwrite(const entry *e) {
    size_t i = first_after(e->address);
    if (i == count || entries[i]->address != e->address || entries[i]->size != e->size) return false;
    bytes_held -= held_by(entries[i]);
    free_bytes(entries[i]);
    *entries[i] = *e;
    return true;
}

static void add(const entry *e) {
    entry *added = malloc(sizeof *added);
    if (count == capacity) {
        capacity = capacity ? 2 * capacity : 256;
        entries = realloc(entries, capacity * sizeof *entries);
    }
    if (!added || !entries) abort();
    size_t at = first_after(e->address);
    memmove(entries + at + 1, entries + at, (count - at) * sizeof *entries);
    *added = *e;
    entries[at] = added;
    count++;
}

static void insert(entry e) {
    if (!e.written) e.written = ++clock_now; /* a piece is as old as the whole was */
    if (!overwrite(&e)) {
        forget(e.address, e.size);
        make_room(held_by(&e));
        add(&e);
    }
    bytes_held += held_by(&e);
}

static unsigned char *copy_of(const unsigned char *data, size_t n) {
    unsigned char *copy = malloc(n);
    return copy ? memcpy(copy, data, n) : NULL;
}

/* Of which all have one mark, or each its own. */
static void insert_bytes(uintptr_t address, const unsigned char *data, const unsigned char *marks, size_t n,
                         unsigned char mark) {
    if (!n) return;
    entry e = {.address = address, .size = n, .mark = mark, .bytes = copy_of(data, n)};
    if (marks) e.marks = copy_of(marks, n);
    if (e.bytes && (e.marks || !marks)) {
        insert(e);
        return;
    }
    free_bytes(&e);
    forget(address, n);
}

static void insert_pattern(uintptr_t address, size_t n, const unsigned char *pattern, size_t width,
                           unsigned char mark) {
    if (!n) return;
    entry e = {.address = address, .size = n, .width = width, .mark = mark};
    memcpy(e.pattern, pattern, width);
    insert(e);
}

/* Copy n bytes of an entry out. Of a pattern what is there already is doubled, which keeps its phase. */
static void part_of(const entry *e, uintptr_t address, unsigned char *out, size_t n) {
    size_t offset = address - e->address;
    if (e->bytes) {
        memcpy(out, e->bytes + offset, n);
        return;
    }
    size_t done = n < e->width ? n : e->width;
    for (size_t i = 0; i < done; i++) out[i] = e->pattern[(offset + i) % e->width];
    for (size_t next; done < n; done += next) {
        next = done < n - done ? done : n - done;
        memcpy(out + done, out, next);
    }
}

/* A copy of the part [from, to) of an entry; of size 0 if there is no memory for it. */
static entry piece_of(const entry *e, uintptr_t from, uintptr_t to) {
    size_t offset = from - e->address;
    entry piece = {.address = from, .size = to - from, .width = e->width, .mark = e->mark};
    if (e->bytes)
        piece.bytes = copy_of(e->bytes + offset, piece.size);
    else
        part_of(e, from, piece.pattern, e->width);
    if (e->marks) piece.marks = copy_of(e->marks + offset, piece.size);
    if ((e->bytes && !piece.bytes) || (e->marks && !piece.marks)) {
        free_bytes(&piece);
        piece.size = 0;
    }
    return piece;
}

/* Put back the part [from, to) of an entry that is being replaced. */
static void keep_piece(const entry *e, uintptr_t from, uintptr_t to) {
    if (from >= to) return;
    entry piece = piece_of(e, from, to);
    piece.written = e->written;
    if (piece.size) insert(piece);
}

static void forget(uintptr_t address, size_t n) {
    size_t i = first_after(address);
    size_t end = i;
    while (end < count && entries[end]->address < address + n) end++;
    if (i == end) return;
    entry first = *entries[i], last = *entries[end - 1];
    bool one = end - i == 1;
    /* Their bytes are needed for the pieces that stay. */
    bytes_held -= held_by(&first) + (one ? 0 : held_by(&last));
    entries[i]->bytes = entries[i]->marks = NULL;
    entries[end - 1]->bytes = entries[end - 1]->marks = NULL;
    drop(i, end);
    keep_piece(&first, first.address, address);
    keep_piece(&last, address + n, last.address + last.size);
    free_bytes(&first);
    if (!one) free_bytes(&last);
}

void sim_values_forget(uintptr_t address, size_t n) {
    acquire();
    forget(address, n);
    release();
}

void sim_values_forget_at(uintptr_t address) {
    acquire();
    size_t i = first_after(address);
    if (i < count && entries[i]->address <= address) drop(i, i + 1);
    release();
}

/* The width of the value that the data repeats, or 0. */
static size_t repeated_width(const unsigned char *data, size_t n) {
    for (size_t width = 1; width <= 8; width *= 2)
        if (n > width && n % width == 0 && !memcmp(data, data + width, n - width)) return width;
    return 0;
}

static void store(uintptr_t address, const unsigned char *data, size_t n, unsigned char mark) {
    size_t width = n > sizeof(uint64_t) ? repeated_width(data, n) : 0;
    if (width)
        insert_pattern(address, n, data, width, mark);
    else if (n <= LONGEST)
        insert_bytes(address, data, NULL, n, mark);
    else
        forget(address, n);
}

uint64_t sim_values_clock(void) {
    acquire();
    uint64_t now = clock_now;
    release();
    return now;
}

void sim_values_forget_between(uint64_t after, uint64_t until) {
    acquire();
    for (size_t i = count; i-- > 0;)
        if (entries[i]->written > after && entries[i]->written <= until) drop(i, i + 1);
    release();
}

void sim_values_store(uintptr_t address, const void *data, size_t n, unsigned char mark) {
    acquire();
    store(address, data, n, mark);
    release();
}

void sim_values_receive(uintptr_t address, const void *data, size_t n) {
    if (n <= LONGEST_FROM_HOST)
        sim_values_store(address, data, n, SIM_KNOWN);
    else
        sim_values_forget(address, n);
}

/* Where the run of bytes of one mark ends. */
static size_t end_of_run(const unsigned char *marks, size_t from, size_t n) {
    size_t to = from + 1;
    while (to < n && marks[to] == marks[from]) to++;
    return to;
}

void sim_values_store_known(uintptr_t address, const void *data, const unsigned char *marks, size_t n) {
    size_t runs = 0;
    for (size_t from = 0; from < n && runs <= MOST_RUNS; from = end_of_run(marks, from, n)) runs++;
    acquire();
    forget(address, n);
    if (runs > MOST_RUNS && n <= LONGEST) insert_bytes(address, data, marks, n, SIM_KNOWN);
    for (size_t from = 0, to; from < n && runs <= MOST_RUNS; from = to) {
        to = end_of_run(marks, from, n);
        if (marks[from]) store(address + from, (const unsigned char *)data + from, to - from, marks[from]);
    }
    release();
}

void sim_values_fill(uintptr_t address, size_t n, const void *pattern, size_t width, unsigned char mark) {
    acquire();
    insert_pattern(address, n, pattern, width, mark);
    release();
}

/* The part of an entry that lies in n bytes from address on. */
static void overlap(const entry *e, uintptr_t address, size_t n, uintptr_t *from, uintptr_t *to) {
    *from = e->address > address ? e->address : address;
    *to = e->address + e->size < address + n ? e->address + e->size : address + n;
}

void sim_values_read(uintptr_t address, void *out, unsigned char *marks, size_t n) {
    acquire();
    memset(out, 0, n);
    if (marks) memset(marks, SIM_NO_VALUE, n);
    for (size_t i = first_after(address); i < count && entries[i]->address < address + n; i++) {
        uintptr_t from, to;
        overlap(entries[i], address, n, &from, &to);
        const entry *e = entries[i];
        part_of(e, from, (unsigned char *)out + (from - address), to - from);
        if (!marks) continue;
        if (e->marks)
            memcpy(marks + (from - address), e->marks + (from - e->address), to - from);
        else
            memset(marks + (from - address), e->mark, to - from);
    }
    release();
}

static bool is_known(const entry *e, uintptr_t from, uintptr_t to) {
    if (!e->marks) return e->mark == SIM_KNOWN;
    for (uintptr_t at = from; at < to; at++)
        if (e->marks[at - e->address] != SIM_KNOWN) return false;
    return true;
}

bool sim_values_are_known(uintptr_t address, size_t n) {
    uintptr_t reached = address;
    acquire();
    for (size_t i = first_after(address); reached < address + n && i < count && entries[i]->address <= reached; i++) {
        uintptr_t from, to;
        overlap(entries[i], address, n, &from, &to);
        if (!is_known(entries[i], from, to)) break;
        reached = to;
    }
    release();
    return reached >= address + n;
}

/* A copy of what is known of n bytes, the pieces one after the other. */
static entry *pieces_of(uintptr_t address, size_t n, size_t *found) {
    size_t first = first_after(address), end = first;
    while (end < count && entries[end]->address < address + n) end++;
    entry *pieces = end > first ? malloc((end - first) * sizeof *pieces) : NULL;
    *found = pieces ? end - first : 0;
    for (size_t i = 0; i < *found; i++) {
        uintptr_t from, to;
        overlap(entries[first + i], address, n, &from, &to);
        pieces[i] = piece_of(entries[first + i], from, to);
    }
    return pieces;
}

void sim_values_copy(uintptr_t to, uintptr_t from, size_t n) {
    size_t found;
    acquire();
    entry *pieces = pieces_of(from, n, &found);
    forget(to, n);
    for (size_t i = 0; i < found; i++) {
        pieces[i].address += to - from;
        if (pieces[i].size) insert(pieces[i]);
    }
    free(pieces);
    release();
}

/* All n bytes lie in one entry, and it repeats a value. */
static bool repeats(const entry *e, uintptr_t address, size_t n, size_t width) {
    return e->address <= address && e->address + e->size >= address + n && !e->bytes && width % e->width == 0;
}

sim_knowledge sim_values_know(uintptr_t address, size_t n, size_t width, uint64_t *value, bool *guessed) {
    acquire();
    size_t i = first_after(address);
    sim_knowledge answer = SIM_UNKNOWN;
    if (i < count && entries[i]->address < address + n) {
        const entry *e = entries[i];
        bool whole = e->address <= address && e->address + e->size >= address + n;
        answer = repeats(e, address, n, width) || (whole && !e->marks && n == width) ? SIM_CONSTANT : SIM_VARIED;
        *value = 0;
        *guessed = e->mark == SIM_GUESSED;
        if (answer == SIM_CONSTANT) part_of(e, address, (unsigned char *)value, width);
    }
    release();
    return answer;
}
