#include "mangled.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

size_t sim_type_size(sim_type type) {
    switch (type) {
        case SIM_UINT8:
        case SIM_INT8:
        case SIM_BOOL: return 1;
        case SIM_INT16:
        case SIM_HALF:
        case SIM_BFLOAT16: return 2;
        case SIM_INT32:
        case SIM_FLOAT: return 4;
        case SIM_INT64:
        case SIM_DOUBLE: return 8;
        default: return 0;
    }
}

static bool starts(const char *text, const char *prefix) { return strncmp(text, prefix, strlen(prefix)) == 0; }

sim_type sim_read_type(const char *text, const char **end) {
    static const struct {
        const char *spelling;
        sim_type type;
    } types[] = {
        {"b", SIM_BOOL},   {"h", SIM_UINT8}, {"a", SIM_INT8},           {"s", SIM_INT16},
        {"i", SIM_INT32},  {"l", SIM_INT64}, {"f", SIM_FLOAT},          {"d", SIM_DOUBLE},
        {"t", SIM_INT16},  {"j", SIM_INT32}, {"m", SIM_INT64}, /* which only stand for bytes to copy */
        {"N3c104HalfE", SIM_HALF},           {"N3c108BFloat16E", SIM_BFLOAT16},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (!starts(text, types[i].spelling)) continue;
        *end = text + strlen(types[i].spelling);
        return types[i].type;
    }
    *end = text;
    return SIM_OTHER_TYPE;
}

/* ---- parameters -------------------------------------------------------------------------------------- */

/* What compilers spell names with is best spelled out by the C++ library that PyTorch brings. */
static char *spelled_out(const char *mangled) {
    static char *(*demangle)(const char *, char *, size_t *, int *);
    if (!demangle) {
        void *library = dlopen("libstdc++.so.6", RTLD_LAZY);
        if (library) demangle = (char *(*)(const char *, char *, size_t *, int *))dlsym(library, "__cxa_demangle");
    }
    int status;
    return demangle ? demangle(mangled, NULL, NULL, &status) : NULL;
}

/* The list of parameters in a name that is spelled out: between the last parentheses. */
static char *parameters_of(char *name) {
    size_t end = strlen(name);
    if (!end || name[end - 1] != ')') return NULL;
    int depth = 0;
    for (size_t i = end; i-- > 0;) {
        depth += (name[i] == ')') - (name[i] == '(');
        if (depth) continue;
        name[end - 1] = '\0';
        return name + i + 1;
    }
    return NULL;
}

/* Cut off the type that the list begins with. Returns what follows, NULL after the last. */
static char *cut_type(char *list) {
    int depth = 0;
    for (char *p = list; *p; p++) {
        if (strchr("(<{[", *p)) depth++;
        if (strchr(")>}]", *p) && p[-1] != '-') depth--;
        if (*p != ',' || depth) continue;
        *p = '\0';
        return p + 2;
    }
    return NULL;
}

static bool ends(const char *text, const char *suffix) {
    size_t length = strlen(text), n = strlen(suffix);
    return length >= n && !strcmp(text + length - n, suffix);
}

static bool is_number(const char *type) {
    static const char *const numbers[] = {"bool", "char", "short", "int", "long", "float", "double", "signed char"};
    if (starts(type, "unsigned ")) type += strlen("unsigned ");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(type, numbers[i])) return true;
    return !strcmp(type, "long long");
}

/* Structures by a part of their name. What a closure holds, its name does not tell. */
static const struct {
    const char *part;
    sim_parameter kind;
} structures[] = {
    {"{lambda", SIM_STRUCT},
    {"InputTensorMetadata<", SIM_CONST_POINTER}, /* of a concatenation */
    {" const,", SIM_CONST_POINTER},              /* over constant elements: TensorInfo<float const, int>, iterators */
    {" const*,", SIM_CONST_POINTER},
    {" const*>", SIM_CONST_POINTER},
    {"detail::TensorInfo<", SIM_POINTER}, /* begins with its one pointer */
    {"counting_iterator<", SIM_VALUE},
    {"Functor<", SIM_VALUE},
    {"OffsetCalculator<", SIM_VALUE},
    {"TensorDims<", SIM_VALUE},
    {"TensorSizeStride<", SIM_VALUE},
    {"PhiloxCudaState", SIM_VALUE},
    {"c10::", SIM_VALUE}, /* numbers: Half, BFloat16, complex */
    {"::NullType", SIM_VALUE},
    {"cuda::std::", SIM_VALUE}, /* operators */
    {"cub::", SIM_VALUE}, /* its state in scratch memory, which no program reads */
};

static sim_parameter kind_of(const char *type) {
    if (ends(type, " const*") || ends(type, " const&")) return SIM_CONST_POINTER;
    if (ends(type, "*") || ends(type, "&")) return SIM_POINTER;
    if (is_number(type) || starts(type, "std::")) return SIM_VALUE;
    for (size_t i = 0; i < sizeof structures / sizeof *structures; i++)
        if (strstr(type, structures[i].part)) return structures[i].kind;
    return SIM_STRUCT;
}

size_t sim_read_parameters(const char *mangled, sim_parameter *parameters, size_t most) {
    char *name = spelled_out(mangled);
    size_t count = 0;
    for (char *type = name ? parameters_of(name) : NULL; type && *type;) {
        char *next = cut_type(type);
        if (count < most) parameters[count] = kind_of(type);
        count++;
        type = next;
    }
    free(name);
    return count <= most ? count : 0;
}
