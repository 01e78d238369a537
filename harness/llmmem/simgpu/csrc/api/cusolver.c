/* libcusolver: factorisations that succeed and compute nothing.
 *
 * NVIDIA does not document the workspaces of cuSOLVER's routines. The sizes here are a model: what LAPACK documents for the routine of the same name (its optimal LWORK), with blocks of
 * BLOCK columns, and for the Jacobi methods the copies that they rotate. An output "info" is 0:
 * success. */
#include "account/account.h"
#include "account/visible_devices.h"
#include "kernels/copies.h"
#include "kernels/invalidation.h"
#include "streams/streams.h"

#include <stdlib.h>

enum { SUCCESS = 0, ALLOCATION_FAILED = 2 };
enum { BLOCK = 64 };
enum { NO_VECTORS = 0 }; /* cusolverEigMode_t */

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- handles ------------------------------------------------------------------------------------------ */

typedef struct {
    void *stream;
} handle;

static int create(void **object) {
    *object = calloc(1, sizeof(handle));
    return *object ? SUCCESS : ALLOCATION_FAILED;
}

static int destroy(void *object) {
    free(object);
    return SUCCESS;
}

int cusolverDnCreate(void **created) {
    sim_open_context(sim_current_device());
    return create(created);
}

int cusolverDnSetStream(handle *h, void *stream) {
    h->stream = stream;
    sim_submit(stream); /* it is set before a routine is called */
    return SUCCESS;
}

int cusolverDnGetStream(handle *h, void **stream) {
    *stream = h->stream;
    return SUCCESS;
}

int cusolverDnDestroy(void *h) { return destroy(h); }
int cusolverDnCreateParams(void **created) { return create(created); }
int cusolverDnDestroyParams(void *parameters) { return destroy(parameters); }
int cusolverDnCreateGesvdjInfo(void **created) { return create(created); }
int cusolverDnDestroyGesvdjInfo(void *parameters) { return destroy(parameters); }
int cusolverDnCreateSyevjInfo(void **created) { return create(created); }
int cusolverDnDestroySyevjInfo(void *parameters) { return destroy(parameters); }

int cusolverDnXgesvdjSetTolerance(void *parameters, double tolerance) {
    (void)parameters, (void)tolerance;
    return SUCCESS;
}

int cusolverDnXgesvdjSetMaxSweeps(void *parameters, int sweeps) {
    (void)parameters, (void)sweeps;
    return SUCCESS;
}

int cusolverDnXgesvdjSetSortEig(void *parameters, int sorted) {
    (void)parameters, (void)sorted;
    return SUCCESS;
}

/* ---- workspaces, in elements -------------------------------------------------------------------------- */

static int64_t blocked_columns(int64_t columns) { return BLOCK * larger(1, columns); }
static int64_t lu_elements(int64_t m, int64_t n) { return BLOCK * larger(1, larger(m, n)); }

static int64_t eigen_elements(int vectors, int64_t n) {
    int64_t reduction = 2 * n + blocked_columns(n);
    return vectors == NO_VECTORS ? reduction : larger(reduction, 1 + 6 * n + 2 * n * n);
}

static int64_t singular_elements(int64_t m, int64_t n) {
    /* A tall matrix is first made square by a QR factorisation, which is kept. */
    int64_t least = smaller(m, n);
    return least * least + 3 * least + (m + n) * BLOCK;
}

static int64_t jacobi_elements(int64_t m, int64_t n, int64_t batch) {
    int64_t least = smaller(m, n);
    return batch * (m * n + least * least + m + n);
}

static int64_t general_eigen_elements(int64_t n) { return n * n + blocked_columns(n) + 3 * n; }

static int answer(int *elements, int64_t count) {
    if (count > INT32_MAX) return 3; /* CUSOLVER_STATUS_INVALID_VALUE: there the caller takes another routine */
    *elements = (int)count;
    return SUCCESS;
}

/* ---- results ------------------------------------------------------------------------------------------ */

