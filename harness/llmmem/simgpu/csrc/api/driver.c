/* libcuda: the driver functions that return something or change the account. The builder generates all others
 * from the header. */
#include "account/account.h"
#include "account/card.h"
#include "account/faults.h"
#include "account/visible_devices.h"
#include "kernels/copies.h"
#include "kernels/kernels.h"
#include "streams/streams.h"

#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The driver counts the devices that the program sees: a CUdevice is an ordinal. */
static bool is_device(int ordinal) { return sim_device_at(ordinal) >= 0; }

/* The status of a call that succeeds, unless the context is broken. */
static CUresult state(void) { return (CUresult)sim_broken(); }

/* The same for a call that may have failed by itself. */
static CUresult ended(int error) { return error ? (CUresult)error : state(); }

/* A context is the account of its device; its handle is the device's number and one. */
static CUcontext context_of(int device) { return (CUcontext)(uintptr_t)(device + 1); }
static int device_of(CUcontext context) { return (int)(uintptr_t)context - 1; }

/* ---- the driver ----------------------------------------------------------------------------------- */

CUresult cuInit(unsigned int flags) {
    (void)flags;
    return sim_visible_count() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version) {
    *version = sim_get_card()->driver_cuda_version;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    switch (error) {
        case CUDA_SUCCESS: *name = "CUDA_SUCCESS"; break;
        case CUDA_ERROR_OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case CUDA_ERROR_ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        default: *name = "CUDA_ERROR_UNKNOWN"; break;
    }
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    switch (error) {
        case CUDA_SUCCESS: *text = "no error"; break;
        case CUDA_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
        case CUDA_ERROR_ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
        default: *text = "unknown error"; break;
    }
    return CUDA_SUCCESS;
}

/* The undocumented tables that NVIDIA's own statically linked runtime asks for: there are none, and
 * that runtime then finds no device. */
CUresult cuGetExportTable(const void **table, const CUuuid *id) {
    (void)id;
    *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}

