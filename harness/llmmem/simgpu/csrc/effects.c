#include "effects.h"

#include "elements.h"
#include "values.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Tensors with more elements are not computed one by one (constant ones are computed at any size). */
#define MOST_ELEMENTS ((size_t)1 << 16)
/* Results that do not lie in one piece are kept up to this many elements. */
#define MOST_SCATTERED ((size_t)1 << 12)
/* How far into a structure its pointers are looked for, without and with OffsetCalculators before them
 * (of up to eight operands). */
#define HEAD_BYTES ((size_t)128)
#define LAYOUT_BYTES ((size_t)4 * (1 + 3 * 25 + 8 * 25) + HEAD_BYTES)

/* ---- elementwise ------------------------------------------------------------------------------------- */

#define MOST_OPERANDS 3
#define MOST_DIMENSIONS 25 /* OffsetCalculator: MAX_DIMS */

/* Where the elements of an operand lie: a base and byte strides, the fastest dimension first. */
typedef struct {
    int dimensions;
    uint32_t sizes[MOST_DIMENSIONS];
    uint32_t strides[MOST_DIMENSIONS][MOST_OPERANDS];
} layout;

typedef struct {
    uintptr_t base;
    sim_type type;
    sim_knowledge knowledge;
    sim_value constant;
    unsigned char *bytes; /* when it varies: all from its base on */
} operand;

typedef struct {
    size_t count;
    size_t operands; /* the output is operand 0 */
    operand operand[MOST_OPERANDS];
    layout where;
} iteration;

static size_t offset_of(const layout *where, size_t operand, size_t element) {
    size_t offset = 0;
    for (int d = 0; d < where->dimensions; d++) {
        offset += element % where->sizes[d] * where->strides[d][operand];
        element /= where->sizes[d];
    }
    return offset;
}

static size_t last_offset(const layout *where, size_t operand) {
    size_t last = 0;
    for (int d = 0; d < where->dimensions; d++) last += (size_t)(where->sizes[d] - 1) * where->strides[d][operand];
    return last;
}

/* Bytes from the base to the end of the last element. */
static size_t extent_of(const iteration *it, size_t operand) {
    return last_offset(&it->where, operand) + sim_type_size(it->operand[operand].type);
}

static bool in_one_piece(const iteration *it, size_t operand) {
    return extent_of(it, operand) == it->count * sim_type_size(it->operand[operand].type);
}

static void lay_out_in_a_row(iteration *it) {
    it->where.dimensions = 1;
    it->where.sizes[0] = (uint32_t)it->count;
    for (size_t i = 0; i < it->operands; i++) it->where.strides[0][i] = (uint32_t)sim_type_size(it->operand[i].type);
}

static void forget_output(const iteration *it) {
    size_t size = sim_type_size(it->operand[0].type);
    if (size)
        sim_values_forget(it->operand[0].base, extent_of(it, 0));
    else
        sim_written(it->operand[0].base);
}

static void fill_output(const iteration *it, const void *pattern) {
    uintptr_t base = it->operand[0].base;
    size_t size = sim_type_size(it->operand[0].type);
    if (in_one_piece(it, 0)) {
        sim_values_fill(base, it->count * size, pattern, size);
    } else if (it->count <= MOST_SCATTERED) {
        for (size_t i = 0; i < it->count; i++) sim_values_store(base + offset_of(&it->where, 0, i), pattern, size);
    } else {
        forget_output(it);
    }
}

/* Look up what is known of an input. False if it varies and is too large to go through. */
static bool look_up(iteration *it, size_t i) {
    operand *o = &it->operand[i];
    size_t size = sim_type_size(o->type), extent = extent_of(it, i);
    uint64_t constant = 0;
    o->knowledge = size ? sim_values_know(o->base, extent, size, &constant) : SIM_UNKNOWN;
    if (o->knowledge == SIM_CONSTANT) o->constant = sim_load(o->type, &constant);
    if (o->knowledge != SIM_VARIED) return true;
    if (it->count > MOST_ELEMENTS || !(o->bytes = malloc(extent))) return false;
    sim_values_read(o->base, o->bytes, extent);
    return true;
}

