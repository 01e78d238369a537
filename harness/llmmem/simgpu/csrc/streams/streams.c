#include "streams/streams.h"

#include "account/account.h"
#include "account/card.h"
#include "account/visible_devices.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    INVALID_VALUE = 1,
    INVALID_RESOURCE_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_READY = 600,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED,
    CAPTURE_MERGE,
    CAPTURE_UNMATCHED,
    CAPTURE_UNJOINED,
    CAPTURE_ISOLATION,
    CAPTURE_IMPLICIT,
    CAPTURED_EVENT,
};

#define NON_BLOCKING 1 /* cudaStreamNonBlocking */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sim_stream defaults[SIM_MAX_DEVICES + 1]; /* by device; the first where there is none */
static sim_stream *streams;                      /* all others */

/* While a program has the default stream only, there is nothing to keep. */
static bool created_any;

static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void keep_lock_across_fork(void) { pthread_atfork(acquire, release, release); }

static bool has_streams(void) { return __atomic_load_n(&created_any, __ATOMIC_ACQUIRE); }

static sim_stream *default_stream(int device) {
    sim_stream *s = &defaults[device + 1];
    s->device = device;
    return s;
}

sim_stream *sim_get_stream(void *handle) {
    return (uintptr_t)handle > SIM_LAST_PREDEFINED ? handle : default_stream(sim_current_device());
}

/* ---- what is done (call with the lock held) ------------------------------------------------------- */

static sim_clock given; /* the ticks of all side streams */
static sim_clock done;  /* those whose work is over */
static bool *lanes;     /* which are taken; the clocks of one go on where another stream had it before */
static size_t lane_count;

static size_t take_lane(void) {
    size_t lane = 0;
    while (lane < lane_count && lanes[lane]) lane++;
    if (lane == lane_count) {
        lanes = realloc(lanes, ++lane_count * sizeof *lanes);
        if (!lanes) abort();
    }
    lanes[lane] = true;
    return lane;
}

static bool is_side_stream(const sim_stream *s) { return s->flags & NON_BLOCKING; }

static sim_clock *clock_of(sim_stream *s) {
    if (s->capture) return &s->captured;
    return is_side_stream(s) ? &s->clock : &default_stream(s->device)->clock;
}

/* Bring a stream's clock up to what was given to the stream. */
static void tick(sim_stream *s) {
    if (!__atomic_exchange_n(&s->busy, false, __ATOMIC_RELAXED)) return;
    s->polls = 0;
    if (s->capture) {
        sim_clock_advance(&s->captured, s->captured_lane, sim_clock_at(&s->captured, s->captured_lane) + 1);
    } else if (is_side_stream(s)) {
        if (!s->has_lane) s->lane = take_lane();
        s->has_lane = true;
        sim_clock_advance(&given, s->lane, sim_clock_at(&given, s->lane) + 1);
        sim_clock_advance(&s->clock, s->lane, sim_clock_at(&given, s->lane));
    }
}

static bool is_done(sim_clock *c) {
    if (!sim_clock_covers(&done, c)) return false;
    sim_clock_clear(c);
    return true;
}

static void finish_stream(sim_stream *s) {
    tick(s);
    sim_clock_merge(&done, clock_of(s));
}

static void finish_device(int device) {
    for (sim_stream *s = streams; s; s = s->next)
        if (s->device == device && !s->capture) finish_stream(s);
    finish_stream(default_stream(device));
}

/* ---- captures (call with the lock held) ------------------------------------------------------------- */

struct sim_capture {
    unsigned long long id;
    void *graph;
    sim_stream *origin;
    size_t lanes;
    bool invalid;
    struct sim_capture *next;
};

static sim_capture *captures;
static unsigned long long last_capture;

static sim_capture *find_capture(unsigned long long id) {
    sim_capture *c = captures;
    while (c && c->id != id) c = c->next;
    return c;
}

static void join(sim_stream *s, sim_capture *c) {
    tick(s); /* what was given before is not part of it */
    s->capture = c;
    s->captured_lane = c->lanes++;
    sim_clock_clear(&s->captured);
}

static int invalidate(sim_capture *c, int error) {
    if (c) c->invalid = true;
    return error;
}

/* Whether the stream where the capture began comes after all work of the others. */
static bool is_joined(sim_capture *c) {
    tick(c->origin);
    for (sim_stream *s = streams; s; s = s->next) {
        if (s->capture != c) continue;
        tick(s);
        if (!sim_clock_covers(&c->origin->captured, &s->captured)) return false;
    }
    return true;
}

static void close_capture(sim_capture *c) {
    for (sim_stream *s = streams; s; s = s->next) {
        if (s->capture != c) continue;
        tick(s);
        s->capture = NULL;
    }
    sim_capture **link = &captures;
    while (*link != c) link = &(*link)->next;
    *link = c->next;
    free(c);
}

