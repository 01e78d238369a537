/* Vector clocks: how far the work on each of several streams comes before something.
 *
 * Every stream with work has a lane, a small number. A clock says, for each lane, up to which of its
 * ticks everything comes before the thing it belongs to; a tick is some work given to the stream at once.
 */
#ifndef LLMMEM_VECTOR_CLOCKS_H
#define LLMMEM_VECTOR_CLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t *ticks; /* by lane; what lies past size is 0 */
    size_t size, capacity;
} sim_clock;

uint64_t sim_clock_at(const sim_clock *c, size_t lane);
void sim_clock_advance(sim_clock *c, size_t lane, uint64_t tick);
/* Let all that comes before the other come before this too. */
void sim_clock_merge(sim_clock *c, const sim_clock *other);
/* Whether all that comes before the other comes before this. */
bool sim_clock_covers(const sim_clock *c, const sim_clock *other);
/* Let nothing come before it; the memory is kept. */
void sim_clock_clear(sim_clock *c);
void sim_clock_free(sim_clock *c);

#endif
