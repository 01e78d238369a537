/* The environment of this process when it started or was forked.
 *
 * Variables that the process sets later are meant for the programs that it starts, not for itself.
 */
#ifndef LLMMEM_ENVIRONMENT_H
#define LLMMEM_ENVIRONMENT_H

#include <stdbool.h>

/* The directory of the ledgers (LLMMEM_SIMULATED_GPU_LEDGERS); NULL if there is none. */
const char *sim_ledger_directory(void);

/* Whether llmmem joins the Python interpreter of this process (LLMMEM_SIMULATED_GPU_HOME). */
bool sim_wants_guest(void);

#endif
