/* Streams and events. Work is done the moment it is asked for, so all that is kept of a stream is
 * what can be asked of it, and whether it is being captured into a graph. */
#ifndef LLMMEM_STREAMS_H
#define LLMMEM_STREAMS_H

#include "account.h"

typedef struct {
    int device;
    int priority;
    unsigned int flags;
    unsigned long long capture; /* id of the capture under way, 0 if there is none */
    void *graph;                /* what is being captured */
} sim_stream;

typedef struct {
    double milliseconds; /* host clock when it was last recorded */
} sim_event;

/* The stream of a handle; the null stream and the two predefined handles have one each thread. */
SIM_API sim_stream *sim_get_stream(void *handle);
SIM_API sim_stream *sim_create_stream(unsigned int flags, int priority);
SIM_API void sim_destroy_stream(void *handle);

SIM_API sim_event *sim_create_event(void);
SIM_API void sim_record_event(sim_event *event);
SIM_API void sim_destroy_event(sim_event *event);

#endif
