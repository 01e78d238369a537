#include "streams.h"

#include <stdlib.h>
#include <time.h>

/* Handles below this are the predefined streams: null, legacy, per thread. */
#define PREDEFINED 3

static _Thread_local sim_stream predefined[PREDEFINED];

sim_stream *sim_get_stream(void *handle) {
    uintptr_t number = (uintptr_t)handle;
    if (number >= PREDEFINED) return handle;
    predefined[number].device = sim_current_device();
    return &predefined[number];
}

sim_stream *sim_create_stream(unsigned int flags, int priority) {
    int device = sim_current_device();
    sim_open_context(device);
    sim_stream *stream = calloc(1, sizeof *stream);
    if (stream) *stream = (sim_stream){.device = device, .priority = priority, .flags = flags};
    return stream;
}

void sim_destroy_stream(void *handle) {
    if ((uintptr_t)handle >= PREDEFINED) free(handle);
}

sim_event *sim_create_event(void) {
    sim_open_context(sim_current_device());
    return calloc(1, sizeof(sim_event));
}

void sim_record_event(sim_event *event) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->milliseconds = 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

void sim_destroy_event(sim_event *event) { free(event); }
