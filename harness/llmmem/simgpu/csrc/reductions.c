#include "reductions.h"

#include "layout.h"
#include "values.h"
#include "window.h"

#include <stdlib.h>
#include <string.h>

/* What is larger and not one value all along is not gone through. */
#define MOST_ELEMENTS ((size_t)1 << 22)
#define MOST_PLACES ((size_t)1 << 26)

/* ---- reductions ------------------------------------------------------------------------------------------ */

/* The structure ReduceOp (ATen/native/cuda/Reduce.cuh): functor, identity, configuration, layout of
 * the input, layout of output and input of one result, then the pointers. */
enum { CONFIGURATION_WORDS = 16, MOST_PARTIAL = 64, MOST_BEFORE = 96 };
/* Words of the configuration: bytes of a partial result, inputs and outputs, threads of a block. */
enum { PARTIAL, INPUTS, OUTPUTS, WIDTH = 11, HEIGHT, THREADS };

typedef struct {
    size_t inputs, outputs;
    sim_layout within, between; /* elements of one result; results (0: output, 1: input) */
    uintptr_t source, target, second_target;
} reduction;

static bool is_configuration(const uint32_t *words) {
    return words[PARTIAL] && words[PARTIAL] <= MOST_PARTIAL && words[INPUTS] && words[OUTPUTS] && words[WIDTH] &&
           words[HEIGHT] && words[THREADS] == words[WIDTH] * words[HEIGHT];
}

/* Read the structure, with the configuration where it is supposed to be. */
static bool read_at(const unsigned char *structure, size_t offset, reduction *r) {
    const uint32_t *configuration = (const uint32_t *)(structure + offset);
    if (!is_configuration(configuration)) return false;
    r->inputs = configuration[INPUTS];
    r->outputs = configuration[OUTPUTS];
    offset += 4 * CONFIGURATION_WORDS;
    size_t size = sim_read_layout(structure + offset, 1, &r->within);
    if (!size) return false;
    offset += size;
    size = sim_read_layout(structure + offset, 2, &r->between);
    if (!size) return false;
    offset = sim_align(offset + size, sizeof(uintptr_t));
    const uintptr_t *pointers = (const uintptr_t *)(structure + offset);
    r->source = pointers[0];
    r->target = pointers[1];
    r->second_target = pointers[2];
    return sim_is_device_address(r->source) && sim_is_device_address(r->target);
}

/* What comes before the configuration, the names of some functors tell: a byte, and a partial result. */
static bool read_reduction(const sim_effect *e, const unsigned char *structure, reduction *r) {
    if (e->inputs) return read_at(structure, sim_align(sim_align(1, e->inputs) + e->inputs, 4), r);
    for (size_t offset = 0; offset <= MOST_BEFORE; offset += 4)
        if (read_at(structure, offset, r)) return true;
    return false;
}

static void reduce_each(const sim_effect *e, const reduction *r, const sim_window *in, sim_window *out) {
    for (size_t o = 0; o < r->outputs; o++) {
        size_t slice = sim_offset_of(&r->between, 1, o);
        sim_value sum = sim_first_of_fold(e->operation, sim_window_get(in, e->input, slice));
        for (size_t i = 1; i < r->inputs; i++)
            sum = sim_fold(e->operation, sum, sim_window_get(in, e->input, slice + sim_offset_of(&r->within, 0, i)));
        sim_window_set(out, e->output, sim_offset_of(&r->between, 0, o), sum);
    }
}

bool sim_run_reduction(const sim_effect *e, void **arguments) {
    reduction r;
    if (!read_reduction(e, arguments[0], &r)) return false;
    if (e->operation == SIM_FORGET) {
        sim_written(r.target);
        sim_written(r.second_target);
        return true;
    }
    size_t size = sim_type_size(e->input), result = sim_type_size(e->output);
    size_t source_extent = sim_last_offset(&r.within, 0) + sim_last_offset(&r.between, 1) + size;
    uint64_t constant = 0;
    sim_knowledge knowledge = sim_values_know(r.source, source_extent, size, &constant);
    sim_window in = {0}, out = {0};
    if (knowledge == SIM_VARIED && r.inputs * r.outputs <= MOST_ELEMENTS && sim_open_window(&in, r.source, source_extent) &&
        sim_open_window(&out, r.target, sim_last_offset(&r.between, 0) + result)) {
        reduce_each(e, &r, &in, &out);
        sim_save_window(&out);
    } else {
        sim_value v = knowledge == SIM_CONSTANT ? sim_load(e->input, &constant) : (sim_value){0};
        v = sim_fold_constant(e->operation, v, r.inputs);
        uint64_t bytes = 0;
        if (v.known && sim_store(e->output, v, &bytes))
            sim_values_fill(r.target, r.outputs * result, &bytes, result);
        else
            sim_values_forget(r.target, r.outputs * result);
    }
    sim_close_window(&in);
    sim_close_window(&out);
    return true;
}

/* ---- running sums ---------------------------------------------------------------------------------------- */

static void running_sum(sim_type type, uintptr_t source, uintptr_t target, size_t rows, size_t columns) {
    size_t size = sim_type_size(type), n = rows * columns;
    sim_window in;
    if (!size) {
        sim_written(target);
        return;
    }
    if (n > MOST_ELEMENTS || !sim_open_window(&in, source, n * size)) {
        sim_values_forget(target, n * size);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (i % columns == 0) continue;
        sim_value before = sim_window_get(&in, type, (i - 1) * size), next = sim_window_get(&in, type, i * size);
        sim_window_set(&in, type, i * size, sim_fold(SIM_SUM, before, next));
    }
    in.base = target;
    sim_save_window(&in);
    sim_close_window(&in);
}

