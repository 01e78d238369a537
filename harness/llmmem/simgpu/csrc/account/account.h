/* The account of the simulated GPUs: what they are, and what of their memory is taken.
 *
 * All libraries of the simulated GPU (runtime, driver, NVML, ...) link against the one shared object
 * that holds this state, so every way of asking gives the same figures. Sizes are bytes. Physical
 * memory is charged in pages of 2 MiB, as the driver does. The account is private memory of the
 * process: a forked child starts with a copy and goes on alone.
 */
#ifndef LLMMEM_ACCOUNT_H
#define LLMMEM_ACCOUNT_H

#include "base/export.h"

/* The primary context: opened by the first call that needs one, charged once, never closed. */
SIM_API void sim_open_context(int device);
SIM_API bool sim_context_is_open(int device);

/* Whether kernels on a device may reach the memory of another, and which devices they do. Access opens
 * the contexts of both. False if it is already as asked for. */
SIM_API bool sim_can_access_peer(int device, int peer);
SIM_API bool sim_set_peer_access(int device, int peer, bool on);

/* Figures of one device. process = context + device memory + resident managed memory. */
SIM_API size_t sim_process_bytes(int device);
SIM_API size_t sim_peak_process_bytes(int device);
SIM_API void sim_reset_peak(int device);
SIM_API size_t sim_free_bytes(int device);
/* How often device memory (managed and pooled memory included) was allocated, on all devices. */
SIM_API uint64_t sim_allocations(void);
/* What another process holds of a device (faults.h). */
SIM_API size_t sim_outside_bytes(int device);

/* What an address belongs to. */
typedef enum {
    SIM_DEVICE = 1, /* cudaMalloc */
    SIM_POOL,       /* cudaMallocAsync */
    SIM_RESERVED,   /* cuMemAddressReserve: addresses only */
    SIM_MANAGED,    /* cudaMallocManaged: real host memory, counted on the device */
    SIM_HOST,       /* cudaHostAlloc: real host memory */
    SIM_REGISTERED, /* cudaHostRegister: the caller's memory */
    SIM_SYMBOL,     /* __device__ variables; part of the context */
} sim_kind;

typedef struct {
    uintptr_t address;
    size_t size;  /* as asked for */
    size_t extent; /* addresses taken */
    int device;
    sim_kind kind;
} sim_region;

/* Allocate size bytes. Returns 0 when the card (or the host) has no room for it. */
SIM_API uintptr_t sim_allocate(sim_kind kind, size_t size, int device);
/* Free what sim_allocate returned. False if address is not the start of such a region of that kind;
 * SIM_DEVICE also frees SIM_POOL and SIM_MANAGED, as cudaFree does; SIM_RESERVED while nothing is
 * mapped there. */
SIM_API bool sim_release(sim_kind kind, uintptr_t address);
/* False if some of it is known already. */
SIM_API bool sim_register_host(uintptr_t address, size_t size);
/* The region that holds address, or false. */
SIM_API bool sim_find(uintptr_t address, sim_region *region);
/* Whether address is one of the simulated devices' own (never backed by memory). */
SIM_API bool sim_is_device_address(uintptr_t address);

/* Physical memory apart from addresses (cuMemCreate and the calls around it). Handles are not 0. It is
 * given back when neither a handle nor a mapping is left. Only whole mappings can be undone. */
SIM_API uint64_t sim_physical_create(size_t size, int device);
SIM_API bool sim_physical_retain(uint64_t handle);
SIM_API bool sim_physical_release(uint64_t handle);
SIM_API bool sim_physical_info(uint64_t handle, size_t *size, int *device);
SIM_API bool sim_physical_map(uintptr_t address, size_t size, uint64_t handle);
SIM_API bool sim_physical_unmap(uintptr_t address, size_t size);
SIM_API uint64_t sim_physical_at(uintptr_t address);

/* The stream-ordered pool of a device (cudaMallocAsync): bytes in use, bytes held. */
typedef struct {
    size_t used, used_high, reserved, reserved_high, release_threshold;
} sim_pool;
SIM_API sim_pool *sim_get_pool(int device);
SIM_API void sim_pool_trim(int device, size_t keep);

/* Have this process and those that it starts from now on counted together (processes.h): their
 * environment names the directory. False if that cannot be done. */
SIM_API bool sim_host_processes(const char *directory);

/* Attention by cuDNN was prepared, with a plan that may take up to these bytes beyond what is accounted. */
SIM_API void sim_note_cudnn_attention(size_t bytes);
/* The most of them so far, or -1 where there was no attention by cuDNN. */
SIM_API int64_t sim_cudnn_attention_unknown(void);

#endif
