/* libcudart: the runtime functions that return something or change the account. The builder generates all
 * others that the installed libraries import. */
#include "account/account.h"
#include "account/card.h"
#include "account/faults.h"
#include "account/visible_devices.h"
#include "kernels/copies.h"
#include "kernels/kernels.h"
#include "streams/streams.h"
#include "values/operators.h"
#include "values/values.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- errors -------------------------------------------------------------------------------------- */

static _Thread_local cudaError_t last_error;

static cudaError_t fail(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

/* The status of a call that succeeds, unless a failed launch has broken the context. */
static cudaError_t state(void) { return fail((cudaError_t)sim_broken()); }

/* The same for a call that may have failed by itself. */
static cudaError_t ended(int error) { return error ? fail((cudaError_t)error) : state(); }

cudaError_t cudaGetLastError(void) {
    state();
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) {
    state();
    return last_error;
}

static const struct {
    cudaError_t code;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorSymbolNotFound, "cudaErrorSymbolNotFound", "named symbol not found"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorPeerAccessAlreadyEnabled, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {cudaErrorPeerAccessNotEnabled, "cudaErrorPeerAccessNotEnabled", "peer access has not been enabled"},
    {cudaErrorPeerAccessUnsupported, "cudaErrorPeerAccessUnsupported",
     "peer access is not supported between these two devices"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
};

const char *cudaGetErrorName(cudaError_t code) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return errors[i].name;
    return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t code) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return errors[i].text;
    return "unknown error";
}

/* ---- devices ------------------------------------------------------------------------------------- */

/* The runtime counts the devices that the program sees: its numbers are ordinals. */
static bool is_device(int ordinal) { return sim_device_at(ordinal) >= 0; }

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) { return (cudaError_t)cuDriverGetVersion(version); }

cudaError_t cudaGetDeviceCount(int *count) {
    sim_device_count();
    sim_observe_operators();
    *count = sim_visible_count();
    return *count ? cudaSuccess : fail(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device) {
    if (!sim_visible_count()) return fail(cudaErrorNoDevice);
    *device = sim_current_ordinal();
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (!sim_visible_count()) return fail(cudaErrorNoDevice);
    if (!sim_set_current_ordinal(device)) return fail(cudaErrorInvalidDevice);
    sim_open_context(sim_current_device());
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    if (!is_device(device)) return fail(cudaErrorInvalidDevice);
    return fail((cudaError_t)cuDeviceGetAttribute(value, (CUdevice_attribute)attribute, device));
}

static int attribute(enum cudaDeviceAttr name, int device) {
    int value = 0;
    cuDeviceGetAttribute(&value, (CUdevice_attribute)name, device);
    return value;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    if (!is_device(device)) return fail(cudaErrorInvalidDevice);
    const sim_card *card = sim_get_card();
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", card->title);
    sim_uuid(sim_device_at(device), (unsigned char *)p->uuid.bytes);
    p->totalGlobalMem = card->total_bytes;
    p->sharedMemPerBlock = (size_t)attribute(cudaDevAttrMaxSharedMemoryPerBlock, device);
    p->sharedMemPerBlockOptin = card->shared_per_block_optin;
    p->sharedMemPerMultiprocessor = card->shared_per_sm;
    p->reservedSharedMemPerBlock = (size_t)attribute(cudaDevAttrReservedSharedMemoryPerBlock, device);
    p->regsPerBlock = attribute(cudaDevAttrMaxRegistersPerBlock, device);
    p->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor, device);
    p->warpSize = attribute(cudaDevAttrWarpSize, device);
    p->memPitch = (size_t)attribute(cudaDevAttrMaxPitch, device);
    p->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock, device);
    p->maxThreadsDim[0] = attribute(cudaDevAttrMaxBlockDimX, device);
    p->maxThreadsDim[1] = attribute(cudaDevAttrMaxBlockDimY, device);
    p->maxThreadsDim[2] = attribute(cudaDevAttrMaxBlockDimZ, device);
    p->maxGridSize[0] = attribute(cudaDevAttrMaxGridDimX, device);
    p->maxGridSize[1] = attribute(cudaDevAttrMaxGridDimY, device);
    p->maxGridSize[2] = attribute(cudaDevAttrMaxGridDimZ, device);
    p->totalConstMem = (size_t)attribute(cudaDevAttrTotalConstantMemory, device);
    p->major = card->major;
    p->minor = card->minor;
    p->textureAlignment = (size_t)attribute(cudaDevAttrTextureAlignment, device);
    p->texturePitchAlignment = (size_t)attribute(cudaDevAttrTexturePitchAlignment, device);
    p->multiProcessorCount = card->sm_count;
    p->canMapHostMemory = 1;
    p->concurrentKernels = 1;
    p->pciBusID = attribute(cudaDevAttrPciBusId, device);
    p->pciDeviceID = attribute(cudaDevAttrPciDeviceId, device);
    p->pciDomainID = attribute(cudaDevAttrPciDomainId, device);
    p->asyncEngineCount = attribute(cudaDevAttrAsyncEngineCount, device);
    p->unifiedAddressing = 1;
    p->memoryBusWidth = card->memory_bus_bits;
    p->l2CacheSize = (int)card->l2_bytes;
    p->maxThreadsPerMultiProcessor = card->threads_per_sm;
    p->maxBlocksPerMultiProcessor = card->blocks_per_sm;
    p->streamPrioritiesSupported = 1;
    p->globalL1CacheSupported = 1;
    p->localL1CacheSupported = 1;
    p->managedMemory = 1;
    p->concurrentManagedAccess = 1;
    p->computePreemptionSupported = 1;
    p->canUseHostPointerForRegisteredMem = 1;
    p->cooperativeLaunch = 1;
    p->hostRegisterSupported = 1;
    p->memoryPoolsSupported = 1;
    p->unifiedFunctionPointers = 1;
    p->clusterLaunch = attribute(cudaDevAttrClusterLaunch, device);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
    return (cudaError_t)cuDeviceGetPCIBusId(text, length, device);
}

