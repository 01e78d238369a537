/* A call of PyTorch's own CPU kernel on copies of the inputs. */
#pragma once

#include "observer/inputs.hpp"
#include "observer/plan.hpp"

#include <ATen/core/ivalue.h>
#include <ATen/ops/empty_strided.h>

#include <optional>
#include <utility>
#include <vector>

namespace {

Tensor scratch_like(const Tensor &t) {
    return at::empty_strided(t.sizes(), t.strides(), t.options().device(c10::kCPU).pinned_memory(false));
}

/* Zeros stand for unknown values if the caller allows them. */
Host known_or_zero(const Tensor &t, bool zeros) {
    Host host = on_host(t);
    if (host.state != State::unknown) return host;
    if (!zeros) throw Unknown{};
    return {host.values.defined() ? host.values : constant_of(t, 0), {}, State::guess};
}

/* The arguments of a call, copied to the host. */
struct HostCall {
    std::vector<IValue> values;
    std::vector<std::pair<Tensor, Tensor>> written; /* each on the device, with its copy */
    State state = State::known;
    bool constant = true; /* each tensor repeats one value */
    bool small = true;
};

Tensor argument(HostCall &call, const Tensor &t, bool is_written, bool is_read, bool zeros) {
    if (!is_read && t.is_cuda()) {
        if (!is_small(t)) call.small = false;
        Tensor host = call.small ? scratch_like(t) : Tensor();
        if (!host.defined()) throw Unknown{};
        call.written.emplace_back(t, host);
        call.constant = false;
        return host;
    }
    Host host = known_or_zero(t, zeros);
    call.state = less_known(call.state, host.state);
    call.constant &= is_constant(host.values);
    call.small &= is_small(t);
    if (is_written && t.is_cuda()) {
        if (!is_small(t)) throw Unknown{};
        Tensor own = scratch_like(t);
        own.copy_(host.values);
        call.written.emplace_back(t, own);
        call.constant = false;
        return own;
    }
    return host.values;
}

IValue to_host(HostCall &call, const IValue &value, bool is_written, bool is_read, bool zeros) {
    auto convert = [&](const Tensor &t) { return argument(call, t, is_written, is_read, zeros); };
    if (value.isTensor()) return value.toTensor().defined() ? IValue(convert(value.toTensor())) : value;
    if (value.isDevice()) return c10::Device(c10::kCPU);
    if (value.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor &t : value.toTensorVector()) list.push_back(convert(t));
        return list;
    }
    if (value.isList()) {
        bool holds_tensors = false;
        each_tensor(value, [&](const Tensor &) { holds_tensors = true; });
        if (!holds_tensors) return value;
        c10::List<std::optional<Tensor>> list;
        for (const IValue &item : value.toListRef())
            list.push_back(item.isTensor() && item.toTensor().defined() ? std::optional<Tensor>(convert(item.toTensor())) : std::nullopt);
        return list;
    }
    return value;
}

HostCall to_host(const Operator &op, c10::ArrayRef<const IValue> inputs, bool zeros) {
    HostCall call;
    for (size_t i = 0; i < inputs.size(); i++) {
        bool is_written = i < op.written.size() && op.written[i];
        bool is_read = !(i < op.only_written.size() && op.only_written[i]);
        call.values.push_back(to_host(call, inputs[i], is_written, is_read, zeros));
    }
    return call;
}

/* Shrink tensors that repeat one value to one element: enough for a pointwise operator. */
void collapse(HostCall &call) {
    for (IValue &value : call.values) {
        if (!value.isTensor() || !value.toTensor().defined() || !value.toTensor().dim()) continue;
        Tensor t = value.toTensor();
        value = t.numel() ? t.as_strided(std::vector<int64_t>(t.dim(), 1), std::vector<int64_t>(t.dim(), 1)) : t;
    }
}

/* Run the CPU kernel; false if it does not take this type. */
bool run_on_cpu(const Operator &op, HostCall &call, int type) {
    if (op.refused.count(type)) return false;
    try {
        op.handle->callBoxed(call.values);
        return true;
    } catch (const std::exception &) {
        const_cast<Operator &>(op).refused.insert(type);
        return false;
    }
}

Plan follow(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen, bool zeros) {
    HostCall call = to_host(op, inputs, zeros);
    bool is_reduced = op.rule == Rule::any_ || op.rule == Rule::all_;
    if (!call.small) {
        if (!call.constant || !(is_pointwise(op) || is_reduced)) return nullptr;
        collapse(call);
    }
    if (!run_on_cpu(op, call, static_cast<int>(seen.type))) return nullptr;
    Plan plan = planned(op, call.state);
    plan->results = std::move(call.values);
    plan->written = std::move(call.written);
    return plan;
}

} // namespace
