/* The devices that the program sees. CUDA_VISIBLE_DEVICES selects and orders them for the runtime and the
 * driver, which count them from 0 (ordinals). NVML and the account number all devices. The variable is read
 * at the first use, as CUDA reads it at initialisation. All devices are of one model, so both values of
 * CUDA_DEVICE_ORDER give the order of NVML.
 */
#ifndef LLMMEM_VISIBLE_DEVICES_H
#define LLMMEM_VISIBLE_DEVICES_H

#include "base/export.h"

SIM_API int sim_visible_count(void);
/* The device with an ordinal, or -1. */
SIM_API int sim_device_at(int ordinal);
/* The ordinal of a device, or -1 if the program does not see it. */
SIM_API int sim_ordinal_of(int device);

/* The current device of this thread; -1 if the program sees no device at all. */
SIM_API int sim_current_device(void);
/* The same by its ordinal. */
SIM_API int sim_current_ordinal(void);
SIM_API bool sim_set_current_ordinal(int ordinal);

#endif
