/* What a compiled kernel (a cubin, as ptxas writes it) says about itself. */
#ifndef LLMMEM_CUBIN_H
#define LLMMEM_CUBIN_H

#include "base/export.h"

typedef struct {
    int registers;   /* of a thread */
    int local_bytes; /* of a thread: what did not fit into registers */
    int max_threads; /* of a block */
    size_t parameter_count;
    uint16_t parameter_sizes[]; /* bytes */
} sim_cubin;

/* A copy of an image, to be freed by the caller. NULL if it is no cubin (but PTX, a fat binary). */
SIM_API void *sim_copy_cubin(const void *image);
/* What a copy says of one of its kernels, to be freed by the caller. NULL if it has no such kernel. */
SIM_API sim_cubin *sim_read_cubin(const void *copy, const char *kernel);

#endif
