#include "effects.h"

#include <stdlib.h>
#include <string.h>

static bool has(const char *name, const char *part) { return strstr(name, part) != NULL; }

static const char *after(const char *name, const char *part) {
    const char *found = strstr(name, part);
    return found ? found + strlen(part) : NULL;
}

/* PyTorch's functors by the part of the mangled name that tells them apart; the first that fits. */
static const struct {
    const char *part;
    sim_operation operation;
    bool has_mode;
} functors[] = {
    {"FillFunctor", SIM_FILL, false},
    {"direct_copy_kernel_cuda", SIM_COPY, false},
    {"CompareEqFunctor", SIM_EQUALITY, true},
    {"CompareFunctor", SIM_ORDER, true},
    {"compare_scalar_kernel", SIM_ORDER, true},
    {"BitwiseAndFunctor", SIM_AND, false},
    {"BitwiseOrFunctor", SIM_OR, false},
    {"BitwiseXorFunctor", SIM_XOR, false},
    {"bitwise_not_kernel_cuda", SIM_NOT, false},
    {"logical_and_kernel_cuda", SIM_LOGICAL_AND, false},
    {"logical_or_kernel_cuda", SIM_LOGICAL_OR, false},
    {"logical_xor_kernel_cuda", SIM_LOGICAL_XOR, false},
    {"logical_not_kernel_cuda", SIM_LOGICAL_NOT, false},
    {"MulFunctor", SIM_MULTIPLY, false},
    {"div_floor_kernel_cuda", SIM_FLOOR_DIVIDE, false},
    {"div_trunc_kernel_cuda", SIM_TRUNC_DIVIDE, false},
    {"remainder_kernel_cuda", SIM_REMAINDER, false},
    {"maximum_kernel_cuda", SIM_LARGER, false},
    {"minimum_kernel_cuda", SIM_SMALLER, false},
    {"15neg_kernel_cuda", SIM_NEGATE, false},
    {"10AbsFunctor", SIM_ABSOLUTE, false},
    {"18masked_fill_kernel", SIM_MASKED_FILL, false},
    {"17where_kernel_impl", SIM_WHERE, false},
    {"CUDAFunctor_add", SIM_ADD, false},
    {"CUDAFunctorOnOther_add", SIM_ADD, false},
    {"CUDAFunctorOnSelf_add", SIM_ADD, false},
};

static const struct {
    const char *part;
    sim_operation operation;
} reductions[] = {
    {"or_kernel_cuda", SIM_ANY},      {"and_kernel_cuda", SIM_ALL},     {"sum_functor", SIM_SUM},
    {"MaxNanFunctor", SIM_LARGEST}, {"MinNanFunctor", SIM_SMALLEST},
};

/* The next template argument; a type with a long name is spelled out once and then referred to
 * ("S5_"), which can only mean the one before. */
static sim_type next_type(const char **text, sim_type before) {
    const char *p = *text;
    if (*p == 'S') {
        const char *end = strchr(p, '_');
        *text = end ? end + 1 : p;
        return before;
    }
    return sim_read_type(p, text);
}

static bool is_yes_or_no(sim_operation operation) {
    return operation == SIM_EQUALITY || operation == SIM_ORDER ||
           (operation >= SIM_LOGICAL_AND && operation <= SIM_LOGICAL_NOT);
}

/* The element types: template arguments (first, second, result) of the wrapper of a binary functor;
 * or the one argument of the functor; or the parameter of a closure ("EUllE_" takes a long). */
static void read_functor_types(const char *name, sim_effect *e) {
    static const struct {
        const char *part;
        sim_scalar scalar;
        bool wrapper;
    } places[] = {
        {"AUnaryFunctorI", SIM_FIRST_IS_SCALAR, true},
        {"BUnaryFunctorI", SIM_SECOND_IS_SCALAR, true},
        {"13BinaryFunctorI", SIM_NO_SCALAR, true},
        {"FillFunctorI", SIM_NO_SCALAR, false},
        {"14CompareFunctorI", SIM_NO_SCALAR, false},
        {"compare_scalar_kernelI", SIM_SECOND_IS_SCALAR, false},
        {"CUDAFunctor_addI", SIM_NO_SCALAR, false},
        {"CUDAFunctorOnOther_addI", SIM_FIRST_IS_SCALAR, false},
        {"CUDAFunctorOnSelf_addI", SIM_SECOND_IS_SCALAR, false},
        {"10AbsFunctorI", SIM_NO_SCALAR, false},
        {"EUl", SIM_NO_SCALAR, false},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *p = after(name, places[i].part);
        if (!p) continue;
        sim_type first = next_type(&p, SIM_OTHER_TYPE);
        e->scalar = places[i].scalar;
        e->input = places[i].wrapper ? next_type(&p, first) : first;
        e->output = places[i].wrapper ? next_type(&p, e->input) : first;
        e->others = e->input;
        if (e->operation == SIM_MASKED_FILL) e->others = next_type(&p, first);
        if (e->operation == SIM_WHERE) e->output = e->others = next_type(&p, SIM_OTHER_TYPE);
        if (is_yes_or_no(e->operation)) e->output = SIM_BOOL;
        return;
    }
}

