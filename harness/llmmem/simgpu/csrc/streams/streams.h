/* Streams and events: what comes before what, which of it is done, and what is captured into a graph.
 *
 * No kernel runs, so when work ends is a choice. Work on the default stream is done at once. That on a
 * side stream (created with cudaStreamNonBlocking; others take turns with the default stream and count as
 * it) is done at the latest when something waits for it: the host, for the stream, an event or the device.
 * An event is done when all work that comes before it is, that of other streams included, for which its
 * stream was told to wait. When somebody asks whether it is done before anything has waited for it, the
 * answer is the setting (late_side_streams of the card): yes, as on a card that is faster than the host;
 * or no, as on one that is busy. How often it was asked is counted: only there can the two come apart.
 *
 * Functions that return an int end with a cudaError_t (or CUresult: they agree).
 */
#ifndef LLMMEM_STREAMS_H
#define LLMMEM_STREAMS_H

#include "base/export.h"
#include "streams/vector_clocks.h"

typedef struct sim_capture sim_capture;

typedef struct sim_stream {
    int device;
    int priority;
    unsigned int flags;
    bool busy;       /* work was given since the clock last ticked */
    size_t lane;     /* its own, if has_lane */
    bool has_lane;
    sim_clock clock; /* the work that comes before what is given to it next, as far as not known to be done */
    unsigned int polls;
    sim_capture *capture; /* under way, or NULL */
    size_t captured_lane; /* in the capture, as is the next */
    sim_clock captured;
    struct sim_stream *next;
} sim_stream;

typedef struct {
    double milliseconds; /* host clock when it was last recorded */
    bool recorded;
    sim_clock clock;            /* the work that comes before it */
    unsigned int polls;         /* how often a program has asked for it since it was recorded */
    unsigned long long capture; /* id of the capture that it was last recorded in, or 0 */
} sim_event;

/* Handles up to this are the predefined streams: null, legacy, per thread. Each is the default stream. */
#define SIM_LAST_PREDEFINED 2

/* The stream of a handle; of a predefined one, the default stream of the current device. */
SIM_API sim_stream *sim_get_stream(void *handle);
SIM_API sim_stream *sim_create_stream(unsigned int flags, int priority);
SIM_API void sim_destroy_stream(void *handle);

/* Take note of work that is given to a stream. */
static inline void sim_submit(void *handle) {
    if ((uintptr_t)handle > SIM_LAST_PREDEFINED) __atomic_store_n(&((sim_stream *)handle)->busy, true, __ATOMIC_RELAXED);
}

/* The same for a copy. One to memory of the host that is not pinned waits for the stream. */
SIM_API void sim_submit_copy(void *stream, uintptr_t to, uintptr_t from);

SIM_API sim_event *sim_create_event(void);
SIM_API void sim_destroy_event(sim_event *event);
/* external: in a capture, the event becomes a node of the graph, and means nothing for the capture. */
SIM_API int sim_record_event(sim_event *event, void *stream, bool external);
/* Let a stream wait. */
SIM_API int sim_wait_event(void *stream, sim_event *event, bool external);

/* Whether it is done: 0, or cudaErrorNotReady. caller: who asks, an address in its code. */
SIM_API int sim_query_event(sim_event *event, const void *caller);
SIM_API int sim_query_stream(void *stream);
/* Let the host wait. */
SIM_API int sim_synchronize_event(const sim_event *event);
SIM_API int sim_synchronize_stream(void *stream);
SIM_API int sim_synchronize_device(int device);
/* What a device does is over, but for what is being captured: cudaFree and the like wait for it. */
SIM_API void sim_finish_device(int device);

/* How often somebody was told that work was done which nothing had waited for. */
SIM_API uint64_t sim_early_answers(void);

/* Captures. A stream that is told to wait for an event of a capture takes part in it until it ends. */
typedef enum { SIM_CAPTURE_NONE, SIM_CAPTURE_ACTIVE, SIM_CAPTURE_INVALIDATED } sim_capture_status; /* as CUDA's */
SIM_API int sim_begin_capture(void *stream, void *graph);
/* *graph is what was captured to; it is for the caller to discard where this fails. */
SIM_API int sim_end_capture(void *stream, void **graph);
/* id and graph, unless NULL, are 0 and NULL where nothing is captured. */
SIM_API sim_capture_status sim_get_capture(void *stream, unsigned long long *id, void **graph);

#endif
