/* Kernels that make each element of a tensor of the elements at the same place in others. */
#ifndef LLMMEM_ELEMENTWISE_H
#define LLMMEM_ELEMENTWISE_H

#include "effects.h"

bool sim_run_contiguous(const sim_effect *effect, void **arguments);
bool sim_run_strided(const sim_effect *effect, void **arguments);

#endif
