/* How long calls of the simulated GPU take, timed from C (benchmarks/simgpu_cost.py loads this after
 * the libraries, which resolve its functions). */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef struct {
    unsigned x, y, z;
} dim3;

int cudaGetDevice(int *device);
int cudaStreamIsCapturing(void *stream, int *status);
int cudaMalloc(void **pointer, size_t size);
int cudaFree(void *pointer);
int cudaMemGetInfo(size_t *available, size_t *total);
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream);
int cudaMemsetAsync(void *to, int value, size_t n, void *stream);
int cudaEventCreateWithFlags(void **event, unsigned flags);
int cudaEventRecord(void *event, void *stream);
int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream);
void *__cudaRegisterFatBinary(void *wrapper);
void __cudaRegisterFunction(void *module, const char *host, char *device, const char *name, int limit, void *thread,
                            void *block, void *block_size, void *grid_size, int *warp_size);
int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a, int atype,
                 int lda, const void *b, int btype, int ldb, const void *beta, void *c, int ctype, int ldc, int compute,
                 int algorithm);
int cublasCreate_v2(void **handle);

/* ---- a kernel --------------------------------------------------------------------------------------- */

/* A fat binary with code that any card compiles: a header, then one entry of PTX for 5.0. */
static struct {
    uint32_t magic;
    uint16_t version, header_size;
    uint64_t size;
    uint16_t kind, unused1;
    uint32_t entry_header_size;
    uint64_t entry_size;
    uint32_t unused2[3], architecture;
    uint32_t rest[16];
} fat_binary = {.magic = 0xBA55ED50u, .version = 1, .header_size = 16, .size = 104, .kind = 1, .entry_header_size = 64,
                .entry_size = 40, .architecture = 50};
static struct {
    uint32_t magic, version;
    const void *data;
    void *unused;
} wrapper = {.magic = 0x466243B1u, .version = 1, .data = &fat_binary};

static char function;

static void *device_memory, *event, *cublas;
static unsigned char host_memory[1 << 16];

void prepare(void) {
    void *module = __cudaRegisterFatBinary(&wrapper);
    __cudaRegisterFunction(module, &function, NULL, "_Z6kernelPfS_i", 0, NULL, NULL, NULL, NULL, NULL);
    cudaMalloc(&device_memory, 1 << 20);
    cudaEventCreateWithFlags(&event, 0);
    cublasCreate_v2(&cublas);
}

/* What a large program holds: segments, and small tensors whose values are known. */
void fill(void) {
    for (int i = 0; i < 500; i++) {
        void *segment;
        cudaMalloc(&segment, (size_t)(1 + i % 10) << 21);
        for (int k = 0; k < 8; k++) cudaMemsetAsync((char *)segment + 4096 * k, 1, 8, NULL);
    }
}

/* ---- what is timed ---------------------------------------------------------------------------------- */

static int nothing(void) {
    __asm__ volatile("");
    return 0;
}

static int get_device(void) {
    int device;
    return cudaGetDevice(&device);
}

static int is_capturing(void) {
    int status;
    return cudaStreamIsCapturing(NULL, &status);
}

static int allocate_and_free(void) {
    void *pointer;
    return cudaMalloc(&pointer, 3 << 20) || cudaFree(pointer);
}

static int memory_info(void) {
    size_t available, total;
    return cudaMemGetInfo(&available, &total);
}

static int record_event(void) { return cudaEventRecord(event, NULL); }
static int copy_in(void) { return cudaMemcpyAsync(device_memory, host_memory, 8, 1, NULL); }
static int copy_in_64k(void) { return cudaMemcpyAsync(device_memory, host_memory, sizeof host_memory, 1, NULL); }
static int copy_out(void) { return cudaMemcpyAsync(host_memory, device_memory, 8, 2, NULL); }
static int set(void) { return cudaMemsetAsync(device_memory, 0, 1 << 20, NULL); }

static int launch(void) {
    void *in = device_memory, *out = (char *)device_memory + 4096;
    int n = 1000;
    return cudaLaunchKernel(&function, (dim3){1, 1, 1}, (dim3){128, 1, 1}, (void *[]){&in, &out, &n}, 0, NULL);
}

static int multiply(void) {
    float one = 1, zero = 0;
    return cublasGemmEx(cublas, 0, 0, 64, 64, 64, &one, device_memory, 14, 64, device_memory, 14, 64, &zero,
                        (char *)device_memory + (1 << 19), 14, 64, 68, -1);
}

static const struct {
    const char *name;
    int (*call)(void);
} calls[] = {
    {"an empty function", nothing},
    {"cudaGetDevice", get_device},
    {"cudaStreamIsCapturing", is_capturing},
    {"cudaMalloc and cudaFree", allocate_and_free},
    {"cudaMemGetInfo", memory_info},
    {"cudaEventRecord", record_event},
    {"cudaMemcpyAsync to the device, 8 bytes", copy_in},
    {"cudaMemcpyAsync to the device, 64 KiB", copy_in_64k},
    {"cudaMemcpyAsync to the host, 8 bytes", copy_out},
    {"cudaMemsetAsync, 1 MiB", set},
    {"cudaLaunchKernel", launch},
    {"cublasGemmEx", multiply},
};

int count(void) { return sizeof calls / sizeof *calls; }
const char *name(int i) { return calls[i].name; }

/* Nanoseconds of one call, or -1 if it fails. */
double measure(int i, long n) {
    int (*volatile call)(void) = calls[i].call;
    struct timespec start, end;
    if (call()) return -1;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long k = 0; k < n; k++) call();
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (1e9 * (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec)) / (double)n;
}
