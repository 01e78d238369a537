/* libcusparse: descriptors, and products and solutions that are not computed.
 *
 * Three results depend on data and follow a rule instead: the number of entries of a sum (as if no two
 * entries coincided) and of a product of sparse matrices (as if the entries were spread evenly), and that no
 * pivot is zero. NVIDIA does not document work areas. A sort is assumed to need a second copy of its input;
 * all other routines are assumed to need none. */
#include "account/account.h"
#include "account/visible_devices.h"
#include "kernels/invalidation.h"
#include "streams/streams.h"

#include <stdlib.h>

enum { SUCCESS = 0, ALLOCATION_FAILED = 2 };

/* ---- handles and descriptors ---------------------------------------------------------------------------- */

typedef struct {
    void *stream;
    int pointer_mode;
} handle;

typedef struct {
    int64_t rows, columns, entries;
    void *values;
} matrix; /* sparse or dense; a vector is one column */

typedef struct {
    int type, fill, diagonal, base;
} properties; /* cusparseMatDescr_t */

static int create(void **object, size_t size) {
    *object = calloc(1, size);
    return *object ? SUCCESS : ALLOCATION_FAILED;
}

static int destroy(void *object) {
    free(object);
    return SUCCESS;
}

static int create_matrix(matrix **created, int64_t rows, int64_t columns, int64_t entries, void *values) {
    int status = create((void **)created, sizeof(matrix));
    if (status == SUCCESS) **created = (matrix){rows, columns, entries, values};
    return status;
}

static int written(void *result) {
    if (result) sim_invalidate((uintptr_t)result);
    return SUCCESS;
}

int cusparseCreate(void **created) {
    sim_open_context(sim_current_device());
    return create(created, sizeof(handle));
}

int cusparseSetStream(handle *h, void *stream) {
    h->stream = stream;
    sim_submit(stream); /* it is set before a routine is called */
    return SUCCESS;
}

int cusparseSetPointerMode(handle *h, int mode) {
    h->pointer_mode = mode;
    return SUCCESS;
}

const char *cusparseGetErrorString(int status) {
    return status ? "not supported on a simulated GPU: use dense tensors, or the CPU" : "success";
}

const char *cusparseGetErrorName(int status) {
    return status ? "CUSPARSE_STATUS_NOT_SUPPORTED" : "CUSPARSE_STATUS_SUCCESS";
}

int cusparseCreateMatDescr(void **created) { return create(created, sizeof(properties)); }
int cusparseCreateBsrsv2Info(void **created) { return create(created, 1); }
int cusparseCreateBsrsm2Info(void **created) { return create(created, 1); }
int cusparseSpGEMM_createDescr(void **created) { return create(created, 1); }
int cusparseSpSV_createDescr(void **created) { return create(created, 1); }
int cusparseSpSM_createDescr(void **created) { return create(created, 1); }

int cusparseDestroy(void *h) { return destroy(h); }
int cusparseDestroyMatDescr(void *descriptor) { return destroy(descriptor); }
int cusparseDestroyBsrsv2Info(void *info) { return destroy(info); }
int cusparseDestroyBsrsm2Info(void *info) { return destroy(info); }
int cusparseSpGEMM_destroyDescr(void *descriptor) { return destroy(descriptor); }
int cusparseSpSV_destroyDescr(void *descriptor) { return destroy(descriptor); }
int cusparseSpSM_destroyDescr(void *descriptor) { return destroy(descriptor); }
int cusparseDestroySpMat(void *descriptor) { return destroy(descriptor); }
int cusparseDestroyDnMat(void *descriptor) { return destroy(descriptor); }
int cusparseDestroyDnVec(void *descriptor) { return destroy(descriptor); }

int cusparseSetMatType(properties *p, int type) {
    p->type = type;
    return SUCCESS;
}

int cusparseSetMatFillMode(properties *p, int fill) {
    p->fill = fill;
    return SUCCESS;
}

int cusparseSetMatDiagType(properties *p, int diagonal) {
    p->diagonal = diagonal;
    return SUCCESS;
}

int cusparseSetMatIndexBase(properties *p, int base) {
    p->base = base;
    return SUCCESS;
}

