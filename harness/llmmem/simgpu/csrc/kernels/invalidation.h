/* Memory that is written by kernels whose results are not computed. */
#ifndef LLMMEM_INVALIDATION_H
#define LLMMEM_INVALIDATION_H

#include "base/export.h"

/* Unknown values are written from an address on: forget the values in the block that holds it. */
SIM_API void sim_invalidate(uintptr_t address);

#endif
