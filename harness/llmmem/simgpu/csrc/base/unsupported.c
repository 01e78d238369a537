#include "base/unsupported.h"


#include <stdio.h>

long sim_unsupported(const char *function, bool *told, long status) {
    if (!__atomic_exchange_n(told, true, __ATOMIC_RELAXED))
        fprintf(stderr,
                "llmmem: %s is not part of the simulated GPU, so this call fails: do this step on the CPU, "
                "or report the name of the function\n",
                function);
    return status;
}
