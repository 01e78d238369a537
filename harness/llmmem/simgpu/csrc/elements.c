#include "elements.h"

#include <math.h>
#include <string.h>

/* What is not known is taken to be of ordinary size. Numbers from here on are what programs mask with. */
#define HUGE_NUMBER 1e8

static const sim_value unknown = {0};

static sim_value integer(int64_t i) { return (sim_value){true, false, i, (double)i}; }
static sim_value real(double d) { return (sim_value){true, true, (int64_t)d, d}; }

/* The upper half of a float. */
static float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* IEEE 754 binary16: 1 bit of sign, 5 of exponent (bias 15, against 127 of a float), 10 of mantissa. */
static float from_half(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits >> 15) << 31, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa / 16777216.0f; /* 2^24 */
    uint32_t wide = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Rounded to the nearest, as both narrow formats are: add half of what is cut off, less one if the last
 * bit that stays is even. */
static uint32_t rounded(uint32_t bits, int cut) { return bits + (1u << (cut - 1)) - 1 + (bits >> cut & 1); }

static uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7FC0;
    return (uint16_t)(rounded(bits, 16) >> 16);
}

static uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (value != value) return sign | 0x7E00;
    if (bits < 113u << 23) return sign | (uint16_t)(fabsf(value) * 16777216.0f + 0.5f); /* below 2^-14: units of 2^-24 */
    bits = rounded(bits, 13);
    if (bits >= 143u << 23) return sign | 0x7C00; /* 2^16 and above */
    return sign | (uint16_t)((bits - (112u << 23)) >> 13);
}

sim_value sim_load(sim_type type, const void *bytes) {
    switch (type) {
        case SIM_BOOL: return integer(*(const unsigned char *)bytes != 0);
        case SIM_UINT8: return integer(*(const uint8_t *)bytes);
        case SIM_INT8: return integer(*(const int8_t *)bytes);
        case SIM_INT16: return integer(*(const int16_t *)bytes);
        case SIM_INT32: return integer(*(const int32_t *)bytes);
        case SIM_INT64: return integer(*(const int64_t *)bytes);
        case SIM_FLOAT: return real(*(const float *)bytes);
        case SIM_DOUBLE: return real(*(const double *)bytes);
        case SIM_HALF: return real(from_half(*(const uint16_t *)bytes));
        case SIM_BFLOAT16: return real(from_bfloat16(*(const uint16_t *)bytes));
        default: return (sim_value){0};
    }
}

bool sim_store(sim_type type, sim_value v, void *bytes) {
    switch (type) {
        case SIM_BOOL: *(unsigned char *)bytes = v.real ? v.number != 0 : v.integer != 0; return true;
        case SIM_UINT8: *(uint8_t *)bytes = (uint8_t)v.integer; return true;
        case SIM_INT8: *(int8_t *)bytes = (int8_t)v.integer; return true;
        case SIM_INT16: *(int16_t *)bytes = (int16_t)v.integer; return true;
        case SIM_INT32: *(int32_t *)bytes = (int32_t)v.integer; return true;
        case SIM_INT64: *(int64_t *)bytes = v.integer; return true;
        case SIM_FLOAT: *(float *)bytes = (float)v.number; return true;
        case SIM_DOUBLE: *(double *)bytes = v.number; return true;
        case SIM_HALF: *(uint16_t *)bytes = to_half((float)v.number); return true;
        case SIM_BFLOAT16: *(uint16_t *)bytes = to_bfloat16((float)v.number); return true;
        default: return false;
    }
}

bool sim_is_true(sim_value v) { return v.real ? v.number != 0 : v.integer != 0; }

static sim_value equality(int mode, sim_value a, sim_value b, bool same_tensor) {
    bool equal = same_tensor;
    if (a.known && b.known) equal = a.real || b.real ? a.number == b.number : a.integer == b.integer;
    return integer(mode == 0 ? equal : !equal); /* EqOpType {EQ, NE} */
}

