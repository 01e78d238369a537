/* The kernels of the program: their names, the architectures they were built for, their launches. */
#ifndef LLMMEM_KERNELS_H
#define LLMMEM_KERNELS_H

#include "base/export.h"
#include "kernels/cubin.h"

/* The numbers of cudaError_t that a launch can end with. */
#define SIM_LAUNCHED 0
#define SIM_INVALID_FUNCTION 98
#define SIM_NO_KERNEL_IMAGE 209

/* A fat binary of the program (what the compiler's start-up code registers), and its kernels. */
SIM_API void *sim_register_module(const void *wrapper);
SIM_API void sim_register_kernel(void *module, const void *host_function, const char *name);

/* A kernel loaded at run time, and what its code says of it (kept; may be NULL). */
SIM_API void sim_register_loaded_kernel(const void *function, const char *name, const sim_cubin *cubin);
SIM_API const sim_cubin *sim_kernel_cubin(const void *function);

/* The name of a kernel, or NULL. */
SIM_API const char *sim_kernel_name(const void *host_function);
/* The architecture (86 for sm_86) of the code that a card runs of this kernel's module: the highest
 * that the module was built for and that the card can run. 0 if there is none. */
SIM_API int sim_kernel_architecture(const void *host_function);
/* Take note of a launch. arguments is CUDA's array of pointers to the kernel's parameters, or NULL. Returns
 * one of the numbers above, or what sim_broken does (faults.h). */
SIM_API int sim_launch(const void *host_function, void **arguments);

/* The configuration of a <<<>>> launch, between the two calls that the compiler makes of it. */
typedef struct {
    unsigned int grid[3], block[3];
    size_t shared;
    void *stream;
} sim_launch_configuration;
SIM_API void sim_push_configuration(sim_launch_configuration configuration);
SIM_API sim_launch_configuration sim_pop_configuration(void);

#endif