static sim_value element_of(const iteration *it, size_t i, size_t element) {
    const operand *o = &it->operand[i];
    return o->bytes ? sim_load(o->type, o->bytes + offset_of(&it->where, i, element)) : o->constant;
}

static sim_value result_at(const sim_effect *e, const sim_functor *f, const iteration *it, size_t element) {
    sim_value first = element_of(it, 1, element);
    if (e->scalar == SIM_FIRST_IS_SCALAR) return sim_combine(e, f, f->scalar, first, false);
    if (e->scalar == SIM_SECOND_IS_SCALAR) return sim_combine(e, f, first, f->scalar, false);
    if (it->operands < 3) return sim_combine(e, f, first, (sim_value){0}, false);
    bool same = it->operand[1].base == it->operand[2].base;
    return sim_combine(e, f, first, element_of(it, 2, element), same);
}

/* One sim_value after the other; false when one of them cannot be told. */
static bool compute_each(const sim_effect *e, const sim_functor *f, const iteration *it) {
    size_t size = sim_type_size(it->operand[0].type);
    bool row = in_one_piece(it, 0);
    if (!row && it->count > MOST_SCATTERED) return false;
    unsigned char *out = malloc(it->count * size);
    bool all = out != NULL;
    for (size_t i = 0; all && i < it->count; i++) {
        sim_value v = result_at(e, f, it, i);
        size_t place = row ? offset_of(&it->where, 0, i) : i * size;
        all = v.known && sim_store(it->operand[0].type, v, out + place);
    }
    if (all && row) sim_values_store(it->operand[0].base, out, it->count * size);
    for (size_t i = 0; all && !row && i < it->count; i++)
        sim_values_store(it->operand[0].base + offset_of(&it->where, 0, i), out + i * size, size);
    free(out);
    return all;
}

static bool compute_once(const sim_effect *e, const sim_functor *f, const iteration *it) {
    uint64_t pattern = 0;
    sim_value v = result_at(e, f, it, 0);
    if (!v.known || !sim_store(it->operand[0].type, v, &pattern)) return false;
    fill_output(it, &pattern);
    return true;
}

static bool compute(const sim_effect *e, const sim_functor *f, iteration *it) {
    bool varies = false;
    if (!sim_type_size(it->operand[0].type)) return false;
    for (size_t i = 1; i < it->operands; i++) {
        if (!look_up(it, i)) return false;
        varies |= it->operand[i].knowledge == SIM_VARIED;
    }
    return varies ? compute_each(e, f, it) : compute_once(e, f, it);
}

static void run_elementwise(const sim_effect *e, const unsigned char *functor_bytes, iteration *it) {
    sim_functor f;
    if (it->count == 0) return;
    sim_read_functor(e, functor_bytes, &f);
    if (e->operation == SIM_FILL && sim_type_size(it->operand[0].type))
        fill_output(it, functor_bytes);
    else if (e->operation == SIM_FORGET || !compute(e, &f, it))
        forget_output(it);
    for (size_t i = 0; i < it->operands; i++) free(it->operand[i].bytes);
}

/* (int count, functor, array of pointers [, calculators, loader, storer]) */
static void run_contiguous(const sim_effect *e, void **arguments) {
    iteration it = {.count = (size_t) * (int *)arguments[0], .operands = e->inputs + 1};
    if (it.operands > MOST_OPERANDS) it.operands = 1;
    const unsigned char *input_types = e->converts ? arguments[5] : NULL;
    const unsigned char *output_type = e->converts ? arguments[6] : NULL;
    for (size_t i = 0; i < it.operands; i++) {
        it.operand[i].base = ((uintptr_t *)arguments[2])[i];
        it.operand[i].type = i ? e->input : e->output;
        if (i && input_types) it.operand[i].type = (sim_type)input_types[i - 1];
        if (!i && output_type) it.operand[i].type = (sim_type)output_type[0];
    }
    lay_out_in_a_row(&it);
    run_elementwise(e, arguments[1], &it);
}

