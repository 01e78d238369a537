#include "moves.h"

#include "layout.h"
#include "values.h"
#include "window.h"

#include <stdlib.h>
#include <string.h>

/* More elements are not moved one by one. */
#define MOST_ELEMENTS ((size_t)1 << 22)

/* ---- concatenation ------------------------------------------------------------------------------------- */

#define CAT_DIMENSIONS 4

typedef struct {
    uint32_t sizes[CAT_DIMENSIONS], strides[CAT_DIMENSIONS];
} cat_shape;

/* CatArrInputTensorMetadata: the inputs of one launch, one list after the other; lists of `inputs`. */
typedef struct {
    const uintptr_t *pointers;
    const uint32_t *offsets, *sizes, *elements;
    const bool *contiguous;
} cat_inputs;

static cat_inputs read_cat_inputs(const unsigned char *structure, size_t most) {
    cat_inputs in = {.pointers = (const uintptr_t *)structure};
    in.offsets = (const uint32_t *)(in.pointers + most);
    in.sizes = in.offsets + most;
    in.elements = in.sizes + most;
    in.contiguous = (const bool *)(in.elements + most);
    return in;
}

static bool is_contiguous(const cat_shape *shape, int dimensions) {
    uint32_t stride = 1;
    for (int d = dimensions; d-- > 0;) {
        if (shape->strides[d] != stride) return false;
        stride *= shape->sizes[d];
    }
    return true;
}

/* Copy one input into its part of every row of the output. */
static void cat_one(const cat_inputs *in, size_t i, size_t inner, size_t row, size_t size, sim_window *out) {
    size_t part = in->sizes[i] * inner * size, rows = part ? in->elements[i] * size / part : 0;
    sim_window w;
    if (!in->contiguous[i] || !sim_open_window(&w, in->pointers[i], rows * part)) return;
    for (size_t r = 0; r < rows; r++) sim_window_move(out, r * row + in->offsets[i] * inner * size, &w, r * part, part);
    sim_close_window(&w);
}

static bool is_known(const cat_inputs *in, size_t i, size_t size) {
    uint64_t ignored;
    return sim_values_know(in->pointers[i], in->elements[i] * size, 1, &ignored) != SIM_UNKNOWN;
}

/* (output, inputs, shape of the output, dimension, its stride). The output consists of rows, of which
 * each input is a part. */
bool sim_run_cat(const sim_effect *e, void **arguments) {
    cat_shape shape;
    memcpy(&shape, arguments[2], sizeof shape);
    int dimension = *(int *)arguments[3], dimensions = e->vector ? dimension + 1 : e->dimensions;
    size_t inner = *(uint32_t *)arguments[4], size = e->element_size, inputs = 0;
    if (dimension < 0 || dimension >= e->dimensions || !inner || !is_contiguous(&shape, dimensions)) return false;
    cat_inputs in = read_cat_inputs(arguments[1], e->batch);
    /* By vectors, the dimension and all that lie within it are one, whose size counts vectors. */
    size_t total = e->vector ? shape.sizes[dimension] * e->vector / size / inner : shape.sizes[dimension];
    size_t total_bytes = e->vector ? e->vector : size;
    for (int d = 0; d < dimensions; d++) total_bytes *= shape.sizes[d];
    bool any_known = false, last = false;
    while (inputs < e->batch && !last) { /* what follows the last one was never written */
        if (in.offsets[inputs] + in.sizes[inputs] > total) return false;
        any_known |= is_known(&in, inputs, size);
        last = in.offsets[inputs] + in.sizes[inputs] == total;
        inputs++;
    }
    uintptr_t output = *(uintptr_t *)arguments[0];
    sim_window out;
    if (!any_known || !sim_open_window(&out, output, total_bytes)) {
        sim_values_forget(output, total_bytes);
        return true;
    }
    for (size_t i = 0; i < inputs; i++) cat_one(&in, i, inner, total * inner * size, size, &out);
    sim_save_window(&out);
    sim_close_window(&out);
    return true;
}

