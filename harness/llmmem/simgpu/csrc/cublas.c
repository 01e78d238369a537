/* libcublas: handles and their settings, and where products are written. All other routines succeed and
 * do nothing (the builder generates them). */
#include "account.h"
#include "effects.h"

#include <stdlib.h>

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
    sim_written((uintptr_t)result);
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

#define DOT(name)                                                                                                  \
    int name(handle *h, int n, const void *x, int step_x, const void *y, int step_y, void *result) {               \
        (void)h, (void)n, (void)x, (void)step_x, (void)y, (void)step_y;                                            \
        return written(result);                                                                                    \
    }
DOT(cublasSdot_v2)
DOT(cublasDdot_v2)
DOT(cublasCdotu_v2)
DOT(cublasCdotc_v2)
DOT(cublasZdotu_v2)
DOT(cublasZdotc_v2)

int cublasDotEx(handle *h, int n, const void *x, int type_x, int step_x, const void *y, int type_y, int step_y,
                void *result) {
    (void)h, (void)n, (void)x, (void)type_x, (void)step_x, (void)y, (void)type_y, (void)step_y;
    return written(result);
}
