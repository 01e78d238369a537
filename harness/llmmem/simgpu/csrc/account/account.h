/* The account of the simulated GPUs: how much of their memory is in use.
 *
 * All libraries of the simulated GPU (runtime, driver, NVML, ...) link against the one shared object
 * that holds this state, so all of them report the same figures. Sizes are bytes. Physical memory is
 * charged in pages of 2 MiB, as the driver does. The account is private memory of the process: a forked
 * child starts with a copy of its own.
 */
#ifndef LLMMEM_ACCOUNT_H
#define LLMMEM_ACCOUNT_H

#include "base/export.h"

/* The primary context: opened by the first call that needs one, charged once, never closed. */
SIM_API void sim_open_context(int device);
SIM_API bool sim_context_is_open(int device);

/* Peer access: whether a device can have it, and whether it has. Enabling it opens the contexts of both
 * devices. False if nothing changes. */
SIM_API bool sim_can_access_peer(int device, int peer);
SIM_API bool sim_set_peer_access(int device, int peer, bool on);

/* Figures of one device. process = context + device memory + resident managed memory. */
SIM_API size_t sim_process_bytes(int device);
SIM_API size_t sim_peak_process_bytes(int device);
SIM_API void sim_reset_peak(int device);
SIM_API size_t sim_free_bytes(int device);
/* The number of allocations of device memory (managed and pooled memory included) on all devices. */
SIM_API uint64_t sim_allocations(void);
/* What another process holds on a device (faults.h). */
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

/* Allocate size bytes. Returns 0 if the card (or the host) is out of memory. */
SIM_API uintptr_t sim_allocate(sim_kind kind, size_t size, int device);
/* Free what sim_allocate returned. False if address is not the start of such a region of that kind;
 * SIM_DEVICE also frees SIM_POOL and SIM_MANAGED, as cudaFree does; SIM_RESERVED while nothing is
 * mapped there. */
SIM_API bool sim_release(sim_kind kind, uintptr_t address);
/* False if part of it is registered or allocated already. */
SIM_API bool sim_register_host(uintptr_t address, size_t size);
/* The region that holds address, or false. */
SIM_API bool sim_find(uintptr_t address, sim_region *region);
/* Whether address is one of the simulated devices' own (never backed by memory). */
SIM_API bool sim_is_device_address(uintptr_t address);

/* Physical memory without addresses (cuMemCreate and related calls). Handles are not 0. Memory is freed
 * when its last handle and its last mapping are gone. Only whole mappings can be unmapped. */
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

/* Count this process together with those that it starts from now on (processes.h); their environment names
 * the directory. False if that cannot be done. */
SIM_API bool sim_host_processes(const char *directory);

/* Note an attention call by cuDNN whose plan may take up to this many bytes that the account does not have. */
SIM_API void sim_note_cudnn_attention(size_t bytes);
/* How many of these calls there were. */
SIM_API uint64_t sim_cudnn_attention_calls(void);
/* The largest figure of the calls after that number, or -1 if there was none. */
SIM_API int64_t sim_cudnn_attention_unknown(uint64_t since);

#endif
