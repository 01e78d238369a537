#include "collectives/reductions.h"


#include <string.h>

typedef enum { SIGNED, UNSIGNED, FLOATING } number_class;

typedef struct {
    const char *name;
    unsigned char size;
    number_class class;
    /* Of a float that C has no type for. One that saturates takes its largest number for all above. */
    unsigned char exponent_bits, mantissa_bits;
    uint16_t largest; /* finite one, as bits */
    bool has_infinity, saturates;
} number_type;

static const number_type types[] = {
    {"int8", 1, SIGNED, 0, 0, 0, false, false},
    {"uint8", 1, UNSIGNED, 0, 0, 0, false, false},
    {"int32", 4, SIGNED, 0, 0, 0, false, false},
    {"uint32", 4, UNSIGNED, 0, 0, 0, false, false},
    {"int64", 8, SIGNED, 0, 0, 0, false, false},
    {"uint64", 8, UNSIGNED, 0, 0, 0, false, false},
    {"float16", 2, FLOATING, 5, 10, 0x7BFF, true, false},
    {"float32", 4, FLOATING, 0, 0, 0, false, false},
    {"float64", 8, FLOATING, 0, 0, 0, false, false},
    {"bfloat16", 2, FLOATING, 8, 7, 0x7F7F, true, false},
    {"float8_e4m3", 1, FLOATING, 4, 3, 0x7E, false, true},
    {"float8_e5m2", 1, FLOATING, 5, 2, 0x7B, true, true},
};

typedef union {
    uint64_t whole; /* wraps, signed or not */
    double real;
} number;

static bool exists(int type) { return type >= 0 && type < (int)(sizeof types / sizeof *types); }

size_t sim_element_size(int type) { return exists(type) ? types[type].size : 0; }
const char *sim_type_name(int type) { return exists(type) ? types[type].name : "unknown type"; }

/* ---- narrow floats --------------------------------------------------------------------------------- */

static double power_of_two(int exponent) {
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

static int bias(const number_type *t) { return (1 << (t->exponent_bits - 1)) - 1; }
static unsigned sign_bit(const number_type *t) { return 1u << (t->exponent_bits + t->mantissa_bits); }

static double widen(const number_type *t, unsigned bits) {
    unsigned magnitude = bits & (sign_bit(t) - 1), exponent = magnitude >> t->mantissa_bits;
    unsigned mantissa = magnitude & ((1u << t->mantissa_bits) - 1);
    double sign = bits & sign_bit(t) ? -1 : 1;
    if (magnitude > t->largest) return mantissa || !t->has_infinity ? __builtin_nan("") : sign * __builtin_inf();
    if (exponent) mantissa += 1u << t->mantissa_bits;
    return sign * mantissa * power_of_two((exponent ? (int)exponent : 1) - bias(t) - t->mantissa_bits);
}

/* To the nearest, and of two that are as near to the even one. */
static unsigned narrow(const number_type *t, double value) {
    uint64_t wide;
    memcpy(&wide, &value, sizeof wide);
    unsigned sign = wide >> 63 ? sign_bit(t) : 0;
    if (value != value) return sign | (sign_bit(t) - 1);
    double magnitude = sign ? -value : value;
    int smallest = 1 - bias(t), exponent = (int)(wide >> 52 & 2047) - 1023;
    unsigned beyond = t->saturates ? t->largest : t->largest + 1u; /* infinity */
    if (exponent > bias(t) + 1) return sign | beyond;
    if (exponent < smallest) exponent = smallest;
    double steps = magnitude / power_of_two(exponent - t->mantissa_bits);
    steps = (steps + 0x1p52) - 0x1p52;
    unsigned bits = ((unsigned)(exponent - smallest) << t->mantissa_bits) + (unsigned)steps;
    return sign | (bits > t->largest ? beyond : bits);
}

/* ---- elements -------------------------------------------------------------------------------------- */

static number load(const number_type *t, const unsigned char *at) {
    number n = {0};
    if (t->exponent_bits) {
        unsigned bits = 0;
        memcpy(&bits, at, t->size);
        n.real = widen(t, bits);
    } else if (t->class == FLOATING && t->size == sizeof(float)) {
        float value;
        memcpy(&value, at, sizeof value);
        n.real = (double)value;
    } else {
        memcpy(&n, at, t->size); /* little-endian */
        unsigned unused = 64 - 8u * t->size;
        if (t->class == SIGNED) n.whole = (uint64_t)((int64_t)(n.whole << unused) >> unused);
    }
    return n;
}

static void store(const number_type *t, number n, unsigned char *at) {
    if (t->exponent_bits) {
        unsigned bits = narrow(t, n.real);
        memcpy(at, &bits, t->size);
    } else if (t->class == FLOATING && t->size == sizeof(float)) {
        float value = (float)n.real;
        memcpy(at, &value, sizeof value);
    } else {
        memcpy(at, &n, t->size);
    }
}

static bool is_less(const number_type *t, number a, number b) {
    if (t->class == FLOATING) return a.real < b.real;
    return t->class == SIGNED ? (int64_t)a.whole < (int64_t)b.whole : a.whole < b.whole;
}

static number multiply(const number_type *t, number a, number b) {
    return t->class == FLOATING ? (number){.real = a.real * b.real} : (number){.whole = a.whole * b.whole};
}

static number fold(const number_type *t, sim_reduction reduction, number a, number b) {
    switch (reduction) {
        case SIM_RED_PRODUCT: return multiply(t, a, b);
        case SIM_RED_MAX: return is_less(t, a, b) ? b : a;
        case SIM_RED_MIN: return is_less(t, b, a) ? b : a;
        default: return t->class == FLOATING ? (number){.real = a.real + b.real} : (number){.whole = a.whole + b.whole};
    }
}

static number divide(const number_type *t, number sum, int ranks) {
    if (t->class == FLOATING) return (number){.real = sum.real / ranks};
    return (number){.whole = t->class == SIGNED ? (uint64_t)((int64_t)sum.whole / ranks) : sum.whole / (uint64_t)ranks};
}

void sim_reduce(int type, sim_reduction reduction, const unsigned char *const *inputs, size_t offset, int ranks,
                size_t count, unsigned char *out) {
    const number_type *t = &types[type];
    for (size_t i = 0; i < count; i++) {
        size_t at = offset + i * t->size;
        number result = load(t, inputs[0] + at);
        for (int rank = 1; rank < ranks; rank++) result = fold(t, reduction, result, load(t, inputs[rank] + at));
        if (reduction == SIM_RED_AVERAGE) result = divide(t, result, ranks);
        store(t, result, out + i * t->size);
    }
}

void sim_scale(int type, const void *factor, unsigned char *elements, size_t count) {
    const number_type *t = &types[type];
    number by = load(t, factor);
    for (size_t i = 0; i < count; i++, elements += t->size) store(t, multiply(t, load(t, elements), by), elements);
}
