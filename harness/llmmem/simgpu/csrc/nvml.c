/* libnvidia-ml: what NVML says of the simulated devices and of this process on them. All other
 * functions answer NVML_ERROR_NOT_SUPPORTED (the builder generates them). NVML's header does not
 * come with any wheel; the structures are those of the documented ABI, as in nvidia-ml-py. */
#include "account.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    ARGUMENT_VERSION_MISMATCH = 25,
};

/* A device's handle is its number and one. */
typedef uintptr_t device;

static bool is_device(device d) { return d >= 1 && d <= (device)sim_get_card()->count; }
static int number_of(device d) { return (int)d - 1; }

static int text(char *out, unsigned int length, const char *value) {
    if (strlen(value) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

int nvmlInit(void) { return SUCCESS; }
int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    return SUCCESS;
}
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int error) {
    switch (error) {
        case SUCCESS: return "Success";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case ARGUMENT_VERSION_MISMATCH: return "Argument Version Mismatch";
        default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *out, unsigned int length) { return text(out, length, sim_get_card()->driver_version); }

int nvmlSystemGetNVMLVersion(char *out, unsigned int length) {
    char version[64];
    snprintf(version, sizeof version, "%d.%s", sim_get_card()->driver_cuda_version / 1000, sim_get_card()->driver_version);
    return text(out, length, version);
}

int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = sim_get_card()->driver_cuda_version;
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

/* ---- devices -------------------------------------------------------------------------------------- */

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)sim_get_card()->count;
    return SUCCESS;
}

