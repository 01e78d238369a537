/* libcudnn: handles and descriptors, convolutions, batch normalisation, attention.
 *
 * Every convolution and every attention has a plan, which needs no workspace and does nothing. (Only cuDNN
 * knows the workspaces of its plans. The frontend in PyTorch requests most of what attention needs, beside
 * the plan.) Recurrent networks are refused: their workspaces are a large part of their memory, and a figure
 * without them would be wrong.
 */
#include "account/account.h"
#include "account/card.h"
#include "account/visible_devices.h"
#include "kernels/invalidation.h"
#include "streams/streams.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, ALLOCATION_FAILED_8 = 2, NOT_SUPPORTED_8 = 9, NOT_SUPPORTED_9 = 3000 };

static _Thread_local const char *last_error = "";

static int refuse(const char *what) {
    last_error = what;
    return sim_get_card()->cudnn_version >= 90000 ? NOT_SUPPORTED_9 : NOT_SUPPORTED_8;
}

size_t cudnnGetVersion(void) { return (size_t)sim_get_card()->cudnn_version; }
size_t cudnnGetCudartVersion(void) { return (size_t)sim_get_card()->driver_cuda_version; }

/* type: 0 major, 1 minor, 2 patch (libraryPropertyType) */
int cudnnGetProperty(int type, int *value) {
    int version = sim_get_card()->cudnn_version;
    *value = type == 0 ? version / 10000 : type == 1 ? version / 100 % 100 : version % 100;
    return SUCCESS;
}

const char *cudnnGetErrorString(int status) {
    return status == SUCCESS ? "CUDNN_STATUS_SUCCESS" : "CUDNN_STATUS_NOT_SUPPORTED (on a simulated GPU; torch.backends.cudnn.enabled = False takes PyTorch's own kernels)";
}

void cudnnGetLastErrorString(char *out, size_t length) { snprintf(out, length, "%s", last_error); }

/* ---- handles and descriptors ------------------------------------------------------------------------ */

/* All of them are opaque to the program: room for any. */
enum { DESCRIPTOR_BYTES = 256 };

static int create(void **object) {
    *object = calloc(1, DESCRIPTOR_BYTES);
    return *object ? SUCCESS : ALLOCATION_FAILED_8;
}

static int destroy(void *object) {
    free(object);
    return SUCCESS;
}

typedef struct {
    void *stream;
} handle;

int cudnnCreate(void **created) {
    sim_open_context(sim_current_device());
    return create(created);
}

int cudnnSetStream(handle *h, void *stream) {
    h->stream = stream;
    sim_submit(stream); /* it is set before a routine is called */
    return SUCCESS;
}

int cudnnGetStream(handle *h, void **stream) {
    *stream = h->stream;
    return SUCCESS;
}

int cudnnCreateTensorDescriptor(void **created) { return create(created); }
int cudnnCreateFilterDescriptor(void **created) { return create(created); }
int cudnnCreateConvolutionDescriptor(void **created) { return create(created); }
int cudnnCreatePoolingDescriptor(void **created) { return create(created); }
int cudnnCreateActivationDescriptor(void **created) { return create(created); }
int cudnnCreateDropoutDescriptor(void **created) { return create(created); }
int cudnnCreateSpatialTransformerDescriptor(void **created) { return create(created); }
int cudnnDestroy(void *h) { return destroy(h); }
int cudnnDestroyTensorDescriptor(void *descriptor) { return destroy(descriptor); }
int cudnnDestroyFilterDescriptor(void *descriptor) { return destroy(descriptor); }
int cudnnDestroyConvolutionDescriptor(void *descriptor) { return destroy(descriptor); }
int cudnnDestroyPoolingDescriptor(void *descriptor) { return destroy(descriptor); }
int cudnnDestroyActivationDescriptor(void *descriptor) { return destroy(descriptor); }
int cudnnDestroyDropoutDescriptor(void *descriptor) { return destroy(descriptor); }
int cudnnDestroySpatialTransformerDescriptor(void *descriptor) { return destroy(descriptor); }

int cudnnCreateRNNDescriptor(void **created) {
    *created = NULL;
    return refuse(": recurrent networks of cuDNN are not simulated");
}

int cudnnCreateCTCLossDescriptor(void **created) {
    *created = NULL;
    return refuse(": the CTC loss of cuDNN is not simulated");
}

/* ---- batch normalisation, dropout: no workspace, nothing kept ----------------------------------------- */

