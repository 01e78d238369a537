/* What is written by something that is not followed. */
#ifndef LLMMEM_WRITTEN_H
#define LLMMEM_WRITTEN_H

#include "account/account.h"

/* Something not known is written from an address on: what was there before is forgotten. */
SIM_API void sim_written(uintptr_t address);

#endif
