/* libnccl: communicators, and collectives that carry small values between the ranks of one machine.
 *
 * The ranks of a communicator share memory (clique.h). Work is done when it is submitted, so a call waits for
 * other ranks only if it needs their values. Messages longer than SIM_CARRIED carry no values, so the receiver
 * gets unknown ones; a sum is unknown if the rank's own part is. Each rank posts what it calls, so calls that
 * do not match are detected.
 *
 * With LLMMEM_ABSENT_RANKS=alike there are no other ranks: each is assumed to make the same calls with the
 * same values. NCCL's own buffers are not simulated. The structures are those of NCCL 2's documented ABI, as
 * not every wheel contains its header. */
#include "account/account.h"
#include "account/card.h"
#include "account/visible_devices.h"
#include "collectives/clique.h"
#include "collectives/reductions.h"
#include "kernels/copies.h"
#include "values/values.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNHANDLED_CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    REMOTE_ERROR = 6,
};

/* Sums with a factor, which ncclRedOpCreatePreMulSum makes: their numbers follow the built-in ones. */
enum { FIRST_FACTOR = 5, FACTORS = 64 };

typedef struct {
    bool used;
    unsigned char bytes[8];
    const void *on_device; /* read when it is used; NULL: bytes */
} factor;

typedef struct {
    int ranks;
    int rank;
    int device;
    sim_clique *clique; /* NULL: no rank but this one is there */
    uint64_t collectives, *sends, *receives; /* called so far; the latter two by rank */
    factor factors[FACTORS];
    int busy;     /* threads that are in it */
    int aborted;
} communicator;

typedef struct {
    char bytes[128];
} unique_id;

/* ---- errors ---------------------------------------------------------------------------------------- */

static __thread char last_error[1024];

__attribute__((format(printf, 2, 3))) static int fail(int status, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    return status;
}

int ncclGetVersion(int *version) {
    *version = sim_get_card()->nccl_version;
    return SUCCESS;
}

const char *ncclGetErrorString(int error) {
    static const char *const texts[] = {"no error",         "unhandled cuda error", "unhandled system error",
                                        "internal error",   "invalid argument",     "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress", "operation timed out"};
    return error >= 0 && error < (int)(sizeof texts / sizeof *texts) ? texts[error] : "unknown result code";
}

const char *ncclGetLastError(const communicator *c) {
    (void)c;
    return last_error;
}

/* ---- operations ------------------------------------------------------------------------------------ */

typedef enum { ALL_REDUCE, REDUCE, BROADCAST, ALL_GATHER, GATHER, REDUCE_SCATTER, SCATTER, ALL_TO_ALL, SPLIT, SEND, RECEIVE } kind;

typedef struct {
    const char *name;
    bool from_root, to_root; /* one rank gives, or takes, instead of all */
    bool gives_parts, takes_parts; /* a part for, or of, each rank, instead of one */
    bool reduces;
} trait;

static const trait traits[] = {
    [ALL_REDUCE] = {"all_reduce", .reduces = true},
    [REDUCE] = {"reduce", .to_root = true, .reduces = true},
    [BROADCAST] = {"broadcast", .from_root = true},
    [ALL_GATHER] = {"all_gather", .takes_parts = true},
    [GATHER] = {"gather", .to_root = true, .takes_parts = true},
    [REDUCE_SCATTER] = {"reduce_scatter", .gives_parts = true, .reduces = true},
    [SCATTER] = {"scatter", .from_root = true, .gives_parts = true},
    [ALL_TO_ALL] = {"all_to_all", .gives_parts = true, .takes_parts = true},
    [SPLIT] = {"a split of the communicator", .takes_parts = true},
    [SEND] = {"send"},
    [RECEIVE] = {"receive", .from_root = true},
};

typedef enum { TO_POST, TO_FINISH, FINISHED } progress;

typedef struct {
    communicator *c;
    sim_call call; /* its root is the peer of a send or receive */
    factor factor; /* used if the reduction has one; the caller may destroy that before the end of a group */
    const void *from;
    void *to;
    uint64_t number; /* among the messages of its channel */
    progress state;
    int awaited; /* the rank that it waits for, or -1 */
} operation;

static const trait *trait_of(const operation *o) { return &traits[o->call.kind]; }
static bool is_between_two(const operation *o) { return o->call.kind == SEND || o->call.kind == RECEIVE; }
static size_t part_of(const operation *o) { return o->call.count * sim_element_size(o->call.type); }

