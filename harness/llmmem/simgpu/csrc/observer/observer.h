/* The observer of PyTorch's operators, a library of its own: it is compiled against the installed PyTorch. */
#ifndef LLMMEM_OBSERVER_H
#define LLMMEM_OBSERVER_H

extern "C" __attribute__((visibility("default"))) void llmmem_observe(void);

#endif
