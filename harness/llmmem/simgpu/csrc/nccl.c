/* libnccl: communicators and collectives of a job whose ranks are all like this one.
 *
 * Nothing is sent. What a rank would receive from another is what this rank would have sent to it, so a
 * broadcast, a gather or a sum gives the rank its own values back: shapes and settings that ranks compare
 * are equal. The buffers that NCCL takes for itself are not there. The structures are those of NCCL 2's
 * documented ABI; its header does not come with every wheel. */
#include "account.h"
#include "copies.h"
#include "visible.h"

#include <stdlib.h>
#include <sys/random.h>

enum { SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4 };

typedef struct {
    int ranks; /* 0 if it is not known: how a communicator is split is decided by all of its ranks */
    int rank;
    int device;
} communicator;

typedef struct {
    char bytes[128];
} unique_id;

/* ---- the library ----------------------------------------------------------------------------------- */

int ncclGetVersion(int *version) {
    *version = sim_get_card()->nccl_version;
    return SUCCESS;
}

const char *ncclGetErrorString(int error) {
    static const char *const texts[] = {"no error",         "unhandled cuda error", "unhandled system error",
                                        "internal error",   "invalid argument",     "invalid usage",
                                        "remote process exited or there was a network error"};
    return error >= 0 && error < (int)(sizeof texts / sizeof *texts) ? texts[error] : "unknown result code";
}

const char *ncclGetLastError(const communicator *c) {
    (void)c;
    return "";
}

/* ---- communicators --------------------------------------------------------------------------------- */

int ncclGetUniqueId(unique_id *id) {
    return getrandom(id->bytes, sizeof id->bytes, 0) == sizeof id->bytes ? SUCCESS : SYSTEM_ERROR;
}

static int create(communicator **created, int ranks, int rank) {
    int device = sim_current_device();
    *created = NULL;
    if (device < 0) return UNHANDLED_CUDA_ERROR;
    sim_open_context(device);
    communicator *c = malloc(sizeof *c);
    if (!c) return SYSTEM_ERROR;
    *c = (communicator){.ranks = ranks, .rank = rank, .device = device};
    *created = c;
    return SUCCESS;
}

int ncclCommInitRank(communicator **created, int ranks, unique_id id, int rank) {
    (void)id;
    return rank < 0 || rank >= ranks ? INVALID_ARGUMENT : create(created, ranks, rank);
}

int ncclCommInitRankConfig(communicator **created, int ranks, unique_id id, int rank, void *config) {
    (void)config;
    return ncclCommInitRank(created, ranks, id, rank);
}

int ncclCommInitRankScalable(communicator **created, int ranks, int rank, int count, unique_id *ids, void *config) {
    (void)config;
    return count < 1 ? INVALID_ARGUMENT : ncclCommInitRank(created, ranks, *ids, rank);
}

/* One process with several devices: a rank for each. */
int ncclCommInitAll(communicator **created, int count, const int *ordinals) {
    int before = sim_current_ordinal(), status = SUCCESS;
    for (int rank = 0; rank < count && status == SUCCESS; rank++) {
        bool found = sim_set_current_ordinal(ordinals ? ordinals[rank] : rank);
        status = found ? create(&created[rank], count, rank) : INVALID_ARGUMENT;
    }
    sim_set_current_ordinal(before);
    return status;
}

int ncclCommSplit(communicator *c, int color, int key, communicator **created, void *config) {
    (void)c;
    (void)config;
    *created = NULL;
    return color < 0 ? SUCCESS : create(created, 0, key); /* below zero: this rank takes no part */
}

int ncclCommFinalize(communicator *c) {
    (void)c;
    return SUCCESS;
}

int ncclCommDestroy(communicator *c) {
    free(c);
    return SUCCESS;
}

int ncclCommAbort(communicator *c) { return ncclCommDestroy(c); }

int ncclCommGetAsyncError(communicator *c, int *error) {
    (void)c;
    *error = SUCCESS;
    return SUCCESS;
}

int ncclCommCount(const communicator *c, int *count) {
    *count = c->ranks;
    return SUCCESS;
}

int ncclCommUserRank(const communicator *c, int *rank) {
    *rank = c->rank;
    return SUCCESS;
}

