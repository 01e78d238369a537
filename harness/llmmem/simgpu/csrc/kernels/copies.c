#include "kernels/copies.h"

#include "account/account.h"
#include "account/visible_devices.h"
#include "values/operators.h"
#include "values/values.h"

#include <string.h>

static uint64_t unknown_reads;

uint64_t sim_unknown_reads(void) { return __atomic_load_n(&unknown_reads, __ATOMIC_RELAXED); }

/* The observer may have an answer for reads within an operator of PyTorch. */
static void read_device(uintptr_t to, uintptr_t from, size_t n) {
    uint64_t ignored;
    bool guessed;
    if (!sim_values_are_known(from, n)) __atomic_fetch_add(&unknown_reads, 1, __ATOMIC_RELAXED);
    bool may_be_answer = n <= sizeof ignored && sim_values_know(from, n, n, &ignored, &guessed) == SIM_UNKNOWN;
    if (!may_be_answer || !sim_take_answer((void *)to, n)) sim_values_read(from, (void *)to, NULL, n);
}

void sim_copy(uintptr_t to, uintptr_t from, size_t n) {
    bool to_device = sim_is_device_address(to), from_device = sim_is_device_address(from);
    sim_open_context(sim_current_device());
    if (to_device && from_device)
        sim_values_copy(to, from, n);
    else if (to_device)
        sim_values_receive(to, (const void *)from, n);
    else if (from_device)
        read_device(to, from, n);
    else
        memmove((void *)to, (const void *)from, n);
}

void sim_copy_2d(uintptr_t to, size_t to_pitch, uintptr_t from, size_t from_pitch, size_t width, size_t height) {
    for (size_t row = 0; row < height; row++) sim_copy(to + row * to_pitch, from + row * from_pitch, width);
}

void sim_set(uintptr_t to, size_t n, const void *pattern, size_t width) {
    sim_open_context(sim_current_device());
    if (sim_is_device_address(to)) {
        sim_values_fill(to, n, pattern, width, SIM_KNOWN);
        return;
    }
    for (size_t i = 0; i + width <= n; i += width) memcpy((char *)to + i, pattern, width);
}
