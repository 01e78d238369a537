/* The inputs of a call, looked at without copying anything. */
#pragma once

#include "observer/host_values.hpp"
#include "observer/operators.hpp"

#include <ATen/core/ivalue.h>

namespace {

/* What decides whether a call can be followed. */
struct Inputs {
    bool device = false;     /* a tensor is on the device, or the output will be */
    bool readable = true;    /* no tensor on the device is of a kind whose values cannot be known */
    bool any_known = false;  /* at least one tensor is known, at least in part */
    State state = State::known; /* unknown if a tensor is, or may be in part */
    c10::ScalarType type = c10::ScalarType::Undefined;
};

template <typename Use> void each_tensor(const IValue &value, const Use &use) {
    if (value.isTensor()) {
        if (value.toTensor().defined()) use(value.toTensor());
    } else if (value.isTensorList() || value.isOptionalTensorList() || value.isList()) {
        for (const IValue &item : value.toListRef())
            if (item.isTensor() && item.toTensor().defined()) use(item.toTensor());
    }
}

bool is_simulated_device(const IValue &value) { return value.isDevice() && value.toDevice().is_cuda(); }

Inputs survey(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    Inputs seen;
    for (size_t i = 0; i < inputs.size(); i++) {
        /* One unknown input makes the outputs of a plain operator unknown. */
        if (op.rule == Rule::plain_ && seen.device && seen.state == State::unknown) break;
        seen.device |= is_simulated_device(inputs[i]);
        bool is_read = i >= op.only_written.size() || !op.only_written[i];
        each_tensor(inputs[i], [&](const Tensor &t) {
            if (!has_memory(t)) seen.readable = false;
            if (!t.is_cuda() || !seen.readable) return;
            seen.device = true;
            if (!is_read) return;
            seen.type = t.scalar_type();
            if (!has_values(t.scalar_type())) seen.state = State::unknown;
            if (!has_values(t.scalar_type()) || !t.numel()) return;
            uint64_t value;
            bool guessed = false;
            auto found = sim_values_know(address_of(t), extent_of(t) * t.element_size(), t.element_size(), &value, &guessed);
            bool is_known = found == SIM_CONSTANT || (found == SIM_VARIED && is_small(t));
            seen.any_known |= is_known;
            if (!is_known) seen.state = State::unknown;
        });
    }
    return seen;
}

} // namespace
