/* Where the elements of tensors lie, as kernels are told it. */
#ifndef LLMMEM_LAYOUT_H
#define LLMMEM_LAYOUT_H

#include "account.h"

#define SIM_MOST_OPERANDS 4
#define SIM_MOST_DIMENSIONS 25 /* PyTorch's MAX_DIMS */

/* Sizes, and a stride of each operand, the fastest dimension first. */
typedef struct {
    int dimensions;
    uint32_t sizes[SIM_MOST_DIMENSIONS];
    uint32_t strides[SIM_MOST_DIMENSIONS][SIM_MOST_OPERANDS];
} sim_layout;

/* Read an OffsetCalculator (strides in bytes). Returns its size, 0 if it is none. */
size_t sim_read_layout(const void *calculator, size_t operands, sim_layout *where);
/* Read a TensorInfo over 32-bit indices (strides in elements). Returns its data, 0 if it is none. */
uintptr_t sim_read_tensor(const void *information, sim_layout *where);

size_t sim_offset_of(const sim_layout *where, size_t operand, size_t element);
size_t sim_last_offset(const sim_layout *where, size_t operand);

static inline size_t sim_align(size_t offset, size_t to) { return (offset + to - 1) / to * to; }

#endif
