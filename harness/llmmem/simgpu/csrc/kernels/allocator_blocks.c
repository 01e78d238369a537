#include "kernels/allocator_blocks.h"

#include "account/account.h"
#include "values/values.h"

#include <dlfcn.h>
#include <pthread.h>
#include <search.h>
#include <stdlib.h>

typedef struct {
    uintptr_t start, end;
} block;

static void *blocks; /* a search tree; none overlap */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void keep_lock_across_fork(void) { pthread_atfork(acquire, release, release); }

/* Blocks that overlap count as equal, so an address is found in the block that holds it. */
static int compare(const void *left, const void *right) {
    const block *a = left, *b = right;
    return a->end <= b->start ? -1 : a->start >= b->end;
}

static void remove_block(uintptr_t start) {
    block wanted = {start, start + 1};
    block **found = tfind(&wanted, &blocks, compare);
    if (!found) return;
    block *gone = *found;
    tdelete(gone, &blocks, compare);
    free(gone);
}

static void add_block(uintptr_t start, size_t size) {
    block *b = malloc(sizeof *b);
    if (!b) return;
    *b = (block){start, start + size};
    block **found = tsearch(b, &blocks, compare);
    if (!found || *found != b) free(b);
}

uintptr_t sim_block_end(uintptr_t address) {
    block wanted = {address, address + 1};
    acquire();
    block **found = tfind(&wanted, &blocks, compare);
    uintptr_t end = found ? (*found)->end : 0;
    release();
    return end;
}

/* ---- what PyTorch reports ---------------------------------------------------------------------------- */

/* c10::Device */
typedef struct {
    int8_t type, index;
} device;

typedef void (*reporter)(void *, int64_t, size_t, size_t, device);

/* PyTorch's own function of that name, which RTLD_NEXT does not find. */
static reporter pytorchs_own(void) {
    static reporter own;
    if (own) return own;
    void *library = dlopen("libc10.so", RTLD_NOLOAD | RTLD_LAZY);
    if (library) own = (reporter)dlsym(library, "_ZN3c1027reportMemoryUsageToProfilerEPvlmmNS_6DeviceE");
    return own;
}

/* c10::reportMemoryUsageToProfiler: PyTorch's allocators call it for every block that they allocate (its
 * size) and free (its negative size). This library is loaded before PyTorch, so the call arrives here and
 * is passed on. */
SIM_API void report_memory_usage(void *pointer, int64_t size, size_t allocated, size_t reserved,
                                 device where) __asm__("_ZN3c1027reportMemoryUsageToProfilerEPvlmmNS_6DeviceE");

void report_memory_usage(void *pointer, int64_t size, size_t allocated, size_t reserved, device where) {
    uintptr_t start = (uintptr_t)pointer;
    if (sim_is_device_address(start)) {
        acquire();
        if (size > 0)
            add_block(start, (size_t)size);
        else
            remove_block(start);
        release();
        /* No program reads freed memory. */
        if (size < 0) sim_values_forget(start, (size_t)-size);
    }
    reporter own = pytorchs_own();
    if (own) own(pointer, size, allocated, reserved, where);
}
