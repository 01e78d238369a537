#include "account/card.h"

#include "base/fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static sim_card card;
static int generation;
static bool is_in_use;
/* How many devices a program was told there are, which PyTorch asks once and remembers; 0 before. */
static int told_count;

/* ---- configuration ----------------------------------------------------------------------------- */

static bool set_field(const char *key, const char *value) {
    const struct {
        const char *name;
        int *integer;
        size_t *bytes;
    } numbers[] = {
        {"count", &card.count, NULL},
        {"major", &card.major, NULL},
        {"minor", &card.minor, NULL},
        {"sm_count", &card.sm_count, NULL},
        {"total_bytes", NULL, &card.total_bytes},
        {"nvml_total_bytes", NULL, &card.nvml_total_bytes},
        {"shared_per_block_optin", NULL, &card.shared_per_block_optin},
        {"shared_per_sm", NULL, &card.shared_per_sm},
        {"threads_per_sm", &card.threads_per_sm, NULL},
        {"blocks_per_sm", &card.blocks_per_sm, NULL},
        {"l2_bytes", NULL, &card.l2_bytes},
        {"memory_bus_bits", &card.memory_bus_bits, NULL},
        {"context_bytes", NULL, &card.context_bytes},
        {"peer_access", &card.peer_access, NULL},
        {"driver_cuda_version", &card.driver_cuda_version, NULL},
        {"cublas_version", &card.cublas_version, NULL},
        {"cudnn_version", &card.cudnn_version, NULL},
        {"nccl_version", &card.nccl_version, NULL},
        {"late_side_streams", &card.late_side_streams, NULL},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(key, numbers[i].name) != 0) continue;
        char *end;
        unsigned long long number = strtoull(value, &end, 10);
        if (end == value || *end) return false;
        if (numbers[i].integer == &card.count && (number < 1 || number > SIM_MAX_DEVICES)) return false;
        if (numbers[i].integer) *numbers[i].integer = (int)number;
        if (numbers[i].bytes) *numbers[i].bytes = (size_t)number;
        return true;
    }
    const struct {
        const char *name;
        char *text;
        size_t size;
    } texts[] = {
        {"name", card.name, sizeof card.name},
        {"title", card.title, sizeof card.title},
        {"driver_version", card.driver_version, sizeof card.driver_version},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(key, texts[i].name) != 0) continue;
        snprintf(texts[i].text, texts[i].size, "%s", value);
        return true;
    }
    return false;
}

int sim_device_count(void) { return told_count = card.count; }

int sim_configure(const char *text) {
    if (is_in_use) return -1;
    sim_card before = card;
    int bad = sim_read_fields(text, set_field);
    bool fits = card.count >= 1 && (!told_count || card.count == told_count);
    if (bad || !fits) {
        card = before;
        return bad ? bad : -1;
    }
    __atomic_add_fetch(&generation, 1, __ATOMIC_RELEASE);
    return 0;
}

/* A program started with the libraries preloaded finds its card in the environment. */
__attribute__((constructor)) static void configure_from_environment(void) {
    const char *text = getenv("LLMMEM_SIMULATED_GPU");
    if (text) {
        int bad = sim_configure(text);
        if (bad) {
            fprintf(stderr, "llmmem: invalid LLMMEM_SIMULATED_GPU '%s' (field %d): leave it as llmmem has set it\n",
                    text, bad);
            _exit(2);
        }
    }
}

const sim_card *sim_get_card(void) { return &card; }

int sim_card_generation(void) { return __atomic_load_n(&generation, __ATOMIC_ACQUIRE); }

void sim_put_card_to_use(void) { is_in_use = true; }

/* ---- identity ---------------------------------------------------------------------------------- */

void sim_uuid(int device, unsigned char uuid[16]) {
    static const unsigned char base[16] = {0x73, 0x69, 0x6d, 0x75, 0x6c, 0x61, 0x74, 0x65,
                                           0x64, 0x67, 0x70, 0x75, 0, 0, 0, 0};
    memcpy(uuid, base, 16);
    uuid[3] = (unsigned char)device;
}

void sim_uuid_text(int device, char text[SIM_UUID_TEXT]) {
    unsigned char b[16];
    sim_uuid(device, b);
    snprintf(text, SIM_UUID_TEXT, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

int sim_bus_number(int device) { return device + 1; }

int sim_device_at_bus(const char *place) {
    unsigned int domain, bus, slot;
    if (sscanf(place, "%x:%x:%x", &domain, &bus, &slot) != 3 || domain || slot) return -1;
    int device = (int)bus - 1;
    return device >= 0 && device < card.count ? device : -1;
}
