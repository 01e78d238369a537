/* libcublas: handles and their settings, and where products are written. All other routines succeed and
 * do nothing (the builder generates them). */
#include "account/account.h"
#include "account/card.h"
#include "account/visible_devices.h"
#include "kernels/copies.h"
#include "kernels/invalidation.h"
#include "streams/streams.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    void *stream;
    int math_mode;
    int pointer_mode;
    int atomics_mode;
} handle;

int cublasCreate_v2(handle **created) {
    sim_open_context(sim_current_device());
    *created = calloc(1, sizeof **created);
    return *created ? 0 : 3; /* CUBLAS_STATUS_ALLOC_FAILED */
}

int cublasDestroy_v2(handle *h) {
    free(h);
    return 0;
}

int cublasGetVersion_v2(handle *h, int *version) {
    (void)h;
    *version = sim_get_card()->cublas_version;
    return 0;
}

/* type: 0 major, 1 minor, 2 patch (libraryPropertyType) */
int cublasGetProperty(int type, int *value) {
    int version = sim_get_card()->cublas_version;
    *value = type == 0 ? version / 10000 : type == 1 ? version / 100 % 100 : version % 100;
    return 0;
}

size_t cublasGetCudartVersion(void) { return (size_t)sim_get_card()->driver_cuda_version; }

int cublasSetStream_v2(handle *h, void *stream) {
    h->stream = stream;
    sim_submit(stream); /* it is set before a routine is called */
    return 0;
}

int cublasGetStream_v2(handle *h, void **stream) {
    *stream = h->stream;
    return 0;
}

int cublasSetMathMode(handle *h, int mode) {
    h->math_mode = mode;
    return 0;
}

int cublasGetMathMode(handle *h, int *mode) {
    *mode = h->math_mode;
    return 0;
}

int cublasSetPointerMode_v2(handle *h, int mode) {
    h->pointer_mode = mode;
    return 0;
}

int cublasGetPointerMode_v2(handle *h, int *mode) {
    *mode = h->pointer_mode;
    return 0;
}

int cublasSetAtomicsMode(handle *h, int mode) {
    h->atomics_mode = mode;
    return 0;
}

int cublasGetAtomicsMode(handle *h, int *mode) {
    *mode = h->atomics_mode;
    return 0;
}

const char *cublasGetStatusString(int status) { return status ? "error" : "success"; }
const char *cublasGetStatusName(int status) { return status ? "CUBLAS_STATUS_INTERNAL_ERROR" : "CUBLAS_STATUS_SUCCESS"; }

/* ---- products ---------------------------------------------------------------------------------------- */

/* Nothing is computed; what was known of the memory that the result goes to is no longer so. */
static int written(void *result) {
    sim_invalidate((uintptr_t)result);
    return 0;
}

#define GEMM(name)                                                                                                 \
    int name(handle *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int lda,            \
             const void *b, int ldb, const void *beta, void *c, int ldc) {                                         \
        (void)h, (void)ta, (void)tb, (void)m, (void)n, (void)k, (void)alpha, (void)a, (void)lda;                   \
        (void)b, (void)ldb, (void)beta, (void)ldc;                                                                 \
        return written(c);                                                                                         \
    }
GEMM(cublasSgemm_v2)
GEMM(cublasDgemm_v2)
GEMM(cublasCgemm_v2)
GEMM(cublasZgemm_v2)

#define STRIDED_GEMM(name)                                                                                         \
    int name(handle *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int lda,            \
             long long stride_a, const void *b, int ldb, long long stride_b, const void *beta, void *c) {          \
        (void)h, (void)ta, (void)tb, (void)m, (void)n, (void)k, (void)alpha, (void)a, (void)lda;                   \
        (void)stride_a, (void)b, (void)ldb, (void)stride_b, (void)beta;                                            \
        return written(c);                                                                                         \
    }
STRIDED_GEMM(cublasSgemmStridedBatched)
STRIDED_GEMM(cublasDgemmStridedBatched)
STRIDED_GEMM(cublasCgemmStridedBatched)
STRIDED_GEMM(cublasZgemmStridedBatched)

