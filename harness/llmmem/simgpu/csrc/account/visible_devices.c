#include "account/visible_devices.h"

#include "account/card.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UUID_PREFIX "GPU-"
#define ABSENT -1

static int devices[SIM_MAX_DEVICES];
static int visible;
static int known_for = -1; /* the generation of the card that the list was read for */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int current;

/* ---- CUDA_VISIBLE_DEVICES ------------------------------------------------------------------------ */

/* "1gpu" is 1, and what does not begin with a number is absent. */
static int by_number(const char *entry) {
    char *end;
    while (isspace((unsigned char)*entry)) entry++;
    long number = strtol(entry, &end, 10);
    return end == entry || number < 0 || number > 1 << 16 ? ABSENT : (int)number;
}

/* The beginning of a UUID will do, as long as only one device has it. */
static int by_uuid(const char *entry) {
    int found = ABSENT;
    size_t length = strlen(entry);
    if (strncmp(entry, UUID_PREFIX, strlen(UUID_PREFIX)) != 0) return ABSENT;
    for (int device = 0; device < sim_get_card()->count; device++) {
        char uuid[SIM_UUID_TEXT];
        sim_uuid_text(device, uuid);
        if (strncmp(uuid, entry, length) != 0) continue;
        if (found != ABSENT) return ABSENT;
        found = device;
    }
    return found;
}

static bool is_chosen(const int *chosen, int count, int device) {
    for (int i = 0; i < count; i++)
        if (chosen[i] == device) return true;
    return false;
}

/* The list ends at the first entry that names no device (CUDA C++ Programming Guide, "CUDA Environment
 * Variables"), and one that names a device twice is empty, as it is for PyTorch's own count. */
static int choose(const char *list, int *chosen) {
    bool is_uuids = strncmp(list, UUID_PREFIX, strlen(UUID_PREFIX)) == 0;
    int count = 0;
    for (;;) {
        char entry[64];
        size_t length = strcspn(list, ",");
        snprintf(entry, sizeof entry, "%.*s", (int)length, list);
        int device = is_uuids ? by_uuid(entry) : by_number(entry);
        if (is_chosen(chosen, count, device)) return 0;
        if (device < 0 || device >= sim_get_card()->count) return count;
        chosen[count++] = device;
        if (!list[length]) return count;
        list += length + 1;
    }
}

static void read_environment(void) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (list) {
        visible = choose(list, devices);
        return;
    }
    visible = sim_get_card()->count;
    for (int device = 0; device < visible; device++) devices[device] = device;
}

/* Reads the list when it is first needed, and again when the card has been configured anew. */
static void know(void) {
    int generation = sim_card_generation();
    if (__atomic_load_n(&known_for, __ATOMIC_ACQUIRE) == generation) return;
    pthread_mutex_lock(&lock);
    if (known_for != generation) read_environment();
    __atomic_store_n(&known_for, generation, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
}

/* ---- ordinals ------------------------------------------------------------------------------------ */

int sim_visible_count(void) {
    know();
    return visible;
}

int sim_device_at(int ordinal) {
    know();
    return ordinal >= 0 && ordinal < visible ? devices[ordinal] : ABSENT;
}

int sim_ordinal_of(int device) {
    know();
    for (int ordinal = 0; ordinal < visible; ordinal++)
        if (devices[ordinal] == device) return ordinal;
    return ABSENT;
}

int sim_current_ordinal(void) { return current; }

bool sim_set_current_ordinal(int ordinal) {
    if (sim_device_at(ordinal) < 0) return false;
    current = ordinal;
    return true;
}

int sim_current_device(void) { return sim_device_at(current); }
