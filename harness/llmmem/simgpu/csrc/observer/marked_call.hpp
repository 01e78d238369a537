/* A call on values and, beside it, on the marks of their elements. */
#pragma once

#include "observer/host_call.hpp"
#include "values/values.h"

#include <ATen/core/ivalue.h>
#include <ATen/ops/full.h>

#include <string>
#include <utility>
#include <vector>

namespace {

/* The arguments of a call twice: tensors as values, and as the marks of these values. Running the operator on
 * both gives its output and the marks of that. */
struct MarkedCall {
    std::vector<IValue> values, marks; /* all arguments */
    bool any = false, small = true;
};

Tensor marks_of(const Host &host, const Tensor &t) {
    return host.marks.defined() ? host.marks : at::full({}, mark_of(host.state), at::kByte).expand(t.sizes());
}

std::pair<Tensor, Tensor> marked(MarkedCall &call, const Tensor &t) {
    Host host = on_host(t);
    if (!is_small(t)) call.small = false;
    if (host.values.defined()) call.any = true;
    return {host.values.defined() ? host.values : constant_of(t, 0), marks_of(host, t)};
}

bool selects_elements(const std::string &argument) { return argument == "index" || argument == "indices" || argument == "mask" || argument == "condition"; }

/* Throws Unknown if an index or a mask is not known. */
MarkedCall mark_call(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    MarkedCall call;
    HostCall selectors;
    for (size_t i = 0; i < inputs.size(); i++) {
        const std::string &name = op.handle->schema().arguments()[i].name();
        const IValue &value = inputs[i];
        if (selects_elements(name) || !(value.isTensor() || value.isTensorList())) {
            IValue same = to_host(selectors, value, false, true, false);
            call.values.push_back(same);
            /* A fill value is known, and marks are bytes. */
            bool fills = name == "value" && value.isScalar();
            call.any |= fills;
            bool is_type = name == "dtype" && value.isInt();
            call.marks.push_back(fills ? IValue(int64_t{SIM_KNOWN}) : is_type ? IValue(static_cast<int64_t>(c10::kByte)) : same);
        } else if (value.isTensor()) {
            auto [values, marks] = marked(call, value.toTensor());
            call.values.push_back(values);
            call.marks.push_back(marks);
        } else {
            c10::List<Tensor> values, marks;
            for (const Tensor &t : value.toTensorVector()) {
                auto [v, m] = marked(call, t);
                values.push_back(v);
                marks.push_back(m);
            }
            call.values.push_back(values);
            call.marks.push_back(marks);
        }
    }
    return call;
}

} // namespace
