/* Faults on demand: what is to go wrong, and when.
 *
 * "key=value;key=value;..." with the keys of `wanted_faults` (faults.c); simgpu/faults.py says what
 * each is for. Counts start with the process, or with the last sim_set_faults; a forked child goes on
 * with a copy.
 */
#ifndef LLMMEM_FAULTS_H
#define LLMMEM_FAULTS_H

#include "base/export.h"

/* Let these go wrong and no others, from now on: counts start anew, and a device that a fault broke
 * works again. Returns 0, or the 1-based number of the first field that is not understood. */
SIM_API int sim_set_faults(const char *text);

/* Take note of a request for device memory, and whether it is to be refused. It may take its time, and
 * it may not return. */
SIM_API bool sim_fault_at_allocation(size_t size);

/* Take note of a kernel launch. Returns what sim_broken does. */
SIM_API int sim_fault_at_launch(void);

/* The error (a cudaError_t, or CUresult: they agree) that every call of a context ends with since a
 * launch went wrong for good; 0 as long as none has. */
SIM_API int sim_broken(void);

/* What another process wants of every device, in bytes, whole pages. */
SIM_API size_t sim_outside_wants(void);

/* What NVML has to say of a device. */
typedef enum {
    SIM_NVML_ANSWERS,
    SIM_NVML_NOT_SUPPORTED, /* neither memory nor processes */
    SIM_NVML_NO_PERMISSION, /* the same, for another reason */
    SIM_NVML_NO_PROCESS_MEMORY, /* processes without their memory */
    SIM_NVML_GPU_LOST, /* nothing */
} sim_nvml_state;
SIM_API sim_nvml_state sim_get_nvml_state(void);

#endif
