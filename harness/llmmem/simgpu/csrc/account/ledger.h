/* The ledger: a file in which a process leaves its peaks for llmmem, which started the program.
 *
 * The environment names the directory (environment.h); without it nothing is written. The file is shared
 * memory, so it is up to date however the process ends. Every process that uses a device has its own file,
 * a forked child too.
 */
#ifndef LLMMEM_LEDGER_H
#define LLMMEM_LEDGER_H

#include "account/card.h"

#define SIM_NOT_KNOWN UINT64_MAX

/* Peak bytes on one device; SIM_NOT_KNOWN until they are set. */
typedef struct {
    uint64_t process;
    uint64_t allocated, reserved; /* PyTorch's caching allocator */
    uint64_t held; /* what the process holds now; a reader may reset the peak to it */
} sim_ledger_peaks;

/* The file (llmmem/execution/program/ledger.py reads it). */
typedef struct {
    char magic[8]; /* "llmmem03" */
    uint64_t pid;
    uint64_t rank; /* its number among the ranks of the job, or SIM_NOT_KNOWN */
    sim_ledger_peaks devices[SIM_MAX_DEVICES];
    char failure[1024]; /* how it ran out of memory, if it did */
    char remarks[2048]; /* notes on the figures, one a line */
    char command[4096]; /* its arguments, each followed by a 0 */
} sim_ledger;

/* Create the file of this process, when it first uses a device. */
void sim_ledger_open(void);

/* Set what the process holds on a device now. */
void sim_ledger_note(int device, size_t process_bytes);

/* Raise the peaks of PyTorch's allocator on the device with an ordinal; lower figures change nothing. */
SIM_API void sim_ledger_note_allocator(int ordinal, uint64_t allocated, uint64_t reserved);
SIM_API void sim_ledger_note_rank(uint64_t rank);
SIM_API void sim_ledger_note_failure(const char *text);
SIM_API void sim_ledger_note_remarks(const char *lines);

#endif
