#include "layout.h"

#include <string.h>

/* int dimensions, a divider (size and two more words) each, strides of all operands. */
size_t sim_read_layout(const void *calculator, size_t operands, sim_layout *where) {
    const uint32_t *words = calculator;
    const uint32_t *strides = words + 1 + 3 * SIM_MOST_DIMENSIONS;
    where->dimensions = (int)words[0];
    if (where->dimensions < 0 || where->dimensions > SIM_MOST_DIMENSIONS) return 0;
    for (int d = 0; d < where->dimensions; d++) {
        where->sizes[d] = words[1 + 3 * d];
        if (!where->sizes[d]) return 0;
        for (size_t i = 0; i < operands && i < SIM_MOST_OPERANDS; i++)
            where->strides[d][i] = strides[(size_t)d * operands + i];
    }
    return 4 * (1 + 3 * SIM_MOST_DIMENSIONS + operands * SIM_MOST_DIMENSIONS);
}

/* at::cuda::detail::TensorInfo; its first dimension is the slowest. */
typedef struct {
    uintptr_t data;
    uint32_t sizes[SIM_MOST_DIMENSIONS], strides[SIM_MOST_DIMENSIONS];
    int32_t dimensions;
} tensor_info;

uintptr_t sim_read_tensor(const void *information, sim_layout *where) {
    tensor_info t;
    memcpy(&t, information, sizeof t);
    if (!sim_is_device_address(t.data) || t.dimensions < 0 || t.dimensions > SIM_MOST_DIMENSIONS) return 0;
    where->dimensions = t.dimensions;
    for (int d = 0; d < t.dimensions; d++) {
        where->sizes[d] = t.sizes[t.dimensions - 1 - d];
        where->strides[d][0] = t.strides[t.dimensions - 1 - d];
        if (!where->sizes[d]) return 0;
    }
    return t.data;
}

size_t sim_offset_of(const sim_layout *where, size_t operand, size_t element) {
    size_t offset = 0;
    if (where->dimensions == 1) return element * where->strides[0][operand];
    for (int d = 0; d < where->dimensions; d++) {
        offset += element % where->sizes[d] * where->strides[d][operand];
        element /= where->sizes[d];
    }
    return offset;
}

size_t sim_last_offset(const sim_layout *where, size_t operand) {
    size_t last = 0;
    for (int d = 0; d < where->dimensions; d++) last += (size_t)(where->sizes[d] - 1) * where->strides[d][operand];
    return last;
}
