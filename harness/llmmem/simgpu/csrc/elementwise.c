#include "elementwise.h"

#include "effects.h"
#include "layout.h"
#include "values.h"
#include "window.h"

#include <stdlib.h>
#include <string.h>

/* Tensors with more elements that are not all the same are not computed one by one. */
#define MOST_ELEMENTS ((size_t)1 << 22)
#define MOST_BYTES ((size_t)1 << 27)
/* With more elements than these that are not known, what lies between them is forgotten too: in a training
 * step it is the rest of a gradient, and going through it would take most of the time. */
#define MOST_FORGOTTEN ((size_t)1 << 16)
#define MOST_STRIDED ((size_t)8) /* operands */

typedef struct {
    uintptr_t base;
    sim_type type;
    sim_value constant; /* of an input that does not vary */
    bool varies;
    sim_window window; /* of one that does */
} operand;

typedef struct {
    size_t count;
    size_t operands; /* the output is operand 0 */
    operand operand[SIM_MOST_OPERANDS];
    sim_layout where;
} iteration;

/* Bytes from the base to the end of the last element. */
static size_t extent_of(const iteration *it, size_t operand) {
    return sim_last_offset(&it->where, operand) + sim_type_size(it->operand[operand].type);
}

static bool in_one_piece(const iteration *it, size_t operand) {
    return extent_of(it, operand) == it->count * sim_type_size(it->operand[operand].type);
}

static void lay_out_in_a_row(iteration *it) {
    it->where.dimensions = 1;
    it->where.sizes[0] = (uint32_t)it->count;
    for (size_t i = 0; i < it->operands; i++) it->where.strides[0][i] = (uint32_t)sim_type_size(it->operand[i].type);
}

static bool same_tensor(const iteration *it, size_t a, size_t b) {
    if (it->operand[a].base != it->operand[b].base || it->operand[a].type != it->operand[b].type) return false;
    for (int d = 0; d < it->where.dimensions; d++)
        if (it->where.strides[d][a] != it->where.strides[d][b]) return false;
    return true;
}

/* ---- the output ------------------------------------------------------------------------------------------ */

static bool open_output(const iteration *it, sim_window *out) {
    uintptr_t base = it->operand[0].base;
    if (in_one_piece(it, 0)) return sim_open_blank_window(out, base, extent_of(it, 0));
    return it->count <= MOST_ELEMENTS && sim_open_window(out, base, extent_of(it, 0));
}

/* Write one value, or that it is not known, to all elements of the output. */
static void spread(const iteration *it, sim_value v) {
    const operand *o = &it->operand[0];
    size_t size = sim_type_size(o->type);
    uint64_t pattern = 0;
    sim_window out;
    if (!size) {
        sim_written(o->base);
    } else if (in_one_piece(it, 0)) {
        if (v.known && sim_store(o->type, v, &pattern))
            sim_values_fill(o->base, it->count * size, &pattern, size);
        else
            sim_values_forget(o->base, it->count * size);
    } else if (!v.known && it->count > MOST_FORGOTTEN) {
        sim_values_forget(o->base, extent_of(it, 0));
    } else if (open_output(it, &out)) {
        for (size_t i = 0; i < it->count; i++) sim_window_set(&out, o->type, sim_offset_of(&it->where, 0, i), v);
        sim_save_window(&out);
        sim_close_window(&out);
    } else {
        sim_values_forget(o->base, extent_of(it, 0));
    }
}

/* ---- computing ------------------------------------------------------------------------------------------- */

static size_t most_elements(const iteration *it) {
    /* Of one byte there are few results: see compute_bytes. */
    return it->operands == 2 && sim_type_size(it->operand[1].type) == 1 ? MOST_BYTES : MOST_ELEMENTS;
}

