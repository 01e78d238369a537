/* Faults on demand: which calls fail, and when.
 *
 * "key=value;key=value;..." with the keys of `wanted_faults` (faults.c); simgpu/faults.py says what
 * each does. Counts start with the process, or with the last sim_set_faults; a forked child starts with
 * a copy.
 */
#ifndef LLMMEM_FAULTS_H
#define LLMMEM_FAULTS_H

#include "base/export.h"

/* Replace all faults by these. Counts start at 0, and a device that a fault broke works again. Returns 0, or
 * the 1-based number of the first invalid field. */
SIM_API int sim_set_faults(const char *text);

/* Count a request for device memory. True if it must fail. May sleep, or crash the process. */
SIM_API bool sim_fault_at_allocation(size_t size);

/* Count a kernel launch. Returns what sim_broken does. */
SIM_API int sim_fault_at_launch(void);

/* The sticky error (a cudaError_t, or CUresult: they agree) that every call returns after a launch has
 * failed; 0 if none has. */
SIM_API int sim_broken(void);

/* What another process tries to hold on every device, in bytes, whole pages. */
SIM_API size_t sim_outside_wants(void);

/* How NVML answers. */
typedef enum {
    SIM_NVML_ANSWERS,
    SIM_NVML_NOT_SUPPORTED, /* neither memory nor processes */
    SIM_NVML_NO_PERMISSION, /* the same, for another reason */
    SIM_NVML_NO_PROCESS_MEMORY, /* processes without their memory */
    SIM_NVML_GPU_LOST, /* nothing */
} sim_nvml_state;
SIM_API sim_nvml_state sim_get_nvml_state(void);

#endif