int cusparseCreateCsr(matrix **created, int64_t rows, int64_t columns, int64_t entries, void *offsets, void *indices,
                      void *values, int offset_type, int index_type, int base, int type) {
    (void)offsets, (void)indices, (void)offset_type, (void)index_type, (void)base, (void)type;
    return create_matrix(created, rows, columns, entries, values);
}

int cusparseCreateCoo(matrix **created, int64_t rows, int64_t columns, int64_t entries, void *row_indices,
                      void *column_indices, void *values, int index_type, int base, int type) {
    (void)row_indices, (void)column_indices, (void)index_type, (void)base, (void)type;
    return create_matrix(created, rows, columns, entries, values);
}

int cusparseCreateDnMat(matrix **created, int64_t rows, int64_t columns, int64_t leading, void *values, int type,
                        int order) {
    (void)leading, (void)type, (void)order;
    return create_matrix(created, rows, columns, rows * columns, values);
}

int cusparseCreateDnVec(matrix **created, int64_t size, void *values, int type) {
    (void)type;
    return create_matrix(created, size, 1, size, values);
}

int cusparseCsrSetPointers(matrix *m, void *offsets, void *indices, void *values) {
    m->values = values;
    written(offsets), written(indices);
    return SUCCESS;
}

int cusparseSpMatGetSize(const matrix *m, int64_t *rows, int64_t *columns, int64_t *entries) {
    *rows = m->rows;
    *columns = m->columns;
    *entries = m->entries;
    return SUCCESS;
}

int cusparseSpMatSetAttribute(void *descriptor, int attribute, void *data, size_t size) {
    (void)descriptor, (void)attribute, (void)data, (void)size;
    return SUCCESS;
}

int cusparseCsrSetStridedBatch(void *descriptor, int count, int64_t offsets, int64_t values) {
    (void)descriptor, (void)count, (void)offsets, (void)values;
    return SUCCESS;
}

int cusparseDnMatSetStridedBatch(void *descriptor, int count, int64_t stride) {
    (void)descriptor, (void)count, (void)stride;
    return SUCCESS;
}

/* ---- products with dense matrices ------------------------------------------------------------------------ */

int cusparseSpMV_bufferSize(void *h, int trans, const void *alpha, void *a, void *x, const void *beta, void *y,
                            int compute, int algorithm, size_t *bytes) {
    (void)h, (void)trans, (void)alpha, (void)a, (void)x, (void)beta, (void)y, (void)compute, (void)algorithm;
    *bytes = 0;
    return SUCCESS;
}

int cusparseSpMV(void *h, int trans, const void *alpha, void *a, void *x, const void *beta, matrix *y, int compute,
                 int algorithm, void *work) {
    (void)h, (void)trans, (void)alpha, (void)a, (void)x, (void)beta, (void)compute, (void)algorithm, (void)work;
    return written(y->values);
}

int cusparseSpMM_bufferSize(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, const void *beta,
                            void *c, int compute, int algorithm, size_t *bytes) {
    (void)h, (void)trans_a, (void)trans_b, (void)alpha, (void)a, (void)b, (void)beta, (void)c, (void)compute;
    (void)algorithm;
    *bytes = 0;
    return SUCCESS;
}

int cusparseSpMM(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, const void *beta, matrix *c,
                 int compute, int algorithm, void *work) {
    (void)h, (void)trans_a, (void)trans_b, (void)alpha, (void)a, (void)b, (void)beta, (void)compute, (void)algorithm;
    (void)work;
    return written(c->values);
}

int cusparseSDDMM_bufferSize(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, const void *beta,
                             void *c, int compute, int algorithm, size_t *bytes) {
    return cusparseSpMM_bufferSize(h, trans_a, trans_b, alpha, a, b, beta, c, compute, algorithm, bytes);
}

int cusparseSDDMM_preprocess(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, const void *beta,
                             void *c, int compute, int algorithm, void *work) {
    (void)h, (void)trans_a, (void)trans_b, (void)alpha, (void)a, (void)b, (void)beta, (void)c, (void)compute;
    (void)algorithm, (void)work;
    return SUCCESS;
}

int cusparseSDDMM(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, const void *beta, matrix *c,
                  int compute, int algorithm, void *work) {
    return cusparseSpMM(h, trans_a, trans_b, alpha, a, b, beta, c, compute, algorithm, work);
}

