/* libcublasLt: every matrix product has an algorithm, which needs no workspace of its own and does
 * nothing. Without an algorithm PyTorch would call other functions than on a real card. */
#include "account/account.h"
#include "account/card.h"
#include "account/visible_devices.h"
#include "kernels/invalidation.h"
#include "streams/streams.h"

#include <stdlib.h>
#include <string.h>

/* Descriptors are opaque to the program: room for any of them. */
#define DESCRIPTOR_BYTES 512

typedef struct {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} heuristic_result; /* cublasLtMatmulHeuristicResult_t */

static int create(void **descriptor) {
    *descriptor = calloc(1, DESCRIPTOR_BYTES);
    return *descriptor ? 0 : 3; /* CUBLAS_STATUS_ALLOC_FAILED */
}

static int destroy(void *descriptor) {
    free(descriptor);
    return 0;
}

int cublasLtCreate(void **handle) {
    sim_open_context(sim_current_device());
    return create(handle);
}

int cublasLtMatmulDescCreate(void **descriptor) { return create(descriptor); }
int cublasLtMatrixLayoutCreate(void **descriptor) { return create(descriptor); }
int cublasLtMatmulPreferenceCreate(void **descriptor) { return create(descriptor); }
int cublasLtMatrixTransformDescCreate(void **descriptor) { return create(descriptor); }

int cublasLtDestroy(void *handle) { return destroy(handle); }
int cublasLtMatmulDescDestroy(void *descriptor) { return destroy(descriptor); }
int cublasLtMatrixLayoutDestroy(void *descriptor) { return destroy(descriptor); }
int cublasLtMatmulPreferenceDestroy(void *descriptor) { return destroy(descriptor); }
int cublasLtMatrixTransformDescDestroy(void *descriptor) { return destroy(descriptor); }

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int requested, heuristic_result *results, int *returned) {
    (void)handle;
    (void)operation;
    (void)a;
    (void)b;
    (void)c;
    (void)d;
    (void)preference;
    *returned = requested > 0;
    if (requested > 0) {
        memset(results, 0, sizeof *results);
        results->waves = 1;
    }
    return 0;
}

int cublasLtMatmulAlgoCheck(void *handle, void *operation, void *a, void *b, void *c, void *d, const void *algorithm,
                            heuristic_result *result) {
    (void)algorithm;
    int returned;
    return cublasLtMatmulAlgoGetHeuristic(handle, operation, a, b, c, d, NULL, 1, result, &returned);
}

/* Nothing is computed; what was known of the memory that the result goes to is no longer so. */
int cublasLtMatmul(void *handle, void *operation, const void *alpha, const void *a, void *a_layout, const void *b,
                   void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                   const void *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    (void)handle, (void)operation, (void)alpha, (void)a, (void)a_layout, (void)b, (void)b_layout, (void)beta, (void)c;
    (void)c_layout, (void)d_layout, (void)algorithm, (void)workspace, (void)workspace_bytes;
    sim_submit(stream);
    sim_invalidate((uintptr_t)d);
    return 0;
}

size_t cublasLtGetVersion(void) { return (size_t)sim_get_card()->cublas_version; }
size_t cublasLtGetCudartVersion(void) { return (size_t)sim_get_card()->driver_cuda_version; }
const char *cublasLtGetStatusString(int status) { return status ? "error" : "success"; }
const char *cublasLtGetStatusName(int status) { return status ? "CUBLAS_STATUS_INTERNAL_ERROR" : "CUBLAS_STATUS_SUCCESS"; }
