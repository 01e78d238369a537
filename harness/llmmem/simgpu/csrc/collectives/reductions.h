/* Arithmetic of collectives on the numbers of NCCL's data types (ncclDataType_t, ncclRedOp_t). */
#ifndef LLMMEM_REDUCTIONS_H
#define LLMMEM_REDUCTIONS_H

#include "base/export.h"

typedef enum { SIM_RED_SUM, SIM_RED_PRODUCT, SIM_RED_MAX, SIM_RED_MIN, SIM_RED_AVERAGE } sim_reduction;

/* Bytes of an element; 0 if there is no such type. */
SIM_API size_t sim_element_size(int type);
SIM_API const char *sim_type_name(int type);

/* Reduce count elements of each rank, at inputs[rank] + offset. An average of integers is truncated. Sums and
 * products of floats are rounded once, at the end. */
SIM_API void sim_reduce(int type, sim_reduction reduction, const unsigned char *const *inputs, size_t offset, int ranks,
                        size_t count, unsigned char *out);
/* Multiply them by one number of the same type, in place. */
SIM_API void sim_scale(int type, const void *factor, unsigned char *elements, size_t count);

#endif
