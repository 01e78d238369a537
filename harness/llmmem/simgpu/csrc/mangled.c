#include "mangled.h"

#include <ctype.h>
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

/* Where the type at p ends, NULL if it is not understood. Sets what kind of parameter it makes. */
static const char *skip_type(const char *p, sim_parameter *kind);

static const char *skip_identifier(const char *p) {
    char *end;
    unsigned long length = strtoul(p, &end, 10);
    return length <= strlen(end) ? end + length : NULL;
}

/* A literal ("Li4E", "Lb0E"): its end is the next E. */
static const char *skip_literal(const char *p) {
    p = strchr(p, 'E');
    return p ? p + 1 : NULL;
}

/* The E that closes what was opened before p: names, template arguments, expressions. */
static const char *skip_to_close(const char *p) {
    sim_parameter ignored;
    while (p && *p && *p != 'E') {
        if (*p == 'L')
            p = skip_literal(p);
        else if (*p == 'I' || *p == 'J' || *p == 'X' || *p == 'N')
            p = skip_to_close(p + 1);
        else
            p = skip_type(p, &ignored);
    }
    return p && *p == 'E' ? p + 1 : NULL;
}

/* S_ S0_ S1A_ T_ T12_ */
static const char *skip_reference(const char *p) {
    p++;
    while (isdigit((unsigned char)*p) || isupper((unsigned char)*p)) p++;
    return *p == '_' ? p + 1 : NULL;
}

static const char *skip_type(const char *p, sim_parameter *kind) {
    *kind = SIM_STRUCT;
    if (*p == 'P' || *p == 'R') {
        sim_parameter ignored;
        *kind = p[1] == 'K' ? SIM_CONST_POINTER : SIM_POINTER;
        return skip_type(p + (p[1] == 'K' ? 2 : 1), &ignored);
    }
    if (*p == 'K' || *p == 'V') return skip_type(p + 1, kind);
    if (starts(p, "Dp")) return skip_type(p + 2, kind); /* a pack, which counts as one */
    if (starts(p, "St")) {
        p = skip_identifier(p + 2);
        return p && *p == 'I' ? skip_to_close(p + 1) : p;
    }
    if (*p == 'S' || *p == 'T') {
        p = skip_reference(p);
        return p && *p == 'I' ? skip_to_close(p + 1) : p;
    }
    if (*p == 'N') return skip_to_close(p + 1);
    if (isdigit((unsigned char)*p)) {
        p = skip_identifier(p);
        return p && *p == 'I' ? skip_to_close(p + 1) : p;
    }
    if (islower((unsigned char)*p)) {
        *kind = SIM_VALUE;
        return p + 1;
    }
    return NULL;
}

/* A structure over constant elements (TensorInfo<const float, int>: "...IKf...") is only read, and so is
 * the state of random numbers. */
static bool is_only_read(const char *from, const char *to) {
    static const char random[] = "PhiloxCudaState";
    for (const char *p = from; p + 1 < to; p++)
        if ((p[0] == 'I' && p[1] == 'K') || starts(p, random)) return true;
    return false;
}

static size_t read_list(const char *p, sim_parameter *parameters, size_t most) {
    size_t count = 0;
    if (*p == 'v') p++; /* what a template returns */
    while (p && *p) {
        if (count == most) return 0;
        const char *from = p;
        p = skip_type(p, &parameters[count]);
        if (p && parameters[count] == SIM_STRUCT && is_only_read(from, p)) parameters[count] = SIM_CONST_POINTER;
        count++;
    }
    return p ? count : 0;
}

/* The parameters come last, after the name: the first place from which the rest reads as a list of
 * types. Inside the name there is none, as what it has opened is still to be closed. */
size_t sim_read_parameters(const char *mangled, sim_parameter *parameters, size_t most) {
    const char *p = mangled;
    if (starts(p, "_Z") && isdigit((unsigned char)p[2])) {
        p = skip_identifier(p + 2);
        size_t count = p && *p != 'I' ? read_list(p, parameters, most) : 0;
        if (count) return count;
        p = mangled;
    }
    for (p = strchr(p, 'E'); p; p = strchr(p + 1, 'E')) {
        size_t count = read_list(p + 1, parameters, most);
        if (count) return count;
    }
    return 0;
}
