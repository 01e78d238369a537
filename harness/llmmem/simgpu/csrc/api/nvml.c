/* libnvidia-ml: the simulated devices and the processes on them. Readings that need a real card (temperature,
 * fan, clocks, power) return NVML_ERROR_NOT_SUPPORTED, as do all functions that the builder generates. No
 * wheel contains NVML's header; the structures are those of the documented ABI, as in nvidia-ml-py. */
#include "account/account.h"
#include "account/card.h"
#include "account/faults.h"
#include "account/processes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
};

static const char *const error_texts[] = {
    "Success",
    "Uninitialized",
    "Invalid Argument",
    "Not Supported",
    "Insufficient Permissions",
    "Already Initialized",
    "Not Found",
    "Insufficient Size",
    "Insufficient External Power",
    "Driver Not Loaded",
    "Timeout",
    "Interrupt Request Issue",
    "NVML Shared Library Not Found",
    "Function Not Found",
    "Corrupted infoROM",
    "GPU is lost",
    "GPU requires reset",
    "The operating system has blocked the request.",
    "RM has detected an NVML/RM version mismatch.",
    "GPU is in use",
    "Insufficient Memory",
    "No data",
    "The requested vgpu operation is not available on target device, because ECC is enabled.",
    "Insufficient resources",
    "Frequency not supported",
    "Argument version mismatch",
    "Deprecated",
    "Not ready",
    "GPU not found",
    "Invalid state",
    "Reset type not supported",
};

const char *nvmlErrorString(int error) {
    bool known = error >= 0 && (size_t)error < sizeof error_texts / sizeof *error_texts;
    return known ? error_texts[error] : "Unknown Error";
}

/* ---- the library ---------------------------------------------------------------------------------- */

static int users; /* atomic: how often it was initialised and not shut down */

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    __atomic_add_fetch(&users, 1, __ATOMIC_RELAXED);
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!__atomic_load_n(&users, __ATOMIC_RELAXED)) return UNINITIALIZED;
    __atomic_sub_fetch(&users, 1, __ATOMIC_RELAXED);
    return SUCCESS;
}

/* What keeps a question about the system from being answered, or SUCCESS. */
static int closed(void) { return __atomic_load_n(&users, __ATOMIC_RELAXED) ? SUCCESS : UNINITIALIZED; }

static int text(char *out, unsigned int length, const char *value) {
    if (strlen(value) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *out, unsigned int length) {
    int error = closed();
    return error ? error : text(out, length, sim_get_card()->driver_version);
}

int nvmlSystemGetNVMLVersion(char *out, unsigned int length) {
    char version[64];
    snprintf(version, sizeof version, "%d.%s", sim_get_card()->driver_cuda_version / 1000, sim_get_card()->driver_version);
    int error = closed();
    return error ? error : text(out, length, version);
}

typedef struct {
    unsigned int version;
    char branch[80];
} driver_branch;

#define DRIVER_BRANCH_V1 0x1000054u

/* Branches are named by the major version: r580. */
int nvmlSystemGetDriverBranch(driver_branch *info, unsigned int length) {
    int error = closed();
    if (error) return error;
    if (info->version != DRIVER_BRANCH_V1) return ARGUMENT_VERSION_MISMATCH;
    char branch[80];
    const char *version = sim_get_card()->driver_version;
    snprintf(branch, sizeof branch, "r%.*s", (int)strcspn(version, "."), version);
    return text(info->branch, length, branch);
}

/* May be asked before the library is initialised. */
int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = sim_get_card()->driver_cuda_version;
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

static int none(unsigned int *count) {
    *count = 0;
    return closed();
}

int nvmlUnitGetCount(unsigned int *count) { return none(count); }
int nvmlGetExcludedDeviceCount(unsigned int *count) { return none(count); }
int nvmlSystemGetHicVersion(unsigned int *count) { return none(count); }

/* ---- devices -------------------------------------------------------------------------------------- */

/* A device's handle is its number and one. */
typedef uintptr_t device;

static int number_of(device d) { return (int)d - 1; }

/* What keeps a question about a device from being answered, or SUCCESS. */
static int refusal(device d) {
    if (closed()) return UNINITIALIZED;
    if (d < 1 || d > (device)sim_get_card()->count) return INVALID_ARGUMENT;
    return sim_get_nvml_state() == SIM_NVML_GPU_LOST ? GPU_IS_LOST : SUCCESS;
}

/* The same, of a question about its memory or its processes. */
static int memory_refusal(device d) {
    int error = refusal(d);
    if (error) return error;
    switch (sim_get_nvml_state()) {
        case SIM_NVML_NOT_SUPPORTED: return NOT_SUPPORTED;
        case SIM_NVML_NO_PERMISSION: return NO_PERMISSION;
        default: return SUCCESS;
    }
}

static int answer(device d, unsigned int *out, unsigned int value) {
    int error = refusal(d);
    if (!error) *out = value;
    return error;
}

static int give_handle(int number, device *d) {
    *d = (device)number + 1;
    return refusal(*d);
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)sim_get_card()->count;
    return closed();
}

