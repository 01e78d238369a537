/* What an operator's outputs will hold: planned when it begins, written when it ends. */
#pragma once

#include "observer/host_values.hpp"
#include "observer/operators.hpp"
#include "values/operators.h"

#include <ATen/core/ivalue.h>
#include <ATen/ops/full.h>
#include <ATen/record_function.h>

#include <memory>
#include <utility>
#include <vector>

namespace {

/* Hides the observer's own calls from observers, autograd, modes and transforms. */
struct Unobserved {
    at::DisableRecordFunctionGuard no_observer;
    c10::impl::ExcludeDispatchKeyGuard guard{c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                                             c10::autocast_dispatch_keyset | c10::python_ks |
                                             c10::DispatchKeySet(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) |
                                             c10::DispatchKeySet(c10::DispatchKey::FuncTorchDynamicLayerBackMode)};
};

/* The values of an operator's outputs, written to the device when the operator ends. */
struct PlannedOutputs : at::ObserverContext {
    const Operator *op = nullptr;
    State state = State::unknown;
    std::vector<IValue> results; /* on the host */
    Tensor marks;                /* of the only result, unless all elements have the same */
    std::vector<std::pair<Tensor, Tensor>> written; /* each argument on the device, with its values on the host */
    int64_t picks_of = -1, dimension = 0, low = 0; /* of picks and draws (picks.hpp) */
    bool answers = false; /* the operator's own read of a number is answered (operators.h) */
    ~PlannedOutputs() override {
        if (answers) sim_forget_answer();
    }
};

using Plan = std::unique_ptr<PlannedOutputs>;

Plan planned(const Operator &op, State state) {
    auto plan = std::make_unique<PlannedOutputs>();
    plan->op = &op;
    plan->state = state;
    return plan;
}

Plan answer(const Operator &op, State state, bool value) {
    Plan plan = planned(op, state);
    plan->results = {at::full({}, value, at::TensorOptions().dtype(c10::kBool))};
    return plan;
}

} // namespace
