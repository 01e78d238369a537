/* libcufft: plans and their work areas. Nothing is transformed.
 *
 * The size of a work area is a model. The documentation gives bounds (cuFFT, "Fourier transform
 * setup"): batch * n[0] * .. * n[rank - 1] complex elements at least, eight times that at most. Lengths
 * whose prime factors have kernels of their own are assumed to need the least; those with a prime above
 * 127 use Bluestein's algorithm and are assumed to need the most. */
#include "account/account.h"
#include "account/visible_devices.h"
#include "kernels/invalidation.h"
#include "streams/streams.h"

#include <pthread.h>
#include <stdlib.h>

enum { SUCCESS = 0, INVALID_PLAN = 1, ALLOCATION_FAILED = 2, INVALID_VALUE = 4 };
/* cudaDataType */
enum { REAL_32 = 0, REAL_64 = 1, REAL_16 = 2, REAL_BF16 = 14 };
enum { COMPLEX_64 = 5, COMPLEX_16 = 6, COMPLEX_BF16 = 15 };
enum { LARGEST_PRIME = 127, MOST_AREAS = 8 };

typedef struct {
    bool used, allocates;
    size_t bytes;
    void *own_area;
} plan;

static plan *plans; /* a handle is an index, counted from 1 */
static int capacity;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void keep_lock_across_fork(void) { pthread_atfork(acquire, release, release); }

static int create(int *handle) {
    int free_slot = 0;
    while (free_slot < capacity && plans[free_slot].used) free_slot++;
    if (free_slot == capacity) {
        plan *larger = realloc(plans, (size_t)(capacity + 64) * sizeof *plans);
        if (!larger) return ALLOCATION_FAILED;
        plans = larger;
        capacity += 64;
        for (int i = free_slot; i < capacity; i++) plans[i].used = false;
    }
    plans[free_slot] = (plan){.used = true, .allocates = true};
    *handle = free_slot + 1;
    return SUCCESS;
}

static plan *find(int handle) {
    return handle >= 1 && handle <= capacity && plans[handle - 1].used ? &plans[handle - 1] : NULL;
}

static void free_area(plan *p) {
    if (p->own_area) sim_release(SIM_DEVICE, (uintptr_t)p->own_area);
    p->own_area = NULL;
}

int cufftCreate(int *handle) {
    sim_open_context(sim_current_device());
    acquire();
    int status = create(handle);
    release();
    return status;
}

int cufftDestroy(int handle) {
    acquire();
    plan *p = find(handle);
    if (p) {
        free_area(p);
        p->used = false;
    }
    release();
    return p ? SUCCESS : INVALID_PLAN;
}

int cufftSetAutoAllocation(int handle, int allocates) {
    acquire();
    plan *p = find(handle);
    if (p) p->allocates = allocates != 0;
    release();
    return p ? SUCCESS : INVALID_PLAN;
}

int cufftSetWorkArea(int handle, void *area) {
    (void)area;
    acquire();
    plan *p = find(handle);
    if (p) free_area(p);
    release();
    return p ? SUCCESS : INVALID_PLAN;
}

int cufftSetStream(int handle, void *stream) {
    sim_submit(stream); /* it is set before a transform */
    acquire();
    plan *p = find(handle);
    release();
    return p ? SUCCESS : INVALID_PLAN;
}

static size_t complex_bytes(int type) {
    switch (type) {
        case REAL_64:
        case COMPLEX_64: return 16;
        case REAL_16:
        case COMPLEX_16:
        case REAL_BF16:
        case COMPLEX_BF16: return 4;
        default: return 8;
    }
}

static bool is_real(int type) { return type == REAL_32 || type == REAL_64 || type == REAL_16 || type == REAL_BF16; }

static long long largest_prime_factor(long long n) {
    long long largest = 1;
    for (long long p = 2; p * p <= n; p++)
        while (n % p == 0) n /= p, largest = p;
    return n > largest ? n : largest;
}

static size_t work_area(int rank, const long long *n, int input, int output, long long batch, int execution) {
    size_t elements = (size_t)batch;
    bool by_bluestein = false;
    for (int i = 0; i < rank; i++) {
        /* Of a real transform half of the last dimension is kept. */
        bool halved = i == rank - 1 && (is_real(input) || is_real(output));
        elements *= (size_t)(halved ? n[i] / 2 + 1 : n[i]);
        by_bluestein |= largest_prime_factor(n[i]) > LARGEST_PRIME;
    }
    return (by_bluestein ? MOST_AREAS : 1) * elements * complex_bytes(execution);
}

int cufftXtMakePlanMany(int handle, int rank, long long *n, long long *in_embed, long long in_stride,
                        long long in_distance, int input, long long *out_embed, long long out_stride,
                        long long out_distance, int output, long long batch, size_t *bytes, int execution) {
    (void)in_embed, (void)in_stride, (void)in_distance, (void)out_embed, (void)out_stride, (void)out_distance;
    if (rank < 1 || rank > 3 || batch < 1) return INVALID_VALUE;
    int status = SUCCESS;
    acquire();
    plan *p = find(handle);
    if (!p) {
        status = INVALID_PLAN;
    } else {
        free_area(p);
        p->bytes = work_area(rank, n, input, output, batch, execution);
        if (p->allocates && p->bytes) {
            p->own_area = (void *)sim_allocate(SIM_DEVICE, p->bytes, sim_current_device());
            if (!p->own_area) status = ALLOCATION_FAILED;
        }
        *bytes = p->bytes;
    }
    release();
    return status;
}

int cufftXtExec(int handle, void *input, void *output, int direction) {
    (void)input, (void)direction;
    acquire();
    plan *p = find(handle);
    release();
    if (!p) return INVALID_PLAN;
    sim_invalidate((uintptr_t)output);
    return SUCCESS;
}