int nvmlDeviceGetCount(unsigned int *count) { return nvmlDeviceGetCount_v2(count); }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device *d) {
    return index < (unsigned int)sim_get_card()->count ? give_handle((int)index, d) : closed() ? UNINITIALIZED : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByIndex(unsigned int index, device *d) { return nvmlDeviceGetHandleByIndex_v2(index, d); }

int nvmlDeviceGetHandleByPciBusId_v2(const char *place, device *d) {
    int number = sim_device_at_bus(place);
    return number >= 0 ? give_handle(number, d) : closed() ? UNINITIALIZED : NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId(const char *place, device *d) { return nvmlDeviceGetHandleByPciBusId_v2(place, d); }

int nvmlDeviceGetUUID(device d, char *out, unsigned int length) {
    int error = refusal(d);
    if (error) return error;
    char uuid[SIM_UUID_TEXT];
    sim_uuid_text(number_of(d), uuid);
    return text(out, length, uuid);
}

int nvmlDeviceGetHandleByUUID(const char *wanted, device *d) {
    for (int number = 0; number < sim_get_card()->count; number++) {
        char uuid[SIM_UUID_TEXT];
        sim_uuid_text(number, uuid);
        if (strcmp(uuid, wanted) == 0) return give_handle(number, d);
    }
    return closed() ? UNINITIALIZED : NOT_FOUND;
}

typedef struct {
    unsigned int version, type;
    union {
        char text[41];
        unsigned char bytes[16];
    } value;
} uuid_value; /* nvmlUUID_t */

#define UUID_V1 0x1000034u
#define UUID_IS_TEXT 1
#define UUID_IS_BINARY 2

int nvmlDeviceGetHandleByUUIDV(const uuid_value *wanted, device *d) {
    if (wanted->version != UUID_V1) return ARGUMENT_VERSION_MISMATCH;
    if (wanted->type == UUID_IS_TEXT) return nvmlDeviceGetHandleByUUID(wanted->value.text, d);
    if (wanted->type != UUID_IS_BINARY) return INVALID_ARGUMENT;
    for (int number = 0; number < sim_get_card()->count; number++) {
        unsigned char uuid[16];
        sim_uuid(number, uuid);
        if (memcmp(uuid, wanted->value.bytes, sizeof uuid) == 0) return give_handle(number, d);
    }
    return closed() ? UNINITIALIZED : NOT_FOUND;
}

int nvmlDeviceGetIndex(device d, unsigned int *index) { return answer(d, index, (unsigned int)number_of(d)); }
int nvmlDeviceGetMinorNumber(device d, unsigned int *minor) { return nvmlDeviceGetIndex(d, minor); }

int nvmlDeviceGetName(device d, char *out, unsigned int length) {
    int error = refusal(d);
    return error ? error : text(out, length, sim_get_card()->title);
}

static bool is_named(const char *part) { return strstr(sim_get_card()->title, part) != NULL; }

/* Cards for the desktop have no serial number that can be read. */
int nvmlDeviceGetSerial(device d, char *out, unsigned int length) {
    int error = refusal(d);
    if (error) return error;
    if (is_named("GeForce")) return NOT_SUPPORTED;
    char serial[32];
    snprintf(serial, sizeof serial, "%013d", number_of(d) + 1);
    return text(out, length, serial);
}

int nvmlDeviceGetHandleBySerial(const char *serial, device *d) {
    for (int number = 0; number < sim_get_card()->count; number++) {
        char found[32];
        int error = nvmlDeviceGetSerial((device)number + 1, found, sizeof found);
        if (error) return error == NOT_SUPPORTED ? NOT_FOUND : error;
        if (strcmp(found, serial) == 0) return give_handle(number, d);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetBrand(device d, unsigned int *brand) {
    enum { TESLA = 2, GEFORCE = 5, NVIDIA = 14 };
    return answer(d, brand, is_named("GeForce") ? GEFORCE : is_named("Tesla") ? TESLA : NVIDIA);
}

static int capability(void) { return 10 * sim_get_card()->major + sim_get_card()->minor; }

int nvmlDeviceGetArchitecture(device d, unsigned int *architecture) {
    enum { VOLTA = 5, TURING, AMPERE, ADA, HOPPER, BLACKWELL };
    int cc = capability();
    return answer(d, architecture,
                  cc >= 100  ? BLACKWELL
                  : cc >= 90 ? HOPPER
                  : cc >= 89 ? ADA
                  : cc >= 80 ? AMPERE
                  : cc >= 75 ? TURING
                             : VOLTA);
}

int nvmlDeviceGetCudaComputeCapability(device d, int *major, int *minor) {
    int error = refusal(d);
    if (error) return error;
    *major = sim_get_card()->major;
    *minor = sim_get_card()->minor;
    return SUCCESS;
}

/* CUDA C++ Programming Guide, "Compute Capabilities": 32-bit floating point cores of an SM. */
int nvmlDeviceGetNumGpuCores(device d, unsigned int *cores) {
    int for_each = capability() > 80 ? 128 : 64;
    return answer(d, cores, (unsigned int)(for_each * sim_get_card()->sm_count));
}

#define NVIDIA_VENDOR 0x10DEu

typedef struct {
    char place_short[16];
    unsigned int domain, bus, slot, pci_device, pci_subsystem;
    char place[32];
} pci_info; /* nvmlPciInfo_t */

int nvmlDeviceGetPciInfo_v3(device d, pci_info *info) {
    int error = refusal(d);
    if (error) return error;
    int bus = sim_bus_number(number_of(d));
    memset(info, 0, sizeof *info);
    info->bus = (unsigned int)bus;
    info->pci_device = NVIDIA_VENDOR;
    snprintf(info->place_short, sizeof info->place_short, "0000:%02X:00.0", bus);
    snprintf(info->place, sizeof info->place, "00000000:%02X:00.0", bus);
    return SUCCESS;
}

typedef struct {
    unsigned int version, domain, bus, slot, pci_device, pci_subsystem, base_class, sub_class;
    char place[32];
} pci_info_ext; /* nvmlPciInfoExt_v1_t */

#define PCI_INFO_EXT_V1 0x1000040u
#define DISPLAY_CONTROLLER 3u /* PCI base class; subclass 2: 3D controller */

int nvmlDeviceGetPciInfoExt(device d, pci_info_ext *info) {
    pci_info plain;
    int error = nvmlDeviceGetPciInfo_v3(d, &plain);
    if (error) return error;
    if (info->version != PCI_INFO_EXT_V1) return ARGUMENT_VERSION_MISMATCH;
    *info = (pci_info_ext){.version = info->version,
                           .bus = plain.bus,
                           .pci_device = plain.pci_device,
                           .base_class = DISPLAY_CONTROLLER,
                           .sub_class = 2};
    memcpy(info->place, plain.place, sizeof info->place);
    return SUCCESS;
}

int nvmlDeviceGetBusType(device d, unsigned int *type) {
    enum { PCIE = 2 };
    return answer(d, type, PCIE);
}

int nvmlDeviceGetBoardId(device d, unsigned int *id) { return answer(d, id, (unsigned int)sim_bus_number(number_of(d)) << 8); }
int nvmlDeviceGetMultiGpuBoard(device d, unsigned int *is_board) { return answer(d, is_board, 0); }
int nvmlDeviceGetMemoryBusWidth(device d, unsigned int *bits) { return answer(d, bits, (unsigned int)sim_get_card()->memory_bus_bits); }

/* Shared between processes, with the driver always loaded and no display. */
int nvmlDeviceGetComputeMode(device d, unsigned int *mode) { return answer(d, mode, 0); }
int nvmlDeviceGetPersistenceMode(device d, unsigned int *mode) { return answer(d, mode, 1); }
int nvmlDeviceGetDisplayMode(device d, unsigned int *mode) { return answer(d, mode, 0); }
int nvmlDeviceGetDisplayActive(device d, unsigned int *active) { return answer(d, active, 0); }
int nvmlDeviceGetVirtualizationMode(device d, unsigned int *mode) { return answer(d, mode, 0); }
int nvmlDeviceGetAccountingMode(device d, unsigned int *mode) { return answer(d, mode, 0); }

int nvmlDeviceGetPerformanceState(device d, unsigned int *state) { return answer(d, state, 0); }

typedef struct {
    unsigned int gpu, memory;
} utilization;

/* Nothing is ever running when it can be asked for. */
int nvmlDeviceGetUtilizationRates(device d, utilization *rates) {
    int error = refusal(d);
    if (!error) *rates = (utilization){0, 0};
    return error;
}

#define SAMPLING_MICROSECONDS 100000u

static int idle_unit(device d, unsigned int *percent, unsigned int *period) {
    int error = answer(d, percent, 0);
    return error ? error : answer(d, period, SAMPLING_MICROSECONDS);
}

int nvmlDeviceGetEncoderUtilization(device d, unsigned int *percent, unsigned int *period) { return idle_unit(d, percent, period); }
int nvmlDeviceGetDecoderUtilization(device d, unsigned int *percent, unsigned int *period) { return idle_unit(d, percent, period); }

/* No process has been busy since any time. */
int nvmlDeviceGetProcessUtilization(device d, void *samples, unsigned int *count) {
    (void)samples;
    int error = answer(d, count, 0);
    return error ? error : NOT_FOUND;
}

int nvmlDeviceGetSupportedEventTypes(device d, unsigned long long *types) {
    int error = refusal(d);
    if (!error) *types = 0;
    return error;
}

typedef struct {
    unsigned int field, scope;
    long long timestamp, latency;
    unsigned int type;
    int error;
    unsigned long long value;
} field_value; /* nvmlFieldValue_t */

/* The call works and each field says that it does not. */
int nvmlDeviceGetFieldValues(device d, int count, field_value *values) {
    int error = refusal(d);
    if (error) return error;
    if (count < 0) return INVALID_ARGUMENT;
    for (int i = 0; i < count; i++)
        values[i] = (field_value){.field = values[i].field, .scope = values[i].scope, .error = NOT_SUPPORTED};
    return SUCCESS;
}

/* ---- multi-instance GPU: off, where the card has it -------------------------------------------------- */

static bool has_mig(void) {
    int cc = capability();
    return cc == 80 || cc == 90 || cc == 100;
}

int nvmlDeviceGetMigMode(device d, unsigned int *current, unsigned int *pending) {
    int error = answer(d, current, 0);
    if (error) return error;
    *pending = 0;
    return has_mig() ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned int index, device *mig) {
    (void)index;
    (void)mig;
    int error = refusal(d);
    return error ? error : has_mig() ? NOT_FOUND : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(device d, unsigned int *count) { return answer(d, count, 0); }
int nvmlDeviceIsMigDeviceHandle(device d, unsigned int *is_mig) { return answer(d, is_mig, 0); }

/* ---- how devices are joined: through the host, each on a board of its own ---------------------------- */

#define THROUGH_HOST 30u /* NVML_TOPOLOGY_HOSTBRIDGE */

/* What keeps a question about two devices from being answered, or SUCCESS. */
static int pair_refusal(device a, device b) {
    int error = refusal(a);
    return error ? error : refusal(b);
}

int nvmlDeviceGetTopologyCommonAncestor(device a, device b, unsigned int *level) {
    int error = pair_refusal(a, b);
    if (!error) *level = a == b ? 0 : THROUGH_HOST;
    return error;
}

int nvmlDeviceOnSameBoard(device a, device b, int *same) {
    int error = pair_refusal(a, b);
    if (!error) *same = a == b;
    return error;
}

int nvmlDeviceGetP2PStatus(device a, device b, unsigned int what, unsigned int *status) {
    enum { NVLINK = 2, ATOMICS = 3, WORKS = 0, DOES_NOT = 5 };
    int error = pair_refusal(a, b);
    if (!error) *status = what == NVLINK || what == ATOMICS ? DOES_NOT : WORKS;
    return error;
}

/* Count devices but one, and name them where there is room. */
static int list_devices(device left_out, unsigned int *count, device *devices) {
    unsigned int room = *count, found = 0;
    for (device d = 1; d <= (device)sim_get_card()->count; d++) {
        if (d == left_out) continue;
        if (devices && found < room) devices[found] = d;
        found++;
    }
    *count = found;
    return devices && found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetTopologyNearestGpus(device d, unsigned int level, unsigned int *count, device *devices) {
    int error = refusal(d);
    if (error) return error;
    if (level == THROUGH_HOST) return list_devices(d, count, devices);
    *count = 0;
    return SUCCESS;
}

int nvmlSystemGetTopologyGpuSet(unsigned int processor, unsigned int *count, device *devices) {
    (void)processor;
    int error = closed();
    return error ? error : list_devices(0, count, devices);
}

#define BITS (8 * sizeof(unsigned long))

static int fill_set(device d, unsigned int words, unsigned long *set, long members) {
    int error = refusal(d);
    if (error) return error;
    memset(set, 0, words * sizeof *set);
    for (long i = 0; i < members && (size_t)i < words * BITS; i++) set[(size_t)i / BITS] |= 1ul << ((size_t)i % BITS);
    return SUCCESS;
}

int nvmlDeviceGetCpuAffinityWithinScope(device d, unsigned int words, unsigned long *set, unsigned int scope) {
    (void)scope;
    return fill_set(d, words, set, sysconf(_SC_NPROCESSORS_CONF));
}

int nvmlDeviceGetCpuAffinity(device d, unsigned int words, unsigned long *set) {
    return nvmlDeviceGetCpuAffinityWithinScope(d, words, set, 0);
}

int nvmlDeviceGetMemoryAffinity(device d, unsigned int words, unsigned long *set, unsigned int scope) {
    (void)scope;
    return fill_set(d, words, set, 1);
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
    int error = refusal(d);
    if (!error) *info = (fabric_info){.version = info->version, .status = NOT_SUPPORTED};
    return error;
}

/* ---- processes ------------------------------------------------------------------------------------ */

/* Process ids of Linux are below this, so no process has it. */
#define OUTSIDE_PID 4194304u
#define MOST_PROCESSES (SIM_MAX_PROCESSES + 1)

/* Those that share the account's devices by fork, and the one that a fault puts beside them. */
static unsigned int processes_on(device d, sim_process found[MOST_PROCESSES]) {
    size_t count = sim_list_processes(number_of(d), found);
    size_t outside = sim_outside_bytes(number_of(d));
    if (outside) found[count++] = (sim_process){OUTSIDE_PID, outside};
    return (unsigned int)count;
}

#define NOT_AVAILABLE 0xFFFFFFFFFFFFFFFFull
#define NO_INSTANCE 0xFFFFFFFFu

static unsigned long long shown(sim_process p) {
    return sim_get_nvml_state() == SIM_NVML_NO_PROCESS_MEMORY ? NOT_AVAILABLE : p.bytes;
}

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

#define PROCESS_DETAIL_LIST_V1 0x1000018u

/* The part that all versions share: find the processes, set the count, see that there is room. */
static int find_processes(device d, unsigned int *count, sim_process found[MOST_PROCESSES]) {
    int error = memory_refusal(d);
    if (error) return error;
    unsigned int room = *count;
    *count = processes_on(d, found);
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses(device d, unsigned int *count, process_v1 *processes) {
    sim_process found[MOST_PROCESSES];
    int error = find_processes(d, count, found);
    for (unsigned int i = 0; !error && i < *count; i++) processes[i] = (process_v1){found[i].pid, shown(found[i])};
    return error;
}

int nvmlDeviceGetComputeRunningProcesses_v2(device d, unsigned int *count, process_v2 *processes) {
    sim_process found[MOST_PROCESSES];
    int error = find_processes(d, count, found);
    for (unsigned int i = 0; !error && i < *count; i++)
        processes[i] = (process_v2){found[i].pid, shown(found[i]), NO_INSTANCE, NO_INSTANCE};
    return error;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned int *count, process_v2 *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v2(d, count, processes);
}

int nvmlDeviceGetRunningProcessDetailList(device d, process_detail_list *list) {
    enum { COMPUTE = 0, GRAPHICS = 1, MPS = 2 };
    if (list->version != PROCESS_DETAIL_LIST_V1) return ARGUMENT_VERSION_MISMATCH;
    sim_process found[MOST_PROCESSES];
    int error = memory_refusal(d);
    if (error) return error;
    if (list->mode == GRAPHICS || list->mode == MPS) {
        list->count = 0;
        return SUCCESS;
    }
    error = find_processes(d, &list->count, found);
    for (unsigned int i = 0; !error && i < list->count; i++)
        list->processes[i] = (process_detail){found[i].pid, shown(found[i]), NO_INSTANCE, NO_INSTANCE, 0};
    return error;
}

static int no_processes(device d, unsigned int *count) {
    int error = memory_refusal(d);
    if (!error) *count = 0;
    return error;
}

int nvmlDeviceGetGraphicsRunningProcesses(device d, unsigned int *count) { return no_processes(d, count); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(device d, unsigned int *count) { return no_processes(d, count); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(device d, unsigned int *count) { return no_processes(d, count); }
int nvmlDeviceGetMPSComputeRunningProcesses(device d, unsigned int *count) { return no_processes(d, count); }
int nvmlDeviceGetMPSComputeRunningProcesses_v2(device d, unsigned int *count) { return no_processes(d, count); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(device d, unsigned int *count) { return no_processes(d, count); }

/* The program of a process, cut off where there is no room for it. */
int nvmlSystemGetProcessName(unsigned int pid, char *out, unsigned int length) {
    if (closed()) return UNINITIALIZED;
    if (!length) return INVALID_ARGUMENT;
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/exe", pid);
    ssize_t n = readlink(path, out, length - 1);
    if (n < 0) return errno == EACCES ? NO_PERMISSION : NOT_FOUND;
    out[n] = 0;
    return SUCCESS;
}

/* ---- memory --------------------------------------------------------------------------------------- */

typedef struct {
    unsigned long long total, free, used;
} memory_info; /* nvmlMemory_t; nvmlBAR1Memory_t is the same */

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} memory_info_v2;

#define MEMORY_INFO_V2 0x02000028u

static size_t reserved_bytes(void) { return sim_get_card()->nvml_total_bytes - sim_get_card()->total_bytes; }

/* Each process has room up to the whole device, so together they may hold more than there is. */
static size_t used_bytes(device d) {
    sim_process found[MOST_PROCESSES];
    unsigned int count = processes_on(d, found);
    size_t used = 0, total = sim_get_card()->total_bytes;
    for (unsigned int i = 0; i < count; i++) used += found[i].bytes;
    return used < total ? used : total;
}

/* used counts what the driver keeps for itself; the second version tells the two apart. */
int nvmlDeviceGetMemoryInfo(device d, memory_info *info) {
    int error = memory_refusal(d);
    if (error) return error;
    info->total = sim_get_card()->nvml_total_bytes;
    info->used = reserved_bytes() + used_bytes(d);
    info->free = info->total - info->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(device d, memory_info_v2 *info) {
    int error = memory_refusal(d);
    if (error) return error;
    if (info->version != MEMORY_INFO_V2) return ARGUMENT_VERSION_MISMATCH;
    info->total = sim_get_card()->nvml_total_bytes;
    info->reserved = reserved_bytes();
    info->used = used_bytes(d);
    info->free = info->total - info->reserved - info->used;
    return SUCCESS;
}

/* The window that the host sees of the device's memory: as large as most boards have it. */
#define BAR1_BYTES (256ull << 20)
#define BAR1_USED (1ull << 20)

int nvmlDeviceGetBAR1MemoryInfo(device d, memory_info *info) {
    int error = memory_refusal(d);
    if (!error) *info = (memory_info){.total = BAR1_BYTES, .free = BAR1_BYTES - BAR1_USED, .used = BAR1_USED};
    return error;
}
