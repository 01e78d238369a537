/* The processes on the devices, as NVML shows them: a process, those that it forked, and theirs; and all
 * that have the same directory for their ledgers (environment.h), which share a file in it.
 *
 * An account belongs to one process; what each holds is also written into memory that they share, so
 * that a monitor sees the program, and so that it is known how much they held at the same time. Programs
 * started otherwise see themselves only.
 */
#ifndef LLMMEM_PROCESSES_H
#define LLMMEM_PROCESSES_H

#include "base/export.h"

#include <sys/types.h>

#define SIM_MAX_PROCESSES 64

typedef struct {
    unsigned int pid;
    size_t bytes;
} sim_process;

/* Say what this process holds on a device, its context included, now that it uses it. One caller at a
 * time. */
void sim_publish(int device, size_t bytes, size_t context);

/* Share the table of those that have this directory, as the host that starts them: of a host that holds
 * nothing but its context, nothing is counted. False if there can be no such table. */
bool sim_share_processes(const char *directory);

/* The most bytes of a device that the living processes held at the same time since the last reset;
 * SIZE_MAX if there were too many of them to tell. */
SIM_API size_t sim_together_bytes(int device);
SIM_API void sim_reset_together(void);

/* The living processes that use a device; how many there are, at most SIM_MAX_PROCESSES. */
SIM_API size_t sim_list_processes(int device, sim_process list[SIM_MAX_PROCESSES]);

/* Whether a process runs; one that only waits to be reaped does not, and holds nothing any more. */
bool sim_is_running(pid_t pid);

#endif
