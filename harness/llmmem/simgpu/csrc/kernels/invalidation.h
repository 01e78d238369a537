/* What is written by something that is not followed. */
#ifndef LLMMEM_INVALIDATION_H
#define LLMMEM_INVALIDATION_H

#include "base/export.h"

/* Something not known is written from an address on: what was there before is forgotten. */
SIM_API void sim_invalidate(uintptr_t address);

#endif
