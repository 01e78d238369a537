/* A function of CUDA that is not simulated says so and fails: success with nothing filled in would
 * have the program go on with whatever was in its variables. */
#ifndef LLMMEM_REFUSAL_H
#define LLMMEM_REFUSAL_H

#include "account/account.h"

/* Name the function on standard error, once (*told says whether that was done), and return status. */
SIM_API long sim_refuse(const char *function, bool *told, long status);

#endif
