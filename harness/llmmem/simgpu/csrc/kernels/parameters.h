/* The parameters of kernels, read from their mangled names (Itanium C++ ABI). */
#ifndef LLMMEM_PARAMETERS_H
#define LLMMEM_PARAMETERS_H

#include <stdint.h>

/* Which parameters are pointers that are not to const, by bits (of the first 64). What a structure or a
 * closure holds, a name does not tell. */
uint64_t sim_read_pointers(const char *mangled);

#endif
