/* Arithmetic on single elements of tensors, and what a functor of PyTorch makes of them. */
#ifndef LLMMEM_ELEMENTS_H
#define LLMMEM_ELEMENTS_H

#include "effects.h"

/* An element, or that it is not known. A whole number keeps all its bits. */
typedef struct {
    bool known;
    bool real;
    int64_t integer;
    double number;
} sim_value;

/* What a functor carries beside its operands. */
typedef struct {
    int mode;
    sim_value scalar, factor;
} sim_functor;

sim_value sim_load(sim_type type, const void *bytes);
bool sim_store(sim_type type, sim_value v, void *bytes);
bool sim_is_true(sim_value v);
/* Whether it is so large that anything not known is small beside it. */
bool sim_is_huge(sim_value v);

/* Read the fields of a functor. Returns its size. */
size_t sim_read_functor(const sim_effect *e, const unsigned char *bytes, sim_functor *f);
/* What it makes of two elements (of the first alone, if it takes one). */
sim_value sim_combine(const sim_effect *e, const sim_functor *f, sim_value a, sim_value b, bool same_tensor);

/* The second where the first is true, else the third. */
sim_value sim_choose(sim_value condition, sim_value yes, sim_value no);

/* A reduction: what it begins with, one step of it, and all of it over n times the same value. */
sim_value sim_first_of_fold(sim_operation operation, sim_value first);
sim_value sim_fold(sim_operation operation, sim_value sum, sim_value next);
sim_value sim_fold_constant(sim_operation operation, sim_value v, size_t n);

#endif
