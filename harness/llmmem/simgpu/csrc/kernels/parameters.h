/* The parameters of kernels, read from their mangled names (Itanium C++ ABI). */
#ifndef LLMMEM_PARAMETERS_H
#define LLMMEM_PARAMETERS_H

#include "base/export.h"

/* Which of the first 64 parameters are pointers to memory that the kernel may write (not const), as bits. A
 * name does not say what a structure or a closure holds. */
SIM_API uint64_t sim_read_pointers(const char *mangled);

#endif