cudaError_t cudaDeviceGetByPCIBusId(int *device, const char *text) {
    return (cudaError_t)cuDeviceGetByPCIBusId(device, text);
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    if (!is_device(device) || !is_device(peer)) return fail(cudaErrorInvalidDevice);
    *can = sim_can_access_peer(sim_device_at(device), sim_device_at(peer));
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
    int device = sim_current_device(), other = sim_device_at(peer);
    if (flags) return fail(cudaErrorInvalidValue);
    if (device < 0 || other < 0) return fail(cudaErrorInvalidDevice);
    if (!sim_can_access_peer(device, other)) return fail(cudaErrorPeerAccessUnsupported);
    if (!sim_set_peer_access(device, other, true)) return fail(cudaErrorPeerAccessAlreadyEnabled);
    return cudaSuccess;
}

cudaError_t cudaDeviceDisablePeerAccess(int peer) {
    int device = sim_current_device(), other = sim_device_at(peer);
    if (device < 0 || other < 0) return fail(cudaErrorInvalidDevice);
    if (!sim_set_peer_access(device, other, false)) return fail(cudaErrorPeerAccessNotEnabled);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetP2PAttribute(int *value, enum cudaDeviceP2PAttr name, int device, int peer) {
    return fail((cudaError_t)cuDeviceGetP2PAttribute(value, (CUdevice_P2PAttribute)name, device, peer));
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    int device = sim_current_device();
    sim_open_context(device);
    return ended(sim_synchronize_device(device));
}

cudaError_t cudaDeviceGetLimit(size_t *value, enum cudaLimit limit) {
    return (cudaError_t)cuCtxGetLimit(value, (CUlimit)limit);
}

/* ---- memory -------------------------------------------------------------------------------------- */

static cudaError_t allocate(void **pointer, size_t size, sim_kind kind) {
    *pointer = NULL;
    if (!sim_visible_count()) return fail(cudaErrorNoDevice);
    if (!size || state()) return state();
    *pointer = (void *)sim_allocate(kind, size, sim_current_device());
    return *pointer ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

static cudaError_t deallocate(void *pointer, sim_kind kind) {
    if (state()) return state();
    if (!pointer || sim_release(kind, (uintptr_t)pointer)) return cudaSuccess;
    return fail(cudaErrorInvalidValue);
}

cudaError_t cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size, SIM_DEVICE); }

