#include "kernels/invalidation.h"

#include "account/account.h"
#include "kernels/allocator_blocks.h"
#include "values/values.h"

/* How far a kernel writes is not known; it cannot write beyond the block. */
void sim_invalidate(uintptr_t address) {
    if (!sim_is_device_address(address)) return;
    uintptr_t end = sim_block_end(address);
    if (end)
        sim_values_forget(address, end - address);
    else
        sim_values_forget_at(address);
}
