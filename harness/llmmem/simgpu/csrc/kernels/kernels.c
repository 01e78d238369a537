#include "kernels/kernels.h"

#include "account/account.h"
#include "account/card.h"
#include "account/faults.h"
#include "account/visible_devices.h"
#include "kernels/invalidation.h"
#include "kernels/parameters.h"
#include "values/operators.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const void *wrapper;
    int architecture; /* -1: not determined yet */
} module;

typedef struct {
    const void *host_function;
    const char *name;
    module *module;
    const sim_cubin *cubin; /* of one that was loaded at run time */
    uint64_t pointers; /* sim_read_pointers of its name */
    bool has_pointers; /* whether pointers is set */
} kernel;

static kernel **kernels; /* a hash table with open addressing, by host function; entries never move */
static size_t kernel_count, kernel_slots;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void keep_lock_across_fork(void) { pthread_atfork(acquire, release, release); }

/* ---- the table ---------------------------------------------------------------------------------- */

static size_t slot_of(const void *host_function, size_t slots) {
    uint64_t hash = (uint64_t)(uintptr_t)host_function * 0x9E3779B97F4A7C15u;
    return (size_t)(hash >> 20) & (slots - 1);
}

/* The slot of a kernel, or the free slot for it. */
static kernel **slot_for(const void *host_function) {
    size_t i = slot_of(host_function, kernel_slots);
    while (kernels[i] && kernels[i]->host_function != host_function) i = (i + 1) & (kernel_slots - 1);
    return &kernels[i];
}

static kernel *find(const void *host_function) {
    acquire();
    kernel *found = kernel_slots ? *slot_for(host_function) : NULL;
    release();
    return found;
}

static void place(kernel *k) {
    kernel **slot = slot_for(k->host_function);
    if (!*slot) kernel_count++;
    *slot = k; /* a replaced entry may be in use */
}

static void grow(void) {
    kernel **old = kernels;
    size_t old_slots = kernel_slots;
    kernel_slots = old_slots ? 2 * old_slots : 1 << 14;
    kernels = calloc(kernel_slots, sizeof *kernels);
    if (!kernels) abort();
    kernel_count = 0;
    for (size_t i = 0; i < old_slots; i++)
        if (old[i]) place(old[i]);
    free(old);
}

void *sim_register_module(const void *wrapper) {
    module *m = malloc(sizeof *m);
    if (!m) abort();
    *m = (module){.wrapper = wrapper, .architecture = -1};
    return m;
}

static void add(kernel k) {
    kernel *added = malloc(sizeof *added);
    if (!added) abort();
    *added = k;
    acquire();
    if (2 * (kernel_count + 1) > kernel_slots) grow();
    place(added);
    release();
}

void sim_register_kernel(void *registered, const void *host_function, const char *name) {
    add((kernel){.host_function = host_function, .name = name, .module = registered});
}

void sim_register_loaded_kernel(const void *function, const char *name, const sim_cubin *cubin) {
    add((kernel){.host_function = function, .name = name, .cubin = cubin});
}

const sim_cubin *sim_kernel_cubin(const void *function) {
    kernel *k = find(function);
    return k ? k->cubin : NULL;
}

const char *sim_kernel_name(const void *host_function) {
    kernel *k = find(host_function);
    return k ? k->name : NULL;
}

/* ---- architectures ------------------------------------------------------------------------------ */

/* A fat binary: a header, then entries (PTX or machine code for one architecture each). Only the fields that
 * are used have meaningful names. simgpu/coverage.py checks that the installed libraries have this layout. */
typedef struct {
    uint32_t magic, version;
    const unsigned char *data;
} fatbin_wrapper;

typedef struct {
    uint32_t magic;
    uint16_t version, header_size;
    uint64_t size;
} fatbin_header;

typedef struct {
    uint16_t kind, unused1;
    uint32_t header_size;
    uint64_t size;
    uint32_t unused2[3];
    uint32_t architecture;
} fatbin_entry;

