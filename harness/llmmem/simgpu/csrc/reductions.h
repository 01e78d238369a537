/* Kernels that make one value of many: reductions, running sums, counts and what is
 * counted. */
#ifndef LLMMEM_REDUCTIONS_H
#define LLMMEM_REDUCTIONS_H

#include "effects.h"

/* Each false if the arguments are not understood. */
bool sim_run_reduction(const sim_effect *effect, void **arguments);
bool sim_run_running_sum(const sim_effect *effect, void **arguments);
bool sim_count_nonzero(const sim_effect *effect, void **arguments);
bool sim_add_counts(void **arguments);
bool sim_select_places(const sim_effect *effect, void **arguments);
bool sim_write_indices(void **arguments);
bool sim_select_unique(const sim_effect *effect, void **arguments);

#endif
