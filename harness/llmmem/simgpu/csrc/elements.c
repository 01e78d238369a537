#include "elements.h"

#include <string.h>

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

static sim_value arithmetic(sim_operation operation, sim_value a, sim_value b, sim_value factor) {
    bool inexact = a.real || b.real || factor.real;
    if (!a.known || !b.known) return (sim_value){0};
    if (operation == SIM_ADD)
        return inexact ? real(a.number + factor.number * b.number) : integer(a.integer + factor.integer * b.integer);
    if (operation == SIM_MULTIPLY) return inexact ? real(a.number * b.number) : integer(a.integer * b.integer);
    if (inexact || b.integer == 0) return (sim_value){0};
    int64_t quotient = a.integer / b.integer;
    bool down = a.integer % b.integer != 0 && (a.integer < 0) != (b.integer < 0);
    return integer(quotient - down);
}

sim_value sim_combine(const sim_effect *e, const sim_functor *f, sim_value a, sim_value b, bool same_tensor) {
    switch (e->operation) {
        case SIM_COPY: return a;
        case SIM_EQUALITY: return equality(f->mode, a, b, same_tensor);
        case SIM_ORDER: return order(f->mode, a, b);
        case SIM_AND: return integer(a.integer & b.integer);
        case SIM_OR: return integer(a.integer | b.integer);
        case SIM_XOR: return integer(a.integer ^ b.integer);
        case SIM_NOT: return integer(e->input == SIM_BOOL ? !a.integer : ~a.integer);
        case SIM_LOGICAL_AND: return integer(sim_is_true(a) && sim_is_true(b));
        case SIM_LOGICAL_OR: return integer(sim_is_true(a) || sim_is_true(b));
        case SIM_LOGICAL_XOR: return integer(sim_is_true(a) != sim_is_true(b));
        case SIM_LOGICAL_NOT: return integer(!sim_is_true(a));
        case SIM_ADD:
        case SIM_MULTIPLY:
        case SIM_FLOOR_DIVIDE: return arithmetic(e->operation, a, b, f->factor);
        default: return (sim_value){0};
    }
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
    *f = (sim_functor){.factor = integer(1)};
    if (e->has_mode) {
        memcpy(&f->mode, bytes, sizeof f->mode);
        offset = sizeof f->mode;
    } else if (e->scalar != SIM_NO_SCALAR && e->operation != SIM_ADD) {
        offset = 1; /* the wrapped functor, which is empty */
    }
    if (e->scalar != SIM_NO_SCALAR) f->scalar = scalar_at(e->input, bytes, &offset);
    if (e->operation == SIM_ADD) f->factor = scalar_at(e->input, bytes, &offset);
    return offset ? offset : 1;
}

sim_value sim_fold(sim_operation operation, sim_value sum, sim_value next) {
    switch (operation) {
        case SIM_ANY: return integer(sim_is_true(sum) || sim_is_true(next));
        case SIM_ALL: return integer(sim_is_true(sum) && sim_is_true(next));
        case SIM_SUM: return arithmetic(SIM_ADD, sum, next, integer(1));
        case SIM_LARGEST: return order(1, next, sum).integer ? next : sum;
        default: return order(3, next, sum).integer ? next : sum;
    }
}

sim_value sim_fold_constant(sim_operation operation, sim_value v, size_t n) {
    if (operation == SIM_ANY) return integer(v.known && sim_is_true(v));
    if (operation == SIM_ALL) return integer(!v.known || sim_is_true(v));
    return operation == SIM_SUM ? arithmetic(SIM_MULTIPLY, v, integer((int64_t)n), integer(1)) : v;
}
