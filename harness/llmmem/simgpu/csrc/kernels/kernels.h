/* The kernels of the program: names, architectures and launches. */
#ifndef LLMMEM_KERNELS_H
#define LLMMEM_KERNELS_H

#include "base/export.h"
#include "kernels/cubin.h"

/* The numbers of cudaError_t that a launch can end with. */
#define SIM_LAUNCHED 0
#define SIM_INVALID_FUNCTION 98
#define SIM_NO_KERNEL_IMAGE 209

/* Register a fat binary and its kernels, as the compiler's start-up code does. */
SIM_API void *sim_register_module(const void *wrapper);
SIM_API void sim_register_kernel(void *module, const void *host_function, const char *name);

/* Register a kernel loaded at run time, with its attributes (kept; may be NULL). */
SIM_API void sim_register_loaded_kernel(const void *function, const char *name, const sim_cubin *cubin);
SIM_API const sim_cubin *sim_kernel_cubin(const void *function);

/* The name of a kernel, or NULL. */
SIM_API const char *sim_kernel_name(const void *host_function);
/* The architecture (86 for sm_86) of the code that the card would run: the highest one in the kernel's
 * module that the card supports. 0 if there is none. */
SIM_API int sim_kernel_architecture(const void *host_function);
/* Launch a kernel. arguments is CUDA's array of pointers to the kernel's parameters, or NULL. Returns
 * one of the numbers above, or what sim_broken does (faults.h). */
SIM_API int sim_launch(const void *host_function, void **arguments);

/* The configuration of a <<<>>> launch, which the compiler splits into two calls. */
typedef struct {
    unsigned int grid[3], block[3];
    size_t shared;
    void *stream;
} sim_launch_configuration;
SIM_API void sim_push_configuration(sim_launch_configuration configuration);
SIM_API sim_launch_configuration sim_pop_configuration(void);

#endif