/* An OffsetCalculator: int dimensions, a divider (size and two more words) each, byte strides. */
static size_t read_layout(const uint32_t *words, size_t operands, layout *where) {
    where->dimensions = (int)words[0];
    if (where->dimensions < 0 || where->dimensions > MOST_DIMENSIONS) return 0;
    const uint32_t *strides = words + 1 + 3 * MOST_DIMENSIONS;
    for (int d = 0; d < where->dimensions; d++) {
        where->sizes[d] = words[1 + 3 * d];
        if (!where->sizes[d]) return 0;
        for (size_t i = 0; i < operands && i < MOST_OPERANDS; i++) where->strides[d][i] = strides[(size_t)d * operands + i];
    }
    return 4 * (1 + 3 * MOST_DIMENSIONS + operands * MOST_DIMENSIONS);
}

static size_t align(size_t offset, size_t to) { return (offset + to - 1) / to * to; }

/* (int count, closure {OffsetCalculator, array of pointers, functor [, element types]}) */
static bool run_strided(const sim_effect *e, void **arguments) {
    if (e->operation == SIM_FORGET) return false;
    const unsigned char *closure = arguments[1];
    iteration it = {.count = (size_t) * (int *)arguments[0], .operands = e->inputs + 1};
    size_t offset = align(read_layout(arguments[1], it.operands, &it.where), sizeof(uintptr_t));
    if (!offset) return false;
    const uintptr_t *bases = (const uintptr_t *)(closure + offset);
    const unsigned char *functor_bytes = closure + offset + it.operands * sizeof(uintptr_t);
    sim_functor ignored;
    const unsigned char *types = functor_bytes + sim_read_functor(e, functor_bytes, &ignored);
    for (size_t i = 0; i < it.operands; i++) {
        if (!sim_is_device_address(bases[i])) return false;
        sim_type type = i ? e->input : e->output;
        it.operand[i] = (operand){.base = bases[i], .type = e->converts ? (sim_type)types[i] : type};
    }
    run_elementwise(e, functor_bytes, &it);
    return true;
}

/* ---- reductions -------------------------------------------------------------------------------------- */

/* The structure ReduceOp (ATen/native/cuda/Reduce.cuh): functor, identity, configuration, layout of
 * the input, layout of output and input of one result, then the pointers. */
enum { CONFIGURATION_WORDS = 16 };

typedef struct {
    size_t inputs, outputs;
    layout within, between; /* elements of one result; results (0: output, 1: input) */
    uintptr_t source, target;
} reduction;

static bool read_reduction(const sim_effect *e, const unsigned char *structure, reduction *r) {
    size_t partial = e->inputs;
    size_t offset = align(align(1, partial) + partial, 4);
    const uint32_t *configuration = (const uint32_t *)(structure + offset);
    if (configuration[0] != partial) return false;
    r->inputs = configuration[1];
    r->outputs = configuration[2];
    offset += 4 * CONFIGURATION_WORDS;
    size_t size = read_layout((const uint32_t *)(structure + offset), 1, &r->within);
    if (!size) return false;
    offset += size;
    size = read_layout((const uint32_t *)(structure + offset), 2, &r->between);
    if (!size) return false;
    offset = align(offset + size, sizeof(uintptr_t));
    r->source = *(const uintptr_t *)(structure + offset);
    r->target = *(const uintptr_t *)(structure + offset + sizeof(uintptr_t));
    return r->inputs && r->outputs && sim_is_device_address(r->source) && sim_is_device_address(r->target);
}

static bool reduce_each(const sim_effect *e, const reduction *r, size_t extent) {
    size_t size = sim_type_size(e->output);
    unsigned char *in = malloc(extent);
    bool all = in != NULL;
    if (all) sim_values_read(r->source, in, extent);
    for (size_t o = 0; all && o < r->outputs; o++) {
        const unsigned char *slice = in + offset_of(&r->between, 1, o);
        sim_value sum = sim_load(e->input, slice + offset_of(&r->within, 0, 0));
        for (size_t i = 1; i < r->inputs; i++)
            sum = sim_fold(e->operation, sum, sim_load(e->input, slice + offset_of(&r->within, 0, i)));
        uint64_t bytes = 0;
        all = sum.known && sim_store(e->output, sum, &bytes);
        if (all) sim_values_store(r->target + offset_of(&r->between, 0, o), &bytes, size);
    }
    free(in);
    return all;
}

