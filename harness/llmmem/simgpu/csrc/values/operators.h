/* What the observer of PyTorch's operators (observer.cpp) reports to the core. */
#ifndef LLMMEM_OPERATORS_H
#define LLMMEM_OPERATORS_H

#include "base/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Load the observer, once, if this process has PyTorch. Called when a program first uses a device. */
SIM_API void sim_observe_operators(void);

/* An operator of PyTorch begins and ends in this thread. The observer sees what its kernels write. */
SIM_API void sim_enter_operator(void);
SIM_API void sim_leave_operator(void);
SIM_API bool sim_in_operator(void);

/* Answer this thread's short reads of unknown memory with a number until sim_forget_answer: the operator's
 * kernels would have computed it (a count, or whether two tensors are equal). */
SIM_API void sim_expect_answer(int64_t answer);
SIM_API void sim_forget_answer(void);
SIM_API bool sim_expects_answer(void);
/* Whether a read of n bytes is such a read; *out is set to the number. */
SIM_API bool sim_take_answer(void *out, size_t n);

/* Whether picks by unknown scores are spread evenly, or the same in all rows (LLMMEM_CHOICES). */
SIM_API bool sim_picks_are_even(void);

/* A program is about to read a value that is unknown or a guess, and may branch on it. Calls the listener. */
SIM_API void sim_note_guess(const char *operator_name);
SIM_API void sim_listen_to_guesses(void (*listener)(const char *operator_name));

#ifdef __cplusplus
}
#endif

#endif