int ncclCommCuDevice(const communicator *c, int *ordinal) {
    *ordinal = sim_ordinal_of(c->device);
    return SUCCESS;
}

/* ---- memory ---------------------------------------------------------------------------------------- */

int ncclMemAlloc(void **pointer, size_t size) {
    *pointer = (void *)sim_allocate(SIM_DEVICE, size, sim_current_device());
    return *pointer ? SUCCESS : UNHANDLED_CUDA_ERROR;
}

int ncclMemFree(void *pointer) {
    return !pointer || sim_release(SIM_DEVICE, (uintptr_t)pointer) ? SUCCESS : INVALID_ARGUMENT;
}

int ncclCommRegister(const communicator *c, void *buffer, size_t size, void **handle) {
    (void)c;
    (void)size;
    *handle = buffer;
    return SUCCESS;
}

int ncclCommDeregister(const communicator *c, void *handle) {
    (void)c;
    (void)handle;
    return SUCCESS;
}

/* ---- collectives ----------------------------------------------------------------------------------- */

int ncclGroupStart(void) { return SUCCESS; }
int ncclGroupEnd(void) { return SUCCESS; }

int ncclRedOpCreatePreMulSum(int *op, void *scalar, int type, int residence, communicator *c) {
    (void)scalar;
    (void)type;
    (void)residence;
    (void)c;
    *op = 5; /* the first after those that are built in */
    return SUCCESS;
}

int ncclRedOpDestroy(int op, communicator *c) {
    (void)op;
    (void)c;
    return SUCCESS;
}

static size_t bytes_of(size_t count, int type) {
    static const unsigned char widths[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1}; /* ncclDataType_t */
    return type >= 0 && type < (int)sizeof widths ? count * widths[type] : 0;
}

/* The rank's own part goes from one buffer to the other, unless they are the same. */
static int give(void *to, const void *from, size_t n) {
    if (n && to && to != from) sim_copy((uintptr_t)to, (uintptr_t)from, n);
    return SUCCESS;
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, communicator *c, void *stream) {
    (void)op;
    (void)c;
    (void)stream;
    return give(to, from, bytes_of(count, type));
}

int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, communicator *c, void *stream) {
    return c->rank == root ? ncclAllReduce(from, to, count, type, op, c, stream) : SUCCESS;
}

int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, communicator *c, void *stream) {
    (void)root;
    (void)stream;
    (void)c;
    return give(to, from, bytes_of(count, type));
}

int ncclBcast(void *buffer, size_t count, int type, int root, communicator *c, void *stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, c, stream);
}

int ncclAllGather(const void *from, void *to, size_t count, int type, communicator *c, void *stream) {
    (void)stream;
    size_t n = bytes_of(count, type);
    for (int rank = 0; rank < c->ranks; rank++) give((char *)to + (size_t)rank * n, from, n);
    return c->ranks ? SUCCESS : give((char *)to + (size_t)c->rank * n, from, n);
}

int ncclGather(const void *from, void *to, size_t count, int type, int root, communicator *c, void *stream) {
    return c->rank == root ? ncclAllGather(from, to, count, type, c, stream) : SUCCESS;
}

int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, communicator *c, void *stream) {
    (void)op;
    (void)stream;
    size_t n = bytes_of(count, type);
    return give(to, (const char *)from + (size_t)c->rank * n, n);
}

int ncclScatter(const void *from, void *to, size_t count, int type, int root, communicator *c, void *stream) {
    return c->rank == root ? ncclReduceScatter(from, to, count, type, 0, c, stream) : SUCCESS;
}

int ncclAlltoAll(const void *from, void *to, size_t count, int type, communicator *c, void *stream) {
    (void)stream;
    return give(to, from, (size_t)c->ranks * bytes_of(count, type));
}

int ncclSend(const void *from, size_t count, int type, int peer, communicator *c, void *stream) {
    (void)from;
    (void)count;
    (void)type;
    (void)peer;
    (void)c;
    (void)stream;
    return SUCCESS;
}

/* What another stage of a pipeline would send is not known: zeros. */
int ncclRecv(void *to, size_t count, int type, int peer, communicator *c, void *stream) {
    static const unsigned char zero;
    (void)peer;
    (void)c;
    (void)stream;
    sim_set((uintptr_t)to, bytes_of(count, type), &zero, sizeof zero);
    return SUCCESS;
}