/* ---- products of sparse matrices -------------------------------------------------------------------------- */

int cusparseSpGEMM_workEstimation(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b,
                                  const void *beta, void *c, int compute, int algorithm, void *descriptor,
                                  size_t *bytes, void *work) {
    (void)work, (void)descriptor;
    return cusparseSpMM_bufferSize(h, trans_a, trans_b, alpha, a, b, beta, c, compute, algorithm, bytes);
}

int cusparseSpGEMM_compute(void *h, int trans_a, int trans_b, const void *alpha, const matrix *a, const matrix *b,
                           const void *beta, matrix *c, int compute, int algorithm, void *descriptor, size_t *bytes,
                           void *work) {
    (void)h, (void)trans_a, (void)trans_b, (void)alpha, (void)beta, (void)compute, (void)algorithm;
    (void)descriptor, (void)work;
    double pairs = a->columns ? (double)a->entries * (double)b->entries / (double)a->columns : 0;
    double places = (double)c->rows * (double)c->columns;
    c->entries = (int64_t)(pairs < places ? pairs : places);
    *bytes = 0;
    return SUCCESS;
}

int cusparseSpGEMM_copy(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, const void *beta,
                        matrix *c, int compute, int algorithm, void *descriptor) {
    (void)descriptor;
    return cusparseSpMM(h, trans_a, trans_b, alpha, a, b, beta, c, compute, algorithm, NULL);
}

/* ---- triangular systems ------------------------------------------------------------------------------------ */

int cusparseSpSV_bufferSize(void *h, int trans, const void *alpha, void *a, void *x, void *y, int compute,
                            int algorithm, void *descriptor, size_t *bytes) {
    (void)h, (void)trans, (void)alpha, (void)a, (void)x, (void)y, (void)compute, (void)algorithm, (void)descriptor;
    *bytes = 0;
    return SUCCESS;
}

int cusparseSpSV_analysis(void *h, int trans, const void *alpha, void *a, void *x, void *y, int compute, int algorithm,
                          void *descriptor, void *work) {
    (void)h, (void)trans, (void)alpha, (void)a, (void)x, (void)y, (void)compute, (void)algorithm, (void)descriptor;
    (void)work;
    return SUCCESS;
}

int cusparseSpSV_solve(void *h, int trans, const void *alpha, void *a, void *x, matrix *y, int compute, int algorithm,
                       void *descriptor) {
    (void)h, (void)trans, (void)alpha, (void)a, (void)x, (void)compute, (void)algorithm, (void)descriptor;
    return written(y->values);
}

int cusparseSpSM_bufferSize(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, void *c,
                            int compute, int algorithm, void *descriptor, size_t *bytes) {
    (void)descriptor;
    return cusparseSpMM_bufferSize(h, trans_a, trans_b, alpha, a, b, NULL, c, compute, algorithm, bytes);
}

int cusparseSpSM_analysis(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, void *c, int compute,
                          int algorithm, void *descriptor, void *work) {
    (void)h, (void)trans_a, (void)trans_b, (void)alpha, (void)a, (void)b, (void)c, (void)compute, (void)algorithm;
    (void)descriptor, (void)work;
    return SUCCESS;
}

int cusparseSpSM_solve(void *h, int trans_a, int trans_b, const void *alpha, void *a, void *b, matrix *c, int compute,
                       int algorithm, void *descriptor) {
    (void)descriptor;
    return cusparseSpMM(h, trans_a, trans_b, alpha, a, b, NULL, c, compute, algorithm, NULL);
}

/* ---- sorting and converting -------------------------------------------------------------------------------- */

int cusparseXcoosort_bufferSizeExt(void *h, int m, int n, int entries, const int *rows, const int *columns,
                                   size_t *bytes) {
    (void)h, (void)m, (void)n, (void)rows, (void)columns;
    *bytes = 3 * (size_t)entries * sizeof(int); /* rows, columns, permutation */
    return SUCCESS;
}

int cusparseXcoosortByRow(void *h, int m, int n, int entries, int *rows, int *columns, int *permutation, void *work) {
    (void)h, (void)m, (void)n, (void)entries, (void)work;
    written(rows), written(columns), written(permutation);
    return SUCCESS;
}