static size_t given(const operation *o) { return part_of(o) * (size_t)(trait_of(o)->gives_parts ? o->c->ranks : 1); }
static bool gives(const operation *o) { return o->call.kind != RECEIVE && (!trait_of(o)->from_root || o->c->rank == o->call.root); }
static bool takes(const operation *o) { return o->call.kind != SEND && (!trait_of(o)->to_root || o->c->rank == o->call.root); }
static bool is_carried(const operation *o) { return given(o) <= SIM_CARRIED; }

/* Which channel of a collective it is makes no difference to how far a rank is with all of them. */
static int channel_of(const operation *o) {
    const communicator *c = o->c;
    if (o->call.kind == SEND) return sim_channel_to(c->clique, c->rank, o->call.root);
    if (o->call.kind == RECEIVE) return sim_channel_to(c->clique, o->call.root, c->rank);
    return sim_channel_to_all(c->clique, c->rank);
}

static const char *describe(const sim_call *call, char text[160]) {
    static const char *const reductions[] = {"sum", "product", "max", "min", "average", "sum with a factor"};
    int length = snprintf(text, 160, "%s", traits[call->kind].name);
    if (call->kind == SPLIT) return text;
    length += snprintf(text + length, 160 - (size_t)length, " of %llu %s", (unsigned long long)call->count, sim_type_name(call->type));
    if (traits[call->kind].reduces) length += snprintf(text + length, 160 - (size_t)length, " (%s)", reductions[call->reduction]);
    if (traits[call->kind].from_root || traits[call->kind].to_root) snprintf(text + length, 160 - (size_t)length, ", root %d", call->root);
    return text;
}

/* ---- values ---------------------------------------------------------------------------------------- */

static void scale(const operation *o, sim_payload *p, unsigned char *data) {
    const factor *f = &o->factor;
    if (!f->used) return;
    unsigned char bytes[8], known[8];
    size_t width = sim_element_size(o->call.type);
    memcpy(bytes, f->bytes, sizeof bytes);
    if (f->on_device) sim_values_read((uintptr_t)f->on_device, bytes, known, width);
    if (f->on_device && memchr(known, 0, width))
        p->data = NULL;
    else
        sim_scale(o->call.type, bytes, data, p->size / width);
}

/* What this rank gives. room is freed by the caller. */
static sim_payload payload_of(const operation *o, unsigned char **room) {
    size_t size = given(o);
    sim_payload p = {.size = size};
    uint64_t value;
    bool guessed;
    uintptr_t from = (uintptr_t)o->from;
    *room = NULL;
    if (!from || !size || !is_carried(o)) return p;
    bool on_device = sim_is_device_address(from);
    if (on_device && sim_values_know(from, size, 1, &value, &guessed) == SIM_UNKNOWN) return p;
    *room = malloc(2 * size);
    if (!*room) return p;
    unsigned char *data = *room, *known = *room + size;
    if (on_device) {
        sim_values_read(from, data, known, size);
        if (memchr(known, SIM_NO_VALUE, size) || memchr(known, SIM_GUESSED, size)) p.known = known;
    } else {
        memcpy(data, o->from, size);
    }
    p.data = data;
    scale(o, &p, data);
    return p;
}

static void forget(void *to, size_t n) {
    if (n && sim_is_device_address((uintptr_t)to)) sim_values_forget((uintptr_t)to, n);
}

static void place(unsigned char *to, const sim_payload *p, size_t offset, size_t n) {
    if (!n) return;
    if (!sim_is_device_address((uintptr_t)to)) {
        if (p->data) memcpy(to, p->data + offset, n);
    } else if (!p->data) {
        sim_values_forget((uintptr_t)to, n);
    } else if (p->known) {
        sim_values_store_known((uintptr_t)to, p->data + offset, p->known + offset, n);
    } else {
        sim_values_store((uintptr_t)to, p->data + offset, n, SIM_KNOWN);
    }
}

/* What this rank gives is what it takes: at any length. */
static void keep(unsigned char *to, const unsigned char *from, size_t n) {
    if (!n || to == from) return;
    bool on_device = sim_is_device_address((uintptr_t)to);
    if (!from)
        forget(to, n);
    else if (on_device && sim_is_device_address((uintptr_t)from))
        sim_values_copy((uintptr_t)to, (uintptr_t)from, n);
    else if (on_device)
        sim_values_receive((uintptr_t)to, from, n);
    else
        sim_copy((uintptr_t)to, (uintptr_t)from, n);
}