static void written(const void *result) {
    if (result) sim_invalidate((uintptr_t)result);
}

static int done(int *info, int64_t batch) {
    static const int success;
    if (info) sim_set((uintptr_t)info, (size_t)batch * sizeof *info, &success, sizeof success);
    return SUCCESS;
}

/* ---- routines of one type ------------------------------------------------------------------------------ */

#define LU(T)                                                                                                      \
    int cusolverDn##T##getrf_bufferSize(void *h, int m, int n, void *a, int lda, int *elements) {                  \
        (void)h, (void)a, (void)lda;                                                                               \
        return answer(elements, lu_elements(m, n));                                                                \
    }                                                                                                              \
    int cusolverDn##T##getrf(void *h, int m, int n, void *a, int lda, void *work, int *pivots, int *info) {        \
        (void)h, (void)m, (void)n, (void)lda, (void)work;                                                          \
        written(a), written(pivots);                                                                               \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##getrs(void *h, int trans, int n, int columns, const void *a, int lda, const int *pivots,    \
                             void *b, int ldb, int *info) {                                                        \
        (void)h, (void)trans, (void)n, (void)columns, (void)a, (void)lda, (void)pivots, (void)ldb;                 \
        written(b);                                                                                                \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##sytrf_bufferSize(void *h, int n, void *a, int lda, int *elements) {                         \
        (void)h, (void)a, (void)lda;                                                                               \
        return answer(elements, blocked_columns(n));                                                               \
    }                                                                                                              \
    int cusolverDn##T##sytrf(void *h, int half, int n, void *a, int lda, int *pivots, void *work, int elements,    \
                             int *info) {                                                                          \
        (void)h, (void)half, (void)n, (void)lda, (void)work, (void)elements;                                       \
        written(a), written(pivots);                                                                               \
        return done(info, 1);                                                                                      \
    }

#define CHOLESKY(T)                                                                                                \
    int cusolverDn##T##potrf_bufferSize(void *h, int half, int n, void *a, int lda, int *elements) {               \
        (void)h, (void)half, (void)a, (void)lda;                                                                   \
        return answer(elements, blocked_columns(n));                                                               \
    }                                                                                                              \
    int cusolverDn##T##potrf(void *h, int half, int n, void *a, int lda, void *work, int elements, int *info) {    \
        (void)h, (void)half, (void)n, (void)lda, (void)work, (void)elements;                                       \
        written(a);                                                                                                \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##potrs(void *h, int half, int n, int columns, const void *a, int lda, void *b, int ldb,      \
                             int *info) {                                                                          \
        (void)h, (void)half, (void)n, (void)columns, (void)a, (void)lda, (void)ldb;                                \
        written(b);                                                                                                \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##potrfBatched(void *h, int half, int n, void **a, int lda, int *info, int batch) {           \
        (void)h, (void)half, (void)n, (void)a, (void)lda;                                                          \
        return done(info, batch);                                                                                  \
    }                                                                                                              \
    int cusolverDn##T##potrsBatched(void *h, int half, int n, int columns, void **a, int lda, void **b, int ldb,   \
                                    int *info, int batch) {                                                        \
        (void)h, (void)half, (void)n, (void)columns, (void)a, (void)lda, (void)b, (void)ldb, (void)batch;          \
        return done(info, 1);                                                                                      \
    }