/* CUB's scan (in, out, state, first tile, operator, initial value, count), or PyTorch's own
 * (out, in, rows, columns, ...). */
bool sim_run_running_sum(const sim_effect *e, void **arguments) {
    uintptr_t first = *(uintptr_t *)arguments[0], second = *(uintptr_t *)arguments[1];
    if (e->parameters[0] == SIM_POINTER)
        running_sum(e->input, second, first, *(uint32_t *)arguments[2], *(uint32_t *)arguments[3]);
    else
        running_sum(e->input, first, second, 1, *(uint32_t *)arguments[6]);
    return true;
}

/* ---- counts ---------------------------------------------------------------------------------------------- */

/* What nonzero looks at: an iterator {pointer, functor} or {functor, pointer} over so many elements. */
typedef struct {
    uintptr_t source;
    size_t count, size;
    sim_knowledge knowledge;
    uint64_t constant;
} mask;

static mask read_mask(const sim_effect *e, const uintptr_t *iterator, size_t count) {
    mask m = {.source = iterator[sim_is_device_address(iterator[0]) ? 0 : 1], .count = count, .size = sim_type_size(e->input)};
    m.knowledge = m.size ? sim_values_know(m.source, count * m.size, m.size, &m.constant) : SIM_UNKNOWN;
    return m;
}

/* CUB's first pass of nonzero: (iterator, int *count, int elements). What is not known does not count. */
bool sim_count_nonzero(const sim_effect *e, void **arguments) {
    mask m = read_mask(e, arguments[0], (size_t) * (int *)arguments[2]);
    int counted = 0;
    sim_window in = {0};
    if (m.knowledge == SIM_CONSTANT) counted = sim_is_true(sim_load(e->input, &m.constant)) ? (int)m.count : 0;
    if (m.knowledge == SIM_VARIED && sim_open_window(&in, m.source, m.count * m.size))
        for (size_t i = 0; i < m.count; i++) counted += sim_is_true(sim_window_get(&in, e->input, i * m.size));
    sim_close_window(&in);
    sim_values_store(*(uintptr_t *)arguments[1], &counted, sizeof counted);
    return true;
}

/* (first place, iterator, int64 *places, int *count, -, -, -, int elements, ...) */
bool sim_select_places(const sim_effect *e, void **arguments) {
    int64_t first = *(int64_t *)arguments[0];
    mask m = read_mask(e, arguments[1], (size_t) * (int *)arguments[7]);
    uintptr_t target = *(uintptr_t *)arguments[2];
    sim_window in = {0};
    int64_t *places = m.knowledge != SIM_UNKNOWN && m.count <= MOST_PLACES ? malloc(m.count * sizeof *places) : NULL;
    size_t found = 0;
    sim_written(target);
    if (places && sim_open_window(&in, m.source, m.count * m.size)) {
        for (size_t i = 0; i < m.count; i++)
            if (sim_is_true(sim_window_get(&in, e->input, i * m.size))) places[found++] = first + (int64_t)i;
        sim_values_store(target, places, found * sizeof *places);
    }
    sim_close_window(&in);
    free(places);
    return true;
}

/* (int64 *places, sizes, int dimensions, int64 elements, ...): in place of a row of places comes one for each
 * dimension. */
bool sim_write_indices(void **arguments) {
    uintptr_t target = *(uintptr_t *)arguments[0];
    const int64_t *sizes = arguments[1];
    int dimensions = *(int *)arguments[2];
    size_t n = (size_t) * (int64_t *)arguments[3], row = n * sizeof(int64_t);
    sim_window out;
    if (dimensions < 1 || !n || !sim_open_window(&out, target, (size_t)dimensions * row)) return false;
    for (size_t i = 0; i < n; i++) {
        sim_value place = sim_window_get(&out, SIM_INT64, i * sizeof(int64_t));
        int64_t rest = place.integer;
        for (int d = dimensions; d-- > 0; rest /= sizes[d] ? sizes[d] : 1) {
            int64_t index = sizes[d] ? rest % sizes[d] : 0;
            sim_value v = {place.known, false, index, (double)index};
            sim_window_set(&out, SIM_INT64, (size_t)d * row + i * sizeof(int64_t), v);
        }
    }
    sim_save_window(&out);
    sim_close_window(&out);
    return true;
}

/* All of the first pass's count stands in its first partial result: (int *partial, int *count, ...) */
bool sim_add_counts(void **arguments) {
    sim_values_copy(*(uintptr_t *)arguments[1], *(uintptr_t *)arguments[0], sizeof(int));
    return true;
}

/* CUB's unique of what is sorted: (in, flags, out, int64 *count, state, operator, equality, int elements).
 * Of values that are not known there is one: they all read as zero. */
bool sim_select_unique(const sim_effect *e, void **arguments) {
    uintptr_t source = *(uintptr_t *)arguments[0], target = *(uintptr_t *)arguments[2];
    size_t n = (size_t) * (int *)arguments[7], size = sim_type_size(e->input);
    sim_window in;
    int64_t count = 0;
    sim_written(target);
    if (!size || n > MOST_ELEMENTS || !sim_open_window(&in, source, n * size)) {
        count = n > 0;
    } else {
        for (size_t i = 0; i < n; i++)
            if (i == 0 || memcmp(in.bytes + i * size, in.bytes + (i - 1) * size, size))
                sim_window_move(&in, (size_t)count++ * size, &in, i * size, size);
        in.base = target;
        in.size = (size_t)count * size;
        sim_save_window(&in);
        sim_close_window(&in);
    }
    sim_values_store(*(uintptr_t *)arguments[3], &count, sizeof count);
    return true;
}
