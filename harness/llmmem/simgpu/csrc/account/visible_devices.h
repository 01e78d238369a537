/* The devices that the program sees. CUDA_VISIBLE_DEVICES chooses and orders them for the runtime and
 * the driver, which count them from 0 (ordinals); NVML and the account know all devices by their own
 * numbers. It is read when it is first asked for, as CUDA does when it is initialised. All devices are
 * alike, so that both values of CUDA_DEVICE_ORDER mean the order of NVML.
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