int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int mode, int operations, void *x, void *z, void *y,
                                                             void *scale, void *activation, size_t *bytes) {
    (void)h, (void)mode, (void)operations, (void)x, (void)z, (void)y, (void)scale, (void)activation;
    *bytes = 0;
    return SUCCESS;
}

int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int mode, int operations, void *x, void *y, void *dy,
                                                      void *dz, void *dx, void *scale, void *activation, size_t *bytes) {
    (void)h, (void)mode, (void)operations, (void)x, (void)y, (void)dy, (void)dz, (void)dx, (void)scale, (void)activation;
    *bytes = 0;
    return SUCCESS;
}

int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int mode, int operations, void *activation, void *x,
                                                         size_t *bytes) {
    (void)h, (void)mode, (void)operations, (void)activation, (void)x;
    *bytes = 0;
    return SUCCESS;
}

int cudnnDropoutGetStatesSize(void *h, size_t *bytes) {
    (void)h;
    *bytes = 0;
    return SUCCESS;
}

/* ---- convolutions, the older interface: one algorithm of each kind ------------------------------------ */

typedef struct {
    int algorithm, status;
    float milliseconds;
    size_t workspace;
    int determinism, math_type;
    int reserved[3];
} algorithm_performance; /* cudnnConvolution...AlgoPerf_t */

static int one_algorithm(int requested, int *returned, algorithm_performance *results) {
    *returned = requested > 0;
    if (requested > 0) *results = (algorithm_performance){.algorithm = 1, .determinism = 1};
    return SUCCESS;
}

#define GET_ALGORITHM(name)                                                                                        \
    int name(void *h, void *a, void *b, void *convolution, void *c, int requested, int *returned,                  \
             algorithm_performance *results) {                                                                     \
        (void)h, (void)a, (void)b, (void)convolution, (void)c;                                                     \
        return one_algorithm(requested, returned, results);                                                        \
    }
GET_ALGORITHM(cudnnGetConvolutionForwardAlgorithm_v7)
GET_ALGORITHM(cudnnGetConvolutionBackwardDataAlgorithm_v7)
GET_ALGORITHM(cudnnGetConvolutionBackwardFilterAlgorithm_v7)

#define FIND_ALGORITHM(name)                                                                                       \
    int name(void *h, void *a, void *a_data, void *b, void *b_data, void *convolution, void *c, void *c_data,      \
             int requested, int *returned, algorithm_performance *results, void *workspace, size_t bytes) {        \
        (void)h, (void)a, (void)a_data, (void)b, (void)b_data, (void)convolution, (void)c, (void)c_data;           \
        (void)workspace, (void)bytes;                                                                              \
        return one_algorithm(requested, returned, results);                                                        \
    }
FIND_ALGORITHM(cudnnFindConvolutionForwardAlgorithmEx)
FIND_ALGORITHM(cudnnFindConvolutionBackwardDataAlgorithmEx)
FIND_ALGORITHM(cudnnFindConvolutionBackwardFilterAlgorithmEx)

#define WORKSPACE_SIZE(name)                                                                                       \
    int name(void *h, void *a, void *b, void *convolution, void *c, int algorithm, size_t *bytes) {                \
        (void)h, (void)a, (void)b, (void)convolution, (void)c, (void)algorithm;                                    \
        *bytes = 0;                                                                                                \
        return SUCCESS;                                                                                            \
    }
WORKSPACE_SIZE(cudnnGetConvolutionForwardWorkspaceSize)
WORKSPACE_SIZE(cudnnGetConvolutionBackwardDataWorkspaceSize)
WORKSPACE_SIZE(cudnnGetConvolutionBackwardFilterWorkspaceSize)

/* ---- the graph interface ------------------------------------------------------------------------------ */

