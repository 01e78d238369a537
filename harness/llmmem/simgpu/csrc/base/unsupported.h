/* A function of CUDA that is not simulated says so and fails: success with nothing filled in would
 * have the program go on with whatever was in its variables. */
#ifndef LLMMEM_UNSUPPORTED_H
#define LLMMEM_UNSUPPORTED_H

#include "base/export.h"

/* Name the function on standard error, once (*told says whether that was done), and return status. */
SIM_API long sim_unsupported(const char *function, bool *told, long status);

#endif