/* A name without its version means the newest: cuMemAlloc is cuMemAlloc_v2. */
CUresult cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *status) {
    static const char *const suffixes[] = {"_v3", "_v2", ""};
    static void *self;
    (void)version;
    (void)flags;
    if (!self) {
        Dl_info here;
        dladdr((void *)cuInit, &here);
        self = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }
    *function = NULL;
    for (size_t i = 0; !*function && i < sizeof suffixes / sizeof *suffixes; i++) {
        char versioned[128];
        snprintf(versioned, sizeof versioned, "%s%s", name, suffixes[i]);
        *function = dlsym(self, versioned);
    }
    if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* ---- devices -------------------------------------------------------------------------------------- */

CUresult cuDeviceGetCount(int *count) {
    *count = sim_visible_count();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    (void)device;
    snprintf(name, (size_t)length, "%s", sim_get_card()->title);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    sim_uuid(sim_device_at(device), (unsigned char *)uuid->bytes);
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    (void)device;
    *bytes = sim_get_card()->total_bytes;
    return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    (void)device;
    *major = sim_get_card()->major;
    *minor = sim_get_card()->minor;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(text, (size_t)length, "0000:%02X:00.0", sim_bus_number(sim_device_at(device)));
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *text) {
    *device = sim_ordinal_of(sim_device_at_bus(text));
    return *device < 0 ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

/* CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", for what is the
 * same on all cards of the catalogue. What is not named is a feature that is not there: 0. */
static int attribute_value(CUdevice_attribute name, int device) {
    const sim_card *card = sim_get_card();
    switch (name) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return card->major;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return card->minor;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return card->sm_count;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return (int)card->shared_per_block_optin;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return (int)card->shared_per_sm;
        case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return card->major >= 8 ? 1024 : 0;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return card->threads_per_sm;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return card->blocks_per_sm;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return (int)card->l2_bytes;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return card->memory_bus_bits;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 65535;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
        case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 2147483647;
        case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 64 << 10;
        case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
        case CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT: return 32;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1500000;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2000000;
        case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: return sim_bus_number(sim_device_at(device));
        case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID: return 0;
        case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID: return 0;
        case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 2;
        case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH: return card->major >= 9;
        case CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED: return card->major >= 9;
        case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
        case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
        case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
        case CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS:
        case CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
        case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
        case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: return 1;
        default: return 0;
    }
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute name, CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *value = attribute_value(name, device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    if (!is_device(device) || !is_device(peer)) return CUDA_ERROR_INVALID_DEVICE;
    *can = sim_can_access_peer(sim_device_at(device), sim_device_at(peer));
    return CUDA_SUCCESS;
}

/* Which link joins two devices is not known: where there is access, it is the best there can be. */
CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute name, CUdevice device, CUdevice peer) {
    if (!is_device(device) || !is_device(peer) || device == peer) return CUDA_ERROR_INVALID_DEVICE;
    *value = name == CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK
                 ? 0
                 : sim_can_access_peer(sim_device_at(device), sim_device_at(peer));
    return CUDA_SUCCESS;
}

static CUresult set_peer_access(CUcontext context, bool on) {
    int device = sim_current_device(), peer = device_of(context);
    if (device < 0 || sim_ordinal_of(peer) < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (!sim_can_access_peer(device, peer)) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    if (sim_set_peer_access(device, peer, on)) return CUDA_SUCCESS;
    return on ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags) {
    return flags ? CUDA_ERROR_INVALID_VALUE : set_peer_access(peer, true);
}

CUresult cuCtxDisablePeerAccess(CUcontext peer) { return set_peer_access(peer, false); }

/* ---- contexts ------------------------------------------------------------------------------------- */

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (flags) *flags = 0;
    if (active) *active = sim_context_is_open(sim_device_at(device));
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    sim_open_context(sim_device_at(device));
    *context = context_of(sim_device_at(device));
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    int device = sim_current_device();
    *context = sim_context_is_open(device) ? context_of(device) : NULL;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    if (context) sim_set_current_ordinal(sim_ordinal_of(device_of(context)));
    return CUDA_SUCCESS;
}

static _Thread_local CUcontext context_stack[16];
static _Thread_local size_t context_depth;

CUresult cuCtxPushCurrent(CUcontext context) {
    if (context_depth == sizeof context_stack / sizeof *context_stack) return CUDA_ERROR_INVALID_CONTEXT;
    context_stack[context_depth++] = context_of(sim_current_device());
    return cuCtxSetCurrent(context);
}

CUresult cuCtxPopCurrent(CUcontext *context) {
    if (context) *context = context_of(sim_current_device());
    return context_depth ? cuCtxSetCurrent(context_stack[--context_depth]) : CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    if (sim_current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    *device = sim_current_ordinal();
    return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext context, unsigned int *version) {
    (void)context;
    *version = 3020;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = limit == CU_LIMIT_STACK_SIZE ? 1 << 10 : limit == CU_LIMIT_PRINTF_FIFO_SIZE ? 1 << 20 : 8 << 20;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void) { return ended(sim_synchronize_device(sim_current_device())); }
CUresult cuStreamSynchronize(CUstream stream) { return ended(sim_synchronize_stream(stream)); }
CUresult cuStreamQuery(CUstream stream) { return ended(sim_query_stream(stream)); }

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}

/* ---- memory --------------------------------------------------------------------------------------- */

static CUresult allocate(CUdeviceptr *pointer, size_t size, sim_kind kind) {
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (state()) return state();
    *pointer = sim_allocate(kind, size, sim_current_device());
    return *pointer ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult deallocate(uintptr_t pointer, sim_kind kind) {
    if (state()) return state();
    return !pointer || sim_release(kind, pointer) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemAlloc(CUdeviceptr *pointer, size_t size) { return allocate(pointer, size, SIM_DEVICE); }

CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t size, unsigned int flags) {
    (void)flags;
    return allocate(pointer, size, SIM_MANAGED);
}

CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t size, CUstream stream) {
    (void)stream;
    return allocate(pointer, size, SIM_POOL);
}

CUresult cuMemFree(CUdeviceptr pointer) {
    if (pointer) sim_finish_device(sim_current_device());
    return deallocate(pointer, SIM_DEVICE);
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
    (void)stream;
    return deallocate(pointer, SIM_POOL);
}

CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned int flags) {
    (void)flags;
    return allocate((CUdeviceptr *)pointer, size, SIM_HOST);
}

CUresult cuMemAllocHost(void **pointer, size_t size) { return cuMemHostAlloc(pointer, size, 0); }

CUresult cuMemFreeHost(void *pointer) {
    if (pointer) sim_finish_device(sim_current_device());
    return deallocate((uintptr_t)pointer, SIM_HOST);
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *device, void *host, unsigned int flags) {
    (void)flags;
    *device = (CUdeviceptr)(uintptr_t)host;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *available, size_t *total) {
    int device = sim_current_device();
    if (device < 0) return CUDA_ERROR_INVALID_CONTEXT;
    sim_open_context(device);
    *available = sim_free_bytes(device);
    *total = sim_get_card()->total_bytes;
    return state();
}

