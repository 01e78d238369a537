/* The values of tensors on the device, read from the store and written to it (values.h). */
#pragma once

#include "observer/tensors.hpp"
#include "values/values.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

enum class State { unknown, guess, known };

State less_known(State a, State b) { return std::min(a, b); }

/* The values of a tensor, zero where unknown. */
struct Host {
    Tensor values; /* undefined if nothing is known */
    Tensor marks;  /* of each element (values.h); undefined if all have the same */
    State state = State::unknown; /* of the least known element */
};

State state_of_marks(const unsigned char *marks, size_t n) {
    if (std::memchr(marks, SIM_NO_VALUE, n)) return State::unknown;
    return std::memchr(marks, SIM_GUESSED, n) ? State::guess : State::known;
}

unsigned char mark_of(State state) {
    return state == State::unknown ? SIM_NO_VALUE : state == State::guess ? SIM_GUESSED : SIM_KNOWN;
}

/* Read what is known of a tensor on the device. A large tensor is known only if it repeats one value. */
Host read(const Tensor &t) {
    size_t width = t.element_size(), elements = extent_of(t), n = elements * width;
    auto options = t.options().device(c10::kCPU).pinned_memory(false);
    if (!n) return {at::empty(t.sizes(), options), {}, State::known};
    uint64_t value = 0;
    bool guessed = false;
    switch (sim_values_know(address_of(t), n, width, &value, &guessed)) {
        case SIM_UNKNOWN: return {};
        case SIM_CONSTANT: return {constant_of(t, value), {}, guessed ? State::guess : State::known};
        default: break;
    }
    if (!is_small(t)) return {};
    Tensor flat = at::empty({static_cast<int64_t>(elements)}, options);
    std::vector<unsigned char> bytes(n);
    sim_values_read(address_of(t), flat.mutable_data_ptr(), bytes.data(), n);
    Host host{laid_out_like(t, flat), {}, state_of_marks(bytes.data(), n)};
    if (host.state == State::known) return host;
    Tensor marks = at::empty({static_cast<int64_t>(elements)}, options.dtype(c10::kByte));
    for (size_t i = 0; i < elements; i++) marks.mutable_data_ptr<uint8_t>()[i] = bytes[i * width];
    Tensor own = laid_out_like(t, marks).contiguous(); /* without the gaps between elements */
    host.state = state_of_marks(own.const_data_ptr<uint8_t>(), own.numel());
    if (host.state == State::unknown) host.marks = own;
    return host;
}

void forget(const Tensor &t) {
    if (is_on_device(t) && has_memory(t) && t.numel()) sim_values_forget(address_of(t), extent_of(t) * t.element_size());
}

/* Write element by element: memory between the elements of a strided tensor keeps its values. */
void write_each(const Tensor &t, const Tensor &values, const Tensor &marks) {
    size_t width = t.element_size(), elements = extent_of(t), n = elements * width;
    constexpr unsigned char UNTOUCHED = 255;
    Tensor flat = at::empty({static_cast<int64_t>(elements)}, values.options());
    Tensor flat_marks = at::full({static_cast<int64_t>(elements)}, UNTOUCHED, values.options().dtype(c10::kByte));
    std::vector<unsigned char> bytes(n);
    sim_values_read(address_of(t), flat.mutable_data_ptr(), bytes.data(), n);
    laid_out_like(t, flat).copy_(values);
    laid_out_like(t, flat_marks).copy_(marks);
    for (size_t i = 0; i < elements; i++) {
        unsigned char mark = flat_marks.const_data_ptr<uint8_t>()[i];
        if (mark != UNTOUCHED) std::memset(&bytes[i * width], mark, width);
    }
    sim_values_store_known(address_of(t), flat.const_data_ptr(), bytes.data(), n);
}

/* Forget the tensor's values instead if the new ones are unknown, too large or of another shape. */
void write(const Tensor &t, Host host) {
    if (!is_on_device(t) || !has_memory(t) || !t.numel()) return;
    size_t width = t.element_size(), n = extent_of(t) * width;
    bool fits = host.values.defined() && host.values.sizes() == t.sizes() && (host.marks.defined() || host.state != State::unknown);
    if (!fits) {
        forget(t);
        return;
    }
    if (!host.marks.defined() && is_constant(host.values) && is_dense(t)) {
        Tensor one = host.values.as_strided({}, {}).to(t.scalar_type());
        sim_values_fill(address_of(t), n, one.const_data_ptr(), width, mark_of(host.state));
        return;
    }
    if (host.values.scalar_type() != t.scalar_type()) host.values = host.values.to(t.scalar_type());
    if (!is_small(t))
        forget(t);
    else if (host.marks.defined() || !is_dense(t))
        write_each(t, host.values, host.marks.defined() ? host.marks : at::full({}, mark_of(host.state), at::kByte));
    else {
        Tensor flat = at::empty_strided(t.sizes(), t.strides(), host.values.options());
        flat.copy_(host.values);
        sim_values_store(address_of(t), flat.const_data_ptr(), n, mark_of(host.state));
    }
}

/* Thrown if an argument is unknown, or known in part only. */
struct Unknown {};

Host on_host(const Tensor &t) {
    if (t.is_cuda()) return has_values(t.scalar_type()) ? read(t) : Host{};
    if (!t.is_cpu() || !has_memory(t)) throw Unknown{};
    return {t, {}, State::known};
}

} // namespace