/* ---- gathering and scattering -------------------------------------------------------------------------- */

#define MOST_INDICES 25

/* Elements that are copied from or to where indices tell. Operands of the layout: the output, the
 * input, the indices. */
typedef struct {
    size_t count, size; /* elements, bytes of each */
    uintptr_t output, input;
    bool scatters; /* the indices tell where to, not where from */
    const unsigned char *value; /* what is scattered in place of an input */
    size_t indices;
    uintptr_t index[MOST_INDICES];
    int64_t index_size[MOST_INDICES], index_stride[MOST_INDICES]; /* of the dimension: elements, bytes */
    sim_layout where;
    size_t index_operand;
} movement;

/* How far beyond the layout indices can lead, in bytes. */
static size_t reach(const movement *m) {
    size_t bytes = 0;
    for (size_t i = 0; i < m->indices; i++) bytes += (size_t)(m->index_size[i] - 1) * (size_t)m->index_stride[i];
    return bytes;
}

static size_t output_extent(const movement *m) {
    return sim_last_offset(&m->where, 0) + m->size + (m->scatters ? reach(m) : 0);
}

static size_t input_extent(const movement *m) {
    return sim_last_offset(&m->where, 1) + m->size + (m->scatters ? 0 : reach(m));
}

/* Where the indices of an element lead, in bytes; false if one is not known or out of range. */
static bool follow(const movement *m, const sim_window *indices, size_t element, size_t *offset) {
    *offset = 0;
    size_t at = sim_offset_of(&m->where, m->index_operand, element);
    for (size_t i = 0; i < m->indices; i++) {
        sim_value v = sim_window_get(&indices[i], SIM_INT64, at);
        int64_t index = v.integer < 0 ? v.integer + m->index_size[i] : v.integer;
        if (!v.known || index < 0 || index >= m->index_size[i]) return false;
        *offset += (size_t)index * (size_t)m->index_stride[i];
    }
    return true;
}

/* False if it is not known where one of the elements goes to. */
static bool move_each(const movement *m, const sim_window *indices, const sim_window *in, sim_window *out) {
    for (size_t i = 0; i < m->count; i++) {
        size_t to = sim_offset_of(&m->where, 0, i), from = m->value ? 0 : sim_offset_of(&m->where, 1, i), offset;
        bool known = follow(m, indices, i, &offset);
        if (m->scatters && !known) return false;
        if (known)
            sim_window_move(out, m->scatters ? to + offset : to, in, m->scatters ? from : from + offset, m->size);
        else
            memset(out->known + to, 0, m->size);
    }
    return true;
}

/* Whatever the indices are: of a source that is one value all along comes that value. */
static bool all_the_same(const movement *m) {
    uint64_t value = 0;
    if (m->scatters || m->size > sizeof value) return false;
    if (sim_values_know(m->input, input_extent(m), m->size, &value) != SIM_CONSTANT) return false;
    sim_window out;
    if (!sim_open_window(&out, m->output, output_extent(m))) return false;
    for (size_t i = 0; i < m->count; i++) {
        size_t to = sim_offset_of(&m->where, 0, i);
        memcpy(out.bytes + to, &value, m->size);
        memset(out.known + to, 1, m->size);
    }
    sim_save_window(&out);
    sim_close_window(&out);
    return true;
}

static bool open_input(const movement *m, sim_window *in) {
    if (!m->value) return sim_open_window(in, m->input, input_extent(m));
    if (!sim_open_blank_window(in, 0, m->size)) return false;
    memcpy(in->bytes, m->value, m->size);
    memset(in->known, 1, m->size);
    return true;
}

