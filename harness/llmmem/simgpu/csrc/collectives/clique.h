/* The shared memory of a communicator's ranks, through which they exchange messages, whether they are
 * processes of one machine or threads of one process.
 *
 * The memory has no name in a directory. An invitation gives a process and its file descriptor, and the
 * ranks open that through /proc. Once all have joined, only their mappings are left, so nothing remains
 * however they end.
 *
 * Messages go through channels. Each has one writer, and its messages are numbered from 0.
 */
#ifndef LLMMEM_CLIQUE_H
#define LLMMEM_CLIQUE_H

#include "base/export.h"

/* The longest message that carries values. */
#define SIM_CARRIED ((size_t)1 << 20)

typedef struct sim_clique sim_clique;

typedef struct {
    char magic[8];
    uint64_t nonce; /* tells this memory from a later one with the same numbers */
    int32_t pid;
    int32_t file;
} sim_invitation;

/* An operation; the caller defines the numbers. */
typedef struct {
    uint64_t count;
    int32_t kind, type, reduction, root;
} sim_call;

/* Bytes and their marks (values.h): NULL for data if none is known, NULL for known if all are, and no guess. */
typedef struct {
    size_t size;
    const unsigned char *data, *known;
} sim_payload;

typedef struct {
    sim_call call;
    sim_payload payload;
} sim_message;

/* Make the memory of a new clique. The file stays open until its ranks have joined (sim_clique_seal). */
SIM_API bool sim_clique_invite(sim_invitation *invitation);
/* Close the file of an invitation that this process made. */
SIM_API void sim_clique_seal(const sim_invitation *invitation);

/* Join as one of its ranks. NULL if that fails; *why is the reason. */
SIM_API sim_clique *sim_clique_join(const sim_invitation *invitation, int ranks, int rank, const char **why);
SIM_API void sim_clique_leave(sim_clique *clique);
/* A rank that has not joined, or -1. */
SIM_API int sim_clique_missing(const sim_clique *clique);
/* Whether a rank has left, or its process has ended. */
SIM_API bool sim_clique_is_gone(const sim_clique *clique, int rank);

/* The channel from a rank to all, and that to one other rank. */
SIM_API int sim_channel_to_all(const sim_clique *clique, int from);
SIM_API int sim_channel_to(const sim_clique *clique, int from, int to);

/* How many messages were left in a channel. */
SIM_API uint64_t sim_clique_posted(const sim_clique *clique, int channel);
/* Post a message, with the next number. False while the channel is full; *slow is then a rank that has
 * messages to read. */
SIM_API bool sim_clique_post(sim_clique *clique, int channel, uint64_t number, const sim_message *message, int *slow);
/* Read a message in place; it is valid until sim_clique_advance. False if it is not there yet. */
SIM_API bool sim_clique_peek(const sim_clique *clique, int channel, uint64_t number, sim_message *message);
/* How many messages this rank has read from a channel. It reads the same number from all channels to all, so
 * any of those can be given. */
SIM_API uint64_t sim_clique_progress(const sim_clique *clique, int channel);
/* Mark one more message as read. */
SIM_API void sim_clique_advance(sim_clique *clique, int channel);

/* The bell rings whenever something changes. Wait until it rings again, or for some milliseconds. */
SIM_API uint32_t sim_clique_bell(const sim_clique *clique);
SIM_API void sim_clique_ring(sim_clique *clique);
SIM_API void sim_clique_wait(sim_clique *clique, uint32_t bell, int milliseconds);

/* Tell all ranks that the clique has failed; the first text stays. NULL while it has not. */
SIM_API void sim_clique_fail(sim_clique *clique, const char *text);
SIM_API const char *sim_clique_failure(const sim_clique *clique);

#endif
