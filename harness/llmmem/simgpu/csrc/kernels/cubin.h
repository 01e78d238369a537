/* The attributes of a compiled kernel in a cubin, as ptxas writes it. */
#ifndef LLMMEM_CUBIN_H
#define LLMMEM_CUBIN_H

#include "base/export.h"

typedef struct {
    int registers;   /* of a thread */
    int local_bytes; /* of a thread: local memory */
    int max_threads; /* of a block */
    size_t parameter_count;
    uint16_t parameter_sizes[]; /* bytes */
} sim_cubin;

/* A copy of an image, to be freed by the caller. NULL if it is no cubin (but PTX, a fat binary). */
SIM_API void *sim_copy_cubin(const void *image);
/* The attributes of a kernel in a copied cubin, to be freed by the caller. NULL if there is no such kernel. */
SIM_API sim_cubin *sim_read_cubin(const void *copy, const char *kernel);

#endif