/* The Q of a QR factorisation: its own names for real (or) and complex (un) matrices. */
#define QR(T, Q)                                                                                                   \
    int cusolverDn##T##geqrf_bufferSize(void *h, int m, int n, void *a, int lda, int *elements) {                  \
        (void)h, (void)m, (void)a, (void)lda;                                                                      \
        return answer(elements, blocked_columns(n));                                                               \
    }                                                                                                              \
    int cusolverDn##T##geqrf(void *h, int m, int n, void *a, int lda, void *tau, void *work, int elements,         \
                             int *info) {                                                                          \
        (void)h, (void)m, (void)n, (void)lda, (void)work, (void)elements;                                          \
        written(a), written(tau);                                                                                  \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##Q##gqr_bufferSize(void *h, int m, int n, int k, const void *a, int lda, const void *tau,    \
                                         int *elements) {                                                          \
        (void)h, (void)m, (void)k, (void)a, (void)lda, (void)tau;                                                  \
        return answer(elements, blocked_columns(n));                                                               \
    }                                                                                                              \
    int cusolverDn##T##Q##gqr(void *h, int m, int n, int k, void *a, int lda, const void *tau, void *work,         \
                              int elements, int *info) {                                                           \
        (void)h, (void)m, (void)n, (void)k, (void)lda, (void)tau, (void)work, (void)elements;                      \
        written(a);                                                                                                \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##Q##mqr_bufferSize(void *h, int right, int trans, int m, int n, int k, const void *a,        \
                                         int lda, const void *tau, const void *c, int ldc, int *elements) {        \
        (void)h, (void)trans, (void)k, (void)a, (void)lda, (void)tau, (void)c, (void)ldc;                          \
        return answer(elements, blocked_columns(right ? m : n));                                                   \
    }                                                                                                              \
    int cusolverDn##T##Q##mqr(void *h, int right, int trans, int m, int n, int k, const void *a, int lda,          \
                              const void *tau, void *c, int ldc, void *work, int elements, int *info) {            \
        (void)h, (void)right, (void)trans, (void)m, (void)n, (void)k, (void)a, (void)lda, (void)tau, (void)ldc;    \
        (void)work, (void)elements;                                                                                \
        written(c);                                                                                                \
        return done(info, 1);                                                                                      \
    }

/* Eigenvalues of symmetric (sy) and Hermitian (he) matrices. */
#define EIGEN(T, S)                                                                                                \
    int cusolverDn##T##S##evd_bufferSize(void *h, int vectors, int half, int n, const void *a, int lda,            \
                                         const void *w, int *elements) {                                           \
        (void)h, (void)half, (void)a, (void)lda, (void)w;                                                          \
        return answer(elements, eigen_elements(vectors, n));                                                       \
    }                                                                                                              \
    int cusolverDn##T##S##evd(void *h, int vectors, int half, int n, void *a, int lda, void *w, void *work,        \
                              int elements, int *info) {                                                           \
        (void)h, (void)vectors, (void)half, (void)n, (void)lda, (void)work, (void)elements;                        \
        written(a), written(w);                                                                                    \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##S##evj_bufferSize(void *h, int vectors, int half, int n, const void *a, int lda,            \
                                         const void *w, int *elements, void *parameters) {                         \
        (void)h, (void)vectors, (void)half, (void)a, (void)lda, (void)w, (void)parameters;                         \
        return answer(elements, jacobi_elements(n, n, 1));                                                         \
    }                                                                                                              \
    int cusolverDn##T##S##evj(void *h, int vectors, int half, int n, void *a, int lda, void *w, void *work,        \
                              int elements, int *info, void *parameters) {                                         \
        (void)h, (void)vectors, (void)half, (void)n, (void)lda, (void)work, (void)elements, (void)parameters;      \
        written(a), written(w);                                                                                    \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##S##evjBatched_bufferSize(void *h, int vectors, int half, int n, const void *a, int lda,     \
                                                const void *w, int *elements, void *parameters, int batch) {       \
        (void)h, (void)vectors, (void)half, (void)a, (void)lda, (void)w, (void)parameters;                         \
        return answer(elements, jacobi_elements(n, n, batch));                                                     \
    }                                                                                                              \
    int cusolverDn##T##S##evjBatched(void *h, int vectors, int half, int n, void *a, int lda, void *w, void *work, \
                                     int elements, int *info, void *parameters, int batch) {                       \
        (void)h, (void)vectors, (void)half, (void)n, (void)lda, (void)work, (void)elements, (void)parameters;      \
        written(a), written(w);                                                                                    \
        return done(info, batch);                                                                                  \
    }

