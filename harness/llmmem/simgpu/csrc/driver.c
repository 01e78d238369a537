/* libcuda: the driver functions that have something to say. All others succeed and do nothing (the
 * builder generates them from the header). */
#include "account.h"
#include "copies.h"
#include "kernels.h"
#include "streams.h"

#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_device(int device) { return device >= 0 && device < sim_get_card()->count; }

/* A context is the account of its device; its handle is the device's number and one. */
static CUcontext context_of(int device) { return (CUcontext)(uintptr_t)(device + 1); }
static int device_of(CUcontext context) { return (int)(uintptr_t)context - 1; }

/* ---- the driver ----------------------------------------------------------------------------------- */

CUresult cuInit(unsigned int flags) {
    (void)flags;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    *version = sim_get_card()->driver_cuda_version;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == CUDA_SUCCESS ? "CUDA_SUCCESS" : error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_SUCCESS ? "no error" : error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "unknown error";
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
    *count = sim_get_card()->count;
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
    sim_uuid(device, (unsigned char *)uuid->bytes);
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
    snprintf(text, (size_t)length, "0000:%02X:00.0", sim_bus_number(device));
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *text) {
    *device = sim_device_at_bus(text);
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
        case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: return sim_bus_number(device);
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
    *can = device != peer;
    return CUDA_SUCCESS;
}

/* ---- contexts ------------------------------------------------------------------------------------- */

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (flags) *flags = 0;
    if (active) *active = sim_context_is_open(device);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    sim_open_context(device);
    *context = context_of(device);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    int device = sim_current_device();
    *context = sim_context_is_open(device) ? context_of(device) : NULL;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    if (context) sim_set_current_device(device_of(context));
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
    *device = sim_current_device();
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

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}

/* ---- memory --------------------------------------------------------------------------------------- */

static CUresult allocate(CUdeviceptr *pointer, size_t size, sim_kind kind) {
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    *pointer = sim_allocate(kind, size, sim_current_device());
    return *pointer ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult deallocate(uintptr_t pointer, sim_kind kind) {
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

CUresult cuMemFree(CUdeviceptr pointer) { return deallocate(pointer, SIM_DEVICE); }

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
    (void)stream;
    return deallocate(pointer, SIM_POOL);
}

CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned int flags) {
    (void)flags;
    return allocate((CUdeviceptr *)pointer, size, SIM_HOST);
}

CUresult cuMemAllocHost(void **pointer, size_t size) { return cuMemHostAlloc(pointer, size, 0); }

CUresult cuMemFreeHost(void *pointer) { return deallocate((uintptr_t)pointer, SIM_HOST); }

CUresult cuMemHostGetDevicePointer(CUdeviceptr *device, void *host, unsigned int flags) {
    (void)flags;
    *device = (CUdeviceptr)(uintptr_t)host;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *available, size_t *total) {
    int device = sim_current_device();
    sim_open_context(device);
    *available = sim_free_bytes(device);
    *total = sim_get_card()->total_bytes;
    return CUDA_SUCCESS;
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
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)value = region.device; break;
        case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)value = region.address; break;
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)value = region.address; break;
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)value = region.size; break;
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute *names, void **values, CUdeviceptr pointer) {
    for (unsigned int i = 0; i < count; i++) cuPointerGetAttribute(values[i], names[i], pointer);
    return CUDA_SUCCESS;
}

/* ---- copies --------------------------------------------------------------------------------------- */

static CUresult copy(uintptr_t to, uintptr_t from, size_t n) {
    sim_copy(to, from, n);
    return CUDA_SUCCESS;
}

CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t n) { return copy(to, from, n); }
CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t n) { return copy(to, (uintptr_t)from, n); }
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t n) { return copy((uintptr_t)to, from, n); }
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t n) { return copy(to, from, n); }

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream stream) {
    (void)stream;
    return copy(to, from, n);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t n, CUstream stream) {
    (void)stream;
    return copy(to, (uintptr_t)from, n);
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t n, CUstream stream) {
    (void)stream;
    return copy((uintptr_t)to, from, n);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream stream) {
    (void)stream;
    return copy(to, from, n);
}