/* An element is known where it is at all ranks, in all its bytes, and a guess where it is one at any. */
static void note_known(const operation *o, const sim_payload *payloads, size_t offset, unsigned char *known) {
    size_t n = part_of(o), width = sim_element_size(o->call.type);
    memset(known, SIM_KNOWN, n);
    for (int rank = 0; rank < o->c->ranks; rank++)
        for (size_t i = 0; payloads[rank].known && i < n; i++) {
            unsigned char mark = payloads[rank].known[offset + i], *element = known + i / width * width;
            if (mark == SIM_NO_VALUE || (mark == SIM_GUESSED && *element != SIM_NO_VALUE)) memset(element, mark, width);
        }
}

static void reduce(const operation *o, const sim_payload *payloads) {
    int ranks = o->c->ranks, reduction = o->factor.used ? SIM_RED_SUM : o->call.reduction;
    size_t n = part_of(o), offset = trait_of(o)->gives_parts ? (size_t)o->c->rank * n : 0;
    const unsigned char *inputs[ranks];
    unsigned char *room = malloc(2 * n + 1);
    bool known = room != NULL;
    for (int rank = 0; rank < ranks; rank++) {
        inputs[rank] = payloads[rank].data;
        known = known && inputs[rank];
    }
    sim_payload result = {.size = n};
    if (known) {
        sim_reduce(o->call.type, reduction, inputs, offset, ranks, o->call.count, room);
        note_known(o, payloads, offset, room + n);
        result.data = room;
        result.known = room + n;
    }
    place(o->to, &result, 0, n);
    free(room);
}

/* Take the part of each rank that gives. payloads may be NULL: then only what this rank has is known,
 * or, with no other rank there, what all have. */
static void take(const operation *o, const sim_payload *payloads) {
    const trait *t = trait_of(o);
    size_t n = part_of(o), offset = t->gives_parts ? (size_t)o->c->rank * n : 0;
    for (int rank = 0; rank < o->c->ranks; rank++) {
        unsigned char *to = (unsigned char *)o->to + (t->takes_parts ? (size_t)rank * n : 0);
        if (t->from_root && rank != o->call.root) continue;
        if (payloads)
            place(to, &payloads[rank], offset, n);
        else if (rank == o->c->rank || !o->c->clique)
            keep(to, o->from ? (const unsigned char *)o->from + offset : NULL, n);
        else
            forget(to, n);
    }
}

/* ---- one rank alone -------------------------------------------------------------------------------- */

static void finish_alone(const operation *o) {
    bool same = !trait_of(o)->reduces || (o->c->ranks == 1 && !o->factor.used);
    if (!takes(o)) return;
    if (same) {
        take(o, NULL);
        return;
    }
    unsigned char *room;
    sim_payload own = payload_of(o, &room), payloads[o->c->ranks];
    for (int rank = 0; rank < o->c->ranks; rank++) payloads[rank] = own;
    reduce(o, payloads);
    free(room);
}

/* ---- with the others ------------------------------------------------------------------------------- */

/* The ranks of a collective must say the same; of two, one sends as much as the other receives. */
static bool fits(const operation *o, const sim_message *other) {
    if (o->call.kind == RECEIVE) return part_of(o) == other->payload.size;
    return !memcmp(&o->call, &other->call, sizeof o->call);
}

static int disagree(const operation *o, int rank, const sim_message *other) {
    char own[160], theirs[160];
    int status = fail(INVALID_USAGE, "the ranks of a communicator call what does not fit together: rank %d %s, rank %d %s (number %llu)",
                      o->c->rank, describe(&o->call, own), rank, describe(&other->call, theirs), (unsigned long long)o->number);
    sim_clique_fail(o->c->clique, last_error);
    return status;
}

/* Compare with what the others have said so far. */
static int compare(const operation *o) {
    sim_message other;
    for (int rank = 0; rank < o->c->ranks; rank++) {
        int channel = sim_channel_to_all(o->c->clique, rank);
        if (sim_clique_peek(o->c->clique, channel, o->number, &other) && !fits(o, &other)) return disagree(o, rank, &other);
    }
    return SUCCESS;
}