static size_t operands_of(const sim_effect *e) {
    switch (e->operation) {
        case SIM_FILL: return 0;
        case SIM_COPY:
        case SIM_NOT:
        case SIM_LOGICAL_NOT:
        case SIM_NEGATE:
        case SIM_ABSOLUTE: return 1;
        case SIM_WHERE: return 3;
        default: return e->scalar == SIM_NO_SCALAR ? 2 : 1;
    }
}

static void classify_elementwise(const char *name, sim_effect *e) {
    const char *p = after(name, "St5arrayIPcLm");
    if (!p) p = after(name, "5ArrayIPcLi");
    if (p) e->inputs = (size_t)strtoul(p, NULL, 10) - 1;
    for (size_t i = 0; i < sizeof functors / sizeof *functors; i++) {
        if (!has(name, functors[i].part)) continue;
        e->operation = functors[i].operation;
        e->has_mode = functors[i].has_mode;
        break;
    }
    read_functor_types(name, e);
    size_t expected = operands_of(e);
    if (e->form == SIM_STRIDED) e->inputs = expected;
    if (e->inputs != expected) e->operation = SIM_FORGET;
    /* Of an unknown functor the name does not tell what it returns; no element is smaller than this (in place,
     * it is an element of the input: see `forget_output`). */
    if (e->operation == SIM_FORGET) e->output = SIM_UINT8;
}

static void classify_reduction(const char *name, sim_effect *e) {
    const char *end;
    const char *p = after(name, "func_wrapper_tI");
    for (size_t i = 0; p && i < sizeof reductions / sizeof *reductions; i++)
        if (has(name, reductions[i].part)) e->operation = reductions[i].operation;
    const char *input = after(name, "ReduceOpI");
    e->input = input ? sim_read_type(input, &end) : SIM_OTHER_TYPE;
    e->output = SIM_OTHER_TYPE;
    for (const char *at = strstr(name, "EEj"); at; at = strstr(at + 1, "EEj")) e->output = sim_read_type(at + 3, &end);
    /* What the partial results are kept in, which decides where the structure's fields lie: the first
     * parameter of the closure, or the argument of a functor with a name. */
    const char *closure = p ? after(p, "EUl") : NULL;
    e->inputs = p ? sim_type_size(sim_read_type(closure ? closure : p, &end)) : 0;
    if (!sim_type_size(e->input) || !sim_type_size(e->output) || !e->inputs) e->operation = SIM_FORGET;
}

/* How a kernel takes its arguments, and what of them is to be known beforehand. */
static sim_form form_of(const char *name) {
    if (has(name, "vectorized_elementwise_kernelI") || has(name, "unrolled_elementwise_kernelI")) return SIM_CONTIGUOUS;
    if (has(name, "18elementwise_kernelI") && has(name, "gpu_kernel_impl")) return SIM_STRIDED;
    if (has(name, "13reduce_kernelI")) return SIM_REDUCTION;
    /* the fourth of the integer types that PyTorch dispatches over is the 64-bit one */
    if (has(name, "elementwise_kernel_with_index") && has(name, "arange_cuda_outE") && has(name, "ENKUlvE2_clEvE"))
        return SIM_RANGE;
    if (has(name, "tensor_kernel_scan_innermost_dimI") && has(name, "St4plusI")) return SIM_RUNNING_SUM;
    if (has(name, "DeviceScanKernelI") && has(name, "St4plusI") && has(name, "NullTypeE")) return SIM_RUNNING_SUM;
    if (has(name, "DeviceReduce") && has(name, "NonZeroOpI")) return SIM_COUNT_NONZERO;
    if (has(name, "DeviceReduceSingleTileKernelI") && has(name, "EPiS")) return SIM_ADD_COUNTS;
    if (has(name, "DeviceSelectSweepKernelI") && has(name, "8equal_toIvE")) return SIM_SELECT_UNIQUE;
    if (has(name, "DeviceSelectSweepKernelI") && has(name, "NonZeroOpI")) return SIM_SELECT_PLACES;
    if (has(name, "13write_indicesIlE")) return SIM_WRITE_INDICES;
    if (has(name, "CatArrayBatchedCopy")) return SIM_CAT;
    if (has(name, "scatter_gather_elementwise_kernel") && has(name, "12TensorAssign")) {
        if (has(name, "scatter_fill_internal_kernel")) return SIM_SCATTER_FILL;
        return has(name, "gather_internal_kernelILb0E") ? SIM_GATHER : SIM_SCATTER;
    }
    if (has(name, "17index_kernel_impl")) return SIM_INDEX;
    if (has(name, "21index_put_kernel_impl")) return SIM_INDEX_PUT;
    if (has(name, "index_elementwise_kernelI")) return SIM_STRIDED;
    if (has(name, "vectorized_gather_kernelI")) return SIM_GATHER_ROWS;
    if (has(name, "sbtopk10gatherTopKI")) return SIM_TOPK;
    if (has(name, "bitonicSortKVInPlaceI")) return SIM_SORT_PAIRS;
    /* GradScaler: the scale, and whether an overflow was found */
    if (has(name, "amp_update_scale_cuda_kernel") || has(name, "_amp_foreach_non_finite")) return SIM_UNCHANGED;
    /* Rows that are exchanged one by one: of an LU factorisation that was not computed, none are. */
    if (has(name, "unpack_pivots_cuda_kernel")) return SIM_UNCHANGED;
    return SIM_OPAQUE;
}

