#include "account/account.h"

#include "account/faults.h"
#include "account/guest.h"
#include "account/ledger.h"
#include "values/operators.h"
#include "account/processes.h"
#include "values/values.h"
#include "account/visible.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

static sim_card card;
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

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/* ---- the card ---------------------------------------------------------------------------------- */

static bool set_field(const char *key, const char *value) {
    const struct {
        const char *name;
        int *integer;
        size_t *bytes;
    } numbers[] = {
        {"count", &card.count, NULL},
        {"major", &card.major, NULL},
        {"minor", &card.minor, NULL},
        {"sm_count", &card.sm_count, NULL},
        {"total_bytes", NULL, &card.total_bytes},
        {"nvml_total_bytes", NULL, &card.nvml_total_bytes},
        {"shared_per_block_optin", NULL, &card.shared_per_block_optin},
        {"shared_per_sm", NULL, &card.shared_per_sm},
        {"threads_per_sm", &card.threads_per_sm, NULL},
        {"blocks_per_sm", &card.blocks_per_sm, NULL},
        {"l2_bytes", NULL, &card.l2_bytes},
        {"memory_bus_bits", &card.memory_bus_bits, NULL},
        {"context_bytes", NULL, &card.context_bytes},
        {"peer_access", &card.peer_access, NULL},
        {"driver_cuda_version", &card.driver_cuda_version, NULL},
        {"cublas_version", &card.cublas_version, NULL},
        {"cudnn_version", &card.cudnn_version, NULL},
        {"nccl_version", &card.nccl_version, NULL},
        {"late_side_streams", &card.late_side_streams, NULL},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(key, numbers[i].name) != 0) continue;
        char *end;
        unsigned long long number = strtoull(value, &end, 10);
        if (end == value || *end) return false;
        if (numbers[i].integer == &card.count && (number < 1 || number > SIM_MAX_DEVICES)) return false;
        if (numbers[i].integer) *numbers[i].integer = (int)number;
        if (numbers[i].bytes) *numbers[i].bytes = (size_t)number;
        return true;
    }
    const struct {
        const char *name;
        char *text;
        size_t size;
    } texts[] = {
        {"name", card.name, sizeof card.name},
        {"title", card.title, sizeof card.title},
        {"driver_version", card.driver_version, sizeof card.driver_version},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(key, texts[i].name) != 0) continue;
        snprintf(texts[i].text, texts[i].size, "%s", value);
        return true;
    }
    return false;
}

static bool in_use(void) {
    for (int device = 0; device < SIM_MAX_DEVICES; device++)
        if (accounts[device].context) return true;
    return false;
}

/* How many devices a program was told there are, which PyTorch asks once and remembers; 0 before. */
static int told_count;

int sim_device_count(void) { return told_count = card.count; }

int sim_read_fields(const char *text, bool (*set)(const char *key, const char *value)) {
    char field[256];
    int number = 0;
    while (*text) {
        size_t length = strcspn(text, ";");
        number++;
        if (length >= sizeof field) return number;
        memcpy(field, text, length);
        field[length] = 0;
        char *equals = strchr(field, '=');
        if (!equals) return number;
        *equals = 0;
        if (!set(field, equals + 1)) return number;
        text += length + (text[length] == ';');
    }
    return 0;
}

int sim_configure(const char *text) {
    if (in_use()) return -1;
    sim_card before = card;
    int bad = sim_read_fields(text, set_field);
    bool fits = card.count >= 1 && (!told_count || card.count == told_count);
    if (bad || !fits) {
        card = before;
        return bad ? bad : -1;
    }
    sim_forget_visible();
    return 0;
}

/* A program started with the libraries preloaded finds its card in the environment. */
__attribute__((constructor)) static void configure_from_environment(void) {
    const char *text = getenv("LLMMEM_SIMULATED_GPU");
    if (text) {
        int bad = sim_configure(text);
        if (bad) {
            fprintf(stderr, "llmmem: invalid LLMMEM_SIMULATED_GPU '%s' (field %d): leave it as llmmem has set it\n",
                    text, bad);
            _exit(2);
        }
    }
    pthread_atfork(acquire, release, release);
}

const sim_card *sim_get_card(void) { return &card; }

void sim_uuid(int device, unsigned char uuid[16]) {
    static const unsigned char base[16] = {0x73, 0x69, 0x6d, 0x75, 0x6c, 0x61, 0x74, 0x65,
                                           0x64, 0x67, 0x70, 0x75, 0, 0, 0, 0};
    memcpy(uuid, base, 16);
    uuid[3] = (unsigned char)device;
}

void sim_uuid_text(int device, char text[SIM_UUID_TEXT]) {
    unsigned char b[16];
    sim_uuid(device, b);
    snprintf(text, SIM_UUID_TEXT, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

int sim_bus_number(int device) { return device + 1; }

int sim_device_at_bus(const char *place) {
    unsigned int domain, bus, slot;
    if (sscanf(place, "%x:%x:%x", &domain, &bus, &slot) != 3 || domain || slot) return -1;
    int device = (int)bus - 1;
    return device >= 0 && device < card.count ? device : -1;
}

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

static size_t context_of(const device_account *a) { return a->context ? card.context_bytes : 0; }

/* What another process holds: what it wants, as far as this one has left it. */
static size_t outside_bytes(const device_account *a) {
    size_t taken = context_of(a) + a->mapped;
    size_t room = card.total_bytes > taken ? card.total_bytes - taken : 0;
    size_t wanted = sim_outside_wants();
    return wanted < room ? wanted : room;
}

/* Managed memory moves to the host when the device needs the room, so it never stands in the way
 * of device memory and counts only as far as it fits beside it. */
static size_t resident_managed(const device_account *a) {
    size_t taken = context_of(a) + a->mapped + outside_bytes(a);
    size_t room = card.total_bytes > taken ? card.total_bytes - taken : 0;
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
    if (taken > card.total_bytes || bytes > card.total_bytes - taken) return false;
    a->mapped += bytes;
    note_change(a);
    return true;
}

static void discharge(device_account *a, size_t bytes) {
    a->mapped -= bytes;
    note_change(a);
}

static void open_context(int device) {
    device_account *a = &accounts[device];
    if (a->context) return;
    if (!in_use()) {
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

bool sim_can_access_peer(int device, int peer) { return card.peer_access && device != peer; }

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
    return taken < card.total_bytes ? card.total_bytes - taken : 0; /* what is outside may grow meanwhile */
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

static int64_t cudnn_attention_unknown = -1;

void sim_note_cudnn_attention(size_t bytes) {
    acquire();
    if ((int64_t)bytes > cudnn_attention_unknown) cudnn_attention_unknown = (int64_t)bytes;
    release();
}

int64_t sim_cudnn_attention_unknown(void) { return cudnn_attention_unknown; }