static sim_value order(int mode, sim_value a, sim_value b) {
    bool less = a.real || b.real ? a.number < b.number : a.integer < b.integer;
    bool more = a.real || b.real ? a.number > b.number : a.integer > b.integer;
    switch (mode) { /* OpType {GE, GT, LE, LT} */
        case 0: return integer(!less);
        case 1: return integer(more);
        case 2: return integer(!more);
        default: return integer(less);
    }
}

static bool is_zero(sim_value v) { return v.known && !sim_is_true(v); }
bool sim_is_huge(sim_value v) { return v.known && v.real && fabs(v.number) >= HUGE_NUMBER; }

static sim_value multiply(sim_value a, sim_value b) {
    if (is_zero(a)) return a;
    if (is_zero(b)) return b;
    if (!a.known || !b.known) return unknown;
    return a.real || b.real ? real(a.number * b.number) : integer(a.integer * b.integer);
}

static sim_value add(sim_value a, sim_value b) {
    if (!a.known || !b.known) return sim_is_huge(a) ? a : sim_is_huge(b) ? b : unknown;
    return a.real || b.real ? real(a.number + b.number) : integer(a.integer + b.integer);
}

/* Division of whole numbers, rounded down or towards zero, and its remainder (of the sign of b). */
static sim_value divide(sim_operation operation, sim_value a, sim_value b) {
    if (!a.known || !b.known || a.real || b.real || b.integer == 0) return unknown;
    if (b.integer == -1) return integer(operation == SIM_REMAINDER ? 0 : -a.integer);
    int64_t quotient = a.integer / b.integer, rest = a.integer % b.integer;
    bool down = rest != 0 && (rest < 0) != (b.integer < 0);
    if (operation == SIM_REMAINDER) return integer(down ? rest + b.integer : rest);
    return integer(operation == SIM_FLOOR_DIVIDE ? quotient - down : quotient);
}

static sim_value larger(sim_value a, sim_value b) { return a.known && b.known ? order(1, b, a).integer ? b : a : unknown; }
static sim_value smaller(sim_value a, sim_value b) { return a.known && b.known ? order(3, b, a).integer ? b : a : unknown; }

static sim_value both(sim_value a, sim_value b) {
    if (is_zero(a) || is_zero(b)) return integer(0);
    return a.known && b.known ? integer(1) : unknown;
}

static sim_value either(sim_value a, sim_value b) {
    if ((a.known && sim_is_true(a)) || (b.known && sim_is_true(b))) return integer(1);
    return a.known && b.known ? integer(0) : unknown;
}

static sim_value bitwise(const sim_effect *e, sim_value a, sim_value b) {
    bool one_bit = e->input == SIM_BOOL;
    if (one_bit && e->operation == SIM_AND) return both(a, b);
    if (one_bit && e->operation == SIM_OR) return either(a, b);
    if (e->operation == SIM_AND && (is_zero(a) || is_zero(b))) return integer(0);
    if (!a.known || !b.known) return unknown;
    if (e->operation == SIM_AND) return integer(a.integer & b.integer);
    return integer(e->operation == SIM_OR ? a.integer | b.integer : a.integer ^ b.integer);
}

/* To a yes or no: a number that is not known is not zero, as it equals nothing. */
static sim_value copy(const sim_effect *e, sim_value a) {
    bool becomes_bool = e->output == SIM_BOOL && e->input != SIM_BOOL;
    return becomes_bool && !a.known ? integer(1) : a;
}

