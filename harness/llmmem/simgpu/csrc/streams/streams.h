/* Streams and events: the order of work, which work is done, and captures into graphs.
 *
 * No kernel runs, so it is a choice when work ends. Work on the default stream is done at once. Work on a
 * side stream (created with cudaStreamNonBlocking; other streams synchronise with the default stream and
 * count as it) is done when the host waits for the stream, an event or the device. An event is done when
 * all work before it is, including that of other streams that its stream waited for. If a program queries
 * work that nothing has waited for, the answer is a setting (late_side_streams of the card): done, as on a
 * card that is faster than the host, or not done, as on a busy one. Such queries are counted, because the
 * setting makes a difference only there.
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
    bool busy;       /* work was submitted since the last tick */
    size_t lane;     /* its own, if has_lane */
    bool has_lane;
    sim_clock clock; /* the work before the next submission, unless known to be done */
    unsigned int polls;
    sim_capture *capture; /* the active one, or NULL */
    size_t captured_lane; /* in the capture, as is the next */
    sim_clock captured;
    struct sim_stream *next;
} sim_stream;

typedef struct {
    double milliseconds; /* host clock when it was last recorded */
    bool recorded;
    sim_clock clock;            /* the work before it */
    unsigned int polls;         /* queries since it was last recorded */
    unsigned long long capture; /* id of the capture in which it was last recorded, or 0 */
} sim_event;

/* Handles up to this are the predefined streams: null, legacy, per thread. Each is the default stream. */
#define SIM_LAST_PREDEFINED 2

/* The stream of a handle; of a predefined one, the default stream of the current device. */
SIM_API sim_stream *sim_get_stream(void *handle);
SIM_API sim_stream *sim_create_stream(unsigned int flags, int priority);
SIM_API void sim_destroy_stream(void *handle);

/* Submit work to a stream. */
static inline void sim_submit(void *handle) {
    if ((uintptr_t)handle > SIM_LAST_PREDEFINED) __atomic_store_n(&((sim_stream *)handle)->busy, true, __ATOMIC_RELAXED);
}

/* Submit a copy. A copy to pageable host memory waits for the stream. */
SIM_API void sim_submit_copy(void *stream, uintptr_t to, uintptr_t from);

SIM_API sim_event *sim_create_event(void);
SIM_API void sim_destroy_event(sim_event *event);
/* external: in a capture the event becomes a node of the graph and does not order the capture. */
SIM_API int sim_record_event(sim_event *event, void *stream, bool external);
/* Make a stream wait for an event. */
SIM_API int sim_wait_event(void *stream, sim_event *event, bool external);

/* 0 if it is done, or cudaErrorNotReady. caller is a return address in the caller's code. */
SIM_API int sim_query_event(sim_event *event, const void *caller);
SIM_API int sim_query_stream(void *stream);
/* Make the host wait. */
SIM_API int sim_synchronize_event(const sim_event *event);
SIM_API int sim_synchronize_stream(void *stream);
SIM_API int sim_synchronize_device(int device);
/* Finish all work on a device except captures, as cudaFree does. */
SIM_API void sim_finish_device(int device);

/* How often a query returned that work was done that nothing had waited for. */
SIM_API uint64_t sim_early_answers(void);

/* Captures. A stream that is told to wait for an event of a capture takes part in it until it ends. */
typedef enum { SIM_CAPTURE_NONE, SIM_CAPTURE_ACTIVE, SIM_CAPTURE_INVALIDATED } sim_capture_status; /* as CUDA's */
SIM_API int sim_begin_capture(void *stream, void *graph);
/* *graph is the captured graph; the caller discards it if this fails. */
SIM_API int sim_end_capture(void *stream, void **graph);
/* *id and *graph (unless NULL) become 0 and NULL if the stream is not capturing. */
SIM_API sim_capture_status sim_get_capture(void *stream, unsigned long long *id, void **graph);

#endif