static bool move_in_windows(const movement *m) {
    sim_window in = {0}, out = {0}, indices[MOST_INDICES] = {{0}};
    size_t index_extent = sim_last_offset(&m->where, m->index_operand) + sizeof(int64_t);
    bool done = m->count <= MOST_ELEMENTS;
    for (size_t i = 0; done && i < m->indices; i++) done = sim_open_window(&indices[i], m->index[i], index_extent);
    done = done && open_input(m, &in) && sim_open_window(&out, m->output, output_extent(m)) &&
           move_each(m, indices, &in, &out);
    if (done) sim_save_window(&out);
    for (size_t i = 0; i < m->indices; i++) sim_close_window(&indices[i]);
    sim_close_window(&in);
    sim_close_window(&out);
    return done;
}

static bool is_possible(const movement *m) {
    bool possible = sim_is_device_address(m->output) && (m->value || sim_is_device_address(m->input)) && m->indices <= MOST_INDICES;
    for (size_t i = 0; possible && i < m->indices; i++)
        possible = sim_is_device_address(m->index[i]) && m->index_size[i] > 0 && m->index_stride[i] >= 0;
    return possible;
}

static bool is_input_known(const movement *m) {
    uint64_t ignored;
    return m->value || sim_values_know(m->input, input_extent(m), 1, &ignored) != SIM_UNKNOWN;
}

static bool move(const movement *m) {
    if (!is_possible(m)) return false;
    bool moved = is_input_known(m) && (all_the_same(m) || move_in_windows(m));
    if (!moved) sim_values_forget(m->output, output_extent(m));
    return true;
}

/* (int count, closure {OffsetCalculator, indices, size of the dimension, -, output, its stride there in
 * elements, -, input or value}) */
bool sim_run_gather(const sim_effect *e, void **arguments) {
    struct closure {
        uintptr_t index;
        int64_t index_size, unused1;
        uintptr_t self;
        int64_t stride, unused2;
        uintptr_t source;
    } c;
    const unsigned char *closure = arguments[1];
    size_t operands = e->form == SIM_SCATTER_FILL ? 2 : 3;
    movement m = {.count = (size_t) * (int *)arguments[0], .size = e->element_size, .indices = 1};
    size_t offset = sim_align(sim_read_layout(closure, operands, &m.where), sizeof(uintptr_t));
    if (!offset) return false;
    memcpy(&c, closure + offset, sizeof c);
    m.output = c.self;
    m.input = c.source;
    m.scatters = e->form != SIM_GATHER;
    if (e->form == SIM_SCATTER_FILL) m.value = closure + offset + offsetof(struct closure, source);
    m.index[0] = c.index;
    m.index_size[0] = c.index_size;
    m.index_stride[0] = c.stride * (int64_t)m.size;
    m.index_operand = operands - 1;
    return move(&m);
}

/* (int64 count, closure {OffsetCalculator, output, input, int number of indices, indices, sizes, strides in
 * bytes}) */
bool sim_run_index(const sim_effect *e, void **arguments) {
    struct closure {
        uintptr_t output, input;
        int32_t indices;
        uintptr_t index[MOST_INDICES];
        int64_t sizes[MOST_INDICES], strides[MOST_INDICES];
    } c;
    const unsigned char *closure = arguments[1];
    movement m = {.count = (size_t) * (int64_t *)arguments[0], .size = e->element_size, .index_operand = 2};
    size_t offset = sim_align(sim_read_layout(closure, 3, &m.where), sizeof(uintptr_t));
    if (!offset) return false;
    memcpy(&c, closure + offset, sizeof c);
    if (c.indices < 1 || c.indices > MOST_INDICES) return false;
    m.output = c.output;
    m.input = c.input;
    m.scatters = e->form == SIM_INDEX_PUT;
    m.indices = (size_t)c.indices;
    memcpy(m.index, c.index, sizeof m.index);
    memcpy(m.index_size, c.sizes, sizeof m.index_size);
    memcpy(m.index_stride, c.strides, sizeof m.index_stride);
    return move(&m);
}

/* (output, input, indices, int count, bytes of a row, rows of the input, strides of the rows of input and
 * output, whether negative indices count from the end) */