int cusparseXcsrsort_bufferSizeExt(void *h, int m, int n, int entries, const int *offsets, const int *columns,
                                   size_t *bytes) {
    (void)h, (void)m, (void)n, (void)offsets, (void)columns;
    *bytes = 2 * (size_t)entries * sizeof(int); /* columns, permutation */
    return SUCCESS;
}

int cusparseXcsrsort(void *h, int m, int n, int entries, void *descriptor, const int *offsets, int *columns,
                     int *permutation, void *work) {
    (void)h, (void)m, (void)n, (void)entries, (void)descriptor, (void)offsets, (void)work;
    written(columns), written(permutation);
    return SUCCESS;
}

int cusparseCreateIdentityPermutation(void *h, int n, int *permutation) {
    (void)h, (void)n;
    return written(permutation);
}

int cusparseXcoo2csr(void *h, const int *rows, int entries, int m, int *offsets, int base) {
    (void)h, (void)rows, (void)entries, (void)m, (void)base;
    return written(offsets);
}

/* ---- sums and blocked matrices, of one type ----------------------------------------------------------------- */

int cusparseXcsrgeam2Nnz(void *h, int m, int n, void *descriptor_a, int entries_a, const int *offsets_a,
                         const int *columns_a, void *descriptor_b, int entries_b, const int *offsets_b,
                         const int *columns_b, void *descriptor_c, int *offsets_c, int *entries, void *work) {
    (void)h, (void)descriptor_a, (void)offsets_a, (void)columns_a, (void)descriptor_b, (void)offsets_b;
    (void)columns_b, (void)descriptor_c, (void)work;
    int64_t sum = (int64_t)entries_a + entries_b, places = (int64_t)m * n;
    written(offsets_c);
    if (sim_is_device_address((uintptr_t)entries)) return written(entries);
    *entries = (int)(sum < places ? sum : places);
    return SUCCESS;
}

int cusparseXbsrsv2_zeroPivot(void *h, void *info, int *position) {
    (void)h, (void)info;
    if (!sim_is_device_address((uintptr_t)position)) *position = -1; /* there is none */
    return SUCCESS;
}

int cusparseXbsrsm2_zeroPivot(void *h, void *info, int *position) {
    return cusparseXbsrsv2_zeroPivot(h, info, position);
}

