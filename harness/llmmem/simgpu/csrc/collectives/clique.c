#include "collectives/clique.h"

#include "account/processes.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* As many operations may be under way as CUDA queues on a stream. */
#define SLOTS 1024
/* Room for the values of a message and for which of them are known, twice. Pages are there once used. */
#define ARENA (4 * SIM_CARRIED)
#define NAME "llmmem-ranks"
#define PAGE ((size_t)4096)

static const char MAGIC[8] = {'l', 'l', 'm', 'm', 'r', 'a', 'n', 'k'};

typedef struct {
    sim_call call;
    uint64_t start, size; /* of its bytes; start grows along with the arena's uses */
    int32_t any_known, some_unknown;
} slot;

typedef struct {
    uint64_t posted;
    uint64_t read; /* by the one reader of a channel between two ranks */
    uint64_t end;  /* where the bytes of the next message may start */
    slot slots[SLOTS];
    unsigned char arena[ARENA];
} channel;

typedef struct {
    int32_t pid; /* 0: has not joined */
    int32_t left;
    uint64_t read; /* how many messages to all */
} member;

typedef struct {
    uint64_t nonce;
    int32_t ranks;
    uint32_t bell;
    uint32_t waiting;
    int32_t failed; /* 1: the text is being written, 2: it is there */
    char failure[1024];
} head;

struct sim_clique {
    head *memory;
    member *members;
    channel *channels;
    size_t size;
    int ranks, rank;
};

/* ---- joining and leaving --------------------------------------------------------------------------- */

static size_t members_end(int ranks) {
    size_t end = sizeof(head) + (size_t)ranks * sizeof(member);
    return (end + PAGE - 1) / PAGE * PAGE;
}

static size_t size_of(int ranks) {
    size_t n = (size_t)ranks;
    return members_end(ranks) + (n + n * n) * sizeof(channel);
}

bool sim_clique_invite(sim_invitation *invitation) {
    *invitation = (sim_invitation){.pid = (int32_t)getpid()};
    memcpy(invitation->magic, MAGIC, sizeof MAGIC);
    if (getrandom(&invitation->nonce, sizeof invitation->nonce, 0) != sizeof invitation->nonce) return false;
    invitation->file = memfd_create(NAME, MFD_CLOEXEC);
    if (invitation->file < 0) return false;
    head first = {.nonce = invitation->nonce};
    if (pwrite(invitation->file, &first, sizeof first, 0) == sizeof first) return true;
    close(invitation->file);
    return false;
}

/* The file of an invitation, or -1. Its number may stand for something else by now. */
static int open_invited(const sim_invitation *invitation) {
    char path[64], target[64] = "";
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)invitation->pid, (int)invitation->file);
    if (readlink(path, target, sizeof target - 1) < 0 || !strstr(target, NAME)) return -1;
    int file = open(path, O_RDWR | O_CLOEXEC);
    uint64_t nonce = 0;
    if (file >= 0 && pread(file, &nonce, sizeof nonce, offsetof(head, nonce)) == sizeof nonce && nonce == invitation->nonce)
        return file;
    if (file >= 0) close(file);
    return -1;
}

void sim_clique_seal(const sim_invitation *invitation) {
    if (invitation->pid != (int32_t)getpid()) return;
    int file = open_invited(invitation);
    if (file < 0) return; /* another rank of this process was first */
    close(file);
    close(invitation->file);
}

static sim_clique *map_memory(int file, int ranks, int rank) {
    size_t size = size_of(ranks);
    struct stat status;
    if (fstat(file, &status) || ((size_t)status.st_size < size && ftruncate(file, (off_t)size))) return NULL;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    sim_clique *clique = memory == MAP_FAILED ? NULL : malloc(sizeof *clique);
    if (!clique) return NULL;
    char *bytes = memory;
    *clique = (sim_clique){memory, (member *)(bytes + sizeof(head)), (channel *)(bytes + members_end(ranks)), size, ranks, rank};
    return clique;
}

static void unmap_memory(sim_clique *clique) {
    munmap(clique->memory, clique->size);
    free(clique);
}

