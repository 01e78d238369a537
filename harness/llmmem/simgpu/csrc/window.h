/* A piece of device memory, taken out to work on its elements and put back. */
#ifndef LLMMEM_WINDOW_H
#define LLMMEM_WINDOW_H

#include "elements.h"

typedef struct {
    uintptr_t base;
    size_t size;
    unsigned char *bytes, *known; /* known: for each byte */
} sim_window;

/* Take out what is known of size bytes. False, and nothing to close, where there is too much. */
bool sim_open_window(sim_window *w, uintptr_t base, size_t size);
/* The same of memory that is to be written all over: nothing is known of it yet. */
bool sim_open_blank_window(sim_window *w, uintptr_t base, size_t size);
void sim_save_window(const sim_window *w);
void sim_close_window(sim_window *w);

sim_value sim_window_get(const sim_window *w, sim_type type, size_t offset);
void sim_window_set(sim_window *w, sim_type type, size_t offset, sim_value v);
/* Copy an element of size bytes within or between windows, with whether it is known. */
void sim_window_move(sim_window *to, size_t to_offset, const sim_window *from, size_t from_offset, size_t size);

#endif