cudaError_t cudaMallocManaged(void **pointer, size_t size, unsigned int flags) {
    (void)flags;
    return allocate(pointer, size, SIM_MANAGED);
}

cudaError_t cudaMallocPitch(void **pointer, size_t *pitch, size_t width, size_t height) {
    *pitch = (width + 511) / 512 * 512;
    return allocate(pointer, *pitch * height, SIM_DEVICE);
}

cudaError_t cudaFree(void *pointer) {
    int device = sim_current_device();
    sim_open_context(device);
    if (pointer) sim_finish_device(device);
    return deallocate(pointer, SIM_DEVICE);
}

cudaError_t cudaMallocAsync(void **pointer, size_t size, cudaStream_t stream) {
    *pointer = NULL;
    if (!size || state()) return state();
    *pointer = (void *)sim_allocate(SIM_POOL, size, sim_get_stream(stream)->device);
    return *pointer ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t size, cudaMemPool_t pool, cudaStream_t stream) {
    (void)pool;
    return cudaMallocAsync(pointer, size, stream);
}

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) {
    (void)stream;
    return deallocate(pointer, SIM_POOL);
}

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned int flags) {
    (void)flags;
    return allocate(pointer, size, SIM_HOST);
}

cudaError_t cudaMallocHost(void **pointer, size_t size) { return allocate(pointer, size, SIM_HOST); }

cudaError_t cudaFreeHost(void *pointer) {
    if (pointer) sim_finish_device(sim_current_device());
    return deallocate(pointer, SIM_HOST);
}

cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned int flags) {
    (void)flags;
    if (!pointer || !size) return fail(cudaErrorInvalidValue);
    return sim_register_host((uintptr_t)pointer, size) ? cudaSuccess : fail(cudaErrorHostMemoryAlreadyRegistered);
}

cudaError_t cudaHostUnregister(void *pointer) {
    if (sim_release(SIM_REGISTERED, (uintptr_t)pointer)) return cudaSuccess;
    return fail(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags) {
    (void)flags;
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    if (!sim_visible_count()) return fail(cudaErrorNoDevice);
    int device = sim_current_device();
    sim_open_context(device);
    *available = sim_free_bytes(device);
    *total = sim_get_card()->total_bytes;
    return state();
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *pointer) {
    sim_region region;
    memset(a, 0, sizeof *a);
    if (!sim_find((uintptr_t)pointer, &region)) {
        a->type = cudaMemoryTypeUnregistered;
        a->device = cudaInvalidDeviceId;
        a->hostPointer = (void *)pointer;
        return cudaSuccess;
    }
    a->device = sim_ordinal_of(region.device);
    a->devicePointer = (void *)pointer;
    if (region.kind == SIM_MANAGED)
        a->type = cudaMemoryTypeManaged;
    else if (region.kind == SIM_HOST || region.kind == SIM_REGISTERED)
        a->type = cudaMemoryTypeHost;
    else
        a->type = cudaMemoryTypeDevice;
    if (a->type != cudaMemoryTypeDevice) a->hostPointer = (void *)pointer;
    return cudaSuccess;
}

cudaError_t cudaHostGetFlags(unsigned int *flags, void *pointer) {
    sim_region region;
    if (!sim_find((uintptr_t)pointer, &region)) return fail(cudaErrorInvalidValue);
    *flags = 0;
    return cudaSuccess;
}

/* ---- the stream-ordered pool --------------------------------------------------------------------- */

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
    if (!is_device(device)) return fail(cudaErrorInvalidDevice);
    *pool = (cudaMemPool_t)sim_get_pool(sim_device_at(device));
    return cudaSuccess;
}

cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *pool, int device) { return cudaDeviceGetDefaultMemPool(pool, device); }

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) {
    for (int device = 0; device < sim_get_card()->count; device++)
        if ((void *)sim_get_pool(device) == (void *)pool) sim_pool_trim(device, keep);
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t handle, enum cudaMemPoolAttr name, void *value) {
    const sim_pool *pool = (const sim_pool *)handle;
    switch (name) {
        case cudaMemPoolAttrReleaseThreshold: *(uint64_t *)value = pool->release_threshold; break;
        case cudaMemPoolAttrReservedMemCurrent: *(uint64_t *)value = pool->reserved; break;
        case cudaMemPoolAttrReservedMemHigh: *(uint64_t *)value = pool->reserved_high; break;
        case cudaMemPoolAttrUsedMemCurrent: *(uint64_t *)value = pool->used; break;
        case cudaMemPoolAttrUsedMemHigh: *(uint64_t *)value = pool->used_high; break;
        default: *(int *)value = 1; break;
    }
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t handle, enum cudaMemPoolAttr name, void *value) {
    sim_pool *pool = (sim_pool *)handle;
    switch (name) {
        case cudaMemPoolAttrReleaseThreshold: pool->release_threshold = *(uint64_t *)value; break;
        case cudaMemPoolAttrReservedMemHigh: pool->reserved_high = pool->reserved; break;
        case cudaMemPoolAttrUsedMemHigh: pool->used_high = pool->used; break;
        default: break;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetGraphMemAttribute(int device, enum cudaGraphMemAttributeType name, void *value) {
    (void)device;
    (void)name;
    *(uint64_t *)value = 0;
    return cudaSuccess;
}

/* ---- copies -------------------------------------------------------------------------------------- */

static cudaError_t copy(void *to, const void *from, size_t n) {
    if (!state()) sim_copy((uintptr_t)to, (uintptr_t)from, n);
    return state();
}

static cudaError_t copy_2d(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height) {
    if (!state()) sim_copy_2d((uintptr_t)to, to_pitch, (uintptr_t)from, from_pitch, width, height);
    return state();
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
    (void)kind;
    sim_synchronize_stream(cudaStreamLegacy);
    return copy(to, from, n);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t stream) {
    (void)kind;
    sim_submit_copy(stream, (uintptr_t)to, (uintptr_t)from);
    return copy(to, from, n);
}

cudaError_t cudaMemcpyPeer(void *to, int to_device, const void *from, int from_device, size_t n) {
    (void)to_device;
    (void)from_device;
    return copy(to, from, n);
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t n,
                                cudaStream_t stream) {
    sim_submit(stream);
    return cudaMemcpyPeer(to, to_device, from, from_device, n);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                         enum cudaMemcpyKind kind) {
    (void)kind;
    sim_synchronize_stream(cudaStreamLegacy);
    return copy_2d(to, to_pitch, from, from_pitch, width, height);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    (void)kind;
    sim_submit_copy(stream, (uintptr_t)to, (uintptr_t)from);
    return copy_2d(to, to_pitch, from, from_pitch, width, height);
}

cudaError_t cudaMemset(void *to, int value, size_t n) {
    unsigned char byte = (unsigned char)value;
    if (!state()) sim_set((uintptr_t)to, n, &byte, 1);
    return state();
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t stream) {
    sim_submit(stream);
    return cudaMemset(to, value, n);
}

/* ---- streams, events ------------------------------------------------------------------------------ */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int priority) {
    *stream = (cudaStream_t)sim_create_stream(flags, priority);
    return state();
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    sim_destroy_stream(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = sim_get_stream(stream)->priority;
    return cudaSuccess;
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned int *flags) {
    *flags = sim_get_stream(stream)->flags;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags) {
    return ended(sim_wait_event(stream, (sim_event *)event, flags & cudaEventWaitExternal));
}

#if CUDART_VERSION >= 12080
cudaError_t cudaStreamGetDevice(cudaStream_t stream, int *device) {
    *device = sim_ordinal_of(sim_get_stream(stream)->device);
    return cudaSuccess;
}
#endif

cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long *id) {
    *id = (unsigned long long)(uintptr_t)stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return ended(sim_synchronize_stream(stream)); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return ended(sim_query_stream(stream)); }

/* At once, whenever the stream's work is done: a program may wait for it by other means than CUDA's. */
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    (void)stream;
    function(data);
    return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data, unsigned int flags) {
    (void)flags;
    function(stream, cudaSuccess, data);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    (void)flags;
    *event = (cudaEvent_t)sim_create_event();
    return state();
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int flags) {
    return ended(sim_record_event((sim_event *)event, stream, flags & cudaEventRecordExternal));
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return ended(sim_synchronize_event((const sim_event *)event)); }