/* Numbers of cudnnBackendDescriptorType_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t. */
enum {
    ENGINE = 2,
    CONFIGURATION = 3,
    HEURISTICS = 4,
    PLAN = 5,
    OPERATION_CONVOLUTION_FORWARD = 10,
    OPERATION_CONVOLUTION_BACKWARD_DATA = 12,
    OPERATION_POINTWISE = 13,
    OPERATION_MATMUL = 19,
    OPERATION_REDUCTION = 22,
    OPERATION_RESHAPE = 31,
    OPERATION_RANDOM_NUMBERS = 33,
    OPERATION_ATTENTION_FORWARD = 41,
    OPERATION_BAND_MASK = 44,
    OPERATION_SOFTMAX = 45,
    HEURISTICS_GRAPH = 201,
    HEURISTIC_RESULTS = 202,
    CONFIGURATION_ENGINE = 300,
    CONFIGURATION_WORKSPACE = 303,
    CONFIGURATION_SHARED_MEMORY = 304,
    PLAN_CONFIGURATION = 401,
    PLAN_WORKSPACE = 402,
    GRAPH_OPERATIONS = 801,
    GRAPH_ENGINE_COUNT = 802,
    TENSOR_DIMENSIONS = 902,
    PACK_POINTERS = 1001,
    ENGINE_GRAPH = 1300,
    ENGINE_INDEX = 1301,
    REDUCTION_INPUT = 1610,
    REDUCTION_OUTPUT = 1611,
    TYPE_BOOLEAN = 2,
    TYPE_DESCRIPTOR = 15,
    TYPE_CHAR = 24,
    TYPE_FRACTION = 26,
};

typedef struct attribute {
    int name, type;
    int64_t count;
    void *data;
    struct attribute *next;
} attribute;

/* Engines, configurations and plans of attention know how many bytes of it are not accounted. */
typedef struct {
    int type;
    bool attention;
    size_t unknown_bytes;
    attribute *attributes;
} descriptor;

static size_t size_of_type(int type) {
    switch (type) {
        case TYPE_BOOLEAN:
        case TYPE_CHAR: return 1;
        case 0:  /* handle */
        case 3:  /* int64 */
        case 5:  /* double */
        case 6:  /* pointer */
        case TYPE_DESCRIPTOR: return 8;
        case TYPE_FRACTION: return 16;
        default: return 4; /* enumerations, int32, float */
    }
}

static attribute *find(const descriptor *d, int name) {
    attribute *a = d->attributes;
    while (a && a->name != name) a = a->next;
    return a;
}

int cudnnBackendCreateDescriptor(int type, descriptor **created) {
    *created = calloc(1, sizeof **created);
    if (!*created) return ALLOCATION_FAILED_8;
    (*created)->type = type;
    return SUCCESS;
}

int cudnnBackendDestroyDescriptor(descriptor *d) {
    while (d && d->attributes) {
        attribute *a = d->attributes;
        d->attributes = a->next;
        free(a->data);
        free(a);
    }
    free(d);
    return SUCCESS;
}

int cudnnBackendSetAttribute(descriptor *d, int name, int type, int64_t count, const void *values) {
    size_t bytes = (size_t)count * size_of_type(type);
    attribute *a = find(d, name);
    void *copy = malloc(bytes ? bytes : 1);
    if (!a && (a = calloc(1, sizeof *a))) {
        a->next = d->attributes;
        d->attributes = a;
    }
    if (!a || !copy) return ALLOCATION_FAILED_8;
    memcpy(copy, values, bytes);
    free(a->data);
    a->name = name;
    a->type = type;
    a->count = count;
    a->data = copy;
    return SUCCESS;
}

/* Convolutions, with pointwise operations around them. */
static bool is_convolution(const descriptor *graph) {
    const attribute *operations = find(graph, GRAPH_OPERATIONS);
    bool any = false;
    for (int64_t i = 0; operations && i < operations->count; i++) {
        int type = ((descriptor **)operations->data)[i]->type;
        bool convolution = type >= OPERATION_CONVOLUTION_FORWARD && type <= OPERATION_CONVOLUTION_BACKWARD_DATA;
        if (!convolution && type != OPERATION_POINTWISE) return false;
        any |= convolution;
    }
    return any;
}

/* Attention: one operation for the forward pass; or, as its backward pass and older frontends have
 * it, its parts, with at least two products of matrices. */
static bool is_attention(const descriptor *graph) {
    const attribute *operations = find(graph, GRAPH_OPERATIONS);
    int products = 0;
    for (int64_t i = 0; operations && i < operations->count; i++) {
        switch (((descriptor **)operations->data)[i]->type) {
            case OPERATION_ATTENTION_FORWARD: return true;
            case OPERATION_MATMUL: products++; break;
            case OPERATION_POINTWISE:
            case OPERATION_REDUCTION:
            case OPERATION_RESHAPE:
            case OPERATION_RANDOM_NUMBERS:
            case OPERATION_BAND_MASK:
            case OPERATION_SOFTMAX: break;
            default: return false;
        }
    }
    return products >= 2;
}