#define OF_ONE_TYPE(T)                                                                                             \
    int cusparse##T##csrgeam2_bufferSizeExt(                                                                       \
        void *h, int m, int n, const void *alpha, void *descriptor_a, int entries_a, const void *values_a,         \
        const int *offsets_a, const int *columns_a, const void *beta, void *descriptor_b, int entries_b,           \
        const void *values_b, const int *offsets_b, const int *columns_b, void *descriptor_c,                      \
        const void *values_c, const int *offsets_c, const int *columns_c, size_t *bytes) {                         \
        (void)h, (void)m, (void)n, (void)alpha, (void)descriptor_a, (void)entries_a, (void)values_a;               \
        (void)offsets_a, (void)columns_a, (void)beta, (void)descriptor_b, (void)entries_b, (void)values_b;         \
        (void)offsets_b, (void)columns_b, (void)descriptor_c, (void)values_c, (void)offsets_c, (void)columns_c;    \
        *bytes = 0;                                                                                                \
        return SUCCESS;                                                                                            \
    }                                                                                                              \
    int cusparse##T##csrgeam2(void *h, int m, int n, const void *alpha, void *descriptor_a, int entries_a,         \
                              const void *values_a, const int *offsets_a, const int *columns_a, const void *beta,  \
                              void *descriptor_b, int entries_b, const void *values_b, const int *offsets_b,       \
                              const int *columns_b, void *descriptor_c, void *values_c, int *offsets_c,            \
                              int *columns_c, void *work) {                                                        \
        (void)h, (void)m, (void)n, (void)alpha, (void)descriptor_a, (void)entries_a, (void)values_a;               \
        (void)offsets_a, (void)columns_a, (void)beta, (void)descriptor_b, (void)entries_b, (void)values_b;         \
        (void)offsets_b, (void)columns_b, (void)descriptor_c, (void)offsets_c, (void)work;                         \
        written(columns_c);                                                                                        \
        return written(values_c);                                                                                  \
    }                                                                                                              \
    int cusparse##T##bsrmv(void *h, int by_column, int trans, int m, int n, int blocks, const void *alpha,         \
                           void *descriptor, const void *values, const int *offsets, const int *columns,           \
                           int size, const void *x, const void *beta, void *y) {                                   \
        (void)h, (void)by_column, (void)trans, (void)m, (void)n, (void)blocks, (void)alpha, (void)descriptor;      \
        (void)values, (void)offsets, (void)columns, (void)size, (void)x, (void)beta;                               \
        return written(y);                                                                                         \
    }                                                                                                              \
    int cusparse##T##bsrmm(void *h, int by_column, int trans_a, int trans_b, int m, int n, int k, int blocks,      \
                           const void *alpha, void *descriptor, const void *values, const int *offsets,            \
                           const int *columns, int size, const void *b, int ldb, const void *beta, void *c,        \
                           int ldc) {                                                                              \
        (void)h, (void)by_column, (void)trans_a, (void)trans_b, (void)m, (void)n, (void)k, (void)blocks;           \
        (void)alpha, (void)descriptor, (void)values, (void)offsets, (void)columns, (void)size, (void)b;            \
        (void)ldb, (void)beta, (void)ldc;                                                                          \
        return written(c);                                                                                         \
    }                                                                                                              \
    int cusparse##T##bsrsv2_bufferSize(void *h, int by_column, int trans, int m, int blocks, void *descriptor,     \
                                       void *values, const int *offsets, const int *columns, int size, void *info, \
                                       int *bytes) {                                                               \
        (void)h, (void)by_column, (void)trans, (void)m, (void)blocks, (void)descriptor, (void)values;              \
        (void)offsets, (void)columns, (void)size, (void)info;                                                      \
        *bytes = 0;                                                                                                \
        return SUCCESS;                                                                                            \
    }                                                                                                              \
    int cusparse##T##bsrsv2_analysis(void) { return SUCCESS; }                                                     \
    int cusparse##T##bsrsv2_solve(void *h, int by_column, int trans, int m, int blocks, const void *alpha,         \
                                  void *descriptor, const void *values, const int *offsets, const int *columns,    \
                                  int size, void *info, const void *f, void *x, int policy, void *work) {          \
        (void)h, (void)by_column, (void)trans, (void)m, (void)blocks, (void)alpha, (void)descriptor, (void)values; \
        (void)offsets, (void)columns, (void)size, (void)info, (void)f, (void)policy, (void)work;                   \
        return written(x);                                                                                         \
    }                                                                                                              \
    int cusparse##T##bsrsm2_bufferSize(void *h, int by_column, int trans_a, int trans_x, int m, int n, int blocks, \
                                       void *descriptor, void *values, const int *offsets, const int *columns,     \
                                       int size, void *info, int *bytes) {                                         \
        (void)h, (void)by_column, (void)trans_a, (void)trans_x, (void)m, (void)n, (void)blocks, (void)descriptor;  \
        (void)values, (void)offsets, (void)columns, (void)size, (void)info;                                        \
        *bytes = 0;                                                                                                \
        return SUCCESS;                                                                                            \
    }                                                                                                              \
    int cusparse##T##bsrsm2_analysis(void) { return SUCCESS; }                                                     \
    int cusparse##T##bsrsm2_solve(void *h, int by_column, int trans_a, int trans_x, int m, int n, int blocks,      \
                                  const void *alpha, void *descriptor, const void *values, const int *offsets,     \
                                  const int *columns, int size, void *info, const void *b, int ldb, void *x,       \
                                  int ldx, int policy, void *work) {                                               \
        (void)h, (void)by_column, (void)trans_a, (void)trans_x, (void)m, (void)n, (void)blocks, (void)alpha;       \
        (void)descriptor, (void)values, (void)offsets, (void)columns, (void)size, (void)info, (void)b, (void)ldb;  \
        (void)ldx, (void)policy, (void)work;                                                                       \
        return written(x);                                                                                         \
    }
OF_ONE_TYPE(S)
OF_ONE_TYPE(D)
OF_ONE_TYPE(C)
OF_ONE_TYPE(Z)
