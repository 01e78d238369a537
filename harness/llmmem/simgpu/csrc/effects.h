/* What a launch does to the values that are known (values.h).
 *
 * The control flow of programs hangs on a few kernels: fills, comparisons, logic, integer arithmetic
 * and reductions of small tensors. PyTorch's are carried out here when they run on known values. Of
 * all others it is only known what they may have written, which is forgotten.
 *
 * What is not known is taken to be finite, of ordinary size (a sum with a huge number is that number),
 * and equal to nothing but itself; where a number is needed it is zero, which is also what it reads as.
 * "All" of unknown values is true, "any" is false.
 */
#ifndef LLMMEM_EFFECTS_H
#define LLMMEM_EFFECTS_H

#include "account.h"
#include "mangled.h"

typedef enum {
    SIM_FORGET,
    SIM_FILL,
    SIM_COPY,
    SIM_EQUALITY, /* == and !=, which of them is data of the functor */
    SIM_ORDER,    /* >= > <= <, likewise */
    SIM_AND,
    SIM_OR,
    SIM_XOR,
    SIM_NOT,
    SIM_LOGICAL_AND,
    SIM_LOGICAL_OR,
    SIM_LOGICAL_XOR,
    SIM_LOGICAL_NOT,
    SIM_ADD,
    SIM_MULTIPLY,
    SIM_FLOOR_DIVIDE,
    SIM_TRUNC_DIVIDE,
    SIM_REMAINDER,
    SIM_LARGER,
    SIM_SMALLER,
    SIM_NEGATE,
    SIM_ABSOLUTE,
    SIM_MASKED_FILL,
    SIM_WHERE,
    SIM_ANY,
    SIM_ALL,
    SIM_SUM,
    SIM_LARGEST,
    SIM_SMALLEST,
} sim_operation;

typedef enum {
    SIM_OPAQUE,      /* any kernel */
    SIM_UNCHANGED,   /* writes what is there already, as long as all numbers are finite */
    SIM_CONTIGUOUS,  /* elementwise: count, functor, array of pointers */
    SIM_STRIDED,     /* elementwise: count, closure */
    SIM_REDUCTION,   /* one structure */
    SIM_RANGE,       /* arange of 64-bit integers */
    SIM_RUNNING_SUM, /* cumsum of integers, along the last dimension */
    SIM_COUNT_NONZERO,
    SIM_ADD_COUNTS,  /* the second pass of the count, of a large tensor */
    SIM_SELECT_UNIQUE,
    SIM_SELECT_PLACES, /* the second pass of nonzero: where the elements lie, counted through */
    SIM_WRITE_INDICES, /* its third: their place along each dimension */
    SIM_CAT,
    SIM_GATHER,
    SIM_SCATTER,
    SIM_SCATTER_FILL,
    SIM_INDEX,
    SIM_INDEX_PUT,
    SIM_GATHER_ROWS,
    SIM_TOPK,
    SIM_SORT_PAIRS,
} sim_form;

typedef enum { SIM_NO_SCALAR, SIM_FIRST_IS_SCALAR, SIM_SECOND_IS_SCALAR } sim_scalar;

#define SIM_MOST_PARAMETERS 24

typedef struct {
    sim_form form;
    sim_operation operation;
    sim_scalar scalar;
    bool converts;       /* element types are given at run time */
    bool has_mode;       /* the functor begins with an int that says which comparison */
    size_t inputs;       /* tensors read; of a reduction, bytes of a partial result */
    sim_type input, output;
    sim_type others;     /* of the inputs after the first */
    size_t element_size; /* bytes of the elements that are moved */
    size_t batch;        /* of a concatenation: the most inputs of a launch */
    int dimensions;      /* its dimensions */
    size_t vector;       /* and bytes of the vectors that it moves, 0 if it moves elements */
    bool descending;     /* of a sort */
    size_t parameter_count;
    sim_parameter parameters[SIM_MOST_PARAMETERS];
} sim_effect;

sim_effect sim_classify(const char *mangled_name);
void sim_apply(const sim_effect *effect, void **arguments);

/* Something not known is written from an address on: what was there before is forgotten. */
SIM_API void sim_written(uintptr_t address);

#endif