cudaError_t cudaEventQuery(cudaEvent_t event) {
    return ended(sim_query_event((sim_event *)event, __builtin_return_address(0)));
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = (float)(((sim_event *)end)->milliseconds - ((sim_event *)start)->milliseconds);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    sim_destroy_event((sim_event *)event);
    return cudaSuccess;
}

static cudaError_t not_shared(void) { return fail(cudaErrorNotSupported); }

/* Memory of a simulated device belongs to one process. */
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *pointer) {
    (void)handle;
    (void)pointer;
    return not_shared();
}

cudaError_t cudaIpcOpenMemHandle(void **pointer, cudaIpcMemHandle_t handle, unsigned int flags) {
    (void)pointer;
    (void)handle;
    (void)flags;
    return not_shared();
}

cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *handle, cudaEvent_t event) {
    (void)handle;
    (void)event;
    return not_shared();
}

/* ---- kernels -------------------------------------------------------------------------------------- */

static cudaError_t launch(const void *function, void **arguments) {
    return fail((cudaError_t)sim_launch(function, arguments));
}

void **__cudaRegisterFatBinary(void *wrapper) { return sim_register_module(wrapper); }
void __cudaRegisterFatBinaryEnd(void **module) { (void)module; }
void __cudaUnregisterFatBinary(void **module) { (void)module; }
char __cudaInitModule(void **module) {
    (void)module;
    return 1;
}

void __cudaRegisterFunction(void **module, const char *host_function, char *device_function, const char *name,
                            int thread_limit, uint3 *thread, uint3 *block, dim3 *block_size, dim3 *grid_size,
                            int *warp_size) {
    (void)device_function;
    (void)thread_limit;
    (void)thread;
    (void)block;
    (void)block_size;
    (void)grid_size;
    (void)warp_size;
    sim_register_kernel(module, host_function, name);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    sim_push_configuration((sim_launch_configuration){
        .grid = {grid.x, grid.y, grid.z}, .block = {block.x, block.y, block.z}, .shared = shared, .stream = stream});
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    sim_launch_configuration c = sim_pop_configuration();
    *grid = (dim3){c.grid[0], c.grid[1], c.grid[2]};
    *block = (dim3){c.block[0], c.block[1], c.block[2]};
    *shared = c.shared;
    *(void **)stream = c.stream;
    return cudaSuccess;
}

/* A kernel's handle is its host function. */
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)(uintptr_t)function;
    return cudaSuccess;
}

cudaError_t cudaGetKernel(cudaKernel_t *kernel, const void *function) { return __cudaGetKernel(kernel, function); }

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    return cudaLaunchKernel((const void *)kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
    (void)grid;
    (void)block;
    (void)shared;
    sim_submit(stream);
    return launch(function, arguments);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t stream) {
    return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *configuration, const void *function, void **arguments) {
    sim_submit(configuration->stream);
    return launch(function, arguments);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *function) {
    int architecture = sim_kernel_architecture(function);
    if (!sim_kernel_name(function)) return fail(cudaErrorInvalidDeviceFunction);
    if (!architecture) return fail(cudaErrorNoKernelImageForDevice);
    memset(a, 0, sizeof *a);
    a->binaryVersion = architecture;
    a->ptxVersion = architecture;
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->maxDynamicSharedSizeBytes = (int)sim_get_card()->shared_per_block_optin;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int block_size,
                                                                   size_t shared, unsigned int flags) {
    (void)function;
    (void)flags;
    return (cudaError_t)cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, NULL, block_size, shared);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int block_size,
                                                          size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size, shared, 0);
}

cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, const void *function, const cudaLaunchConfig_t *c) {
    (void)function;
    (void)c;
    *clusters = sim_get_card()->sm_count;
    return cudaSuccess;
}

#if CUDART_VERSION >= 12080
/* Kernels loaded at run time (cudaLibrary*): the library is a module, the kernel a name in it. */
cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *jit_options,
                                void **jit_values, unsigned int jit_count, enum cudaLibraryOption *options,
                                void **values, unsigned int count) {
    (void)jit_options;
    (void)jit_values;
    (void)jit_count;
    (void)options;
    (void)values;
    (void)count;
    (void)code;
    return (cudaError_t)cuModuleLoadData((CUmodule *)library, code);
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
    return (cudaError_t)cuModuleGetFunction((CUfunction *)kernel, (CUmodule)library, name);
}

cudaError_t cudaLibraryUnload(cudaLibrary_t library) { return (cudaError_t)cuModuleUnload((CUmodule)library); }
#endif

/* Device variables, each at an address of its own. */
typedef struct symbol {
    const void *host;
    void *device;
    size_t size;
    struct symbol *next;
} symbol;

static symbol *symbols;
static pthread_mutex_t symbol_lock = PTHREAD_MUTEX_INITIALIZER;

void __cudaRegisterVar(void **module, char *host, char *device, const char *name, int external, size_t size,
                       int constant, int global) {
    (void)module;
    (void)device;
    (void)name;
    (void)external;
    (void)constant;
    (void)global;
    symbol *s = malloc(sizeof *s);
    if (!s) abort();
    pthread_mutex_lock(&symbol_lock);
    *s = (symbol){.host = host, .size = size, .next = symbols};
    symbols = s;
    pthread_mutex_unlock(&symbol_lock);
}

static symbol *find_symbol(const void *host) {
    pthread_mutex_lock(&symbol_lock);
    symbol *s = symbols;
    while (s && s->host != host) s = s->next;
    if (s && !s->device) s->device = (void *)sim_allocate(SIM_SYMBOL, s->size, sim_current_device());
    pthread_mutex_unlock(&symbol_lock);
    return s;
}

cudaError_t cudaGetSymbolAddress(void **address, const void *host) {
    symbol *s = find_symbol(host);
    if (!s) return fail(cudaErrorInvalidSymbol);
    *address = s->device;
    return cudaSuccess;
}

cudaError_t cudaGetSymbolSize(size_t *size, const void *host) {
    symbol *s = find_symbol(host);
    if (!s) return fail(cudaErrorInvalidSymbol);
    *size = s->size;
    return cudaSuccess;
}

/* ---- graphs --------------------------------------------------------------------------------------- */

/* Work captured into a graph is done when it is captured, and not again when the graph is launched:
 * the memory of a graph is what its capture took. What it computed then is not known any more once the
 * graph is launched, on inputs that may be others. */
typedef struct user_object {
    void *data;
    cudaHostFn_t destroy;
    unsigned int references;
} user_object;

typedef struct kept {
    user_object *object;
    unsigned int count;
    struct kept *next;
} kept;

typedef struct {
    kept *objects;
    uint64_t begun, ended; /* when it was captured (sim_values_clock) */
} graph;

static _Thread_local enum cudaStreamCaptureMode capture_mode;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    (void)mode;
    graph *g = calloc(1, sizeof *g);
    if (!g) return fail(cudaErrorMemoryAllocation);
    g->begun = sim_values_clock();
    int error = sim_begin_capture(stream, g);
    if (error) free(g);
    return fail((cudaError_t)error);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *captured) {
    void *g;
    int error = sim_end_capture(stream, &g);
    if (error) cudaGraphDestroy((cudaGraph_t)g);
    if (!error) ((graph *)g)->ended = sim_values_clock();
    *captured = error ? NULL : (cudaGraph_t)g;
    return fail((cudaError_t)error);
}

static cudaError_t capture_info(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                cudaGraph_t *captured) {
    *status = (enum cudaStreamCaptureStatus)sim_get_capture(stream, id, (void **)captured);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    return capture_info(stream, status, NULL, NULL);
}