static CUresult set(uintptr_t to, size_t count, const void *pattern, size_t width) {
    sim_set(to, count * width, pattern, width);
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t n) { return set(to, n, &value, sizeof value); }
CUresult cuMemsetD16(CUdeviceptr to, unsigned short value, size_t n) { return set(to, n, &value, sizeof value); }
CUresult cuMemsetD32(CUdeviceptr to, unsigned int value, size_t n) { return set(to, n, &value, sizeof value); }

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream stream) {
    (void)stream;
    return cuMemsetD8(to, value, n);
}

CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t n, CUstream stream) {
    (void)stream;
    return cuMemsetD16(to, value, n);
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t n, CUstream stream) {
    (void)stream;
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
    if (!size || size % SIM_PAGE || !is_device(wanted->location.id)) return CUDA_ERROR_INVALID_VALUE;
    *handle = sim_physical_create(size, wanted->location.id);
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
    found->location.id = device;
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
    bool active = sim_get_stream(stream)->capture != 0;
    *status = active ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    (void)flags;
    *event = (CUevent)sim_create_event();
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    (void)stream;
    sim_record_event((sim_event *)event);
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    *milliseconds = (float)(((sim_event *)end)->milliseconds - ((sim_event *)start)->milliseconds);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    sim_destroy_event((sim_event *)event);
    return CUDA_SUCCESS;
}

/* ---- modules and kernels loaded at run time ---------------------------------------------------------- */

typedef struct loaded {
    struct function {
        char *name;
        struct function *next;
    } *functions;
} loaded;

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    (void)image;
    sim_open_context(sim_current_device());
    *module = calloc(1, sizeof(loaded));
    return *module ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
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
    (void)path;
    return cuModuleLoadData(module, NULL);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    struct function *f = malloc(sizeof *f);
    if (!f) return CUDA_ERROR_OUT_OF_MEMORY;
    loaded *m = (loaded *)module;
    *f = (struct function){.name = strdup(name), .next = m->functions};
    m->functions = f;
    sim_register_kernel(NULL, f, f->name);
    *function = (CUfunction)f;
    return CUDA_SUCCESS;
}

/* Functions stay known after their module is gone: their names are small and launches look them up. */
CUresult cuModuleUnload(CUmodule module) {
    free(module);
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute name, CUfunction function) {
    int architecture = sim_kernel_architecture(function);
    switch (name) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
        case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
        case CU_FUNC_ATTRIBUTE_PTX_VERSION:
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = architecture; break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = (int)sim_get_card()->shared_per_block_optin; break;
        default: *value = 0; break;
    }
    return CUDA_SUCCESS;
}

/* Registers are not known (no kernel is read); threads, blocks and shared memory bound the answer. */
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int block_size, size_t shared) {
    (void)function;
    const sim_card *card = sim_get_card();
    int threads = (block_size + 31) / 32 * 32;
    int most = threads > 0 ? card->threads_per_sm / threads : card->blocks_per_sm;
    if (most > card->blocks_per_sm) most = card->blocks_per_sm;
    if (shared) {
        size_t reserved = (size_t)attribute_value(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, 0);
        int fitting = (int)(card->shared_per_sm / (shared + reserved));
        if (most > fitting) most = fitting;
    }
    *blocks = most;
    return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function, int block_size,
                                                              size_t shared, unsigned int flags) {
    (void)flags;
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_size, shared);
}

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
    (void)stream;
    (void)extra;
    return (CUresult)sim_launch(function, arguments);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                   unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                   unsigned int shared, CUstream stream, void **arguments) {
    return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, arguments, NULL);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *configuration, CUfunction function, void **arguments, void **extra) {
    (void)configuration;
    (void)extra;
    return (CUresult)sim_launch(function, arguments);
}