int nvmlDeviceGetCount(unsigned int *count) { return nvmlDeviceGetCount_v2(count); }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device *d) {
    if (!is_device(index + 1)) return INVALID_ARGUMENT;
    *d = index + 1;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex(unsigned int index, device *d) { return nvmlDeviceGetHandleByIndex_v2(index, d); }

int nvmlDeviceGetHandleByPciBusId_v2(const char *place, device *d) {
    int number = sim_device_at_bus(place);
    if (number < 0) return NOT_FOUND;
    *d = (device)number + 1;
    return SUCCESS;
}

int nvmlDeviceGetHandleByPciBusId(const char *place, device *d) { return nvmlDeviceGetHandleByPciBusId_v2(place, d); }

int nvmlDeviceGetUUID(device d, char *out, unsigned int length) {
    if (!is_device(d)) return INVALID_ARGUMENT;
    char uuid[SIM_UUID_TEXT];
    sim_uuid_text(number_of(d), uuid);
    return text(out, length, uuid);
}

int nvmlDeviceGetHandleByUUID(const char *wanted, device *d) {
    for (int number = 0; number < sim_get_card()->count; number++) {
        char uuid[SIM_UUID_TEXT];
        sim_uuid_text(number, uuid);
        if (strcmp(uuid, wanted) != 0) continue;
        *d = (device)number + 1;
        return SUCCESS;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(device d, unsigned int *index) {
    if (!is_device(d)) return INVALID_ARGUMENT;
    *index = (unsigned int)number_of(d);
    return SUCCESS;
}

int nvmlDeviceGetMinorNumber(device d, unsigned int *minor) { return nvmlDeviceGetIndex(d, minor); }

int nvmlDeviceGetName(device d, char *out, unsigned int length) {
    return is_device(d) ? text(out, length, sim_get_card()->title) : INVALID_ARGUMENT;
}

int nvmlDeviceGetCudaComputeCapability(device d, int *major, int *minor) {
    if (!is_device(d)) return INVALID_ARGUMENT;
    *major = sim_get_card()->major;
    *minor = sim_get_card()->minor;
    return SUCCESS;
}

typedef struct {
    char place_short[16];
    unsigned int domain, bus, slot, pci_device, pci_subsystem;
    char place[32];
} pci_info; /* nvmlPciInfo_t */

int nvmlDeviceGetPciInfo_v3(device d, pci_info *info) {
    if (!is_device(d)) return INVALID_ARGUMENT;
    int bus = sim_bus_number(number_of(d));
    memset(info, 0, sizeof *info);
    info->bus = (unsigned int)bus;
    snprintf(info->place_short, sizeof info->place_short, "0000:%02X:00.0", bus);
    snprintf(info->place, sizeof info->place, "00000000:%02X:00.0", bus);
    return SUCCESS;
}

int nvmlDeviceGetMultiGpuBoard(device d, unsigned int *is_board) {
    *is_board = 0;
    return is_device(d) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMemoryBusWidth(device d, unsigned int *bits) {
    *bits = (unsigned int)sim_get_card()->memory_bus_bits;
    return is_device(d) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetComputeMode(device d, int *mode) {
    *mode = 0; /* default: shared between processes */
    return is_device(d) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetPersistenceMode(device d, int *mode) {
    *mode = 1;
    return is_device(d) ? SUCCESS : INVALID_ARGUMENT;
}

typedef struct {
    unsigned int gpu, memory;
} utilization;

/* Nothing is ever running when it can be asked for. */
int nvmlDeviceGetUtilizationRates(device d, utilization *rates) {
    *rates = (utilization){0, 0};
    return is_device(d) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMaxMigDeviceCount(device d, unsigned int *count) {
    *count = 0;
    return is_device(d) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceIsMigDeviceHandle(device d, unsigned int *is_mig) {
    *is_mig = 0;
    return is_device(d) ? SUCCESS : INVALID_ARGUMENT;
}

typedef struct {
    unsigned int version;
    unsigned char cluster[16];
    int status;
    unsigned int clique;
    unsigned char state;
} fabric_info; /* the beginning that all versions of nvmlGpuFabricInfo share */

/* No fabric joins the devices: PyTorch asks before it maps expandable segments. */
int nvmlDeviceGetGpuFabricInfoV(device d, fabric_info *info) {
    if (!is_device(d)) return INVALID_ARGUMENT;
    *info = (fabric_info){.version = info->version, .status = NOT_SUPPORTED};
    return SUCCESS;
}

/* ---- memory --------------------------------------------------------------------------------------- */

typedef struct {
    unsigned long long total, free, used;
} memory_info;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} memory_info_v2;

#define MEMORY_INFO_V2 0x02000028u

static size_t reserved_bytes(void) { return sim_get_card()->nvml_total_bytes - sim_get_card()->total_bytes; }

/* used counts what the driver keeps for itself; the second version tells the two apart. */
int nvmlDeviceGetMemoryInfo(device d, memory_info *info) {
    if (!is_device(d)) return INVALID_ARGUMENT;
    info->total = sim_get_card()->nvml_total_bytes;
    info->used = reserved_bytes() + sim_process_bytes(number_of(d));
    info->free = info->total - info->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(device d, memory_info_v2 *info) {
    if (!is_device(d)) return INVALID_ARGUMENT;
    if (info->version != MEMORY_INFO_V2) return ARGUMENT_VERSION_MISMATCH;
    info->total = sim_get_card()->nvml_total_bytes;
    info->reserved = reserved_bytes();
    info->used = sim_process_bytes(number_of(d));
    info->free = info->total - info->reserved - info->used;
    return SUCCESS;
}

/* ---- processes ------------------------------------------------------------------------------------ */

/* The account is this process's own, so it is the only one on the device, once it has a context. */
typedef struct {
    unsigned int pid;
    unsigned long long used;
} process_v1;

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} process_v2;

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
    unsigned long long used_protected;
} process_detail;

typedef struct {
    unsigned int version, mode, count;
    process_detail *processes;
} process_detail_list;

#define NO_INSTANCE 0xFFFFFFFFu

/* The part that all versions share: set the count, and say whether an entry is to be written. */
static int count_processes(device d, unsigned int *count, bool *write) {
    *write = false;
    if (!is_device(d)) return INVALID_ARGUMENT;
    unsigned int room = *count;
    *count = sim_context_is_open(number_of(d));
    if (*count > room) return INSUFFICIENT_SIZE;
    *write = *count > 0;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses(device d, unsigned int *count, process_v1 *processes) {
    bool write;
    int result = count_processes(d, count, &write);
    if (write) *processes = (process_v1){(unsigned int)getpid(), sim_process_bytes(number_of(d))};
    return result;
}

int nvmlDeviceGetComputeRunningProcesses_v2(device d, unsigned int *count, process_v2 *processes) {
    bool write;
    int result = count_processes(d, count, &write);
    if (write)
        *processes = (process_v2){(unsigned int)getpid(), sim_process_bytes(number_of(d)), NO_INSTANCE, NO_INSTANCE};
    return result;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned int *count, process_v2 *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v2(d, count, processes);
}

int nvmlDeviceGetRunningProcessDetailList(device d, process_detail_list *list) {
    bool write;
    int result = count_processes(d, &list->count, &write);
    if (write)
        *list->processes = (process_detail){(unsigned int)getpid(), sim_process_bytes(number_of(d)), NO_INSTANCE, NO_INSTANCE, 0};
    return result;
}

static int no_processes(device d, unsigned int *count) {
    *count = 0;
    return is_device(d) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetGraphicsRunningProcesses(device d, unsigned int *count) { return no_processes(d, count); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(device d, unsigned int *count) { return no_processes(d, count); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(device d, unsigned int *count) { return no_processes(d, count); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(device d, unsigned int *count) { return no_processes(d, count); }

int nvmlSystemGetProcessName(unsigned int pid, char *out, unsigned int length) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/exe", pid);
    ssize_t n = readlink(path, out, length - 1);
    if (n < 0) return NOT_FOUND;
    out[n] = 0;
    return SUCCESS;
}