/* Skip the number among template arguments that the name goes on with ("Li4E"). */
static const char *skip_number(const char *p, size_t *number) {
    if (!p || *p != 'L' || !p[1]) return NULL;
    *number = (size_t)strtoul(p + 2, NULL, 10);
    p = strchr(p, 'E');
    return p ? p + 1 : NULL;
}

/* Elements without a type: "OpaqueTypeILi4EE", four bytes. Returns where the name goes on. */
static const char *read_element_size(const char *name, sim_effect *e) {
    const char *p = skip_number(after(name, "10OpaqueTypeI"), &e->element_size);
    return p && p[0] == 'E' && p[1] == 'E' ? p + 2 : NULL;
}

/* Moves whose indices are of another type than they usually are are not followed. */
static bool classify_move(const char *name, sim_effect *e) {
    const char *end, *p = NULL;
    size_t number = 0;
    switch (e->form) {
        case SIM_CAT: /* elements, index type, dimensions, inputs of a launch, - [, bytes of a vector, -] */
            p = read_element_size(name, e);
            if (!p || *p != 'j') return false;
            p = skip_number(p + 1, &number);
            e->dimensions = (int)number;
            p = skip_number(p, &e->batch);
            if (!p || !has(name, "Copy_vectorized")) return p != NULL;
            return skip_number(skip_number(p, &number), &e->vector) != NULL;
        case SIM_GATHER:
        case SIM_SCATTER:
        case SIM_SCATTER_FILL:
            p = read_element_size(name, e);
            return p && *p == 'l';
        case SIM_INDEX:
        case SIM_INDEX_PUT: return read_element_size(name, e) != NULL;
        case SIM_GATHER_ROWS:
            p = skip_number(after(name, "vectorized_gather_kernelI"), &number);
            if (p) e->input = sim_read_type(p, &end);
            return p != NULL;
        case SIM_TOPK:
            e->input = sim_read_type(after(name, "gatherTopKI"), &end);
            return *end == 'j';
        case SIM_SORT_PAIRS: /* four numbers, keys, values, comparison, index type */
            p = after(name, "bitonicSortKVInPlaceI");
            for (int i = 0; i < 4; i++) p = skip_number(p, &number);
            if (!p) return false;
            e->input = sim_read_type(p, &p);
            e->others = sim_read_type(p, &p);
            e->descending = has(p, "GTOpI");
            return has(p, "EEjEEv");
        default: return true;
    }
}

sim_effect sim_classify(const char *name) {
    const char *end, *type = NULL;
    sim_effect e = {.form = form_of(name), .input = SIM_OTHER_TYPE, .output = SIM_OTHER_TYPE, .others = SIM_OTHER_TYPE};
    e.parameter_count = sim_read_parameters(name, e.parameters, SIM_MOST_PARAMETERS);
    switch (e.form) {
        case SIM_CONTIGUOUS:
            e.converts = has(name, "WithCast");
            classify_elementwise(name, &e);
            break;
        case SIM_STRIDED:
            e.converts = !has(name, "gpu_kernel_impl_nocast");
            classify_elementwise(name, &e);
            break;
        case SIM_REDUCTION: classify_reduction(name, &e); break;
        case SIM_COUNT_NONZERO:
        case SIM_SELECT_PLACES: type = after(name, "NonZeroOpI"); break;
        case SIM_RUNNING_SUM: type = after(name, "St4plusI"); break;
        case SIM_SELECT_UNIQUE: type = after(name, "policy_hubI"); break;
        default:
            if (!classify_move(name, &e)) e.form = SIM_OPAQUE;
    }
    if (type) e.input = sim_read_type(type, &end);
    return e;
}
