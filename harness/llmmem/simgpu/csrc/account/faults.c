#include "account/faults.h"

#include "account/card.h"
#include "base/fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ILLEGAL_ADDRESS 700
#define UNKNOWN_ERROR 999 /* what CUDA says of a device that has fallen off the bus */

typedef struct {
    size_t oom_at, oom_count, oom_above;
    size_t outside, outside_step;
    size_t launch_error_at, lost_at, crash_at;
    double allocation_seconds;
    sim_nvml_state nvml;
} wanted_faults;

static wanted_faults wanted;
static bool armed;
static size_t allocations, launches; /* atomic */
static int broken;                   /* atomic */

/* ---- what was asked for ------------------------------------------------------------------------ */

static bool read_number(const char *value, size_t *number) {
    char *end;
    *number = (size_t)strtoull(value, &end, 10);
    return end != value && !*end && *value != '-';
}

static bool read_seconds(const char *value, double *seconds) {
    char *end;
    *seconds = strtod(value, &end);
    return end != value && !*end && *seconds >= 0;
}

/* Bytes, or a number with its unit, as in Python (units.py). */
static bool read_size(const char *value, size_t *bytes) {
    static const char prefixes[] = "kMGT";
    if (read_number(value, bytes)) return true;
    char *unit;
    double number = strtod(value, &unit);
    if (unit == value || number < 0) return false;
    unit += strspn(unit, " ");
    char first = *unit == 'K' ? 'k' : *unit;
    const char *prefix = first ? strchr(prefixes, first) : NULL;
    if (prefix) unit++;
    double base = 1000;
    if (prefix && *unit == 'i') {
        base = 1024;
        unit++;
    }
    if (strcmp(unit, "B") != 0) return false;
    for (long power = prefix ? prefix - prefixes + 1 : 0; power > 0; power--) number *= base;
    *bytes = (size_t)number;
    return true;
}

static bool read_nvml(const char *value, sim_nvml_state *state) {
    static const struct {
        const char *name;
        sim_nvml_state state;
    } states[] = {
        {"not_supported", SIM_NVML_NOT_SUPPORTED},
        {"no_permission", SIM_NVML_NO_PERMISSION},
        {"no_process_memory", SIM_NVML_NO_PROCESS_MEMORY},
        {"gpu_lost", SIM_NVML_GPU_LOST},
    };
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        if (strcmp(value, states[i].name) != 0) continue;
        *state = states[i].state;
        return true;
    }
    return false;
}

static wanted_faults asked; /* what is being read */

static bool set_fault(const char *key, const char *value) {
    const struct {
        const char *name;
        size_t *number, *bytes;
    } fields[] = {
        {"oom_at", &asked.oom_at, NULL},
        {"oom_count", &asked.oom_count, NULL},
        {"oom_above", NULL, &asked.oom_above},
        {"outside", NULL, &asked.outside},
        {"outside_step", NULL, &asked.outside_step},
        {"launch_error_at", &asked.launch_error_at, NULL},
        {"lost_at", &asked.lost_at, NULL},
        {"crash_at", &asked.crash_at, NULL},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (strcmp(key, fields[i].name) != 0) continue;
        return fields[i].number ? read_number(value, fields[i].number) : read_size(value, fields[i].bytes);
    }
    if (strcmp(key, "allocation_seconds") == 0) return read_seconds(value, &asked.allocation_seconds);
    if (strcmp(key, "nvml") == 0) return read_nvml(value, &asked.nvml);
    return false;
}

int sim_set_faults(const char *text) {
    asked = (wanted_faults){0};
    int bad = sim_read_fields(text, set_fault);
    if (bad) return bad;
    wanted = asked;
    armed = *text != 0;
    allocations = launches = 0;
    broken = 0;
    return 0;
}

/* A program that has the libraries from its start finds its faults in the environment. */
__attribute__((constructor)) static void read_environment(void) {
    const char *text = getenv("LLMMEM_SIMULATED_FAULTS");
    int bad = text ? sim_set_faults(text) : 0;
    if (!bad) return;
    fprintf(stderr, "llmmem: LLMMEM_SIMULATED_FAULTS=%s: field %d is not understood\n", text, bad);
    _exit(2);
}

/* ---- what goes wrong --------------------------------------------------------------------------- */

static size_t count(size_t *counter) { return __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED); }

static void wait_for(double seconds) {
    struct timespec left = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
    while (nanosleep(&left, &left)) continue;
}

static void crash(void) {
    volatile int *volatile nowhere = NULL;
    *nowhere = 0;
}

bool sim_fault_at_allocation(size_t size) {
    if (!armed) return false;
    size_t number = count(&allocations);
    if (wanted.allocation_seconds > 0) wait_for(wanted.allocation_seconds);
    if (number == wanted.crash_at) crash();
    if (wanted.oom_above && size > wanted.oom_above) return true;
    if (!wanted.oom_at || number < wanted.oom_at) return false;
    return !wanted.oom_count || number - wanted.oom_at < wanted.oom_count;
}

int sim_fault_at_launch(void) {
    if (!armed) return 0;
    size_t number = count(&launches);
    if (number == wanted.launch_error_at) __atomic_store_n(&broken, ILLEGAL_ADDRESS, __ATOMIC_RELAXED);
    if (number == wanted.lost_at) __atomic_store_n(&broken, UNKNOWN_ERROR, __ATOMIC_RELAXED);
    return sim_broken();
}

int sim_broken(void) { return __atomic_load_n(&broken, __ATOMIC_RELAXED); }

size_t sim_outside_wants(void) {
    size_t bytes = wanted.outside + wanted.outside_step * __atomic_load_n(&allocations, __ATOMIC_RELAXED);
    return (bytes + SIM_PAGE - 1) / SIM_PAGE * SIM_PAGE;
}

sim_nvml_state sim_get_nvml_state(void) { return sim_broken() == UNKNOWN_ERROR ? SIM_NVML_GPU_LOST : wanted.nvml; }
