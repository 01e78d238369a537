/* The blocks that PyTorch's caching allocator has handed out, as it reports them. */
#ifndef LLMMEM_ALLOCATOR_BLOCKS_H
#define LLMMEM_ALLOCATOR_BLOCKS_H

#include "base/export.h"

/* The end of the block that holds an address, or 0 if PyTorch's allocator has no block there. */
SIM_API uintptr_t sim_block_end(uintptr_t address);

#endif