/* Say what this rank calls, and leave what it gives. */
static int post(operation *o) {
    sim_clique *clique = o->c->clique;
    int channel = channel_of(o), slow = -1;
    if (o->call.kind == RECEIVE) {
        o->state = TO_FINISH;
        return SUCCESS;
    }
    if (sim_clique_posted(clique, channel) != o->number) return SUCCESS; /* another thread's is first */
    unsigned char *room = NULL;
    sim_message message = {.call = o->call, .payload = {.size = given(o)}};
    if (gives(o)) message.payload = payload_of(o, &room);
    bool done = sim_clique_post(clique, channel, o->number, &message, &slow);
    free(room);
    o->awaited = done ? -1 : slow;
    if (!done) return SUCCESS;
    o->state = o->call.kind == SEND ? FINISHED : TO_FINISH;
    return is_between_two(o) ? SUCCESS : compare(o);
}

/* Whether the values of the others are needed. */
static bool is_concerned(const operation *o) {
    sim_message own;
    if (!takes(o) || !is_carried(o)) return false;
    if (trait_of(o)->from_root) return o->c->rank != o->call.root || o->call.kind == RECEIVE;
    if (!trait_of(o)->reduces) return true;
    return sim_clique_peek(o->c->clique, channel_of(o), o->number, &own) && own.payload.data;
}

/* The payloads of all that give. Sets awaited to one that has not left its own yet. */
static int collect(operation *o, sim_payload *payloads) {
    const communicator *c = o->c;
    for (int rank = 0; rank < c->ranks; rank++) {
        sim_message message = {0};
        bool needed = !trait_of(o)->from_root || rank == o->call.root;
        int channel = o->call.kind == RECEIVE ? channel_of(o) : sim_channel_to_all(c->clique, rank);
        if (needed && !sim_clique_peek(c->clique, channel, o->number, &message)) {
            o->awaited = rank;
            return SUCCESS;
        }
        if (needed && !fits(o, &message)) return disagree(o, rank, &message);
        payloads[rank] = message.payload;
    }
    return SUCCESS;
}

/* The receiver of a long message does not wait for it; if it is there, it must fit. */
static int finish_unconcerned(operation *o) {
    sim_message message;
    bool there = o->call.kind == RECEIVE && sim_clique_peek(o->c->clique, channel_of(o), o->number, &message);
    if (there && !fits(o, &message)) return disagree(o, o->call.root, &message);
    if (takes(o) && trait_of(o)->reduces)
        forget(o->to, part_of(o));
    else if (takes(o))
        take(o, NULL);
    return SUCCESS;
}

static int finish(operation *o) {
    sim_clique *clique = o->c->clique;
    int status = SUCCESS;
    o->awaited = -1;
    if (sim_clique_progress(clique, channel_of(o)) != o->number) return SUCCESS; /* another thread's is first */
    if (is_concerned(o)) {
        sim_payload payloads[o->c->ranks];
        status = collect(o, payloads);
        if (status || o->awaited >= 0) return status;
        if (trait_of(o)->reduces)
            reduce(o, payloads);
        else
            take(o, payloads);
    } else {
        status = finish_unconcerned(o);
    }
    sim_clique_advance(clique, channel_of(o));
    o->state = FINISHED;
    return status;
}

/* ---- running them ---------------------------------------------------------------------------------- */

/* How often a rank that waits looks whether the other still lives; and where operations of several
 * communicators wait together, how often it looks after each. */