/* The four dimensions of a tensor of an operation, or NULL: batch, heads, tokens, elements of a head. */
static const int64_t *dimensions_of(const descriptor *operation, int tensor) {
    const attribute *a = find(operation, tensor);
    const attribute *dimensions = a ? find(*(descriptor **)a->data, TENSOR_DIMENSIONS) : NULL;
    return dimensions && dimensions->count == 4 ? dimensions->data : NULL;
}

/* Gradients of keys and values that query heads share are summed over these heads. The bytes of the
 * summands, in the type of the inputs (16 bits): a plan may hold them in its workspace, or not at all. */
static size_t bytes_before_heads_are_summed(const descriptor *graph) {
    const attribute *operations = find(graph, GRAPH_OPERATIONS);
    size_t bytes = 0;
    for (int64_t i = 0; i < operations->count; i++) {
        const descriptor *operation = ((descriptor **)operations->data)[i];
        if (operation->type != OPERATION_REDUCTION) continue;
        const int64_t *in = dimensions_of(operation, REDUCTION_INPUT);
        const int64_t *out = dimensions_of(operation, REDUCTION_OUTPUT);
        if (in && out && in[1] != out[1] && in[2] == out[2] && in[3] == out[3])
            bytes += 2 * (size_t)(in[0] * in[1] * in[2] * in[3]);
    }
    return bytes;
}

/* A graph may be a part of another one: whether there is an engine for it is asked of the whole. */
static int find_engine(descriptor *asking, const descriptor *graph) {
    if (is_convolution(graph)) return SUCCESS;
    if (!is_attention(graph))
        return refuse(": of cuDNN's graphs only convolutions and attention are simulated "
                      "(attention: TORCH_CUDNN_SDPA_DEPRIORITIZED=1 makes PyTorch take another kernel)");
    asking->attention = true;
    asking->unknown_bytes = bytes_before_heads_are_summed(graph);
    return SUCCESS;
}

/* A plan outlives the graph that it is for: what is to be known of that one is handed on. */
static void inherit(descriptor *d, const descriptor *from) {
    if (!from || !from->attention) return;
    d->attention = true;
    d->unknown_bytes = from->unknown_bytes;
}

int cudnnBackendFinalize(descriptor *d) {
    const attribute *graph = NULL;
    if (d->type == HEURISTICS) graph = find(d, HEURISTICS_GRAPH);
    if (d->type == ENGINE) graph = find(d, ENGINE_GRAPH);
    if (graph) return find_engine(d, *(descriptor **)graph->data);
    const attribute *source = NULL;
    if (d->type == CONFIGURATION) source = find(d, CONFIGURATION_ENGINE);
    if (d->type == PLAN) source = find(d, PLAN_CONFIGURATION);
    if (source) inherit(d, *(descriptor **)source->data);
    return SUCCESS;
}

/* The frontend asks for some engines of attention by their number. */
enum { ATTENTION_ENGINES = 64 };

/* One engine, one configuration of it, one plan. Without the program asking for values it learns
 * their number; descriptors are the program's own, and are left as they are. */
int cudnnBackendGetAttribute(const descriptor *d, int name, int type, int64_t requested, int64_t *returned, void *values) {
    const attribute *a = find(d, name);
    int64_t count = a ? a->count : 0;
    if (name == HEURISTIC_RESULTS || name == CONFIGURATION_WORKSPACE || name == CONFIGURATION_SHARED_MEMORY ||
        name == PLAN_WORKSPACE || name == ENGINE_INDEX || name == GRAPH_ENGINE_COUNT)
        count = 1;
    if (returned) *returned = count;
    if (values && requested && name == HEURISTIC_RESULTS) inherit(*(descriptor **)values, d);
    if (!values || type == TYPE_DESCRIPTOR) return SUCCESS;
    if (count > requested) count = requested;
    size_t bytes = (size_t)count * size_of_type(type);
    if (a)
        memcpy(values, a->data, bytes);
    else
        memset(values, 0, bytes);
    if (name == GRAPH_ENGINE_COUNT && count) *(int64_t *)values = is_attention(d) ? ATTENTION_ENGINES : 1;
    return SUCCESS;
}

/* Which of the tensors are results is not looked up: nothing is known of any of them from here on. */
int cudnnBackendExecute(void *h, const descriptor *plan, const descriptor *pack) {
    (void)h;
    if (plan->attention) sim_note_cudnn_attention(plan->unknown_bytes);
    const attribute *pointers = find(pack, PACK_POINTERS);
    for (int64_t i = 0; pointers && i < pointers->count; i++) sim_invalidate(((uintptr_t *)pointers->data)[i]);
    return SUCCESS;
}
