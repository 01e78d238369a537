/* Operators whose outputs do not depend on unknown inputs: fills, and the scaler's search for infinities. */
#pragma once

#include "observer/host_call.hpp"

#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>

namespace {

/* The value is an argument, or follows from the operator's name. */
Plan fill(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    at::Scalar value = op.name.find("ones") != std::string::npos ? 1 : 0;
    int at = argument_of(op, "fill_value");
    if (at < 0) at = argument_of(op, "value");
    if (at >= 0 && inputs[at].isScalar())
        value = inputs[at].toScalar();
    else if (at >= 0) {
        Host host = on_host(inputs[at].toTensor());
        if (host.state == State::unknown) return nullptr;
        value = host.values.item();
    }
    if (value.isComplex()) return nullptr;
    Plan plan = planned(op, State::known);
    auto type = value.isFloatingPoint() ? c10::kDouble : c10::kLong;
    plan->results = {at::full({}, value, at::TensorOptions().dtype(type))};
    if (op.written.size() && op.written[0]) plan->written.emplace_back(inputs[0].toTensor(), plan->results[0].toTensor());
    return plan;
}

bool is_finite(const Tensor &host) {
    if (!host.defined() || !host.numel()) return true;
    return at::isfinite(is_constant(host) ? host.as_strided({}, {}) : host).all().item<bool>();
}

/* Reports known numbers that are not finite; unknown numbers are taken to be finite. */
Plan unscale(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    Plan plan = planned(op, State::known);
    each_tensor(inputs[0], [&](const Tensor &t) {
        Host host = read(t);
        if (plan->written.empty() && !is_finite(host.values)) {
            plan->state = host.state == State::guess ? State::guess : State::known;
            plan->written.emplace_back(inputs[1].toTensor(), at::full({}, 1.0, at::TensorOptions().dtype(at::kFloat)));
        }
        forget(t);
    });
    return plan;
}

} // namespace
