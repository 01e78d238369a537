/* What follows from values that are not known. */
#pragma once

#include "observer/marked_call.hpp"

#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <optional>

namespace {

/* Programs mask scores by adding numbers this large: any unknown number is small beside them. */
constexpr double HUGE_NUMBER = 1e8;

/* The value of a scalar, or of a tensor with one element, if it is known. */
std::optional<double> number(const IValue &value) {
    if (value.isScalar()) return value.toScalar().isComplex() ? std::optional<double>() : value.toScalar().toDouble();
    if (!value.isTensor() || !value.toTensor().defined() || !has_values(value.toTensor().scalar_type())) return {};
    Tensor t = value.toTensor();
    if (t.numel() != 1) return {};
    if (!t.is_cuda()) return t.is_cpu() ? std::optional<double>(t.item().toDouble()) : std::nullopt;
    Host host = read(t);
    return host.state == State::unknown ? std::optional<double>() : host.values.item().toDouble();
}

/* Elements keep their marks when they are moved. */
Plan move(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    MarkedCall call = mark_call(op, inputs);
    if (!call.any || !call.small) return nullptr;
    op.handle->callBoxed(call.values);
    op.handle->callBoxed(call.marks);
    Plan plan = planned(op, State::unknown);
    plan->results = {call.values[0]};
    plan->marks = call.marks[0].toTensor();
    return plan;
}

/* A sum with a huge number is known; any other sum, where both terms are. */
Plan shift(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen) {
    if (!inputs[0].isTensor() || op.written[0]) return nullptr;
    const Tensor &a = inputs[0].toTensor();
    auto n = number(inputs[1]);
    bool is_huge = n && std::fabs(*n) >= HUGE_NUMBER;
    if (is_huge && !is_small(a)) {
        Plan plan = planned(op, State::known);
        bool subtracts = op.name.find("sub") != std::string::npos;
        plan->results = {at::full({}, subtracts ? -*n : *n, at::TensorOptions().dtype(c10::kDouble))};
        return plan;
    }
    if (!inputs[1].isTensor() && !is_huge) return nullptr;
    /* Return early for most sums: two unknown tensors on the device. */
    if (!is_huge && !seen.any_known && is_on_device(a) && is_on_device(inputs[1].toTensor())) return nullptr;
    MarkedCall call = mark_call(op, inputs);
    if ((!call.any && !is_huge) || !call.small) return nullptr;
    Tensor marks = call.marks[0].toTensor().eq(SIM_NO_VALUE).logical_not(), huge = call.values[0].toTensor().abs().ge(HUGE_NUMBER);
    if (inputs[1].isTensor()) {
        marks = marks & call.marks[1].toTensor().eq(SIM_NO_VALUE).logical_not();
        huge = huge | call.values[1].toTensor().abs().ge(HUGE_NUMBER);
    } else if (is_huge)
        huge = at::full_like(huge, true);
    op.handle->callBoxed(call.values);
    Plan plan = planned(op, State::unknown);
    plan->results = {call.values[0]};
    plan->marks = (marks | huge).to(c10::kByte);
    return plan;
}

/* Masked scores get the weight zero. */
Plan mask_weights(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    const Tensor &scores = inputs[0].toTensor();
    Host host = is_small(scores) ? read(scores) : Host{};
    if (!host.marks.defined()) return nullptr;
    Plan plan = planned(op, State::unknown);
    plan->results = {at::zeros_like(host.values)};
    plan->marks = host.values.le(-HUGE_NUMBER).to(c10::kByte);
    return plan;
}

/* An unknown value equals nothing but itself. */
Plan compare(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen) {
    bool differs = op.rule == Rule::unequal_;
    if (inputs[0].isTensor() && inputs[1].isTensor() && is_same(inputs[0].toTensor(), inputs[1].toTensor())) return answer(op, State::known, !differs);
    for (size_t i = 0; i < 2; i++)
        if (auto n = number(inputs[i]); n && !std::isfinite(*n) && !seen.any_known) return answer(op, State::known, differs);
    if (!seen.any_known || !inputs[0].isTensor()) return answer(op, State::guess, differs);
    MarkedCall call = mark_call(op, inputs);
    if (!call.any || !call.small || op.name == "aten::isin") return answer(op, State::guess, differs);
    Tensor unknown = call.marks[0].toTensor().eq(SIM_NO_VALUE);
    if (inputs[1].isTensor()) unknown = unknown | call.marks[1].toTensor().eq(SIM_NO_VALUE);
    op.handle->callBoxed(call.values);
    Plan plan = planned(op, State::guess);
    plan->results = {call.values[0].toTensor().masked_fill(unknown, differs)};
    return plan;
}

/* any takes unknown elements for false, all for true. */
Plan quantify(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen) {
    bool all = op.rule == Rule::all_;
    if (!seen.any_known) return answer(op, State::guess, all);
    MarkedCall call = mark_call(op, inputs);
    if (!call.any || !call.small) return answer(op, State::guess, all);
    call.values[0] = call.values[0].toTensor().ne(0).masked_fill(call.marks[0].toTensor().eq(SIM_NO_VALUE), all);
    op.handle->callBoxed(call.values);
    Plan plan = planned(op, State::guess);
    plan->results = {call.values[0]};
    return plan;
}

} // namespace
