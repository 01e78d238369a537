#include "streams/vector_clocks.h"


#include <stdlib.h>
#include <string.h>

static void reach(sim_clock *c, size_t size) {
    if (size > c->capacity) {
        c->capacity = size < 8 ? 8 : 2 * size;
        c->ticks = realloc(c->ticks, c->capacity * sizeof *c->ticks);
        if (!c->ticks) abort();
    }
    if (size > c->size) {
        memset(c->ticks + c->size, 0, (size - c->size) * sizeof *c->ticks);
        c->size = size;
    }
}

uint64_t sim_clock_at(const sim_clock *c, size_t lane) { return lane < c->size ? c->ticks[lane] : 0; }

void sim_clock_advance(sim_clock *c, size_t lane, uint64_t tick) {
    reach(c, lane + 1);
    if (tick > c->ticks[lane]) c->ticks[lane] = tick;
}

void sim_clock_merge(sim_clock *c, const sim_clock *other) {
    reach(c, other->size);
    for (size_t lane = 0; lane < other->size; lane++)
        if (other->ticks[lane] > c->ticks[lane]) c->ticks[lane] = other->ticks[lane];
}

bool sim_clock_covers(const sim_clock *c, const sim_clock *other) {
    for (size_t lane = 0; lane < other->size; lane++)
        if (other->ticks[lane] > sim_clock_at(c, lane)) return false;
    return true;
}

void sim_clock_clear(sim_clock *c) { c->size = 0; }

void sim_clock_free(sim_clock *c) {
    free(c->ticks);
    *c = (sim_clock){0};
}