sim_value sim_combine(const sim_effect *e, const sim_functor *f, sim_value a, sim_value b, bool same_tensor) {
    switch (e->operation) {
        case SIM_COPY: return copy(e, a);
        case SIM_EQUALITY: return equality(f->mode, a, b, same_tensor);
        case SIM_ORDER: return order(f->mode, a, b);
        case SIM_AND:
        case SIM_OR:
        case SIM_XOR: return bitwise(e, a, b);
        case SIM_LOGICAL_AND: return both(a, b);
        case SIM_LOGICAL_OR: return either(a, b);
        case SIM_ADD: return add(a, multiply(f->factor, b));
        case SIM_MULTIPLY: return multiply(a, b);
        case SIM_FLOOR_DIVIDE:
        case SIM_TRUNC_DIVIDE:
        case SIM_REMAINDER: return divide(e->operation, a, b);
        case SIM_LARGER: return larger(a, b);
        case SIM_SMALLER: return smaller(a, b);
        case SIM_MASKED_FILL: return sim_choose(b, f->scalar, a);
        default: break;
    }
    if (!a.known) return unknown;
    switch (e->operation) {
        case SIM_NOT: return integer(e->input == SIM_BOOL ? !a.integer : ~a.integer);
        case SIM_LOGICAL_NOT: return integer(!sim_is_true(a));
        case SIM_LOGICAL_XOR: return b.known ? integer(sim_is_true(a) != sim_is_true(b)) : unknown;
        case SIM_NEGATE: return a.real ? real(-a.number) : integer(-a.integer);
        case SIM_ABSOLUTE: return a.real ? real(fabs(a.number)) : integer(a.integer < 0 ? -a.integer : a.integer);
        default: return unknown;
    }
}

sim_value sim_choose(sim_value condition, sim_value yes, sim_value no) {
    if (condition.known) return sim_is_true(condition) ? yes : no;
    return yes.known && no.known && equality(0, yes, no, false).integer ? yes : unknown;
}

static sim_value scalar_at(sim_type type, const unsigned char *functor_bytes, size_t *offset) {
    size_t size = sim_type_size(type);
    if (!size) return (sim_value){0};
    *offset = (*offset + size - 1) / size * size;
    sim_value v = sim_load(type, functor_bytes + *offset);
    *offset += size;
    return v;
}

/* The fields of a functor lie in the order: comparison mode, scalar operand, factor of an addition;
 * one without fields takes a byte. Returns its size. */
size_t sim_read_functor(const sim_effect *e, const unsigned char *bytes, sim_functor *f) {
    size_t offset = 0;
    bool narrow = e->input == SIM_HALF || e->input == SIM_BFLOAT16;
    /* What is added or multiplied is kept as a float (PyTorch's opmath_t). */
    sim_type type = narrow && (e->operation == SIM_ADD || e->operation == SIM_MULTIPLY) ? SIM_FLOAT : e->input;
    *f = (sim_functor){.factor = integer(1)};
    if (e->has_mode) {
        memcpy(&f->mode, bytes, sizeof f->mode);
        offset = sizeof f->mode;
    } else if (e->scalar != SIM_NO_SCALAR && e->operation != SIM_ADD) {
        offset = 1; /* the wrapped functor, which is empty */
    }
    if (e->scalar != SIM_NO_SCALAR || e->operation == SIM_MASKED_FILL)
        f->scalar = scalar_at(type, bytes, &offset);
    if (e->operation == SIM_ADD) f->factor = scalar_at(type, bytes, &offset);
    return offset ? offset : 1;
}

sim_value sim_first_of_fold(sim_operation operation, sim_value first) {
    if (operation == SIM_ANY) return integer(first.known && sim_is_true(first));
    if (operation == SIM_ALL) return integer(!is_zero(first));
    return first;
}

sim_value sim_fold(sim_operation operation, sim_value sum, sim_value next) {
    switch (operation) {
        case SIM_ANY: return integer(sim_is_true(sum) || (next.known && sim_is_true(next)));
        case SIM_ALL: return integer(sim_is_true(sum) && !is_zero(next));
        case SIM_SUM: return add(sum, next);
        case SIM_LARGEST: return larger(sum, next);
        default: return smaller(sum, next);
    }
}

sim_value sim_fold_constant(sim_operation operation, sim_value v, size_t n) {
    if (operation == SIM_ANY || operation == SIM_ALL) return sim_first_of_fold(operation, v);
    return operation == SIM_SUM ? multiply(v, integer((int64_t)n)) : v;
}
