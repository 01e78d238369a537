/* What the memory of the simulated GPU reads as.
 *
 * No kernel runs, so device memory has no contents but what is known without one: small copies from
 * the host, fills, and copies of those. Everything else is unknown and reads as zero bytes.
 */
#ifndef LLMMEM_VALUES_H
#define LLMMEM_VALUES_H

#include "account.h"

/* What is known of n bytes at an address. */
typedef enum {
    SIM_UNKNOWN,  /* not all of it was written by something that is understood */
    SIM_CONSTANT, /* one value of the asked width, all along */
    SIM_VARIED,   /* known byte by byte */
} sim_knowledge;

SIM_API void sim_values_forget(uintptr_t address, size_t n);
/* Forget all that was written together with this byte. */
SIM_API void sim_values_forget_at(uintptr_t address);
SIM_API void sim_values_store(uintptr_t address, const void *data, size_t n);
SIM_API void sim_values_fill(uintptr_t address, size_t n, const void *pattern, size_t width);
SIM_API void sim_values_copy(uintptr_t to, uintptr_t from, size_t n);
/* Copy n bytes out: zeros unless all of them are known, so that what is left of an older tensor is
 * not taken for a part of a newer one. */
SIM_API void sim_values_read(uintptr_t address, void *out, size_t n);
/* What is known of them; *value is set (in its low width bytes) when the answer is SIM_CONSTANT. */
SIM_API sim_knowledge sim_values_know(uintptr_t address, size_t n, size_t width, uint64_t *value);

#endif