static bool run_reduction(const sim_effect *e, void **arguments) {
    reduction r;
    if (e->operation == SIM_FORGET || !read_reduction(e, arguments[0], &r)) return false;
    size_t size = sim_type_size(e->input), result = sim_type_size(e->output);
    size_t extent = last_offset(&r.within, 0) + last_offset(&r.between, 1) + size;
    uint64_t constant = 0;
    sim_value v = {0};
    sim_knowledge knowledge = sim_values_know(r.source, extent, size, &constant);
    if (knowledge == SIM_VARIED && r.inputs * r.outputs <= MOST_ELEMENTS && reduce_each(e, &r, extent)) return true;
    if (knowledge == SIM_CONSTANT) v = sim_load(e->input, &constant);
    v = knowledge == SIM_VARIED ? (sim_value){0} : sim_fold_constant(e->operation, v, r.inputs);
    uint64_t bytes = 0;
    if (v.known && sim_store(e->output, v, &bytes))
        sim_values_fill(r.target, r.outputs * result, &bytes, result);
    else
        sim_values_forget(r.target, r.outputs * result);
    return true;
}

/* ---- ranges, running sums, counts -------------------------------------------------------------------- */

/* (int count, closure {start, step}, pointer) */
static void run_range(void **arguments) {
    size_t n = (size_t) * (int *)arguments[0];
    const int64_t *closure = arguments[1];
    uintptr_t target = *(uintptr_t *)arguments[2];
    int64_t *out = n <= MOST_ELEMENTS ? malloc(n * sizeof *out) : NULL;
    for (size_t i = 0; out && i < n; i++) out[i] = closure[0] + (int64_t)i * closure[1];
    if (out)
        sim_values_store(target, out, n * sizeof *out);
    else
        sim_values_forget(target, n * sizeof *out);
    free(out);
}

static void running_sum(sim_type type, uintptr_t source, uintptr_t target, size_t rows, size_t columns) {
    size_t size = sim_type_size(type), n = rows * columns;
    uint64_t constant;
    bool known = size && n <= MOST_ELEMENTS && sim_values_know(source, n * size, size, &constant) != SIM_UNKNOWN;
    unsigned char *data = known ? malloc(n * size) : NULL;
    if (!data) {
        sim_values_forget(target, n * (size ? size : 1));
        return;
    }
    sim_values_read(source, data, n * size);
    for (size_t i = 0; i < n; i++) {
        if (i % columns == 0) continue;
        sim_value sum = sim_fold(SIM_SUM, sim_load(type, data + (i - 1) * size), sim_load(type, data + i * size));
        sim_store(type, sum, data + i * size);
    }
    sim_values_store(target, data, n * size);
    free(data);
}

/* CUB's scan (in, out, state, first tile, operator, initial value, count), or PyTorch's own
 * (out, in, rows, columns, ...). */
static void run_running_sum(const sim_effect *e, void **arguments) {
    uintptr_t first = *(uintptr_t *)arguments[0], second = *(uintptr_t *)arguments[1];
    if (e->parameters[0] == SIM_POINTER)
        running_sum(e->input, second, first, *(uint32_t *)arguments[2], *(uint32_t *)arguments[3]);
    else
        running_sum(e->input, first, second, 1, *(uint32_t *)arguments[6]);
}

/* CUB's first pass of nonzero: (iterator {pointer, functor} or {functor, pointer}, int *count,
 * int elements) */
static void count_nonzero(const sim_effect *e, void **arguments) {
    const uintptr_t *iterator = arguments[0];
    uintptr_t source = iterator[sim_is_device_address(iterator[0]) ? 0 : 1];
    uintptr_t target = *(uintptr_t *)arguments[1];
    size_t n = (size_t) * (int *)arguments[2], size = sim_type_size(e->input);
    uint64_t constant = 0;
    int counted = 0;
    sim_knowledge knowledge = size ? sim_values_know(source, n * size, size, &constant) : SIM_UNKNOWN;
    if (knowledge == SIM_CONSTANT) counted = sim_is_true(sim_load(e->input, &constant)) ? (int)n : 0;
    unsigned char *in = knowledge == SIM_VARIED ? malloc(n * size) : NULL;
    if (in) sim_values_read(source, in, n * size);
    for (size_t i = 0; in && i < n; i++) counted += sim_is_true(sim_load(e->input, in + i * size));
    free(in);
    sim_values_store(target, &counted, sizeof counted);
}

