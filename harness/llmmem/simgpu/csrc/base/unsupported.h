/* A CUDA function that is not simulated prints a message and fails. If it returned success without setting
 * its outputs, the program would go on with uninitialised variables. */
#ifndef LLMMEM_UNSUPPORTED_H
#define LLMMEM_UNSUPPORTED_H

#include "base/export.h"

/* Name the function on standard error the first time (*told is set then), and return status. */
SIM_API long sim_unsupported(const char *function, bool *told, long status);

#endif