/* Look up what is known of an input. What is too large to go through is not known. */
static void look_up(iteration *it, size_t i) {
    operand *o = &it->operand[i];
    size_t size = sim_type_size(o->type);
    uint64_t constant = 0;
    sim_knowledge knowledge = size ? sim_values_know(o->base, extent_of(it, i), size, &constant) : SIM_UNKNOWN;
    if (knowledge == SIM_CONSTANT) o->constant = sim_load(o->type, &constant);
    if (knowledge == SIM_VARIED && it->count <= most_elements(it))
        o->varies = sim_open_window(&o->window, o->base, extent_of(it, i));
}

static sim_value element_of(const iteration *it, size_t i, size_t element) {
    const operand *o = &it->operand[i];
    return o->varies ? sim_window_get(&o->window, o->type, sim_offset_of(&it->where, i, element)) : o->constant;
}

static sim_value result_of(const sim_effect *e, const sim_functor *f, const iteration *it, sim_value first,
                           size_t element) {
    if (e->scalar == SIM_FIRST_IS_SCALAR) return sim_combine(e, f, f->scalar, first, false);
    if (e->scalar == SIM_SECOND_IS_SCALAR) return sim_combine(e, f, first, f->scalar, false);
    if (it->operands == 2) return sim_combine(e, f, first, (sim_value){0}, false);
    sim_value second = element_of(it, 2, element);
    if (it->operands == 3) return sim_combine(e, f, first, second, same_tensor(it, 1, 2));
    return sim_choose(first, second, element_of(it, 3, element));
}

static void compute_each(const sim_effect *e, const sim_functor *f, const iteration *it, sim_window *out) {
    for (size_t i = 0; i < it->count; i++) {
        sim_value v = result_of(e, f, it, element_of(it, 1, i), i);
        sim_window_set(out, it->operand[0].type, sim_offset_of(&it->where, 0, i), v);
    }
}

/* An operand of one byte has 256 values, and may be not known: every result once, then copies. */
static void compute_bytes(const sim_effect *e, const sim_functor *f, const iteration *it, sim_window *out) {
    const sim_window *in = &it->operand[1].window;
    size_t size = sim_type_size(it->operand[0].type);
    sim_window results = {0};
    if (!sim_open_blank_window(&results, 0, 257 * size)) return;
    for (unsigned int value = 0; value <= 256; value++) {
        unsigned char byte = (unsigned char)value;
        sim_value v = value < 256 ? sim_load(it->operand[1].type, &byte) : (sim_value){0};
        sim_window_set(&results, it->operand[0].type, value * size, result_of(e, f, it, v, 0));
    }
    for (size_t i = 0; i < it->count; i++) {
        size_t from = sim_offset_of(&it->where, 1, i), to = sim_offset_of(&it->where, 0, i);
        sim_window_move(out, to, &results, (in->known[from] ? in->bytes[from] : 256u) * size, size);
    }
    sim_close_window(&results);
}

static void compute(const sim_effect *e, const sim_functor *f, iteration *it) {
    bool varies = false;
    sim_window out;
    for (size_t i = 1; i < it->operands; i++) {
        look_up(it, i);
        varies |= it->operand[i].varies;
    }
    if (!varies || !sim_type_size(it->operand[0].type)) {
        spread(it, result_of(e, f, it, element_of(it, 1, 0), 0));
    } else if (!open_output(it, &out)) {
        spread(it, (sim_value){0});
    } else {
        if (it->operands == 2 && sim_type_size(it->operand[1].type) == 1)
            compute_bytes(e, f, it, &out);
        else
            compute_each(e, f, it, &out);
        sim_save_window(&out);
        sim_close_window(&out);
    }
    for (size_t i = 1; i < it->operands; i++) sim_close_window(&it->operand[i].window);
}

/* A copy between types that its name does not tell. */
static void convert(const sim_effect *e, const sim_functor *f, iteration *it) {
    sim_effect actual = *e;
    actual.input = it->operand[1].type;
    actual.output = it->operand[0].type;
    compute(&actual, f, it);
}