CUresult cuMemGetAddressRange(CUdeviceptr *base, size_t *size, CUdeviceptr pointer) {
    sim_region region;
    if (!sim_find(pointer, &region)) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = region.address;
    if (size) *size = region.size;
    return CUDA_SUCCESS;
}

static CUmemorytype memory_type(sim_kind kind) {
    return kind == SIM_HOST || kind == SIM_REGISTERED ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute name, CUdeviceptr pointer) {
    sim_region region;
    if (!sim_find(pointer, &region)) return CUDA_ERROR_INVALID_VALUE;
    switch (name) {
        case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)value = context_of(region.device); break;
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(CUmemorytype *)value = memory_type(region.kind); break;
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = pointer; break;
        case CU_POINTER_ATTRIBUTE_HOST_POINTER: *(CUdeviceptr *)value = pointer; break;
        case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(int *)value = region.kind == SIM_MANAGED; break;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)value = sim_ordinal_of(region.device); break;
        case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)value = region.address; break;
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)value = region.address; break;
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)value = region.size; break;
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

static size_t attribute_bytes(CUpointer_attribute name) {
    switch (name) {
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: return sizeof(CUmemorytype);
        case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: return sizeof(int);
        default: return sizeof(CUdeviceptr);
    }
}

/* Of memory that is not CUDA's, all are zero. */
CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute *names, void **values, CUdeviceptr pointer) {
    sim_region region;
    bool known = sim_find(pointer, &region);
    for (unsigned int i = 0; i < count; i++) {
        if (!known)
            memset(values[i], 0, attribute_bytes(names[i]));
        else if (cuPointerGetAttribute(values[i], names[i], pointer) != CUDA_SUCCESS)
            return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

/* ---- copies --------------------------------------------------------------------------------------- */

static CUresult copy(uintptr_t to, uintptr_t from, size_t n) {
    if (!state()) sim_copy(to, from, n);
    return state();
}

CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t n) {
    sim_synchronize_stream(CU_STREAM_LEGACY);
    return copy(to, from, n);
}
CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t n) { return cuMemcpy(to, (CUdeviceptr)from, n); }
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t n) { return cuMemcpy((CUdeviceptr)to, from, n); }
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t n) { return copy(to, from, n); }

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream stream) {
    sim_submit_copy(stream, to, from);
    return copy(to, from, n);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t n, CUstream stream) {
    return cuMemcpyAsync(to, (CUdeviceptr)from, n, stream);
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t n, CUstream stream) {
    return cuMemcpyAsync((CUdeviceptr)to, from, n, stream);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream stream) {
    return cuMemcpyAsync(to, from, n, stream);
}

static CUresult set(uintptr_t to, size_t count, const void *pattern, size_t width) {
    if (!state()) sim_set(to, count * width, pattern, width);
    return state();
}

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t n) { return set(to, n, &value, sizeof value); }
CUresult cuMemsetD16(CUdeviceptr to, unsigned short value, size_t n) { return set(to, n, &value, sizeof value); }
CUresult cuMemsetD32(CUdeviceptr to, unsigned int value, size_t n) { return set(to, n, &value, sizeof value); }

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream stream) {
    sim_submit(stream);
    return cuMemsetD8(to, value, n);
}

CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t n, CUstream stream) {
    sim_submit(stream);
    return cuMemsetD16(to, value, n);
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t n, CUstream stream) {
    sim_submit(stream);
    return cuMemsetD32(to, value, n);
}

/* ---- addresses and physical memory apart: expandable segments -------------------------------------- */

CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *wanted,
                                       CUmemAllocationGranularity_flags flags) {
    (void)wanted;
    (void)flags;
    *bytes = SIM_PAGE;
    return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t size, size_t alignment, CUdeviceptr wanted,
                             unsigned long long flags) {
    (void)alignment;
    (void)wanted;
    (void)flags;
    return allocate(pointer, size, SIM_RESERVED);
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t size) {
    sim_region region;
    if (!sim_find(pointer, &region) || region.size != size) return CUDA_ERROR_INVALID_VALUE;
    return deallocate(pointer, SIM_RESERVED);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *wanted,
                     unsigned long long flags) {
    (void)flags;
    if (wanted->location.type != CU_MEM_LOCATION_TYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
    if (!size || size % SIM_PAGE || !is_device(wanted->location.id)) return CUDA_ERROR_INVALID_VALUE;
    if (state()) return state();
    *handle = sim_physical_create(size, sim_device_at(wanted->location.id));
    return *handle ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    return sim_physical_release(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
    *handle = sim_physical_at((uintptr_t)address);
    return sim_physical_retain(*handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemMap(CUdeviceptr pointer, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    (void)offset;
    (void)flags;
    return sim_physical_map(pointer, size, handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemUnmap(CUdeviceptr pointer, size_t size) {
    return sim_physical_unmap(pointer, size) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *found, CUmemGenericAllocationHandle handle) {
    size_t size;
    int device;
    if (!sim_physical_info(handle, &size, &device)) return CUDA_ERROR_INVALID_VALUE;
    memset(found, 0, sizeof *found);
    found->type = CU_MEM_ALLOCATION_TYPE_PINNED;
    found->location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    found->location.id = sim_ordinal_of(device);
    return CUDA_SUCCESS;
}

/* Memory of a simulated device belongs to one process, and no switch joins devices. */
CUresult cuMemExportToShareableHandle(void *shared, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                                      unsigned long long flags) {
    (void)shared;
    (void)handle;
    (void)type;
    (void)flags;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shared,
                                        CUmemAllocationHandleType type) {
    (void)handle;
    (void)shared;
    (void)type;
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuMulticastCreate(CUmemGenericAllocationHandle *handle, const CUmulticastObjectProp *wanted) {
    (void)handle;
    (void)wanted;
    return CUDA_ERROR_NOT_SUPPORTED;
}

/* ---- streams and events ----------------------------------------------------------------------------- */

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority) {
    *stream = (CUstream)sim_create_stream(flags, priority);
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

CUresult cuStreamDestroy(CUstream stream) {
    sim_destroy_stream(stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    *context = context_of(sim_get_stream(stream)->device);
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = (CUstreamCaptureStatus)sim_get_capture(stream, NULL, NULL);
    return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    return ended(sim_wait_event(stream, (sim_event *)event, flags & CU_EVENT_WAIT_EXTERNAL));
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
    (void)stream;
    function(data);
    return CUDA_SUCCESS;
}

CUresult cuStreamAddCallback(CUstream stream, CUstreamCallback function, void *data, unsigned int flags) {
    (void)flags;
    function(stream, CUDA_SUCCESS, data);
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    (void)flags;
    *event = (CUevent)sim_create_event();
    return CUDA_SUCCESS;
}

CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned int flags) {
    return ended(sim_record_event((sim_event *)event, stream, flags & CU_EVENT_RECORD_EXTERNAL));
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    return cuEventRecordWithFlags(event, stream, CU_EVENT_RECORD_DEFAULT);
}

CUresult cuEventSynchronize(CUevent event) { return ended(sim_synchronize_event((const sim_event *)event)); }

CUresult cuEventQuery(CUevent event) { return ended(sim_query_event((sim_event *)event, __builtin_return_address(0))); }

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    *milliseconds = (float)(((sim_event *)end)->milliseconds - ((sim_event *)start)->milliseconds);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    sim_destroy_event((sim_event *)event);
    return CUDA_SUCCESS;
}

/* ---- modules and kernels loaded at run time ---------------------------------------------------------- */

typedef struct {
    void *cubin; /* NULL if it is something else, of which nothing is known */
} loaded;

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    loaded *m = malloc(sizeof *m);
    sim_open_context(sim_current_device());
    if (!m) return CUDA_ERROR_OUT_OF_MEMORY;
    m->cubin = sim_copy_cubin(image);
    *module = (CUmodule)m;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, CUjit_option *options,
                            void **values) {
    (void)count;
    (void)options;
    (void)values;
    return cuModuleLoadData(module, image);
}

CUresult cuModuleLoadFatBinary(CUmodule *module, const void *image) { return cuModuleLoadData(module, image); }

CUresult cuModuleLoad(CUmodule *module, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    char *image = calloc(1, size + 1);
    bool whole = image && fread(image, 1, size, file) == size;
    fclose(file);
    CUresult result = whole ? cuModuleLoadData(module, image) : CUDA_ERROR_INVALID_IMAGE;
    free(image);
    return result;
}

/* A function's handle is its name. Functions stay known after their module is gone: they are small,
 * and launches look them up. */
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    const loaded *m = (const loaded *)module;
    char *handle = strdup(name);
    if (!handle) return CUDA_ERROR_OUT_OF_MEMORY;
    sim_register_loaded_kernel(handle, handle, m->cubin ? sim_read_cubin(m->cubin, name) : NULL);
    *function = (CUfunction)handle;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetGlobal(CUdeviceptr *pointer, size_t *size, CUmodule module, const char *name) {
    (void)pointer;
    (void)size;
    (void)module;
    (void)name;
    return CUDA_ERROR_NOT_FOUND;
}

CUresult cuModuleUnload(CUmodule module) {
    free(((loaded *)module)->cubin);
    free(module);
    return CUDA_SUCCESS;
}

/* ---- what a kernel needs ------------------------------------------------------------------------------ */

/* Of a kernel that came with the program nothing is read: a usual number. */
#define USUAL_REGISTERS 32

static int registers_of(CUfunction function) {
    const sim_cubin *cubin = sim_kernel_cubin(function);
    return cubin ? cubin->registers : USUAL_REGISTERS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute name, CUfunction function) {
    const sim_cubin *cubin = sim_kernel_cubin(function);
    int architecture = sim_kernel_architecture(function);
    switch (name) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = cubin ? cubin->max_threads : 1024; break;
        case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = registers_of(function); break;
        case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = cubin ? cubin->local_bytes : 0; break;
        case CU_FUNC_ATTRIBUTE_PTX_VERSION:
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = architecture; break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = (int)sim_get_card()->shared_per_block_optin; break;
        default: *value = 0; break;
    }
    return CUDA_SUCCESS;
}

static int at_most(int most, int bound) { return bound < most ? bound : most; }

/* As CUDA's occupancy calculator has it: a warp's registers are given out in units of 256, and an SM's
 * four parts have the same number of warps. */
static int blocks_with_registers(int registers, int warps_per_block) {
    int of_a_warp = (registers * 32 + 255) / 256 * 256;
    int warps = of_a_warp ? 65536 / of_a_warp / 4 * 4 : 64;
    return warps / warps_per_block;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int block_size, size_t shared) {
    const sim_card *card = sim_get_card();
    if (block_size <= 0) return CUDA_ERROR_INVALID_VALUE;
    int warps = (block_size + 31) / 32;
    int most = at_most(card->blocks_per_sm, card->threads_per_sm / (32 * warps));
    most = at_most(most, blocks_with_registers(registers_of(function), warps));
    if (shared) {
        size_t reserved = (size_t)attribute_value(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, 0);
        most = at_most(most, (int)(card->shared_per_sm / (shared + reserved)));
    }
    *blocks = most;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function, int block_size,
                                                              size_t shared, unsigned int flags) {
    (void)flags;
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_size, shared);
}

static int cluster_size(const CUlaunchConfig *configuration) {
    for (unsigned int i = 0; i < configuration->numAttrs; i++) {
        const CUlaunchAttribute *a = &configuration->attrs[i];
        if (a->id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
            return (int)(a->value.clusterDim.x * a->value.clusterDim.y * a->value.clusterDim.z);
    }
    return 1;
}

/* How many clusters run at once, as if any SMs could make one (on a card, those of one GPC). */
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *configuration) {
    int blocks;
    int threads = (int)(configuration->blockDimX * configuration->blockDimY * configuration->blockDimZ);
    CUresult result =
        cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads, configuration->sharedMemBytes);
    if (result == CUDA_SUCCESS) *clusters = blocks * sim_get_card()->sm_count / cluster_size(configuration);
    return result;
}

/* The largest that all cards with clusters have. */
CUresult cuOccupancyMaxPotentialClusterSize(int *size, CUfunction function, const CUlaunchConfig *configuration) {
    (void)function;
    (void)configuration;
    *size = 8;
    return CUDA_SUCCESS;
}

/* A tensor map is opaque; all that a launch needs of ours is the address, to know what is written to. */
static CUresult describe_tensor(CUtensorMap *map, void *address) {
    memset(map, 0, sizeof *map);
    memcpy(map, &address, sizeof address);
    return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
    (void)type;
    (void)rank;
    (void)sizes;
    (void)strides;
    (void)box;
    (void)element_strides;
    (void)interleave;
    (void)swizzle;
    (void)promotion;
    (void)fill;
    return describe_tensor(map, address);
}

CUresult cuTensorMapReplaceAddress(CUtensorMap *map, void *address) { return describe_tensor(map, address); }

/* ---- launches ----------------------------------------------------------------------------------------- */

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
                        CUstream stream, void **arguments, void **extra) {
    (void)grid_x;
    (void)grid_y;
    (void)grid_z;
    (void)block_x;
    (void)block_y;
    (void)block_z;
    (void)shared;
    (void)extra;
    sim_submit(stream);
    return (CUresult)sim_launch(function, arguments);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                   unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                   unsigned int shared, CUstream stream, void **arguments) {
    return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, arguments, NULL);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *configuration, CUfunction function, void **arguments, void **extra) {
    (void)extra;
    sim_submit(configuration->hStream);
    return (CUresult)sim_launch(function, arguments);
}