/* All of the first pass's count stands in its first partial result: (int *partial, int *count, ...) */
static void add_counts(void **arguments) {
    sim_values_copy(*(uintptr_t *)arguments[1], *(uintptr_t *)arguments[0], sizeof(int));
}

/* ---- any other kernel -------------------------------------------------------------------------------- */

static uintptr_t stack_end(void) {
    static _Thread_local uintptr_t end;
    if (!end) {
        pthread_attr_t attributes;
        void *base;
        size_t size;
        if (pthread_getattr_np(pthread_self(), &attributes)) return 0;
        pthread_attr_getstack(&attributes, &base, &size);
        pthread_attr_destroy(&attributes);
        end = (uintptr_t)base + size;
    }
    return end;
}

/* Where the search for pointers in a structure ends. How large it is, its name does not tell: it lies
 * on the caller's stack, and reaches to the next parameter at most. */
static uintptr_t search_end(const sim_effect *e, void **arguments, size_t which) {
    uintptr_t at = (uintptr_t)arguments[which], end = stack_end();
    layout ignored;
    if (at % sizeof(uintptr_t) || at + LAYOUT_BYTES > end || at < (uintptr_t)__builtin_frame_address(0)) return at;
    int dimensions = *(const int *)at;
    bool has_layout = e->form == SIM_REDUCTION || (dimensions >= 1 && read_layout((const uint32_t *)at, 1, &ignored));
    size_t most = has_layout ? LAYOUT_BYTES : HEAD_BYTES;
    if (end - at > most) end = at + most;
    for (size_t i = 0; i < e->parameter_count; i++) {
        uintptr_t other = (uintptr_t)arguments[i];
        if (other > at && other < end) end = other;
    }
    return end;
}

/* Forget what the pointers from..to (of those that stand side by side) in a structure lead to. */
static void forget_structure(const sim_effect *e, void **arguments, size_t which, size_t from, size_t to) {
    uintptr_t end = search_end(e, arguments, which);
    size_t found = 0;
    for (uintptr_t at = (uintptr_t)arguments[which]; at + sizeof(uintptr_t) <= end; at += sizeof(uintptr_t)) {
        uintptr_t word = *(uintptr_t *)at;
        if (!sim_is_device_address(word)) {
            if (found) return;
            continue;
        }
        if (found >= from && found < to) sim_written(word);
        found++;
    }
}

/* A kernel with pointers that are not to const writes there, and what structures it takes besides tell
 * it what to read. The closures and structures of others begin with what is written; a reduction's
 * pointers are first its input, then outputs and buffers. */
static void run_opaque(const sim_effect *e, void **arguments) {
    size_t from = e->form == SIM_REDUCTION ? 1 : 0, to = e->form == SIM_STRIDED ? 1 : SIZE_MAX;
    bool has_pointer = false;
    for (size_t i = 0; i < e->parameter_count; i++) {
        if (e->parameters[i] != SIM_POINTER) continue;
        sim_written(*(uintptr_t *)arguments[i]);
        has_pointer = true;
    }
    for (size_t i = 0; !has_pointer && i < e->parameter_count; i++)
        if (e->parameters[i] == SIM_STRUCT) forget_structure(e, arguments, i, from, to);
}

void sim_written(uintptr_t address) {
    if (sim_is_device_address(address)) sim_values_forget_at(address);
}

void sim_apply(const sim_effect *e, void **arguments) {
    switch (e->form) {
        case SIM_UNCHANGED: return;
        case SIM_CONTIGUOUS: run_contiguous(e, arguments); return;
        case SIM_STRIDED:
            if (!run_strided(e, arguments)) run_opaque(e, arguments);
            return;
        case SIM_REDUCTION:
            if (!run_reduction(e, arguments)) run_opaque(e, arguments);
            return;
        case SIM_RANGE: run_range(arguments); return;
        case SIM_RUNNING_SUM: run_running_sum(e, arguments); return;
        case SIM_COUNT_NONZERO: count_nonzero(e, arguments); return;
        case SIM_ADD_COUNTS: add_counts(arguments); return;
        default: run_opaque(e, arguments);
    }
}
