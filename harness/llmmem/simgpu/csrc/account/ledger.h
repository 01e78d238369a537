/* What a process on the simulated GPUs leaves behind for whoever started the program: a file.
 *
 * The directory is named by the environment (environment.h); without it nothing is written. The file is
 * shared memory, so it holds whatever the process had reached, however it ended. Every process that uses
 * a device has its own, a forked child too.
 */
#ifndef LLMMEM_LEDGER_H
#define LLMMEM_LEDGER_H

#include "account/card.h"

#define SIM_NOT_KNOWN UINT64_MAX

/* Peak bytes on one device; SIM_NOT_KNOWN until they are noted. */
typedef struct {
    uint64_t process;
    uint64_t allocated, reserved; /* PyTorch's caching allocator */
    uint64_t held; /* what the process holds now; whoever reads the file may set its peak back to that */
} sim_ledger_peaks;

/* The file (read by llmmem/program/ledger.py). */
typedef struct {
    char magic[8]; /* "llmmem03" */
    uint64_t pid;
    uint64_t rank; /* its number among the ranks of the job, or SIM_NOT_KNOWN */
    sim_ledger_peaks devices[SIM_MAX_DEVICES];
    char failure[1024]; /* how it ran out of memory, if it did */
    char remarks[2048]; /* what decides how to read the figures, a line each */
    char command[4096]; /* its arguments, each ended by a 0 */
} sim_ledger;

/* Begin the file of this process: at its first use of a device. */
void sim_ledger_open(void);

/* What the process holds on a device now. */
void sim_ledger_note(int device, size_t process_bytes);

/* What PyTorch's allocator reached on the device with an ordinal; only a higher figure changes what is
 * noted. */
SIM_API void sim_ledger_note_allocator(int ordinal, uint64_t allocated, uint64_t reserved);
SIM_API void sim_ledger_note_rank(uint64_t rank);
SIM_API void sim_ledger_note_failure(const char *text);
SIM_API void sim_ledger_note_remarks(const char *lines);

#endif