#define SINGULAR(T)                                                                                                \
    int cusolverDn##T##gesvd_bufferSize(void *h, int m, int n, int *elements) {                                    \
        (void)h;                                                                                                   \
        return answer(elements, singular_elements(m, n));                                                          \
    }                                                                                                              \
    int cusolverDn##T##gesvd(void *h, signed char job_u, signed char job_v, int m, int n, void *a, int lda,        \
                             void *s, void *u, int ldu, void *v, int ldv, void *work, int elements, void *real,    \
                             int *info) {                                                                          \
        (void)h, (void)job_u, (void)job_v, (void)m, (void)n, (void)lda, (void)ldu, (void)ldv, (void)work;          \
        (void)elements, (void)real;                                                                                \
        written(a), written(s), written(u), written(v);                                                            \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##gesvdj_bufferSize(void *h, int vectors, int thin, int m, int n, const void *a, int lda,     \
                                         const void *s, const void *u, int ldu, const void *v, int ldv,            \
                                         int *elements, void *parameters) {                                        \
        (void)h, (void)vectors, (void)thin, (void)a, (void)lda, (void)s, (void)u, (void)ldu, (void)v, (void)ldv;   \
        (void)parameters;                                                                                          \
        return answer(elements, jacobi_elements(m, n, 1));                                                         \
    }                                                                                                              \
    int cusolverDn##T##gesvdj(void *h, int vectors, int thin, int m, int n, void *a, int lda, void *s, void *u,    \
                              int ldu, void *v, int ldv, void *work, int elements, int *info, void *parameters) {  \
        (void)h, (void)vectors, (void)thin, (void)m, (void)n, (void)lda, (void)ldu, (void)ldv, (void)work;         \
        (void)elements, (void)parameters;                                                                          \
        written(a), written(s), written(u), written(v);                                                            \
        return done(info, 1);                                                                                      \
    }                                                                                                              \
    int cusolverDn##T##gesvdjBatched_bufferSize(void *h, int vectors, int m, int n, const void *a, int lda,        \
                                                const void *s, const void *u, int ldu, const void *v, int ldv,     \
                                                int *elements, void *parameters, int batch) {                      \
        (void)h, (void)vectors, (void)a, (void)lda, (void)s, (void)u, (void)ldu, (void)v, (void)ldv;               \
        (void)parameters;                                                                                          \
        return answer(elements, jacobi_elements(m, n, batch));                                                     \
    }                                                                                                              \
    int cusolverDn##T##gesvdjBatched(void *h, int vectors, int m, int n, void *a, int lda, void *s, void *u,       \
                                     int ldu, void *v, int ldv, void *work, int elements, int *info,               \
                                     void *parameters, int batch) {                                                \
        (void)h, (void)vectors, (void)m, (void)n, (void)lda, (void)ldu, (void)ldv, (void)work, (void)elements;     \
        (void)parameters;                                                                                          \
        written(a), written(s), written(u), written(v);                                                            \
        return done(info, batch);                                                                                  \
    }                                                                                                              \
    int cusolverDn##T##gesvdaStridedBatched_bufferSize(                                                            \
        void *h, int vectors, int rank, int m, int n, const void *a, int lda, long long stride_a, const void *s,   \
        long long stride_s, const void *u, int ldu, long long stride_u, const void *v, int ldv,                    \
        long long stride_v, int *elements, int batch) {                                                            \
        (void)h, (void)vectors, (void)rank, (void)a, (void)lda, (void)stride_a, (void)s, (void)stride_s, (void)u;  \
        (void)ldu, (void)stride_u, (void)v, (void)ldv, (void)stride_v;                                             \
        return answer(elements, jacobi_elements(m, n, batch));                                                     \
    }                                                                                                              \
    int cusolverDn##T##gesvdaStridedBatched(void *h, int vectors, int rank, int m, int n, const void *a, int lda,  \
                                            long long stride_a, void *s, long long stride_s, void *u, int ldu,     \
                                            long long stride_u, void *v, int ldv, long long stride_v, void *work,  \
                                            int elements, int *info, double *residuals, int batch) {               \
        (void)h, (void)vectors, (void)rank, (void)m, (void)n, (void)a, (void)lda, (void)stride_a, (void)stride_s;  \
        (void)ldu, (void)stride_u, (void)ldv, (void)stride_v, (void)work, (void)elements;                          \
        written(s), written(u), written(v);                                                                        \
        for (int i = 0; residuals && i < batch; i++) residuals[i] = 0;                                             \
        return done(info, batch);                                                                                  \
    }

