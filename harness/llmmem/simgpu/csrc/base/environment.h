/* What the environment of this process said when it began or was forked.
 *
 * A process can set these variables later, for the programs that it starts: they do not concern it then.
 */
#ifndef LLMMEM_ENVIRONMENT_H
#define LLMMEM_ENVIRONMENT_H

#include <stdbool.h>

/* Where processes leave their ledgers (LLMMEM_SIMULATED_GPU_LEDGERS); NULL if they leave none. */
const char *sim_ledger_directory(void);

/* Whether llmmem takes part in the interpreter of this process (LLMMEM_SIMULATED_GPU_HOME). */
bool sim_wants_guest(void);

#endif