#define TYPED_GEMM(name)                                                                                           \
    int name(handle *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type_a,         \
             int lda, const void *b, int type_b, int ldb, const void *beta, void *c) {                             \
        (void)h, (void)ta, (void)tb, (void)m, (void)n, (void)k, (void)alpha, (void)a, (void)type_a, (void)lda;     \
        (void)b, (void)type_b, (void)ldb, (void)beta;                                                              \
        return written(c);                                                                                         \
    }
TYPED_GEMM(cublasGemmEx)
TYPED_GEMM(cublasSgemmEx)

int cublasGemmStridedBatchedEx(handle *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                               int type_a, int lda, long long stride_a, const void *b, int type_b, int ldb,
                               long long stride_b, const void *beta, void *c) {
    (void)h, (void)ta, (void)tb, (void)m, (void)n, (void)k, (void)alpha, (void)a, (void)type_a, (void)lda;
    (void)stride_a, (void)b, (void)type_b, (void)ldb, (void)stride_b, (void)beta;
    return written(c);
}

#define GEMV(name)                                                                                                 \
    int name(handle *h, int trans, int m, int n, const void *alpha, const void *a, int lda, const void *x,         \
             int step_x, const void *beta, void *y) {                                                              \
        (void)h, (void)trans, (void)m, (void)n, (void)alpha, (void)a, (void)lda, (void)x, (void)step_x;            \
        (void)beta;                                                                                                \
        return written(y);                                                                                         \
    }
GEMV(cublasSgemv_v2)
GEMV(cublasDgemv_v2)
GEMV(cublasCgemv_v2)
GEMV(cublasZgemv_v2)

/* ---- numbers and codes that the program looks at ------------------------------------------------------ */

enum { HOST_POINTERS = 0 };

static const unsigned char zero[16]; /* of any type */

/* A result goes where the handle's pointer mode says. */
static int number(handle *h, void *result, const void *value, size_t size) {
    if (h->pointer_mode == HOST_POINTERS)
        memcpy(result, value, size);
    else
        sim_invalidate((uintptr_t)result);
    return 0;
}

#define DOT(name, size)                                                                                            \
    int name(handle *h, int n, const void *x, int step_x, const void *y, int step_y, void *result) {               \
        (void)n, (void)x, (void)step_x, (void)y, (void)step_y;                                                     \
        return number(h, result, zero, size);                                                                      \
    }
DOT(cublasSdot_v2, 4)
DOT(cublasDdot_v2, 8)
DOT(cublasCdotu_v2, 8)
DOT(cublasCdotc_v2, 8)
DOT(cublasZdotu_v2, 16)
DOT(cublasZdotc_v2, 16)

static size_t element_bytes(int type) {
    switch (type) { /* cudaDataType */
        case 2:          /* CUDA_R_16F */
        case 14: return 2; /* CUDA_R_16BF */
        case 1:          /* CUDA_R_64F */
        case 4: return 8;  /* CUDA_C_32F */
        case 5: return 16; /* CUDA_C_64F */
        default: return 4; /* CUDA_R_32F */
    }
}

int cublasDotEx(handle *h, int n, const void *x, int type_x, int step_x, const void *y, int type_y, int step_y,
                void *result, int type) {
    (void)n, (void)x, (void)type_x, (void)step_x, (void)y, (void)type_y, (void)step_y;
    return number(h, result, zero, element_bytes(type));
}

#define NORM(name, type)                                                                                           \
    int name(handle *h, int n, const void *x, int step, type *result) {                                            \
        (void)n, (void)x, (void)step;                                                                              \
        return number(h, result, zero, sizeof(type));                                                              \
    }
NORM(cublasSnrm2_v2, float)
NORM(cublasDnrm2_v2, double)
NORM(cublasScnrm2_v2, float)
NORM(cublasDznrm2_v2, double)
NORM(cublasSasum_v2, float)
NORM(cublasDasum_v2, double)
NORM(cublasScasum_v2, float)
NORM(cublasDzasum_v2, double)

