#include "account/account.h"

#include "account/card.h"
#include "account/faults.h"
#include "account/guest.h"
#include "account/ledger.h"
#include "account/processes.h"
#include "account/visible_devices.h"
#include "values/operators.h"
#include "values/values.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Addresses of the devices: one reserved range that is never backed. First fit, lowest first, so
 * that the same program gets the same addresses relative to its start. */
#define ADDRESS_SPACE ((size_t)16 << 40)
#define POOL_STEP ((size_t)32 << 20)
#define POOL_ROUND ((size_t)512)

typedef struct {
    size_t mapped;  /* device memory, whole pages */
    size_t managed; /* managed memory, whole pages; resident as far as there is room */
    size_t peak;
    bool context;
    bool reaches[SIM_MAX_DEVICES]; /* peers whose memory its kernels may use */
    sim_pool pool;
} device_account;

typedef struct {
    uint64_t handle; /* numbers that are never used again, so that an old one is told from a new one */
    size_t size;
    int device;
    int references; /* the program's: it may use the handle while there is one */
    int mappings;
} physical;

typedef struct {
    uintptr_t address;
    size_t size;
    uint64_t handle;
} mapping;

typedef struct {
    void *items;
    size_t count, capacity, width;
} table; /* sorted by address, which is the first member of an item */

static device_account accounts[SIM_MAX_DEVICES];
static uintptr_t space, no_gap_below;
static table regions = {.width = sizeof(sim_region)};
static table physicals = {.width = sizeof(physical)};
static table mappings = {.width = sizeof(mapping)};
static uint64_t last_handle;
static uint64_t allocations;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void keep_lock_across_fork(void) { pthread_atfork(acquire, release, release); }

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/* ---- sorted tables ----------------------------------------------------------------------------- */

static uintptr_t address_of(const table *t, size_t i) {
    return *(const uintptr_t *)((const char *)t->items + i * t->width);
}