#define EVERY_ROUTINE(T, Q, S) LU(T) CHOLESKY(T) QR(T, Q) EIGEN(T, S) SINGULAR(T)
EVERY_ROUTINE(S, or, sy)
EVERY_ROUTINE(D, or, sy)
EVERY_ROUTINE(C, un, he)
EVERY_ROUTINE(Z, un, he)

/* ---- routines that are told their types: workspaces in bytes, on the device and on the host ------------- */

static size_t element_bytes(int type) {
    switch (type) { /* cudaDataType */
        case 1: return 8;  /* CUDA_R_64F */
        case 4: return 8;  /* CUDA_C_32F */
        case 5: return 16; /* CUDA_C_64F */
        default: return 4; /* CUDA_R_32F */
    }
}

static int answer_bytes(size_t *device, size_t *host, int64_t elements, int type) {
    *device = (size_t)elements * element_bytes(type);
    *host = 0;
    return SUCCESS;
}

int cusolverDnXpotrf_bufferSize(void *h, void *parameters, int half, int64_t n, int type, const void *a, int64_t lda,
                                int compute, size_t *device, size_t *host) {
    (void)h, (void)parameters, (void)half, (void)type, (void)a, (void)lda;
    return answer_bytes(device, host, blocked_columns(n), compute);
}

int cusolverDnXpotrf(void *h, void *parameters, int half, int64_t n, int type, void *a, int64_t lda, int compute,
                     void *device, size_t device_bytes, void *host, size_t host_bytes, int *info) {
    (void)h, (void)parameters, (void)half, (void)n, (void)type, (void)lda, (void)compute, (void)device;
    (void)device_bytes, (void)host, (void)host_bytes;
    written(a);
    return done(info, 1);
}

int cusolverDnXpotrs(void *h, void *parameters, int half, int64_t n, int64_t columns, int type_a, const void *a,
                     int64_t lda, int type_b, void *b, int64_t ldb, int *info) {
    (void)h, (void)parameters, (void)half, (void)n, (void)columns, (void)type_a, (void)a, (void)lda, (void)type_b;
    (void)ldb;
    written(b);
    return done(info, 1);
}

int cusolverDnXgeqrf_bufferSize(void *h, void *parameters, int64_t m, int64_t n, int type, const void *a, int64_t lda,
                                int type_tau, const void *tau, int compute, size_t *device, size_t *host) {
    (void)h, (void)parameters, (void)m, (void)type, (void)a, (void)lda, (void)type_tau, (void)tau;
    return answer_bytes(device, host, blocked_columns(n), compute);
}

int cusolverDnXgeqrf(void *h, void *parameters, int64_t m, int64_t n, int type, void *a, int64_t lda, int type_tau,
                     void *tau, int compute, void *device, size_t device_bytes, void *host, size_t host_bytes,
                     int *info) {
    (void)h, (void)parameters, (void)m, (void)n, (void)type, (void)lda, (void)type_tau, (void)compute, (void)device;
    (void)device_bytes, (void)host, (void)host_bytes;
    written(a), written(tau);
    return done(info, 1);
}

int cusolverDnXsyevd_bufferSize(void *h, void *parameters, int vectors, int half, int64_t n, int type, const void *a,
                                int64_t lda, int type_w, const void *w, int compute, size_t *device, size_t *host) {
    (void)h, (void)parameters, (void)half, (void)type, (void)a, (void)lda, (void)type_w, (void)w;
    return answer_bytes(device, host, eigen_elements(vectors, n), compute);
}

