/* Copies in any direction, which the addresses decide. Values from the host become known or are dropped;
 * reads by the host return what is known (values.h). */
#ifndef LLMMEM_COPIES_H
#define LLMMEM_COPIES_H

#include "base/export.h"

/* How often the host has read device memory that is unknown or a guess. */
SIM_API uint64_t sim_unknown_reads(void);

SIM_API void sim_copy(uintptr_t to, uintptr_t from, size_t n);
SIM_API void sim_copy_2d(uintptr_t to, size_t to_pitch, uintptr_t from, size_t from_pitch, size_t width, size_t height);
SIM_API void sim_set(uintptr_t to, size_t n, const void *pattern, size_t width);

#endif