/* NULL, or why it cannot be. */
static const char *take_seat(sim_clique *clique) {
    int32_t ranks = 0, nobody = 0;
    bool first = __atomic_compare_exchange_n(&clique->memory->ranks, &ranks, clique->ranks, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    if (!first && ranks != clique->ranks) return "the ranks of this communicator were told different numbers of ranks";
    member *own = &clique->members[clique->rank];
    if (!__atomic_compare_exchange_n(&own->pid, &nobody, (int32_t)getpid(), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return "two ranks of this communicator have the same number";
    return NULL;
}

sim_clique *sim_clique_join(const sim_invitation *invitation, int ranks, int rank, const char **why) {
    *why = "the process that made the unique id is not there, or not on this machine";
    if (memcmp(invitation->magic, MAGIC, sizeof MAGIC)) return NULL;
    int file = open_invited(invitation);
    if (file < 0) return NULL;
    sim_clique *clique = map_memory(file, ranks, rank);
    close(file);
    *why = "the memory that the ranks share could not be mapped";
    if (!clique) return NULL;
    *why = take_seat(clique);
    if (*why) {
        unmap_memory(clique);
        return NULL;
    }
    sim_clique_ring(clique);
    return clique;
}

void sim_clique_leave(sim_clique *clique) {
    __atomic_store_n(&clique->members[clique->rank].left, 1, __ATOMIC_SEQ_CST);
    sim_clique_ring(clique);
    unmap_memory(clique);
}

static pid_t pid_of(const sim_clique *clique, int rank) {
    return __atomic_load_n(&clique->members[rank].pid, __ATOMIC_SEQ_CST);
}

int sim_clique_missing(const sim_clique *clique) {
    for (int rank = 0; rank < clique->ranks; rank++)
        if (!pid_of(clique, rank)) return rank;
    return -1;
}

bool sim_clique_is_gone(const sim_clique *clique, int rank) {
    pid_t pid = pid_of(clique, rank);
    if (!pid) return false;
    return __atomic_load_n(&clique->members[rank].left, __ATOMIC_SEQ_CST) || !sim_is_running(pid);
}

/* ---- channels -------------------------------------------------------------------------------------- */

int sim_channel_to_all(const sim_clique *clique, int from) {
    (void)clique;
    return from;
}

int sim_channel_to(const sim_clique *clique, int from, int to) { return clique->ranks * (1 + from) + to; }

static uint64_t read_of(const uint64_t *counter) { return __atomic_load_n(counter, __ATOMIC_SEQ_CST); }

uint64_t sim_clique_posted(const sim_clique *clique, int number) { return read_of(&clique->channels[number].posted); }

/* How many messages all readers of a channel are done with; *slow is a reader that has the fewest. */
static uint64_t released(const sim_clique *clique, int number, int *slow) {
    const channel *c = &clique->channels[number];
    if (number >= clique->ranks) {
        *slow = number % clique->ranks;
        return read_of(&c->read);
    }
    uint64_t least = UINT64_MAX;
    for (int rank = 0; rank < clique->ranks; rank++) {
        uint64_t read = read_of(&clique->members[rank].read);
        if (read >= least) continue;
        least = read;
        *slow = rank;
    }
    return least;
}

/* Where size bytes may lie, in one piece; false while messages that are not yet read lie there. Where all
 * are read it begins anew, so that few pages are ever used. */
static bool find_room(const channel *c, uint64_t oldest, size_t size, uint64_t *start) {
    bool empty = oldest >= c->posted;
    *start = c->end;
    if (*start % ARENA && (empty || *start % ARENA + size > ARENA)) *start += ARENA - *start % ARENA;
    uint64_t held = oldest < c->posted ? c->slots[oldest % SLOTS].start : *start;
    return *start + size - held <= ARENA;
}

bool sim_clique_post(sim_clique *clique, int number, uint64_t sequence, const sim_message *message, int *slow) {
    channel *c = &clique->channels[number];
    const sim_payload *p = &message->payload;
    size_t size = p->data ? p->size * (p->known ? 2 : 1) : 0;
    uint64_t oldest = released(clique, number, slow), start;
    if (oldest + SLOTS <= sequence || !find_room(c, oldest, size, &start)) return false;
    unsigned char *bytes = c->arena + start % ARENA;
    if (p->data) memcpy(bytes, p->data, p->size);
    if (p->data && p->known) memcpy(bytes + p->size, p->known, p->size);
    c->slots[sequence % SLOTS] = (slot){message->call, start, p->size, p->data != NULL, p->known != NULL};
    c->end = start + size;
    __atomic_store_n(&c->posted, sequence + 1, __ATOMIC_SEQ_CST);
    sim_clique_ring(clique);
    return true;
}

bool sim_clique_peek(const sim_clique *clique, int number, uint64_t sequence, sim_message *message) {
    const channel *c = &clique->channels[number];
    if (read_of(&c->posted) <= sequence) return false;
    const slot *s = &c->slots[sequence % SLOTS];
    const unsigned char *bytes = s->any_known ? c->arena + s->start % ARENA : NULL;
    *message = (sim_message){s->call, {s->size, bytes, bytes && s->some_unknown ? bytes + s->size : NULL}};
    return true;
}

static uint64_t *progress(const sim_clique *clique, int number) {
    bool to_all = number < clique->ranks;
    return to_all ? &clique->members[clique->rank].read : &clique->channels[number].read;
}

uint64_t sim_clique_progress(const sim_clique *clique, int number) { return read_of(progress(clique, number)); }

void sim_clique_advance(sim_clique *clique, int number) {
    __atomic_add_fetch(progress(clique, number), 1, __ATOMIC_SEQ_CST);
    sim_clique_ring(clique);
}

/* ---- waiting --------------------------------------------------------------------------------------- */

uint32_t sim_clique_bell(const sim_clique *clique) { return __atomic_load_n(&clique->memory->bell, __ATOMIC_SEQ_CST); }

void sim_clique_ring(sim_clique *clique) {
    head *memory = clique->memory;
    __atomic_add_fetch(&memory->bell, 1, __ATOMIC_SEQ_CST);
    /* One that was killed while it waited leaves the count too high: that costs a call, no more. */
    if (__atomic_load_n(&memory->waiting, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &memory->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void sim_clique_wait(sim_clique *clique, uint32_t bell, int milliseconds) {
    head *memory = clique->memory;
    struct timespec limit = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    __atomic_add_fetch(&memory->waiting, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &memory->bell, FUTEX_WAIT, bell, &limit, NULL, 0);
    __atomic_sub_fetch(&memory->waiting, 1, __ATOMIC_SEQ_CST);
}

void sim_clique_fail(sim_clique *clique, const char *text) {
    head *memory = clique->memory;
    int32_t fine = 0;
    if (!__atomic_compare_exchange_n(&memory->failed, &fine, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return;
    snprintf(memory->failure, sizeof memory->failure, "%s", text);
    __atomic_store_n(&memory->failed, 2, __ATOMIC_SEQ_CST);
    sim_clique_ring(clique);
}

const char *sim_clique_failure(const sim_clique *clique) {
    return __atomic_load_n(&clique->memory->failed, __ATOMIC_SEQ_CST) == 2 ? clique->memory->failure : NULL;
}
