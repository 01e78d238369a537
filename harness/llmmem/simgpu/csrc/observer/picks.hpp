/* Indices that an operator picks by unknown scores, or draws. */
#pragma once

#include "observer/host_values.hpp"
#include "observer/plan.hpp"
#include "values/operators.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

namespace {

/* Scores that rank unknown elements in the order in which they are picked (value_rules.py) and known ones by
 * their value: unknown scores become numbers between -1 and 0, unknown weights between 1 and 2. */
Tensor ranked(const Host &host, const Tensor &scores, int64_t dim, int64_t k, bool largest, bool are_weights) {
    int64_t n = scores.size(dim);
    Tensor rows = at::arange(scores.numel() / n).view(scores.select(dim, 0).sizes()).unsqueeze(dim);
    std::vector<int64_t> along(scores.dim(), 1);
    along[dim] = n;
    Tensor first = rows * (sim_picks_are_even() ? k : 0) + n / 2;
    Tensor rank = (at::arange(n).view(along) - first).remainder(n).to(c10::kDouble) / -double(n);
    if (are_weights) rank += 2;
    return at::where(host.marks.eq(SIM_NO_VALUE), largest ? rank : -rank, host.values.to(c10::kDouble));
}

/* Indices picked along a dimension. */
Plan pick(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    int at = argument_of(op, "dim");
    bool gives_one = op.handle->schema().returns().size() == 1;
    if (gives_one && op.name != "aten::argmax" && op.name != "aten::argmin" && op.name != "aten::argsort" && op.name != "aten::multinomial") return nullptr;
    const Tensor &scores = inputs[0].toTensor();
    Plan plan = planned(op, State::guess);
    bool of_all = at >= 0 && inputs[at].isNone();
    int64_t dim = at >= 0 && inputs[at].isInt() ? inputs[at].toInt() : -1;
    int64_t dims = std::max<int64_t>(scores.dim(), 1);
    plan->dimension = dim < 0 ? dim + dims : dim;
    plan->picks_of = of_all || !scores.dim() ? scores.numel() : scores.size(plan->dimension);
    bool are_weights = op.name == "aten::multinomial";
    if (!(are_weights || op.name == "aten::topk") || !is_small(scores)) return plan;
    Host host = read(scores);
    if (!host.marks.defined()) return plan;
    int64_t k = inputs[1].toInt();
    bool largest = are_weights || inputs[argument_of(op, "largest")].toBool();
    Tensor rank = ranked(host, scores, plan->dimension, k, largest, are_weights);
    Tensor indices = std::get<1>(rank.topk(std::min(k, rank.size(plan->dimension)), plan->dimension, largest));
    plan->picks_of = -1;
    if (are_weights) {
        plan->results = {indices};
        return plan;
    }
    plan->results = {host.values.gather(plan->dimension, indices), indices};
    plan->marks = host.marks.gather(plan->dimension, indices);
    return plan;
}

Plan draw(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    auto bound = [&](const char *name) -> std::optional<int64_t> {
        int at = argument_of(op, name);
        if (at < 0 || static_cast<size_t>(at) >= inputs.size() || !inputs[at].isInt()) return {};
        return inputs[at].toInt();
    };
    Plan plan = planned(op, State::guess);
    int64_t low = bound("low").value_or(bound("from").value_or(0));
    auto high = bound("high");
    if (!high) high = bound("to");
    if (!high) high = op.rule == Rule::permute_ ? bound("n") : std::optional<int64_t>();
    plan->low = low;
    plan->picks_of = high ? *high - low : 0;
    if (op.written[0]) plan->written.emplace_back(inputs[0].toTensor(), Tensor());
    return plan;
}

/* Even picks (value_rules.py): each row goes on where the one before it ended. */
Tensor picks_for(const PlannedOutputs &plan, const Tensor &out) {
    Tensor host = at::empty(out.sizes(), at::TensorOptions().dtype(c10::kLong));
    int64_t n = std::max<int64_t>(plan.picks_of, 1), k = 1, inner = 1;
    if (plan.op->rule == Rule::picks_ && out.dim()) {
        k = out.size(plan.dimension);
        for (int64_t d = plan.dimension + 1; d < out.dim(); d++) inner *= out.size(d);
    }
    auto *values = host.mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < out.numel(); i++) {
        int64_t row = i / (inner * k) * inner + i % inner, j = i / inner % k;
        values[i] = plan.low + (n / 2 + (sim_picks_are_even() ? row * k : 0) + j) % n;
    }
    return host;
}

Tensor draws_for(const PlannedOutputs &plan, const Tensor &out) {
    Tensor host = at::empty(out.sizes(), at::TensorOptions().dtype(c10::kLong));
    int64_t n = std::max<int64_t>(plan.picks_of, 1);
    for (int64_t i = 0; i < out.numel(); i++) host.mutable_data_ptr<int64_t>()[i] = plan.low + (n / 2 + i) % n;
    return host;
}

} // namespace
