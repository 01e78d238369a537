/* The processes on the devices, as NVML shows them: a process, those that it forked, and theirs.
 *
 * An account belongs to one process; what each holds is also written into memory that they share, so
 * that a monitor that a program forks sees the program. Programs started otherwise see themselves only.
 */
#ifndef LLMMEM_PROCESSES_H
#define LLMMEM_PROCESSES_H

#include "account.h"

#include <sys/types.h>

#define SIM_MAX_PROCESSES 64

typedef struct {
    unsigned int pid;
    size_t bytes;
} sim_process;

/* Say what this process holds on a device, now that it uses it. One caller at a time. */
void sim_publish(int device, size_t bytes);

/* The living processes that use a device; how many there are, at most SIM_MAX_PROCESSES. */
SIM_API size_t sim_list_processes(int device, sim_process list[SIM_MAX_PROCESSES]);

/* Whether a process runs; one that only waits to be reaped does not, and holds nothing any more. */
bool sim_is_running(pid_t pid);

#endif