enum { LOOK_MILLISECONDS = 100, LOOK_AROUND_MILLISECONDS = 1 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Real ranks would hang; PyTorch gives up after ten minutes. */
static double patience(void) {
    const char *text = getenv("LLMMEM_RANK_TIMEOUT");
    double asked = text ? atof(text) : 0;
    return asked > 0 ? asked : 600;
}

static int step(operation *o) {
    if (!o->c->clique) {
        finish_alone(o);
        o->state = FINISHED;
        return SUCCESS;
    }
    const char *failure = sim_clique_failure(o->c->clique);
    if (failure) return fail(REMOTE_ERROR, "%s", failure);
    if (__atomic_load_n(&o->c->aborted, __ATOMIC_SEQ_CST)) return fail(REMOTE_ERROR, "the communicator was aborted");
    return o->state == TO_POST ? post(o) : finish(o);
}

/* One step of each. *moved says whether any got further, *waits is one that did not. */
static int step_all(operation *operations, size_t count, bool *moved, operation **waits) {
    *moved = false;
    *waits = NULL;
    for (size_t i = 0; i < count; i++) {
        operation *o = &operations[i];
        if (o->state == FINISHED) continue;
        progress before = o->state;
        int status = step(o);
        if (status) return status;
        *moved |= o->state != before;
        if (o->state != FINISHED && (!*waits || o->awaited >= 0)) *waits = o;
    }
    return SUCCESS;
}

static int give_up(const operation *o, const char *why) {
    char call[160];
    fail(REMOTE_ERROR, "rank %d waits in %s (number %llu of its communicator) for rank %d, which %s", o->c->rank,
         describe(&o->call, call), (unsigned long long)o->number, o->awaited, why);
    sim_clique_fail(o->c->clique, last_error);
    return REMOTE_ERROR;
}

static int too_late(const operation *o) {
    char why[120];
    snprintf(why, sizeof why, "has not called it for %.0f s (LLMMEM_RANK_TIMEOUT, in seconds, sets how long)", patience());
    return give_up(o, why);
}

static sim_clique *first_clique(const operation *operations, size_t count, bool *several) {
    sim_clique *first = NULL;
    *several = false;
    for (size_t i = 0; i < count; i++) {
        sim_clique *clique = operations[i].c->clique;
        if (operations[i].state == FINISHED || !clique) continue;
        *several |= first && first != clique;
        if (!first) first = clique;
    }
    return first;
}

/* Until all are finished. An operation may get further in any order: what one rank waits for may be the
 * last that another has to do. */
static int run(operation *operations, size_t count) {
    double since = seconds();
    bool was_there = true; /* when it was last looked at */
    for (;;) {
        bool moved, several;
        operation *waits;
        sim_clique *clique = first_clique(operations, count, &several);
        uint32_t bell = clique ? sim_clique_bell(clique) : 0;
        int status = step_all(operations, count, &moved, &waits);
        if (status || !waits) return status;
        if (moved) {
            since = seconds();
            was_there = true;
            continue;
        }
        if (!was_there) return give_up(waits, "has left the communicator or ended");
        if (seconds() - since > patience()) return too_late(waits);
        double before = seconds();
        sim_clique_wait(clique, bell, several ? LOOK_AROUND_MILLISECONDS : LOOK_MILLISECONDS);
        /* It may have left its message and gone since: it is given up after one more step. */
        bool look = seconds() - before >= LOOK_MILLISECONDS * 1e-3 && waits->awaited >= 0;
        was_there = !(look && sim_clique_is_gone(waits->c->clique, waits->awaited));
    }
}

static void enter(operation *operations, size_t count) {
    for (size_t i = 0; i < count; i++) __atomic_add_fetch(&operations[i].c->busy, 1, __ATOMIC_SEQ_CST);
}

static void leave(operation *operations, size_t count) {
    for (size_t i = 0; i < count; i++) __atomic_sub_fetch(&operations[i].c->busy, 1, __ATOMIC_SEQ_CST);
}

static int enter_and_run(operation *operations, size_t count) {
    enter(operations, count);
    int status = run(operations, count);
    leave(operations, count);
    return status;
}

/* ---- groups ---------------------------------------------------------------------------------------- */

/* Operations of this thread that wait for the end of the outermost group. */
static __thread struct {
    int depth;
    operation *operations;
    size_t count, capacity;
} group;

/* What a rank sends to itself needs no channel, and has any length. */
static void pair_own(operation *operations, size_t count) {
    for (operation *receive = operations; receive < operations + count; receive++) {
        if (receive->call.kind != RECEIVE || receive->call.root != receive->c->rank) continue;
        for (operation *send = operations; send < operations + count; send++) {
            bool fit = send->c == receive->c && send->call.kind == SEND && send->call.root == send->c->rank;
            if (!fit || send->state == FINISHED || part_of(send) != part_of(receive)) continue;
            keep(receive->to, send->from, part_of(send));
            send->state = receive->state = FINISHED;
            break;
        }
    }
}

int ncclGroupStart(void) {
    group.depth++;
    return SUCCESS;
}

int ncclGroupEnd(void) {
    if (!group.depth) return fail(INVALID_USAGE, "ncclGroupEnd without ncclGroupStart");
    if (--group.depth) return SUCCESS;
    pair_own(group.operations, group.count);
    int status = enter_and_run(group.operations, group.count);
    group.count = 0;
    return status;
}

static int queue(const operation *o) {
    if (group.count == group.capacity) {
        size_t capacity = group.capacity ? 2 * group.capacity : 16;
        operation *grown = realloc(group.operations, capacity * sizeof *grown);
        if (!grown) return SYSTEM_ERROR;
        group.operations = grown;
        group.capacity = capacity;
    }
    group.operations[group.count++] = *o;
    return SUCCESS;
}

/* The next number of its channel. */
static uint64_t number_of(const operation *o) {
    communicator *c = o->c;
    if (!c->clique) return 0;
    uint64_t *next = o->call.kind == SEND      ? &c->sends[o->call.root]
                     : o->call.kind == RECEIVE ? &c->receives[o->call.root]
                                               : &c->collectives;
    return __atomic_fetch_add(next, 1, __ATOMIC_SEQ_CST);
}

static bool is_reduction(const communicator *c, int reduction) {
    if (reduction >= 0 && reduction < FIRST_FACTOR) return true;
    return reduction >= FIRST_FACTOR && reduction < FIRST_FACTOR + FACTORS && c->factors[reduction - FIRST_FACTOR].used;
}

static int submit(communicator *c, kind which, const void *from, void *to, size_t count, int type, int reduction, int root) {
    if (!c || !sim_element_size(type)) return fail(INVALID_ARGUMENT, "%s: invalid communicator or data type", traits[which].name);
    if (root < 0 || root >= c->ranks) return fail(INVALID_ARGUMENT, "%s: there is no rank %d of %d", traits[which].name, root, c->ranks);
    if (!is_reduction(c, reduction)) return fail(INVALID_ARGUMENT, "%s: invalid reduction %d", traits[which].name, reduction);
    int told = reduction < FIRST_FACTOR ? reduction : FIRST_FACTOR;
    operation o = {.c = c, .from = from, .to = to, .awaited = -1};
    if (reduction >= FIRST_FACTOR) o.factor = c->factors[reduction - FIRST_FACTOR];
    o.call = (sim_call){.count = count, .kind = (int32_t)which, .type = type, .reduction = told, .root = root};
    o.number = number_of(&o);
    return group.depth && which != SPLIT ? queue(&o) : enter_and_run(&o, 1);
}

/* ---- communicators --------------------------------------------------------------------------------- */

int ncclGetUniqueId(unique_id *id) {
    sim_invitation invitation;
    if (!sim_clique_invite(&invitation)) return fail(SYSTEM_ERROR, "no memory that ranks can share could be made");
    *id = (unique_id){0};
    memcpy(id->bytes, &invitation, sizeof invitation);
    return SUCCESS;
}

static bool ranks_are_absent(void) {
    const char *text = getenv("LLMMEM_ABSENT_RANKS");
    return text && !strcmp(text, "alike");
}

static int discard(communicator *c) {
    if (c->clique) sim_clique_leave(c->clique);
    free(c->sends);
    free(c->receives);
    free(c);
    return SUCCESS;
}

static int create(communicator **created, int ranks, int rank, const sim_invitation *invitation) {
    int device = sim_current_device();
    *created = NULL;
    if (rank < 0 || rank >= ranks) return fail(INVALID_ARGUMENT, "there is no rank %d of %d", rank, ranks);
    if (device < 0) return UNHANDLED_CUDA_ERROR;
    sim_open_context(device);
    communicator *c = calloc(1, sizeof *c);
    if (!c) return SYSTEM_ERROR;
    *c = (communicator){.ranks = ranks, .rank = rank, .device = device};
    c->sends = calloc((size_t)ranks, sizeof *c->sends);
    c->receives = calloc((size_t)ranks, sizeof *c->receives);
    bool alone = ranks == 1 || ranks_are_absent();
    const char *why = "out of memory";
    if (!alone && c->sends && c->receives) c->clique = sim_clique_join(invitation, ranks, rank, &why);
    if (!c->sends || !c->receives || (!alone && !c->clique)) {
        discard(c);
        return fail(SYSTEM_ERROR, "rank %d of %d cannot join its communicator: %s", rank, ranks, why);
    }
    if (alone) sim_clique_seal(invitation);
    *created = c;
    return SUCCESS;
}

/* All must have joined, as with NCCL. */
static int await_all(const communicator *c, const sim_invitation *invitation) {
    double since = seconds();
    while (c->clique) {
        uint32_t bell = sim_clique_bell(c->clique);
        int missing = sim_clique_missing(c->clique);
        if (missing < 0) {
            sim_clique_seal(invitation);
            break;
        }
        if (seconds() - since > patience())
            return fail(REMOTE_ERROR,
                        "rank %d of %d has not joined its communicator for %.0f s (LLMMEM_RANK_TIMEOUT, in seconds, sets how "
                        "long; to simulate one rank without the others, set LLMMEM_ABSENT_RANKS=alike)",
                        missing, c->ranks, patience());
        sim_clique_wait(c->clique, bell, LOOK_MILLISECONDS);
    }
    return SUCCESS;
}

int ncclCommInitRank(communicator **created, int ranks, unique_id id, int rank) {
    sim_invitation invitation;
    memcpy(&invitation, id.bytes, sizeof invitation);
    int status = create(created, ranks, rank, &invitation);
    /* In a group one thread may have several ranks: their first operation waits instead. */
    if (status == SUCCESS && !group.depth) status = await_all(*created, &invitation);
    if (status && *created) {
        discard(*created);
        *created = NULL;
    }
    return status;
}

int ncclCommInitRankConfig(communicator **created, int ranks, unique_id id, int rank, void *config) {
    (void)config;
    return ncclCommInitRank(created, ranks, id, rank);
}

int ncclCommInitRankScalable(communicator **created, int ranks, int rank, int count, unique_id *ids, void *config) {
    (void)config;
    return count < 1 ? INVALID_ARGUMENT : ncclCommInitRank(created, ranks, *ids, rank);
}

/* One process with several devices: a rank for each. */
int ncclCommInitAll(communicator **created, int count, const int *ordinals) {
    int before = sim_current_ordinal(), status = SUCCESS;
    sim_invitation invitation;
    if (!sim_clique_invite(&invitation)) return fail(SYSTEM_ERROR, "no memory that ranks can share could be made");
    for (int rank = 0; rank < count && status == SUCCESS; rank++) {
        bool found = sim_set_current_ordinal(ordinals ? ordinals[rank] : rank);
        status = found ? create(&created[rank], count, rank, &invitation) : INVALID_ARGUMENT;
    }
    sim_clique_seal(&invitation);
    sim_set_current_ordinal(before);
    return status;
}

/* What each rank tells the others when a communicator is split. */
typedef struct {
    int32_t color, key;
    sim_invitation invitation; /* to its part, if it turns out to be the first rank of that */
} wish;

/* The rank in its part, the ranks of that, and which of all is the first of them. */
typedef struct {
    int rank, ranks, first;
} place_in_part;

static bool is_before(const wish *wishes, int a, int b) {
    return wishes[a].key < wishes[b].key || (wishes[a].key == wishes[b].key && a < b);
}

static place_in_part find_place(const communicator *c, const wish *wishes) {
    place_in_part found = {.first = c->rank};
    for (int other = 0; other < c->ranks; other++) {
        if (wishes[other].color != wishes[c->rank].color) continue;
        found.ranks++;
        found.rank += is_before(wishes, other, c->rank);
        if (is_before(wishes, other, found.first)) found.first = other;
    }
    return found;
}

int ncclCommSplit(communicator *c, int color, int key, communicator **created, void *config) {
    enum { BYTE = 1 }; /* ncclUint8 */
    (void)config;
    *created = NULL;
    if (c->ranks > 1 && !c->clique) return fail(INVALID_USAGE, "ranks that are not there cannot say how a communicator is split");
    wish own = {.color = color, .key = key}, *wishes = calloc((size_t)c->ranks, sizeof *wishes);
    if (!wishes || !sim_clique_invite(&own.invitation)) {
        free(wishes);
        return fail(SYSTEM_ERROR, "no memory that ranks can share could be made");
    }
    int status = submit(c, SPLIT, &own, wishes, sizeof own, BYTE, SIM_RED_SUM, 0);
    place_in_part part = find_place(c, wishes);
    bool takes_part = status == SUCCESS && color >= 0;
    if (takes_part) status = create(created, part.ranks, part.rank, &wishes[part.first].invitation);
    if (takes_part && status == SUCCESS) status = await_all(*created, &wishes[part.first].invitation);
    sim_clique_seal(&own.invitation);
    free(wishes);
    return status;
}

int ncclCommFinalize(communicator *c) {
    (void)c;
    return SUCCESS;
}

int ncclCommDestroy(communicator *c) { return c ? discard(c) : SUCCESS; }

/* Another thread may be waiting in it. */
int ncclCommAbort(communicator *c) {
    if (!c) return SUCCESS;
    __atomic_store_n(&c->aborted, 1, __ATOMIC_SEQ_CST);
    if (c->clique) sim_clique_ring(c->clique);
    while (__atomic_load_n(&c->busy, __ATOMIC_SEQ_CST)) usleep(1000);
    return discard(c);
}

int ncclCommGetAsyncError(communicator *c, int *error) {
    (void)c;
    *error = SUCCESS;
    return SUCCESS;
}

int ncclCommCount(const communicator *c, int *count) {
    *count = c->ranks;
    return SUCCESS;
}

int ncclCommUserRank(const communicator *c, int *rank) {
    *rank = c->rank;
    return SUCCESS;
}

int ncclCommCuDevice(const communicator *c, int *ordinal) {
    *ordinal = sim_ordinal_of(c->device);
    return SUCCESS;
}

/* ---- memory ---------------------------------------------------------------------------------------- */

int ncclMemAlloc(void **pointer, size_t size) {
    *pointer = (void *)sim_allocate(SIM_DEVICE, size, sim_current_device());
    return *pointer ? SUCCESS : UNHANDLED_CUDA_ERROR;
}

int ncclMemFree(void *pointer) {
    return !pointer || sim_release(SIM_DEVICE, (uintptr_t)pointer) ? SUCCESS : INVALID_ARGUMENT;
}

int ncclCommRegister(const communicator *c, void *buffer, size_t size, void **handle) {
    (void)c;
    (void)size;
    *handle = buffer;
    return SUCCESS;
}

int ncclCommDeregister(const communicator *c, void *handle) {
    (void)c;
    (void)handle;
    return SUCCESS;
}

/* ---- reductions with a factor ---------------------------------------------------------------------- */

int ncclRedOpCreatePreMulSum(int *reduction, void *scalar, int type, int residence, communicator *c) {
    enum { ON_DEVICE = 0 }; /* ncclScalarDevice */
    if (!sim_element_size(type)) return INVALID_ARGUMENT;
    for (int i = 0; i < FACTORS; i++) {
        bool free_one = false;
        factor *f = &c->factors[i];
        if (!__atomic_compare_exchange_n(&f->used, &free_one, true, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) continue;
        bool on_device = residence == ON_DEVICE && sim_is_device_address((uintptr_t)scalar);
        f->on_device = on_device ? scalar : NULL;
        if (!on_device) memcpy(f->bytes, scalar, sim_element_size(type));
        *reduction = FIRST_FACTOR + i;
        return SUCCESS;
    }
    return fail(SYSTEM_ERROR, "more than %d reductions with a factor", FACTORS);
}

int ncclRedOpDestroy(int reduction, communicator *c) {
    if (reduction < FIRST_FACTOR || !is_reduction(c, reduction)) return INVALID_ARGUMENT;
    __atomic_store_n(&c->factors[reduction - FIRST_FACTOR].used, false, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

/* ---- collectives ----------------------------------------------------------------------------------- */

int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, communicator *c, void *stream) {
    (void)stream;
    return submit(c, ALL_REDUCE, from, to, count, type, op, 0);
}

int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, communicator *c, void *stream) {
    (void)stream;
    return submit(c, REDUCE, from, to, count, type, op, root);
}

int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, communicator *c, void *stream) {
    (void)stream;
    return submit(c, BROADCAST, from, to, count, type, 0, root);
}

int ncclBcast(void *buffer, size_t count, int type, int root, communicator *c, void *stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, c, stream);
}