/* The output of a functor that is not known, which is as large as the input that it takes the place of. */
static void forget_output(iteration *it) {
    for (size_t i = 1; i < it->operands; i++)
        if (it->operand[i].base == it->operand[0].base && sim_type_size(it->operand[i].type))
            it->operand[0].type = it->operand[i].type;
    lay_out_in_a_row(it);
    spread(it, (sim_value){0});
}

static void run(const sim_effect *e, const unsigned char *functor_bytes, iteration *it) {
    sim_functor f;
    if (it->count == 0) return;
    sim_read_functor(e, functor_bytes, &f);
    if (e->operation == SIM_FILL)
        spread(it, sim_load(it->operand[0].type, functor_bytes));
    else if (e->operation == SIM_FORGET)
        forget_output(it);
    else if (e->operation == SIM_COPY && e->converts)
        convert(e, &f, it);
    else
        compute(e, &f, it);
}

/* ---- how kernels are given their operands ------------------------------------------------------------- */

static sim_type type_of(const sim_effect *e, size_t operand) {
    return operand == 0 ? e->output : operand == 1 ? e->input : e->others;
}

/* (int count, functor, array of pointers [, calculators, loader, storer]) */
bool sim_run_contiguous(const sim_effect *e, void **arguments) {
    iteration it = {.count = (size_t) * (int *)arguments[0], .operands = e->inputs + 1};
    if (it.operands > SIM_MOST_OPERANDS) it.operands = 1;
    const unsigned char *input_types = e->converts ? arguments[5] : NULL;
    const unsigned char *output_type = e->converts ? arguments[6] : NULL;
    for (size_t i = 0; i < it.operands; i++) {
        it.operand[i].base = ((uintptr_t *)arguments[2])[i];
        it.operand[i].type = type_of(e, i);
        if (i && input_types) it.operand[i].type = (sim_type)input_types[i - 1];
        if (!i && output_type) it.operand[i].type = (sim_type)output_type[0];
    }
    lay_out_in_a_row(&it);
    run(e, arguments[1], &it);
    return true;
}

/* The pointers in the closure of a strided kernel, after the OffsetCalculator of so many operands; NULL if
 * there are none. */
static const uintptr_t *bases_in(const unsigned char *closure, size_t operands, sim_layout *where) {
    size_t offset = sim_align(sim_read_layout(closure, operands, where), sizeof(uintptr_t));
    const uintptr_t *bases = (const uintptr_t *)(closure + offset);
    for (size_t i = 0; i < operands; i++)
        if (!offset || !sim_is_device_address(bases[i])) return NULL;
    return bases;
}

/* Of a functor that is not known, the name does not tell how many operands it has. The output comes first. */
static void forget_strided_output(const unsigned char *closure) {
    sim_layout where;
    for (size_t operands = 1; operands <= MOST_STRIDED; operands++) {
        const uintptr_t *bases = bases_in(closure, operands, &where);
        if (bases) sim_written(bases[0]);
    }
}

/* (int count, closure {OffsetCalculator, array of pointers, functor [, element types]}) */
bool sim_run_strided(const sim_effect *e, void **arguments) {
    const unsigned char *closure = arguments[1];
    iteration it = {.count = (size_t) * (int *)arguments[0], .operands = e->inputs + 1};
    const uintptr_t *bases = e->operation == SIM_FORGET ? NULL : bases_in(closure, it.operands, &it.where);
    if (!bases) {
        forget_strided_output(closure);
        return true;
    }
    const unsigned char *functor_bytes = (const unsigned char *)(bases + it.operands);
    sim_functor ignored;
    const unsigned char *types = functor_bytes + sim_read_functor(e, functor_bytes, &ignored);
    for (size_t i = 0; i < it.operands; i++)
        it.operand[i] = (operand){.base = bases[i], .type = e->converts ? (sim_type)types[i] : type_of(e, i)};
    run(e, functor_bytes, &it);
    return true;
}
