/* The card: the model of GPU that all simulated devices are, and how they are told apart. */
#ifndef LLMMEM_CARD_H
#define LLMMEM_CARD_H

#include "base/export.h"

#define SIM_PAGE ((size_t)2 << 20) /* physical memory is charged in these */
#define SIM_MAX_DEVICES 16

/* A card, as configured from text (see sim_configure). */
typedef struct {
    char name[32]; /* in the catalogue */
    char title[96]; /* as the driver reports it */
    int count;
    int major, minor;
    int sm_count;
    size_t total_bytes;      /* cudaMemGetInfo total, totalGlobalMem */
    size_t nvml_total_bytes; /* NVML total: the above and what the driver keeps for itself */
    size_t shared_per_block_optin;
    size_t shared_per_sm;
    int threads_per_sm;
    int blocks_per_sm;
    size_t l2_bytes;
    int memory_bus_bits;
    size_t context_bytes;
    int peer_access; /* whether devices reach each other's memory */
    int driver_cuda_version; /* 13000 for CUDA 13.0 */
    char driver_version[32]; /* as NVML reports it */
    int cublas_version;
    int cudnn_version;
    int nccl_version;
    int late_side_streams; /* streams.h */
} sim_card;

SIM_API const sim_card *sim_get_card(void);

/* Set the card from "key=value;key=value;..." (the keys are the fields above). Returns 0, or the 1-based
 * number of the first field that is not understood, or -1 if a device has been
 * used already, or if the count would differ from what sim_device_count has returned. */
SIM_API int sim_configure(const char *text);

/* The number of devices. From then on sim_configure cannot change it. */
SIM_API int sim_device_count(void);

/* The identity of a device: its UUID, and its PCI address ("0000:01:00.0"). */
SIM_API void sim_uuid(int device, unsigned char uuid[16]);
#define SIM_UUID_TEXT 48
SIM_API void sim_uuid_text(int device, char text[SIM_UUID_TEXT]); /* "GPU-..." */
SIM_API int sim_bus_number(int device);
/* The device with a PCI address, or -1. */
SIM_API int sim_device_at_bus(const char *place);

/* Changes with every configuration. */
int sim_card_generation(void);
/* From now on the card cannot be configured. */
void sim_put_card_to_use(void);

#endif