#define WRAPPER_MAGIC 0x466243B1u
#define FATBIN_MAGIC 0xBA55ED50u
#define KIND_PTX 1

/* PTX runs on any later card; machine code on cards of the same major version and no lower minor version. */
static bool runs_here(const fatbin_entry *e) {
    const sim_card *card = sim_get_card();
    int capability = 10 * card->major + card->minor;
    int architecture = (int)e->architecture;
    if (architecture > capability) return false;
    return e->kind == KIND_PTX || architecture / 10 == card->major;
}

static int best_architecture(const fatbin_wrapper *wrapper) {
    if (!wrapper || wrapper->magic != WRAPPER_MAGIC) return 0;
    fatbin_header header;
    memcpy(&header, wrapper->data, sizeof header);
    if (header.magic != FATBIN_MAGIC) return 0;
    const unsigned char *at = wrapper->data + header.header_size;
    const unsigned char *end = at + header.size;
    int best = 0;
    while (at + sizeof(fatbin_entry) <= end) {
        fatbin_entry e;
        memcpy(&e, at, sizeof e);
        if (e.header_size < sizeof e) break;
        if (runs_here(&e) && (int)e.architecture > best) best = (int)e.architecture;
        at += e.header_size + e.size;
    }
    return best;
}

static int architecture_of(const kernel *k) {
    if (!k->module) return 10 * sim_get_card()->major + sim_get_card()->minor;
    if (k->module->architecture < 0) k->module->architecture = best_architecture(k->module->wrapper);
    return k->module->architecture;
}

int sim_kernel_architecture(const void *host_function) {
    kernel *k = find(host_function);
    return k ? architecture_of(k) : 0;
}

/* ---- launches ------------------------------------------------------------------------------------ */

/* Only the sizes of the parameters are known: the kernel may write to every device address in them. */
static void forget_all(const sim_cubin *cubin, void **arguments) {
    for (size_t i = 0; i < cubin->parameter_count; i++)
        for (size_t at = 0; at + sizeof(uintptr_t) <= cubin->parameter_sizes[i]; at += sizeof(uintptr_t)) {
            uintptr_t word;
            memcpy(&word, (char *)arguments[i] + at, sizeof word);
            if (sim_is_device_address(word)) sim_invalidate(word);
        }
}

/* Without the lock: demangling may load a library, whose kernels are registered under it. */
static void look_up_pointers(kernel *k) {
    uint64_t pointers = sim_read_pointers(k->name);
    acquire();
    k->pointers = pointers;
    __atomic_store_n(&k->has_pointers, true, __ATOMIC_RELEASE);
    release();
}

/* Forget what a kernel may write. The observer handles the kernels of PyTorch's operators. */
static void forget_written(kernel *k, void **arguments) {
    if (k->cubin) {
        forget_all(k->cubin, arguments);
        return;
    }
    if (!__atomic_load_n(&k->has_pointers, __ATOMIC_ACQUIRE)) look_up_pointers(k);
    for (uint64_t left = k->pointers; left; left &= left - 1)
        sim_invalidate(*(uintptr_t *)arguments[__builtin_ctzll(left)]);
}

int sim_launch(const void *host_function, void **arguments) {
    sim_open_context(sim_current_device());
    kernel *k = find(host_function);
    if (!k) return SIM_INVALID_FUNCTION;
    if (!architecture_of(k)) return SIM_NO_KERNEL_IMAGE;
    int broken = sim_fault_at_launch();
    if (broken) return broken;
    if (arguments && !sim_in_operator()) forget_written(k, arguments);
    return SIM_LAUNCHED;
}

static _Thread_local sim_launch_configuration pushed[8];
static _Thread_local int depth;

void sim_push_configuration(sim_launch_configuration configuration) {
    if (depth < (int)(sizeof pushed / sizeof *pushed)) pushed[depth++] = configuration;
}

sim_launch_configuration sim_pop_configuration(void) {
    if (depth > 0) depth--;
    return pushed[depth];
}
