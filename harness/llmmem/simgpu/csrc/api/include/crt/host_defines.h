/* CUDA's headers ask for this file, which ships with the compiler and not with the runtime. The
 * simulated GPU is plain C, for which these words mean nothing. */
#ifndef LLMMEM_CRT_HOST_DEFINES_H
#define LLMMEM_CRT_HOST_DEFINES_H
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __no_return__ __attribute__((noreturn))
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __inline_hint__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __specialization_static static
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDACC_LIKE
#endif
