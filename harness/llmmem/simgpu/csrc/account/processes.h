/* The processes on the devices, as NVML lists them: a process with its forked descendants, and all
 * processes with the same directory of ledgers (environment.h).
 *
 * Each process has its own account. It also writes what it holds to memory that all of them share, so that
 * a monitor sees the whole program, and the peak of all processes together is known. Other processes see
 * themselves only.
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

/* Publish what this process holds on a device, its context included. Not thread-safe. */
void sim_publish(int device, size_t bytes, size_t context);

/* Share the table of this directory as the process that starts the others. Such a process does not count
 * while it holds nothing but its context. False if the table cannot be made. */
bool sim_share_processes(const char *directory);

/* The most bytes of a device that all processes held at the same time since the last reset; SIZE_MAX if
 * there were more than SIM_MAX_PROCESSES. */
SIM_API size_t sim_together_bytes(int device);
SIM_API void sim_reset_together(void);

/* List the running processes that use a device. Returns their number. */
SIM_API size_t sim_list_processes(int device, sim_process list[SIM_MAX_PROCESSES]);

/* Whether a process is running; a zombie is not. */
bool sim_is_running(pid_t pid);

#endif
