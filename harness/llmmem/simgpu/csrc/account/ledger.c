#include "account/ledger.h"

#include "account/visible_devices.h"
#include "base/environment.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char MAGIC[8] = {'l', 'l', 'm', 'm', 'e', 'm', '0', '3'};

static sim_ledger *ledger;

/* A new file: a process that replaces itself by another program keeps its number. */
static int new_file(const char *directory) {
    char path[4096];
    for (int n = 0;; n++) {
        int length = snprintf(path, sizeof path, "%s/%d-%d", directory, (int)getpid(), n);
        if (length < 0 || (size_t)length >= sizeof path) return -1;
        int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (file >= 0 || errno != EEXIST) return file;
    }
}

/* As torchrun and other launchers give it. */
static uint64_t told_rank(void) {
    const char *text = getenv("RANK");
    char *end;
    if (!text || *text < '0' || *text > '9') return SIM_NOT_KNOWN;
    uint64_t rank = strtoull(text, &end, 10);
    return *end ? SIM_NOT_KNOWN : rank;
}

static void read_command(char *out, size_t size) {
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    ssize_t length = read(file, out, size - 1);
    out[length > 0 ? length : 0] = 0;
    close(file);
}

/* The file belongs to the process that began it. */
static void leave_to_parent(void) {
    if (ledger) munmap(ledger, sizeof *ledger);
    ledger = NULL;
}

__attribute__((constructor)) static void heed_forks(void) { pthread_atfork(NULL, NULL, leave_to_parent); }

void sim_ledger_open(void) {
    const char *directory = sim_ledger_directory();
    if (!directory) return;
    int file = new_file(directory);
    if (file < 0) return;
    void *memory = MAP_FAILED;
    if (ftruncate(file, sizeof(sim_ledger)) == 0)
        memory = mmap(NULL, sizeof(sim_ledger), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return;
    ledger = memory;
    memset(ledger->devices, 0xff, sizeof ledger->devices); /* SIM_NOT_KNOWN */
    ledger->pid = (uint64_t)getpid();
    ledger->rank = told_rank();
    read_command(ledger->command, sizeof ledger->command);
    memcpy(ledger->magic, MAGIC, sizeof MAGIC); /* last: it is whole now */
}

static void raise_to(uint64_t *peak, uint64_t bytes) {
    if (*peak == SIM_NOT_KNOWN || bytes > *peak) *peak = bytes;
}

void sim_ledger_note(int device, size_t process_bytes) {
    if (!ledger) return;
    ledger->devices[device].held = process_bytes;
    raise_to(&ledger->devices[device].process, process_bytes);
}

void sim_ledger_note_allocator(int ordinal, uint64_t allocated, uint64_t reserved) {
    int device = sim_device_at(ordinal);
    if (!ledger || device < 0) return;
    raise_to(&ledger->devices[device].allocated, allocated);
    raise_to(&ledger->devices[device].reserved, reserved);
}

void sim_ledger_note_rank(uint64_t rank) {
    if (ledger) ledger->rank = rank;
}

void sim_ledger_note_failure(const char *text) {
    if (ledger) snprintf(ledger->failure, sizeof ledger->failure, "%s", text);
}

void sim_ledger_note_remarks(const char *lines) {
    if (ledger) snprintf(ledger->remarks, sizeof ledger->remarks, "%s", lines);
}