/* A stream is about to be destroyed. */
static void leave_capture(const sim_stream *s) {
    if (!s->capture) return;
    if (s == s->capture->origin)
        close_capture(s->capture);
    else
        invalidate(s->capture, CAPTURE_INVALIDATED);
}

/* A stream is told to wait for an event of a capture. */
static int wait_in_capture(sim_stream *s, const sim_event *event) {
    sim_capture *c = find_capture(event->capture);
    if (!c) return invalidate(s->capture, CAPTURED_EVENT);
    if (s->capture && s->capture->invalid) return CAPTURE_INVALIDATED;
    if (c->invalid) return INVALID_VALUE;
    if (s->capture && s->capture != c) return invalidate(s->capture, invalidate(c, CAPTURE_MERGE));
    if (s == default_stream(s->device)) return invalidate(c, CAPTURE_IMPLICIT);
    if (!s->capture) join(s, c);
    sim_clock_merge(&s->captured, &event->clock);
    return 0;
}

int sim_begin_capture(void *handle, void *graph) {
    sim_stream *s = sim_get_stream(handle);
    if (s == default_stream(s->device)) return CAPTURE_UNSUPPORTED;
    sim_capture *c = malloc(sizeof *c);
    if (!c) abort();
    acquire();
    bool busy = s->capture != NULL;
    if (!busy) {
        *c = (sim_capture){.id = ++last_capture, .graph = graph, .origin = s, .next = captures};
        captures = c;
        join(s, c);
    }
    release();
    if (busy) free(c);
    return busy ? ILLEGAL_STATE : 0;
}

int sim_end_capture(void *handle, void **graph) {
    sim_stream *s = sim_get_stream(handle);
    int error = 0;
    acquire();
    sim_capture *c = s->capture;
    *graph = NULL;
    if (!c) {
        error = ILLEGAL_STATE;
    } else if (s != c->origin) {
        error = invalidate(c, CAPTURE_UNMATCHED);
    } else {
        *graph = c->graph;
        error = c->invalid ? CAPTURE_INVALIDATED : is_joined(c) ? 0 : CAPTURE_UNJOINED;
        close_capture(c);
    }
    release();
    return error;
}

sim_capture_status sim_get_capture(void *handle, unsigned long long *id, void **graph) {
    if (id) *id = 0;
    if (graph) *graph = NULL;
    if ((uintptr_t)handle <= SIM_LAST_PREDEFINED) return SIM_CAPTURE_NONE;
    sim_stream *s = handle;
    if (!__atomic_load_n(&s->capture, __ATOMIC_RELAXED)) return SIM_CAPTURE_NONE;
    acquire();
    const sim_capture *c = s->capture;
    sim_capture_status status = !c ? SIM_CAPTURE_NONE : c->invalid ? SIM_CAPTURE_INVALIDATED : SIM_CAPTURE_ACTIVE;
    if (id && c) *id = c->id;
    if (graph && c) *graph = c->graph;
    release();
    return status;
}

/* ---- streams ---------------------------------------------------------------------------------------- */

sim_stream *sim_create_stream(unsigned int flags, int priority) {
    int device = sim_current_device();
    sim_open_context(device);
    sim_stream *s = malloc(sizeof *s);
    if (!s) return NULL;
    acquire();
    *s = (sim_stream){.device = device, .priority = priority, .flags = flags, .next = streams};
    streams = s;
    __atomic_store_n(&created_any, true, __ATOMIC_RELEASE);
    release();
    return s;
}

void sim_destroy_stream(void *handle) {
    if ((uintptr_t)handle <= SIM_LAST_PREDEFINED) return;
    sim_stream *s = handle;
    acquire();
    leave_capture(s);
    sim_stream **link = &streams;
    while (*link && *link != s) link = &(*link)->next;
    if (*link) *link = s->next;
    if (s->has_lane) lanes[s->lane] = false;
    release();
    sim_clock_free(&s->clock);
    sim_clock_free(&s->captured);
    free(s);
}

/* ---- events ------------------------------------------------------------------------------------------ */

sim_event *sim_create_event(void) {
    sim_open_context(sim_current_device());
    return calloc(1, sizeof(sim_event));
}

void sim_destroy_event(sim_event *event) {
    if (!event) return;
    sim_clock_free(&event->clock);
    free(event);
}

static int record(sim_event *event, sim_stream *s, bool external) {
    if (s->capture && s->capture->invalid) return CAPTURE_INVALIDATED;
    tick(s);
    event->polls = 0;
    event->capture = s->capture && !external ? s->capture->id : 0;
    sim_clock_clear(&event->clock);
    if (event->capture || !s->capture) sim_clock_merge(&event->clock, clock_of(s));
    if (!event->capture) is_done(&event->clock);
    return 0;
}

int sim_record_event(sim_event *event, void *handle, bool external) {
    struct timespec now;
    if (!event) return INVALID_RESOURCE_HANDLE;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->milliseconds = 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
    event->recorded = true;
    if (!has_streams()) return 0;
    acquire();
    int error = record(event, sim_get_stream(handle), external);
    release();
    return error;
}

