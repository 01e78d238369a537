/* Kernels that put elements of tensors into other places: concatenation, gathering, scattering, sorting. */
#ifndef LLMMEM_MOVES_H
#define LLMMEM_MOVES_H

#include "effects.h"

/* Each false if the arguments are not understood. */
bool sim_run_cat(const sim_effect *effect, void **arguments);
bool sim_run_gather(const sim_effect *effect, void **arguments);
bool sim_run_index(const sim_effect *effect, void **arguments);
bool sim_run_gather_rows(const sim_effect *effect, void **arguments);
bool sim_run_topk(const sim_effect *effect, void **arguments);
bool sim_run_sort_pairs(const sim_effect *effect, void **arguments);

#endif
