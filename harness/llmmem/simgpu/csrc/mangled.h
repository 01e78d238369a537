/* Reading the mangled names of kernels (Itanium C++ ABI), as far as that tells what a launch does. */
#ifndef LLMMEM_MANGLED_H
#define LLMMEM_MANGLED_H

#include <stdbool.h>
#include <stddef.h>

/* Element types, numbered as PyTorch's ScalarType, which kernels that convert carry as bytes. */
typedef enum {
    SIM_UINT8 = 0,
    SIM_INT8 = 1,
    SIM_INT16 = 2,
    SIM_INT32 = 3,
    SIM_INT64 = 4,
    SIM_HALF = 5,
    SIM_FLOAT = 6,
    SIM_DOUBLE = 7,
    SIM_BOOL = 11,
    SIM_BFLOAT16 = 15,
    SIM_OTHER_TYPE = 127,
} sim_type;

/* Bytes of an element; 0 if the type is not one of the named ones. */
size_t sim_type_size(sim_type type);

/* The type that a mangled name spells at text, and where it ends. */
sim_type sim_read_type(const char *text, const char **end);

typedef enum {
    SIM_VALUE,         /* a number */
    SIM_POINTER,       /* to what the kernel may write */
    SIM_CONST_POINTER, /* or a structure over constant elements: only read */
    SIM_STRUCT,        /* may hold pointers */
} sim_parameter;

/* The kinds of a kernel's parameters. Returns their number, 0 if the name does not tell. */
size_t sim_read_parameters(const char *mangled, sim_parameter *parameters, size_t most);

#endif
