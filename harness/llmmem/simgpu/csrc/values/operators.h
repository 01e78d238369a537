/* PyTorch's operators, as far as the core has to know of them; the observer (observer.cpp) tells. */
#ifndef LLMMEM_OPERATORS_H
#define LLMMEM_OPERATORS_H

#include "base/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Load the observer, once, if this process has PyTorch. Called wherever a program begins to use a device. */
SIM_API void sim_observe_operators(void);

/* An operator of PyTorch begins and ends in this thread. What its kernels write, the observer knows. */
SIM_API void sim_enter_operator(void);
SIM_API void sim_leave_operator(void);
SIM_API bool sim_in_operator(void);

/* Until it is taken back: a short read of memory that is not known, in this thread, is of this number, which
 * kernels that no observer sees would have found (a count, or whether all is equal). */
SIM_API void sim_expect_answer(int64_t answer);
SIM_API void sim_forget_answer(void);
SIM_API bool sim_expects_answer(void);
/* Whether a read of n bytes is of such a number; out is set to it. */
SIM_API bool sim_take_answer(void *out, size_t n);

/* Whether unknown scores pick evenly, or the same in all rows (LLMMEM_CHOICES). */
SIM_API bool sim_picks_are_even(void);

/* A program is about to decide by a value that is a guess or not known; who listens is told the operator. */
SIM_API void sim_note_guess(const char *operator_name);
SIM_API void sim_listen_to_guesses(void (*listener)(const char *operator_name));

#ifdef __cplusplus
}
#endif

#endif