#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *captured, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *count) {
    if (dependencies) *dependencies = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return capture_info(stream, status, id, captured);
}
#else
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                        unsigned long long *id, cudaGraph_t *captured,
                                        const cudaGraphNode_t **dependencies, size_t *count) {
    if (dependencies) *dependencies = NULL;
    if (count) *count = 0;
    return capture_info(stream, status, id, captured);
}
#endif

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

cudaError_t cudaGraphCreate(cudaGraph_t *created, unsigned int flags) {
    (void)flags;
    *created = calloc(1, sizeof(graph));
    return cudaSuccess;
}

/* One node stands for all that was captured. */
cudaError_t cudaGraphGetNodes(cudaGraph_t captured, cudaGraphNode_t *nodes, size_t *count) {
    if (nodes && *count) nodes[0] = (cudaGraphNode_t)captured;
    *count = 1;
    return cudaSuccess;
}

#if CUDART_VERSION >= 13000
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t *dependencies, cudaGraphEdgeData *edges,
                                         size_t *count) {
    (void)edges;
#else
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t *dependencies, size_t *count) {
#endif
    (void)node;
    (void)dependencies;
    *count = 0;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t captured, unsigned long long flags) {
    (void)flags;
    const graph *g = (const graph *)captured;
    graph *launched = calloc(1, sizeof *launched);
    if (!launched) return fail(cudaErrorMemoryAllocation);
    *launched = (graph){.begun = g->begun, .ended = g->ended};
    *executable = (cudaGraphExec_t)launched;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t captured, unsigned long long flags) {
    return cudaGraphInstantiateWithFlags(executable, captured, flags);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    sim_submit(stream);
    const graph *g = (const graph *)executable;
    sim_values_forget_between(g->begun, g->ended);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    free(executable);
    return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t *created, void *data, cudaHostFn_t destroy, unsigned int references,
                                 unsigned int flags) {
    (void)flags;
    user_object *object = malloc(sizeof *object);
    if (!object) return fail(cudaErrorMemoryAllocation);
    *object = (user_object){.data = data, .destroy = destroy, .references = references};
    *created = (cudaUserObject_t)object;
    return cudaSuccess;
}

cudaError_t cudaUserObjectRetain(cudaUserObject_t handle, unsigned int n) {
    ((user_object *)handle)->references += n;
    return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t handle, unsigned int n) {
    user_object *object = (user_object *)handle;
    object->references -= n;
    if (object->references == 0) {
        object->destroy(object->data);
        free(object);
    }
    return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t captured, cudaUserObject_t handle, unsigned int n,
                                      unsigned int flags) {
    graph *g = (graph *)captured;
    kept *k = malloc(sizeof *k);
    if (!k) return fail(cudaErrorMemoryAllocation);
    if (!(flags & cudaGraphUserObjectMove)) cudaUserObjectRetain(handle, n);
    *k = (kept){.object = (user_object *)handle, .count = n, .next = g->objects};
    g->objects = k;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t captured) {
    graph *g = (graph *)captured;
    while (g && g->objects) {
        kept *k = g->objects;
        g->objects = k->next;
        cudaUserObjectRelease((cudaUserObject_t)k->object, k->count);
        free(k);
    }
    free(g);
    return cudaSuccess;
}

/* ---- the driver's functions, by name --------------------------------------------------------------- */

static cudaError_t entry_point(const char *name, void **function, unsigned int version,
                               enum cudaDriverEntryPointQueryResult *status) {
    CUdriverProcAddressQueryResult found;
    CUresult result = cuGetProcAddress(name, function, (int)version, 0, &found);
    if (status) *status = (enum cudaDriverEntryPointQueryResult)found;
    return result == CUDA_SUCCESS || status ? cudaSuccess : fail(cudaErrorSymbolNotFound);
}

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned int version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *status) {
    (void)flags;
    return entry_point(name, function, version, status);
}
#endif

cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *status) {
    (void)flags;
    return entry_point(name, function, CUDART_VERSION, status);
}