/* The number of items that start at or below address. */
static size_t count_up_to(const table *t, uintptr_t address) {
    size_t low = 0, high = t->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (address_of(t, middle) <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void insert(table *t, const void *item) {
    if (t->count == t->capacity) {
        t->capacity = t->capacity ? 2 * t->capacity : 256;
        t->items = realloc(t->items, t->capacity * t->width);
        if (!t->items) abort();
    }
    size_t at = count_up_to(t, *(const uintptr_t *)item);
    char *place = (char *)t->items + at * t->width;
    memmove(place + t->width, place, (t->count - at) * t->width);
    memcpy(place, item, t->width);
    t->count++;
}

static void erase(table *t, size_t i) {
    char *place = (char *)t->items + i * t->width;
    memmove(place, place + t->width, (t->count - i - 1) * t->width);
    t->count--;
}

static sim_region *region_at(size_t i) { return (sim_region *)regions.items + i; }
static physical *physical_at(size_t i) { return (physical *)physicals.items + i; }
static mapping *mapping_at(size_t i) { return (mapping *)mappings.items + i; }

/* ---- figures (call with the lock held) --------------------------------------------------------- */

static size_t context_of(const device_account *a) { return a->context ? sim_get_card()->context_bytes : 0; }

/* What another process holds: what it wants, as far as this one has left it. */
static size_t outside_bytes(const device_account *a) {
    size_t taken = context_of(a) + a->mapped;
    size_t room = sim_get_card()->total_bytes > taken ? sim_get_card()->total_bytes - taken : 0;
    size_t wanted = sim_outside_wants();
    return wanted < room ? wanted : room;
}

/* Managed memory moves to the host when the device needs the room, so it never stands in the way
 * of device memory and counts only as far as it fits beside it. */
static size_t resident_managed(const device_account *a) {
    size_t taken = context_of(a) + a->mapped + outside_bytes(a);
    size_t room = sim_get_card()->total_bytes > taken ? sim_get_card()->total_bytes - taken : 0;
    return a->managed < room ? a->managed : room;
}

static size_t process_bytes(const device_account *a) {
    return context_of(a) + a->mapped + resident_managed(a);
}

/* To be called after every change. */
static void note_change(device_account *a) {
    size_t now = process_bytes(a);
    if (now > a->peak) a->peak = now;
    sim_ledger_note((int)(a - accounts), now);
    sim_publish((int)(a - accounts), now, context_of(a));
}

static bool charge(device_account *a, size_t bytes) {
    size_t taken = context_of(a) + a->mapped + outside_bytes(a);
    if (taken > sim_get_card()->total_bytes || bytes > sim_get_card()->total_bytes - taken) return false;
    a->mapped += bytes;
    note_change(a);
    return true;
}

static void discharge(device_account *a, size_t bytes) {
    a->mapped -= bytes;
    note_change(a);
}

static bool in_use(void) {
    for (int device = 0; device < SIM_MAX_DEVICES; device++)
        if (accounts[device].context) return true;
    return false;
}

static void open_context(int device) {
    device_account *a = &accounts[device];
    if (a->context) return;
    if (!in_use()) {
        sim_put_card_to_use();
        sim_ledger_open();
        sim_invite_guest();
    }
    a->context = true;
    note_change(a);
}

void sim_open_context(int device) {
    if (device < 0) return;
    if (!accounts[device].context) sim_observe_operators();
    acquire();
    open_context(device);
    release();
}

bool sim_host_processes(const char *directory) {
    acquire();
    bool done = sim_share_processes(directory);
    for (int device = 0; done && device < SIM_MAX_DEVICES; device++)
        if (accounts[device].context) note_change(&accounts[device]);
    release();
    return done;
}

bool sim_context_is_open(int device) { return device >= 0 && accounts[device].context; }

bool sim_can_access_peer(int device, int peer) { return sim_get_card()->peer_access && device != peer; }

bool sim_set_peer_access(int device, int peer, bool on) {
    acquire();
    bool changed = accounts[device].reaches[peer] != on;
    accounts[device].reaches[peer] = on;
    if (changed && on) {
        open_context(device);
        open_context(peer);
    }
    release();
    return changed;
}

size_t sim_process_bytes(int device) {
    acquire();
    size_t bytes = process_bytes(&accounts[device]);
    release();
    return bytes;
}

size_t sim_peak_process_bytes(int device) { return accounts[device].peak; }

void sim_reset_peak(int device) {
    acquire();
    accounts[device].peak = process_bytes(&accounts[device]);
    release();
}

size_t sim_outside_bytes(int device) {
    acquire();
    size_t bytes = outside_bytes(&accounts[device]);
    release();
    return bytes;
}

uint64_t sim_allocations(void) {
    acquire();
    uint64_t count = allocations;
    release();
    return count;
}

size_t sim_free_bytes(int device) {
    const device_account *a = &accounts[device];
    acquire();
    size_t taken = process_bytes(a) + outside_bytes(a);
    release();
    return taken < sim_get_card()->total_bytes ? sim_get_card()->total_bytes - taken : 0; /* what is outside may grow meanwhile */
}

/* ---- addresses --------------------------------------------------------------------------------- */

bool sim_is_device_address(uintptr_t address) {
    return space && address >= space && address < space + ADDRESS_SPACE;
}

/* The lowest gap of the reserved range that holds extent bytes, or 0. */
static uintptr_t find_gap(size_t extent) {
    if (!space) {
        /* A page more, as it need not begin where a page of the devices does. */
        void *base = mmap(NULL, ADDRESS_SPACE + SIM_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) return 0;
        space = no_gap_below = round_up((uintptr_t)base, SIM_PAGE);
    }
    uintptr_t at = no_gap_below, end = space + ADDRESS_SPACE;
    for (size_t i = count_up_to(&regions, at - 1); i < regions.count; i++) {
        const sim_region *r = region_at(i);
        if (!sim_is_device_address(r->address)) break;
        if (r->address - at >= extent) break;
        at = r->address + r->extent;
        if (r->address == no_gap_below) no_gap_below = at;
    }
    return at <= end && end - at >= extent ? at : 0;
}

static uintptr_t host_memory(size_t extent) {
    void *p = mmap(NULL, extent, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? 0 : (uintptr_t)p;
}

/* Make room for size bytes in the pool: grow what it holds in steps when they are not there. */
static bool charge_pool(device_account *a, size_t size) {
    sim_pool *pool = &a->pool;
    size_t used = pool->used + round_up(size, POOL_ROUND);
    if (used > pool->reserved) {
        size_t more = round_up(used, POOL_STEP) - pool->reserved;
        if (!charge(a, more)) return false;
        pool->reserved += more;
    }
    pool->used = used;
    if (pool->used > pool->used_high) pool->used_high = pool->used;
    if (pool->reserved > pool->reserved_high) pool->reserved_high = pool->reserved;
    return true;
}

static void trim_pool(device_account *a, size_t keep) {
    sim_pool *pool = &a->pool;
    if (keep >= pool->reserved) return;
    size_t wanted = round_up(pool->used > keep ? pool->used : keep, POOL_STEP);
    if (wanted >= pool->reserved) return;
    discharge(a, pool->reserved - wanted);
    pool->reserved = wanted;
}

static bool is_device_memory(sim_kind kind) { return kind == SIM_DEVICE || kind == SIM_POOL || kind == SIM_MANAGED; }

static bool charge_region(const sim_region *r) {
    device_account *a = &accounts[r->device];
    switch (r->kind) {
        case SIM_DEVICE: return charge(a, r->extent);
        case SIM_POOL: return charge_pool(a, r->size);
        case SIM_MANAGED:
            a->managed += r->extent;
            note_change(a);
            return true;
        default: return true;
    }
}

static void discharge_region(const sim_region *r) {
    device_account *a = &accounts[r->device];
    if (r->kind == SIM_DEVICE) discharge(a, r->extent);
    if (r->kind == SIM_MANAGED) {
        a->managed -= r->extent;
        note_change(a);
    }
    if (r->kind == SIM_POOL) {
        a->pool.used -= round_up(r->size, POOL_ROUND);
        trim_pool(a, a->pool.release_threshold);
    }
}

uintptr_t sim_allocate(sim_kind kind, size_t size, int device) {
    if (size > ADDRESS_SPACE || device < 0) return 0;
    if ((kind == SIM_DEVICE || kind == SIM_POOL) && sim_fault_at_allocation(size)) return 0;
    sim_region r = {.size = size, .extent = round_up(size ? size : 1, SIM_PAGE), .device = device, .kind = kind};
    bool on_host = kind == SIM_MANAGED || kind == SIM_HOST;
    acquire();
    if (kind != SIM_RESERVED) open_context(device);
    bool charged = charge_region(&r);
    if (charged) {
        r.address = on_host ? host_memory(r.extent) : find_gap(r.extent);
        if (r.address) {
            insert(&regions, &r);
            allocations += is_device_memory(kind);
        } else {
            discharge_region(&r);
        }
    }
    release();
    return r.address;
}

static bool is_any_mapped(uintptr_t address, size_t size) {
    size_t i = count_up_to(&mappings, address + size - 1);
    return i > 0 && mapping_at(i - 1)->address + mapping_at(i - 1)->size > address;
}

static bool may_free(sim_kind asked, const sim_region *found) {
    if (asked == SIM_DEVICE) return is_device_memory(found->kind);
    if (asked == SIM_RESERVED && is_any_mapped(found->address, found->extent)) return false;
    return asked == found->kind;
}

bool sim_release(sim_kind kind, uintptr_t address) {
    acquire();
    size_t i = count_up_to(&regions, address);
    bool found = i > 0 && region_at(i - 1)->address == address && may_free(kind, region_at(i - 1));
    if (found) {
        sim_region r = *region_at(i - 1);
        erase(&regions, i - 1);
        discharge_region(&r);
        if (sim_is_device_address(address) && address < no_gap_below) no_gap_below = address;
        if (r.kind == SIM_MANAGED || r.kind == SIM_HOST) munmap((void *)address, r.extent);
        if (r.kind != SIM_REGISTERED) sim_values_forget(address, r.extent);
    }
    release();
    return found;
}

bool sim_register_host(uintptr_t address, size_t size) {
    sim_region r = {.address = address, .size = size, .extent = size, .device = sim_current_device(), .kind = SIM_REGISTERED};
    acquire();
    size_t i = count_up_to(&regions, address + size - 1);
    bool is_free = i == 0 || region_at(i - 1)->address + region_at(i - 1)->extent <= address;
    if (is_free) insert(&regions, &r);
    release();
    return is_free;
}

bool sim_find(uintptr_t address, sim_region *region) {
    acquire();
    size_t i = count_up_to(&regions, address);
    bool found = i > 0 && address - region_at(i - 1)->address < region_at(i - 1)->extent;
    if (found) *region = *region_at(i - 1);
    release();
    return found;
}

/* ---- physical memory apart from addresses ------------------------------------------------------- */

/* What a handle stands for, or NULL. */
static physical *find_physical(uint64_t handle) {
    size_t i = count_up_to(&physicals, handle);
    return i > 0 && physical_at(i - 1)->handle == handle ? physical_at(i - 1) : NULL;
}

/* The same, if the program still holds the handle. */
static physical *held_physical(uint64_t handle) {
    physical *p = find_physical(handle);
    return p && p->references > 0 ? p : NULL;
}

static void give_back_if_unused(physical *p) {
    if (p->references > 0 || p->mappings > 0) return;
    discharge(&accounts[p->device], p->size);
    erase(&physicals, (size_t)(p - physical_at(0)));
}

uint64_t sim_physical_create(size_t size, int device) {
    if (sim_fault_at_allocation(size)) return 0;
    physical p = {.size = size, .device = device, .references = 1};
    acquire();
    open_context(device);
    if (charge(&accounts[device], size)) {
        p.handle = ++last_handle;
        allocations++;
        insert(&physicals, &p);
    }
    release();
    return p.handle;
}

bool sim_physical_retain(uint64_t handle) {
    acquire();
    physical *p = find_physical(handle);
    if (p) p->references++;
    release();
    return p != NULL;
}

bool sim_physical_release(uint64_t handle) {
    acquire();
    physical *p = held_physical(handle);
    if (p) {
        p->references--;
        give_back_if_unused(p);
    }
    release();
    return p != NULL;
}

bool sim_physical_info(uint64_t handle, size_t *size, int *device) {
    acquire();
    const physical *p = held_physical(handle);
    if (p) {
        *size = p->size;
        *device = p->device;
    }
    release();
    return p != NULL;
}

/* Whether all of these addresses are reserved, as one piece. */
static bool are_reserved(uintptr_t address, size_t size) {
    size_t i = count_up_to(&regions, address);
    const sim_region *r = i > 0 ? region_at(i - 1) : NULL;
    return r && r->kind == SIM_RESERVED && size <= r->extent && address - r->address <= r->extent - size;
}

bool sim_physical_map(uintptr_t address, size_t size, uint64_t handle) {
    mapping m = {.address = address, .size = size, .handle = handle};
    acquire();
    physical *p = held_physical(handle);
    bool possible = p && size && size <= p->size && are_reserved(address, size) && !is_any_mapped(address, size);
    if (possible) {
        p->mappings++;
        insert(&mappings, &m);
    }
    release();
    return possible;
}

/* The index after the last of the mappings that are these addresses, from the first one on; or first
 * if they are not whole mappings without a gap. */
static size_t end_of_mappings(size_t first, uintptr_t address, size_t size) {
    uintptr_t at = address;
    size_t i = first;
    while (i < mappings.count && at < address + size && mapping_at(i)->address == at) at += mapping_at(i++)->size;
    return at == address + size ? i : first;
}

bool sim_physical_unmap(uintptr_t address, size_t size) {
    acquire();
    size_t first = address ? count_up_to(&mappings, address - 1) : 0;
    size_t count = end_of_mappings(first, address, size) - first;
    for (size_t i = 0; i < count; i++) {
        physical *p = find_physical(mapping_at(first)->handle);
        erase(&mappings, first);
        p->mappings--;
        give_back_if_unused(p);
    }
    if (count) sim_values_forget(address, size);
    release();
    return count > 0;
}

uint64_t sim_physical_at(uintptr_t address) {
    acquire();
    size_t i = count_up_to(&mappings, address);
    uint64_t handle = 0;
    if (i > 0 && address - mapping_at(i - 1)->address < mapping_at(i - 1)->size) handle = mapping_at(i - 1)->handle;
    release();
    return handle;
}

/* ---- the pool ------------------------------------------------------------------------------------ */

sim_pool *sim_get_pool(int device) { return &accounts[device].pool; }

void sim_pool_trim(int device, size_t keep) {
    acquire();
    trim_pool(&accounts[device], keep);
    release();
}

/* ---- what is not accounted ------------------------------------------------------------------------ */

/* Each figure so far, with the number of the last call that had it. A program has few of them; if there are
 * more, the first entry stands for the largest of the rest. */
static struct {
    int64_t bytes;
    uint64_t last_call;
} attention_figures[64];
static uint64_t attention_calls;

void sim_note_cudnn_attention(size_t bytes) {
    acquire();
    size_t most = sizeof attention_figures / sizeof *attention_figures, i = 0;
    while (i < most && attention_figures[i].last_call && attention_figures[i].bytes != (int64_t)bytes) i++;
    if (i == most) i = 0;
    if ((int64_t)bytes > attention_figures[i].bytes) attention_figures[i].bytes = (int64_t)bytes;
    attention_figures[i].last_call = ++attention_calls;
    release();
}

uint64_t sim_cudnn_attention_calls(void) { return attention_calls; }

int64_t sim_cudnn_attention_unknown(uint64_t since) {
    int64_t largest = -1;
    acquire();
    for (size_t i = 0; i < sizeof attention_figures / sizeof *attention_figures; i++)
        if (attention_figures[i].last_call > since && attention_figures[i].bytes > largest)
            largest = attention_figures[i].bytes;
    release();
    return largest;
}