static int wait(sim_stream *s, const sim_event *event, bool external) {
    if (!event->recorded) return 0;
    if (event->capture) return wait_in_capture(s, event);
    if (s->capture && !external) return invalidate(s->capture, CAPTURE_ISOLATION);
    if (s->capture) return 0;
    tick(s);
    sim_clock_merge(clock_of(s), &event->clock);
    s->polls = 0;
    sim_submit(s); /* to wait is work of its own: the next event is not done before it */
    return 0;
}

int sim_wait_event(void *handle, sim_event *event, bool external) {
    if (!event) return INVALID_RESOURCE_HANDLE;
    if (!has_streams()) return 0;
    acquire();
    int error = wait(sim_get_stream(handle), event, external);
    release();
    return error;
}

int sim_synchronize_event(const sim_event *event) {
    if (!event) return INVALID_RESOURCE_HANDLE;
    if (!has_streams()) return 0;
    acquire();
    int error = event->capture ? invalidate(find_capture(event->capture), CAPTURED_EVENT) : 0;
    if (!error) sim_clock_merge(&done, &event->clock);
    release();
    return error;
}

int sim_synchronize_stream(void *handle) {
    if (!has_streams()) return 0;
    acquire();
    sim_stream *s = sim_get_stream(handle);
    int error = s->capture ? invalidate(s->capture, CAPTURE_UNSUPPORTED) : 0;
    if (!error) finish_stream(s);
    release();
    return error;
}

int sim_synchronize_device(int device) {
    if (!has_streams()) return 0;
    int error = 0;
    acquire();
    for (sim_capture *c = captures; c; c = c->next)
        if (c->origin->device == device) error = invalidate(c, CAPTURE_UNSUPPORTED);
    if (!error) finish_device(device);
    release();
    return error;
}

void sim_finish_device(int device) {
    if (!has_streams()) return;
    acquire();
    finish_device(device);
    release();
}

void sim_submit_copy(void *handle, uintptr_t to, uintptr_t from) {
    sim_region region;
    sim_submit(handle);
    if (!has_streams() || sim_is_device_address(to) || !sim_is_device_address(from) || sim_find(to, &region)) return;
    if (sim_get_capture(handle, NULL, NULL) == SIM_CAPTURE_NONE) sim_synchronize_stream(handle);
}

/* ---- questions ------------------------------------------------------------------------------------- */

typedef enum {
    ALLOCATOR, /* PyTorch's caching allocator: it holds a block until the answer is yes */
    PYTORCH,   /* NCCL's watchdog and the allocator of pinned memory: no device memory hangs on the answer */
    PROGRAM,
} asker;

/* Who asks this often for the same work is waiting for it. The allocator asks at every allocation; in the
 * same library there is torch.Event, on which a program may wait like this. */
static const unsigned int patience[] = {[ALLOCATOR] = 1000000, [PROGRAM] = 100};

static uint64_t early_answers;

static asker find_asker(const void *caller) {
    Dl_info info;
    if (!dladdr(caller, &info) || !info.dli_fname) return PROGRAM;
    const char *slash = strrchr(info.dli_fname, '/');
    const char *name = slash ? slash + 1 : info.dli_fname;
    return strcmp(name, "libc10_cuda.so") == 0 ? ALLOCATOR : strcmp(name, "libtorch_cuda.so") == 0 ? PYTORCH : PROGRAM;
}

static int answer(asker who, sim_clock *asked_for, unsigned int *polls) {
    if (who == PYTORCH || is_done(asked_for)) return 0;
    if (!sim_get_card()->late_side_streams) {
        early_answers++;
        return 0;
    }
    if (++*polls < patience[who]) return NOT_READY;
    sim_clock_merge(&done, asked_for);
    return 0;
}

int sim_query_event(sim_event *event, const void *caller) {
    if (!event) return INVALID_RESOURCE_HANDLE;
    if (!has_streams()) return 0;
    acquire();
    int error = event->capture ? invalidate(find_capture(event->capture), CAPTURED_EVENT) : 0;
    bool settled = error || is_done(&event->clock);
    release();
    if (settled) return error;
    asker who = find_asker(caller); /* without the lock: the loader has one of its own */
    acquire();
    error = answer(who, &event->clock, &event->polls);
    release();
    return error;
}

int sim_query_stream(void *handle) {
    if (!has_streams()) return 0;
    acquire();
    sim_stream *s = sim_get_stream(handle);
    int error;
    if (s->capture) {
        error = invalidate(s->capture, CAPTURE_UNSUPPORTED);
    } else {
        tick(s);
        error = answer(PROGRAM, clock_of(s), &s->polls);
    }
    release();
    return error;
}

uint64_t sim_early_answers(void) {
    acquire();
    uint64_t answers = early_answers;
    release();
    return answers;
}
