#include "account/processes.h"

#include "account/card.h"
#include "base/environment.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TRIES_BEFORE_A_LOOK 1000

typedef struct {
    pid_t pid; /* 0: free */
    bool uses[SIM_MAX_DEVICES];
    size_t bytes[SIM_MAX_DEVICES];
    size_t counted[SIM_MAX_DEVICES]; /* what it adds to what all hold together */
} entry;

/* All zero is a valid beginning, so that any process can make the file. */
typedef struct {
    pid_t holder;                     /* who changes the table; 0: nobody */
    size_t together[SIM_MAX_DEVICES]; /* the most that all held at the same time */
    entry entries[SIM_MAX_PROCESSES];
} family;

static family *shared; /* with the processes that are forked, and with those that have the same directory */
static entry *own;     /* NULL until this process uses a device */
static bool is_host;   /* whether it started the others and reads what they left */
static bool is_copy;   /* forked from a process that used a device: it holds nothing itself */

static void begin_anew(void) {
    is_copy = is_copy || own;
    is_host = false;
    own = NULL;
}

static family *map(const char *directory) {
    char path[4200];
    int file = -1;
    if (directory) {
        snprintf(path, sizeof path, "%s/processes", directory);
        file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file < 0) return NULL;
        if (ftruncate(file, sizeof(family))) {
            close(file);
            return NULL;
        }
    }
    int flags = MAP_SHARED | (directory ? 0 : MAP_ANONYMOUS);
    void *memory = mmap(NULL, sizeof(family), PROT_READ | PROT_WRITE, flags, file, 0);
    if (file >= 0) close(file);
    return memory == MAP_FAILED ? NULL : memory;
}

__attribute__((constructor)) static void share(void) {
    shared = map(sim_ledger_directory());
    if (!shared) shared = map(NULL);
    if (!shared) abort();
    pthread_atfork(NULL, NULL, begin_anew);
}

bool sim_is_running(pid_t pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file) return false;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    /* "pid (name) state ...", where the name may hold anything. */
    const char *name_end = strrchr(text, ')');
    return name_end && name_end[1] && name_end[2] != 'Z' && name_end[2] != 'X';
}

/* A lock that survives its holder: a process can be killed at any time. */
static void acquire(void) {
    pid_t self = getpid();
    for (unsigned tries = 1;; tries++) {
        pid_t holder = 0;
        if (__atomic_compare_exchange_n(&shared->holder, &holder, self, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
        if (tries % TRIES_BEFORE_A_LOOK) continue;
        sched_yield();
        if (!sim_is_running(holder))
            __atomic_compare_exchange_n(&shared->holder, &holder, 0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
}

static void release(void) { __atomic_store_n(&shared->holder, 0, __ATOMIC_RELEASE); }

static entry *take_entry(void) {
    pid_t self = getpid();
    for (size_t i = 0; i < SIM_MAX_PROCESSES; i++) {
        entry *e = &shared->entries[i];
        if (e->pid && e->pid != self && sim_is_running(e->pid)) continue;
        memset(e, 0, sizeof *e);
        __atomic_store_n(&e->pid, self, __ATOMIC_RELEASE);
        return e;
    }
    return NULL;
}

/* What all that still run hold together of a device; those that have ended are let go on the way. */
static size_t held_together(int device) {
    size_t sum = 0;
    for (size_t i = 0; i < SIM_MAX_PROCESSES; i++) {
        entry *e = &shared->entries[i];
        if (!e->pid || !e->counted[device]) continue;
        if (e != own && !sim_is_running(e->pid))
            memset(e->counted, 0, sizeof e->counted);
        else
            sum += e->counted[device];
    }
    return sum;
}

static size_t counted_together(int device) {
    size_t sum = 0;
    for (size_t i = 0; i < SIM_MAX_PROCESSES; i++) sum += shared->entries[i].counted[device];
    return sum;
}

static void publish(int device, size_t bytes, size_t context) {
    if (!own) own = take_entry();
    if (!own) { /* more processes than anyone looks at */
        shared->together[device] = SIZE_MAX;
        return;
    }
    bool is_bare_host = is_host && bytes <= context;
    own->bytes[device] = bytes;
    own->counted[device] = is_copy || is_bare_host ? 0 : bytes;
    own->uses[device] = true;
    /* Whether a process still runs takes long to find out, so it is asked only where it matters. */
    if (counted_together(device) <= shared->together[device]) return;
    size_t together = held_together(device);
    if (together > shared->together[device]) shared->together[device] = together;
}

void sim_publish(int device, size_t bytes, size_t context) {
    acquire();
    publish(device, bytes, context);
    release();
}

bool sim_share_processes(const char *directory) {
    family *joined = map(directory);
    if (!joined) return false;
    if (own) memset(own, 0, sizeof *own);
    own = NULL;
    munmap(shared, sizeof *shared);
    shared = joined;
    is_host = true;
    return true;
}

size_t sim_together_bytes(int device) {
    acquire();
    size_t bytes = shared->together[device];
    release();
    return bytes;
}

void sim_reset_together(void) {
    acquire();
    for (int device = 0; device < SIM_MAX_DEVICES; device++) shared->together[device] = held_together(device);
    release();
}

size_t sim_list_processes(int device, sim_process list[SIM_MAX_PROCESSES]) {
    size_t count = 0;
    for (size_t i = 0; i < SIM_MAX_PROCESSES; i++) {
        const entry *e = &shared->entries[i];
        pid_t pid = __atomic_load_n(&e->pid, __ATOMIC_ACQUIRE);
        if (!pid || !e->uses[device]) continue;
        if (e == own || sim_is_running(pid)) list[count++] = (sim_process){(unsigned int)pid, e->bytes[device]};
    }
    return count;
}
