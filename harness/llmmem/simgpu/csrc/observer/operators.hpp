/* PyTorch's operators: the rule of each (value_rules.py), and what its schema says of its arguments. */
#pragma once

#include "value_rules.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>

#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

struct Operator {
    std::string name;
    std::optional<c10::OperatorHandle> handle; /* none for operators that are not followed */
    Rule rule = Rule::ignore_;
    bool is_pytorchs = false;
    std::vector<bool> written, only_written; /* by argument */
    std::unordered_set<int> refused; /* types that the CPU kernel does not take */
};

bool overwrites_first(std::string_view name) {
    return name == "copy_" || name == "fill_" || name == "zero_" || name == "random_";
}

Rule rule_of(const c10::OperatorHandle &handle, std::string_view name) {
    auto found = RULES.find(name);
    if (found != RULES.end()) return found->second;
    /* A composite operator is followed through the operators that it calls. */
    bool is_composite = handle.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
    if (is_composite && !handle.hasKernelForDispatchKey(c10::DispatchKey::CUDA)) return Rule::ignore_;
    return handle.hasTag(at::Tag::nondeterministic_seeded) ? Rule::random_ : Rule::plain_;
}

Operator look_up(const at::RecordFunction &call) {
    Operator op;
    op.name = call.name();
    op.is_pytorchs = op.name.rfind("aten::", 0) == 0;
    auto name = call.operator_name();
    auto handle = name ? c10::Dispatcher::singleton().findOp(*name) : std::nullopt;
    if (!op.is_pytorchs || !handle || !handle->hasSchema()) return op;
    std::string_view bare = std::string_view(op.name).substr(std::strlen("aten::"));
    op.handle = handle;
    op.rule = rule_of(*handle, bare);
    for (const auto &argument : handle->schema().arguments()) {
        bool is_written = argument.alias_info() && argument.alias_info()->isWrite();
        op.written.push_back(is_written);
        op.only_written.push_back(is_written && argument.kwarg_only());
    }
    if (overwrites_first(bare)) op.only_written[0] = true;
    return op;
}

/* Keyed by the address of the name, which belongs to the schema; a program can remove its own operators. */
Operator *operator_of(const at::RecordFunction &call) {
    thread_local std::unordered_map<const char *, Operator> operators;
    const char *name = call.name();
    auto found = operators.find(name);
    if (found == operators.end() || found->second.name != name) {
        if (!call.operator_name()) return nullptr;
        found = operators.insert_or_assign(name, look_up(call)).first;
    }
    return &found->second;
}

bool is_pointwise(const Operator &op) { return op.handle->hasTag(at::Tag::pointwise); }

int argument_of(const Operator &op, const char *name) {
    auto found = op.handle->schema().argumentIndexWithName(name);
    return found ? *found : -1;
}

} // namespace