bool sim_run_gather_rows(const sim_effect *e, void **arguments) {
    int64_t rows = *(int64_t *)arguments[5];
    size_t row = (size_t) * (int64_t *)arguments[4];
    movement m = {
        .count = (size_t) * (int *)arguments[3],
        .size = row,
        .output = *(uintptr_t *)arguments[0],
        .input = *(uintptr_t *)arguments[1],
        .indices = 1,
        .index = {*(uintptr_t *)arguments[2]},
        .index_size = {rows},
        .index_stride = {*(int64_t *)arguments[6]},
        .where = {.dimensions = 1, .strides = {{(uint32_t) * (int64_t *)arguments[7], 0, sizeof(int64_t)}}},
        .index_operand = 2,
    };
    m.where.sizes[0] = (uint32_t)m.count;
    return e->input == SIM_INT64 && m.count && move(&m);
}

/* ---- the largest and the smallest ---------------------------------------------------------------------- */

typedef struct {
    sim_value value;
    size_t place;
} candidate;

static int by_place(const candidate *a, const candidate *b) { return (a->place > b->place) - (a->place < b->place); }

static int ascending(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->value.number != b->value.number) return a->value.number < b->value.number ? -1 : 1;
    return by_place(a, b);
}

static int descending(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->value.number != b->value.number) return a->value.number > b->value.number ? -1 : 1;
    return by_place(a, b);
}

/* Whether it can be told which k come first: those that are not known are of ordinary size, so they come
 * before or after numbers that are huge; which of them does not matter if all are taken or none. */
static bool can_choose(const candidate *sorted, size_t n, size_t k, bool largest) {
    size_t unknown = 0, before = 0;
    for (size_t i = 0; i < n; i++) {
        if (!sorted[i].value.known) unknown++;
        else if (largest ? sorted[i].value.number > 0 : sorted[i].value.number < 0) before++;
    }
    if (!unknown) return true;
    for (size_t i = 0; i < n; i++)
        if (sorted[i].value.known && !sim_is_huge(sorted[i].value)) return false;
    return before >= k || before + unknown <= k;
}

/* A tensor of slices, and where the elements of a slice lie; the layout in elements. */
typedef struct {
    uintptr_t base;
    sim_layout where;
    size_t stride, extent;
    sim_type type;
    sim_window window;
} slices;

static bool read_slices(slices *s, const void *information, size_t stride, size_t length, sim_type type) {
    size_t size = sim_type_size(type);
    s->base = sim_read_tensor(information, &s->where);
    s->type = type;
    s->stride = stride * size;
    s->extent = sim_last_offset(&s->where, 0) * size + (length - 1) * s->stride + size;
    return s->base && size;
}

static bool open_slices(slices *s) { return sim_open_window(&s->window, s->base, s->extent); }

static bool is_slice_known(const slices *s) {
    uint64_t ignored;
    return sim_values_know(s->base, s->extent, 1, &ignored) != SIM_UNKNOWN;
}

static size_t slice_at(const slices *s, size_t slice) { return sim_offset_of(&s->where, 0, slice) * sim_type_size(s->type); }

/* The elements of a slice in order; what is not known counts as zero and keeps its place. */
static void rank(const slices *s, size_t at, size_t n, bool largest, candidate *out) {
    for (size_t i = 0; i < n; i++) out[i] = (candidate){sim_window_get(&s->window, s->type, at + i * s->stride), i};
    qsort(out, n, sizeof *out, largest ? descending : ascending);
}

static void set_unknown(slices *s, size_t at, size_t length) {
    for (size_t i = 0; i < length; i++) sim_window_set(&s->window, s->type, at + i * s->stride, (sim_value){0});
}

