/* The values in the memory of the simulated GPU.
 *
 * No kernel runs, so the only known values are those that need none: small copies from the host, fills,
 * copies of those, and what the observer computes. Everything else is unknown and reads as zero bytes.
 */
#ifndef LLMMEM_VALUES_H
#define LLMMEM_VALUES_H

#include "base/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A byte is unknown, known, or a guess: the program needed a value, and this one was assumed. */
enum { SIM_NO_VALUE, SIM_KNOWN, SIM_GUESSED };

/* What is known of n bytes at an address. */
typedef enum {
    SIM_UNKNOWN,  /* nothing */
    SIM_CONSTANT, /* one value of the given width, repeated */
    SIM_VARIED,   /* byte by byte, or some bytes only */
} sim_knowledge;

SIM_API void sim_values_forget(uintptr_t address, size_t n);
/* Forget everything that was written together with this byte. */
SIM_API void sim_values_forget_at(uintptr_t address);
/* The number of writes so far. Forget what was written between two such numbers. */
SIM_API uint64_t sim_values_clock(void);
SIM_API void sim_values_forget_between(uint64_t after, uint64_t until);
SIM_API void sim_values_store(uintptr_t address, const void *data, size_t n, unsigned char mark);
/* Store what comes from the host. */
SIM_API void sim_values_receive(uintptr_t address, const void *data, size_t n);
SIM_API void sim_values_fill(uintptr_t address, size_t n, const void *pattern, size_t width, unsigned char mark);
SIM_API void sim_values_copy(uintptr_t to, uintptr_t from, size_t n);
/* Copy n bytes out; unknown bytes are zero. marks, unless NULL, gets the mark of each byte. */
SIM_API void sim_values_read(uintptr_t address, void *out, unsigned char *marks, size_t n);
/* Store the bytes that are known or guesses, and forget the others. */
SIM_API void sim_values_store_known(uintptr_t address, const void *data, const unsigned char *marks, size_t n);
/* Whether all n bytes are known, none of them a guess. */
SIM_API bool sim_values_are_known(uintptr_t address, size_t n);
/* What is known of them; *value is set (in its low width bytes) when the answer is SIM_CONSTANT, and *guessed
 * to whether that is a guess. */
SIM_API sim_knowledge sim_values_know(uintptr_t address, size_t n, size_t width, uint64_t *value, bool *guessed);

#ifdef __cplusplus
}
#endif

#endif