int cusolverDnXsyevd(void *h, void *parameters, int vectors, int half, int64_t n, int type, void *a, int64_t lda,
                     int type_w, void *w, int compute, void *device, size_t device_bytes, void *host,
                     size_t host_bytes, int *info) {
    (void)h, (void)parameters, (void)vectors, (void)half, (void)n, (void)type, (void)lda, (void)type_w, (void)compute;
    (void)device, (void)device_bytes, (void)host, (void)host_bytes;
    written(a), written(w);
    return done(info, 1);
}

int cusolverDnXsyevBatched_bufferSize(void *h, void *parameters, int vectors, int half, int64_t n, int type,
                                      const void *a, int64_t lda, int type_w, const void *w, int compute,
                                      size_t *device, size_t *host, int64_t batch) {
    (void)h, (void)parameters, (void)vectors, (void)half, (void)type, (void)a, (void)lda, (void)type_w, (void)w;
    return answer_bytes(device, host, jacobi_elements(n, n, batch), compute);
}

int cusolverDnXsyevBatched(void *h, void *parameters, int vectors, int half, int64_t n, int type, void *a, int64_t lda,
                           int type_w, void *w, int compute, void *device, size_t device_bytes, void *host,
                           size_t host_bytes, int *info, int64_t batch) {
    (void)h, (void)parameters, (void)vectors, (void)half, (void)n, (void)type, (void)lda, (void)type_w, (void)compute;
    (void)device, (void)device_bytes, (void)host, (void)host_bytes;
    written(a), written(w);
    return done(info, batch);
}

int cusolverDnXgeev_bufferSize(void *h, void *parameters, int left, int right, int64_t n, int type, const void *a,
                               int64_t lda, int type_w, const void *w, int type_l, const void *l, int64_t ldl,
                               int type_r, const void *r, int64_t ldr, int compute, size_t *device, size_t *host) {
    (void)h, (void)parameters, (void)left, (void)right, (void)type, (void)a, (void)lda, (void)type_w, (void)w;
    (void)type_l, (void)l, (void)ldl, (void)type_r, (void)r, (void)ldr;
    return answer_bytes(device, host, general_eigen_elements(n), compute);
}

int cusolverDnXgeev(void *h, void *parameters, int left, int right, int64_t n, int type, void *a, int64_t lda,
                    int type_w, void *w, int type_l, void *l, int64_t ldl, int type_r, void *r, int64_t ldr,
                    int compute, void *device, size_t device_bytes, void *host, size_t host_bytes, int *info) {
    (void)h, (void)parameters, (void)left, (void)right, (void)n, (void)type, (void)lda, (void)type_w, (void)type_l;
    (void)ldl, (void)type_r, (void)ldr, (void)compute, (void)device, (void)device_bytes, (void)host;
    (void)host_bytes;
    written(a), written(w), written(l), written(r);
    return done(info, 1);
}

int cusolverDnXsytrs_bufferSize(void *h, int half, int64_t n, int64_t columns, int type_a, const void *a, int64_t lda,
                                const int64_t *pivots, int type_b, void *b, int64_t ldb, size_t *device,
                                size_t *host) {
    (void)h, (void)half, (void)columns, (void)a, (void)lda, (void)pivots, (void)type_b, (void)b, (void)ldb;
    return answer_bytes(device, host, n, type_a);
}

int cusolverDnXsytrs(void *h, int half, int64_t n, int64_t columns, int type_a, const void *a, int64_t lda,
                     const int64_t *pivots, int type_b, void *b, int64_t ldb, void *device, size_t device_bytes,
                     void *host, size_t host_bytes, int *info) {
    (void)h, (void)half, (void)n, (void)columns, (void)type_a, (void)a, (void)lda, (void)pivots, (void)type_b;
    (void)ldb, (void)device, (void)device_bytes, (void)host, (void)host_bytes;
    written(b);
    return done(info, 1);
}