int ncclAllGather(const void *from, void *to, size_t count, int type, communicator *c, void *stream) {
    (void)stream;
    return submit(c, ALL_GATHER, from, to, count, type, 0, 0);
}

int ncclGather(const void *from, void *to, size_t count, int type, int root, communicator *c, void *stream) {
    (void)stream;
    return submit(c, GATHER, from, to, count, type, 0, root);
}

int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, communicator *c, void *stream) {
    (void)stream;
    return submit(c, REDUCE_SCATTER, from, to, count, type, op, 0);
}

int ncclScatter(const void *from, void *to, size_t count, int type, int root, communicator *c, void *stream) {
    (void)stream;
    return submit(c, SCATTER, from, to, count, type, 0, root);
}

int ncclAlltoAll(const void *from, void *to, size_t count, int type, communicator *c, void *stream) {
    (void)stream;
    return submit(c, ALL_TO_ALL, from, to, count, type, 0, 0);
}

int ncclSend(const void *from, size_t count, int type, int peer, communicator *c, void *stream) {
    (void)stream;
    return submit(c, SEND, from, NULL, count, type, 0, peer);
}

int ncclRecv(void *to, size_t count, int type, int peer, communicator *c, void *stream) {
    (void)stream;
    return submit(c, RECEIVE, NULL, to, count, type, 0, peer);
}