/* The first k of each slice, with their places. */
static void choose(const slices *in, size_t length, size_t k, size_t count, bool largest, slices *values, slices *indices,
                   candidate *order) {
    for (size_t s = 0; s < count; s++) {
        size_t value = slice_at(values, s), index = slice_at(indices, s);
        rank(in, slice_at(in, s), length, largest, order);
        if (!can_choose(order, length, k, largest)) {
            set_unknown(values, value, k);
            set_unknown(indices, index, k);
            continue;
        }
        for (size_t i = 0; i < k; i++) {
            sim_value place = {true, false, (int64_t)order[i].place, (double)order[i].place};
            sim_window_set(&values->window, values->type, value + i * values->stride, order[i].value);
            sim_window_set(&indices->window, indices->type, index + i * indices->stride, place);
        }
    }
    sim_save_window(&values->window);
    sim_save_window(&indices->window);
}

/* (input, elements of a slice, k, largest, slices, stride within a slice, values, their stride, indices, their
 * stride, -) */
bool sim_run_topk(const sim_effect *e, void **arguments) {
    size_t length = *(uint32_t *)arguments[1], k = *(uint32_t *)arguments[2], count = *(uint32_t *)arguments[4];
    slices in = {0}, values = {0}, indices = {0};
    if (!length || !k || !read_slices(&in, arguments[0], *(uint32_t *)arguments[5], length, e->input) ||
        !read_slices(&values, arguments[6], *(uint32_t *)arguments[7], k, e->input) ||
        !read_slices(&indices, arguments[8], *(uint32_t *)arguments[9], k, SIM_INT64))
        return false;
    candidate *order = is_slice_known(&in) && count * length <= MOST_ELEMENTS ? malloc(length * sizeof *order) : NULL;
    if (order && open_slices(&in) && open_slices(&values) && open_slices(&indices)) {
        choose(&in, length, k, count, *(bool *)arguments[3], &values, &indices, order);
    } else {
        sim_values_forget(values.base, values.extent);
        sim_values_forget(indices.base, indices.extent);
    }
    sim_close_window(&in.window);
    sim_close_window(&values.window);
    sim_close_window(&indices.window);
    free(order);
    return true;
}

static void sort_each(slices *keys, slices *values, size_t length, size_t count, bool largest, candidate *order,
                      sim_value *moved) {
    for (size_t s = 0; s < count; s++) {
        size_t key = slice_at(keys, s), value = slice_at(values, s);
        rank(keys, key, length, largest, order);
        if (!can_choose(order, length, length, largest)) {
            set_unknown(keys, key, length);
            set_unknown(values, value, length);
            continue;
        }
        for (size_t i = 0; i < length; i++)
            moved[i] = sim_window_get(&values->window, values->type, value + order[i].place * values->stride);
        for (size_t i = 0; i < length; i++) {
            sim_window_set(&keys->window, keys->type, key + i * keys->stride, order[i].value);
            sim_window_set(&values->window, values->type, value + i * values->stride, moved[i]);
        }
    }
    sim_save_window(&keys->window);
    sim_save_window(&values->window);
}

/* (keys, slices, elements of a slice, stride within, values, their stride, comparison): in place. Where no
 * key is known, all keep their places. */
bool sim_run_sort_pairs(const sim_effect *e, void **arguments) {
    size_t count = *(uint32_t *)arguments[1], length = *(uint32_t *)arguments[2];
    slices keys = {0}, values = {0};
    if (!length || !read_slices(&keys, arguments[0], *(uint32_t *)arguments[3], length, e->input) ||
        !read_slices(&values, arguments[4], *(uint32_t *)arguments[5], length, e->others))
        return false;
    if (!is_slice_known(&keys)) return true;
    candidate *order = count * length <= MOST_ELEMENTS ? malloc(length * sizeof *order) : NULL;
    sim_value *moved = malloc(length * sizeof *moved);
    if (order && moved && open_slices(&keys) && open_slices(&values)) {
        sort_each(&keys, &values, length, count, e->descending, order, moved);
    } else {
        sim_values_forget(keys.base, keys.extent);
        sim_values_forget(values.base, values.extent);
    }
    sim_close_window(&keys.window);
    sim_close_window(&values.window);
    free(order);
    free(moved);
    return true;
}
