#include "window.h"

#include "values.h"

#include <stdlib.h>
#include <string.h>

#define LARGEST ((size_t)128 << 20)

bool sim_open_blank_window(sim_window *w, uintptr_t base, size_t size) {
    *w = (sim_window){.base = base, .size = size};
    if (size > LARGEST) return false;
    w->bytes = calloc(1, size);
    w->known = calloc(1, size);
    if (w->bytes && w->known) return true;
    sim_close_window(w);
    return false;
}

bool sim_open_window(sim_window *w, uintptr_t base, size_t size) {
    if (!sim_open_blank_window(w, base, size)) return false;
    sim_values_read(base, w->bytes, w->known, size);
    return true;
}

void sim_save_window(const sim_window *w) { sim_values_store_known(w->base, w->bytes, w->known, w->size); }

void sim_close_window(sim_window *w) {
    free(w->bytes);
    free(w->known);
    w->bytes = w->known = NULL;
}

sim_value sim_window_get(const sim_window *w, sim_type type, size_t offset) {
    size_t size = sim_type_size(type);
    if (memchr(w->known + offset, 0, size)) return (sim_value){0};
    return sim_load(type, w->bytes + offset);
}

void sim_window_set(sim_window *w, sim_type type, size_t offset, sim_value v) {
    bool known = v.known && sim_store(type, v, w->bytes + offset);
    memset(w->known + offset, known, sim_type_size(type));
}

void sim_window_move(sim_window *to, size_t to_offset, const sim_window *from, size_t from_offset, size_t size) {
    if (size == 1) { /* masks, of which there are large ones */
        to->bytes[to_offset] = from->bytes[from_offset];
        to->known[to_offset] = from->known[from_offset];
        return;
    }
    memmove(to->bytes + to_offset, from->bytes + from_offset, size);
    memmove(to->known + to_offset, from->known + from_offset, size);
}
