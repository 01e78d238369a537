/* Vector clocks: which work on each stream precedes an event or a stream's next work.
 *
 * Every stream with work has a lane, a small number, and divides its work into ticks. A clock holds, for
 * each lane, the last tick that precedes whatever the clock belongs to.
 */
#ifndef LLMMEM_VECTOR_CLOCKS_H
#define LLMMEM_VECTOR_CLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t *ticks; /* by lane; 0 past size */
    size_t size, capacity;
} sim_clock;

uint64_t sim_clock_at(const sim_clock *c, size_t lane);
void sim_clock_advance(sim_clock *c, size_t lane, uint64_t tick);
/* Add everything that precedes the other clock. */
void sim_clock_merge(sim_clock *c, const sim_clock *other);
/* Whether everything that precedes the other clock precedes this one. */
bool sim_clock_covers(const sim_clock *c, const sim_clock *other);
/* Empty a clock, but keep its memory. */
void sim_clock_clear(sim_clock *c);
void sim_clock_free(sim_clock *c);

#endif
