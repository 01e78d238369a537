#include "effects.h"

#include "blocks.h"
#include "elementwise.h"
#include "layout.h"
#include "moves.h"
#include "reductions.h"
#include "values.h"

#include <pthread.h>
#include <stdlib.h>

/* Ranges with more elements are not computed. */
#define MOST_ELEMENTS ((size_t)1 << 22)
/* How far into a structure its pointers are looked for: as such, with OffsetCalculators before them (of up
 * to six operands), and in lists of tensors. */
#define HEAD_BYTES ((size_t)128)
#define LAYOUT_BYTES ((size_t)4 * (1 + 3 * 25 + 6 * 25) + HEAD_BYTES)
#define LISTS_BYTES ((size_t)1440)

/* ---- ranges ---------------------------------------------------------------------------------------------- */

/* (int count, closure {start, step}, pointer) */
static bool run_range(void **arguments) {
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
    return true;
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
 * on the caller's stack, and reaches to the next parameter, or to the list of them, at most. */
static uintptr_t search_end(const sim_effect *e, void **arguments, size_t which) {
    uintptr_t at = (uintptr_t)arguments[which], end = stack_end(), list = (uintptr_t)arguments;
    sim_layout ignored;
    if (at % sizeof(uintptr_t) || at + LAYOUT_BYTES > end || at < (uintptr_t)__builtin_frame_address(0)) return at;
    size_t most = HEAD_BYTES;
    if (e->form == SIM_TENSOR_LISTS)
        most = LISTS_BYTES;
    else if (*(const int *)at >= 1 && sim_read_layout((const void *)at, 1, &ignored))
        most = LAYOUT_BYTES;
    if (end - at > most) end = at + most;
    if (list > at && list < end) end = list;
    for (size_t i = 0; i < e->parameter_count; i++) {
        uintptr_t other = (uintptr_t)arguments[i];
        if (other > at && other < end) end = other;
    }
    return end;
}

/* Forget what the pointers in a structure lead to. */
static void forget_structure(const sim_effect *e, void **arguments, size_t which) {
    uintptr_t end = search_end(e, arguments, which);
    for (uintptr_t at = (uintptr_t)arguments[which]; at + sizeof(uintptr_t) <= end; at += sizeof(uintptr_t))
        sim_written(*(uintptr_t *)at);
}

/* A kernel may write to whatever it has a pointer to, as such or in a structure, that is not to const. */
static void run_opaque(const sim_effect *e, void **arguments) {
    for (size_t i = 0; i < e->parameter_count; i++) {
        if (e->parameters[i] == SIM_POINTER) sim_written(*(uintptr_t *)arguments[i]);
        if (e->parameters[i] == SIM_STRUCT) forget_structure(e, arguments, i);
    }
}

/* How far a kernel writes is not known: to the end of what it was given at most. */
void sim_written(uintptr_t address) {
    if (!sim_is_device_address(address)) return;
    uintptr_t end = sim_block_end(address);
    if (end)
        sim_values_forget(address, end - address);
    else
        sim_values_forget_at(address);
}

/* False if the arguments are not what the name made expect. */
static bool run(const sim_effect *e, void **arguments) {
    switch (e->form) {
        case SIM_UNCHANGED: return true;
        case SIM_CONTIGUOUS: return sim_run_contiguous(e, arguments);
        case SIM_STRIDED: return sim_run_strided(e, arguments);
        case SIM_REDUCTION: return sim_run_reduction(e, arguments);
        case SIM_RANGE: return run_range(arguments);
        case SIM_RUNNING_SUM: return sim_run_running_sum(e, arguments);
        case SIM_COUNT_NONZERO: return sim_count_nonzero(e, arguments);
        case SIM_ADD_COUNTS: return sim_add_counts(arguments);
        case SIM_SELECT_UNIQUE: return sim_select_unique(e, arguments);
        case SIM_CAT: return sim_run_cat(e, arguments);
        case SIM_GATHER:
        case SIM_SCATTER:
        case SIM_SCATTER_FILL: return sim_run_gather(e, arguments);
        case SIM_INDEX:
        case SIM_INDEX_PUT: return sim_run_index(e, arguments);
        case SIM_GATHER_ROWS: return sim_run_gather_rows(e, arguments);
        case SIM_TOPK: return sim_run_topk(e, arguments);
        case SIM_SORT_PAIRS: return sim_run_sort_pairs(e, arguments);
        default: return false;
    }
}

void sim_apply(const sim_effect *e, void **arguments) {
    if (!run(e, arguments)) run_opaque(e, arguments);
}