/* The first of n equal values, counted from 1. */
#define EXTREME(name)                                                                                              \
    int name(handle *h, int n, const void *x, int step, int *result) {                                             \
        (void)x, (void)step;                                                                                       \
        const int first = n > 0;                                                                                   \
        return number(h, result, &first, sizeof first);                                                            \
    }
EXTREME(cublasIsamax_v2)
EXTREME(cublasIdamax_v2)
EXTREME(cublasIcamax_v2)
EXTREME(cublasIzamax_v2)
EXTREME(cublasIsamin_v2)
EXTREME(cublasIdamin_v2)
EXTREME(cublasIcamin_v2)
EXTREME(cublasIzamin_v2)

/* Where a routine says how it went, it says that all is well. */
static int succeeded(int *info, int count) {
    static const int success;
    if (info) sim_set((uintptr_t)info, (size_t)count * sizeof *info, &success, sizeof success);
    return 0;
}

#define BATCHED_FACTORISATIONS(T)                                                                                  \
    int cublas##T##getrfBatched(handle *h, int n, void **a, int lda, int *pivots, int *info, int batch) {          \
        (void)h, (void)n, (void)a, (void)lda;                                                                      \
        if (pivots) sim_invalidate((uintptr_t)pivots);                                                                \
        return succeeded(info, batch);                                                                             \
    }                                                                                                              \
    int cublas##T##getrsBatched(handle *h, int trans, int n, int columns, void **a, int lda, const int *pivots,    \
                                void **b, int ldb, int *info, int batch) {                                         \
        (void)h, (void)trans, (void)n, (void)columns, (void)a, (void)lda, (void)pivots, (void)b, (void)ldb;        \
        (void)batch;                                                                                               \
        return succeeded(info, 1);                                                                                 \
    }                                                                                                              \
    int cublas##T##geqrfBatched(handle *h, int m, int n, void **a, int lda, void **tau, int *info, int batch) {    \
        (void)h, (void)m, (void)n, (void)a, (void)lda, (void)tau, (void)batch;                                     \
        return succeeded(info, 1);                                                                                 \
    }                                                                                                              \
    int cublas##T##gelsBatched(handle *h, int trans, int m, int n, int columns, void **a, int lda, void **c,       \
                               int ldc, int *info, int *device_info, int batch) {                                  \
        (void)h, (void)trans, (void)m, (void)n, (void)columns, (void)a, (void)lda, (void)c, (void)ldc;             \
        succeeded(device_info, batch);                                                                             \
        return succeeded(info, 1);                                                                                 \
    }
BATCHED_FACTORISATIONS(S)
BATCHED_FACTORISATIONS(D)
BATCHED_FACTORISATIONS(C)
BATCHED_FACTORISATIONS(Z)

/* ---- copies: columns of a matrix, elements of a vector ------------------------------------------------- */

static int copy_matrix(int rows, int columns, int size, const void *from, int from_lead, void *to, int to_lead) {
    size_t bytes = (size_t)size;
    sim_copy_2d((uintptr_t)to, (size_t)to_lead * bytes, (uintptr_t)from, (size_t)from_lead * bytes,
                (size_t)rows * bytes, (size_t)columns);
    return 0;
}

#define COPY_MATRIX(name)                                                                                          \
    int name(int rows, int columns, int size, const void *from, int from_lead, void *to, int to_lead, void *s) {   \
        (void)s;                                                                                                   \
        return copy_matrix(rows, columns, size, from, from_lead, to, to_lead);                                     \
    }
COPY_MATRIX(cublasGetMatrixAsync)
COPY_MATRIX(cublasSetMatrixAsync)

#define COPY_VECTOR(name)                                                                                          \
    int name(int n, int size, const void *from, int from_step, void *to, int to_step, void *s) {                   \
        (void)s;                                                                                                   \
        return copy_matrix(1, n, size, from, from_step, to, to_step);                                              \
    }
COPY_VECTOR(cublasGetVectorAsync)
COPY_VECTOR(cublasSetVectorAsync)
