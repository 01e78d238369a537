#include "kernels/parameters.h"


#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MOST 64

/* Demangle with the C++ library that PyTorch brings: it knows how compilers mangle names. */
static char *demangled(const char *mangled) {
    static char *(*demangle)(const char *, char *, size_t *, int *);
    if (!demangle) {
        void *library = dlopen("libstdc++.so.6", RTLD_LAZY);
        if (library) demangle = (char *(*)(const char *, char *, size_t *, int *))dlsym(library, "__cxa_demangle");
    }
    int status;
    return demangle ? demangle(mangled, NULL, NULL, &status) : NULL;
}

/* The parameter list of a demangled name: the text between the last parentheses. */
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

/* End the first type of a list. Returns the rest of the list, NULL after the last type. */
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

static bool is_written(const char *type) { return ends(type, "*") && !ends(type, " const*"); }

uint64_t sim_read_pointers(const char *mangled) {
    char *name = demangled(mangled);
    uint64_t pointers = 0;
    size_t i = 0;
    for (char *type = name ? parameters_of(name) : NULL; type && *type && i < MOST; i++) {
        char *next = cut_type(type);
        if (is_written(type)) pointers |= (uint64_t)1 << i;
        type = next;
    }
    free(name);
    return pointers;
}
