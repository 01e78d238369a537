/* Computes known values with PyTorch's own CPU kernels.
 *
 * An observer of operators (at::RecordFunction) sees the inputs and outputs of each. Where all values that
 * an operator reads from the device are known (values.h), the observer calls the same operator on copies on
 * the host and writes the results to the simulated memory. A table that the trace shares has the rules for
 * operators that need more than that (llmmem/value_rules.py; here value_rules.h).
 *
 * The observer changes no dispatch; modes, compilers and other threads do not see it. operators.c loads it
 * as soon as a program that has PyTorch uses a device.
 */
#include "observer/observer.h"

#include "observer/constants.hpp"
#include "observer/data_dependent.hpp"
#include "observer/host_call.hpp"
#include "observer/inputs.hpp"
#include "observer/operators.hpp"
#include "observer/picks.hpp"
#include "observer/plan.hpp"
#include "observer/unknown_values.hpp"
#include "values/operators.h"

#include <ATen/record_function.h>

#include <exception>
#include <memory>

namespace {

/* The program is about to read integers or booleans, and may branch on them. */
void note_read(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    const Tensor &t = inputs[op.name == "aten::copy_" ? 1 : 0].toTensor();
    if (!is_on_device(t) || !has_memory(t) || !is_integral(t.scalar_type()) || !t.numel()) return;
    if (read(t).state != State::known) sim_note_guess(op.name.c_str());
}

bool goes_to_host(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    if (op.name == "aten::copy_") return !inputs[0].toTensor().is_cuda() && inputs[1].toTensor().is_cuda();
    if (op.name != "aten::_to_copy") return false;
    int at = argument_of(op, "device");
    return inputs[0].toTensor().is_cuda() && at >= 0 && inputs[at].isDevice() && inputs[at].toDevice().is_cpu();
}

bool comes_from_host(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    return !inputs[op.name == "aten::copy_" ? 1 : 0].toTensor().is_cuda();
}

void forget_written(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    for (size_t i = 0; i < inputs.size() && i < op.written.size(); i++)
        if (op.written[i]) each_tensor(inputs[i], forget);
}

Plan plan_for_unknown(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen) {
    switch (op.rule) {
        case Rule::equal_:
        case Rule::unequal_: return compare(op, inputs, seen);
        case Rule::order_: return follow(op, inputs, seen, true);
        case Rule::any_:
        case Rule::all_: return quantify(op, inputs, seen);
        case Rule::finite_: return answer(op, State::known, false);
        case Rule::shift_: return shift(op, inputs, seen);
        case Rule::pick_:
        case Rule::picks_: return pick(op, inputs);
        case Rule::weigh_: return seen.any_known ? mask_weights(op, inputs) : nullptr;
        case Rule::move_: return seen.any_known ? move(op, inputs) : nullptr;
        case Rule::copy_: { /* to bool: an unknown value equals nothing, so it is not zero */
            int at = op.name == "aten::_to_copy" ? argument_of(op, "dtype") : -1;
            bool to_bool = at >= 0 && inputs[at].isInt() && static_cast<c10::ScalarType>(inputs[at].toInt()) == c10::kBool;
            return to_bool && seen.type != c10::kBool ? answer(op, State::guess, true) : nullptr;
        }
        default: return nullptr;
    }
}

Plan followed(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen) {
    switch (op.rule) {
        case Rule::random_: return nullptr;
        case Rule::constant_: return fill(op, inputs);
        case Rule::unscale_: return unscale(op, inputs);
        case Rule::draw_:
        case Rule::permute_: return draw(op, inputs);
        case Rule::places_:
        case Rule::unique_:
        case Rule::same_: return find(op, inputs, seen);
        default: break;
    }
    try {
        if (seen.state != State::unknown) return follow(op, inputs, seen, false);
    } catch (const Unknown &) {
    }
    return plan_for_unknown(op, inputs, seen);
}

/* Whether a rule has nothing to say: true of most operators in a step, and cheaper than asking it. */
bool is_without_answer(const Operator &op, const Inputs &seen) {
    if (seen.state != State::unknown) return false;
    switch (op.rule) {
        case Rule::plain_: return true;
        case Rule::weigh_:
        case Rule::move_: return !seen.any_known;
        default: return false;
    }
}

Plan plan_for(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    if (op.rule == Rule::read_ || (op.rule == Rule::copy_ && goes_to_host(op, inputs))) {
        Unobserved unseen;
        if (op.name != "aten::_to_copy") note_read(op, inputs); /* which calls copy_ */
        return nullptr;
    }
    if (op.rule == Rule::copy_ && comes_from_host(op, inputs)) return nullptr; /* copies.c handles it */
    Inputs seen = survey(op, inputs);
    if (!seen.device || !seen.readable) return nullptr;
    if (is_without_answer(op, seen)) {
        forget_written(op, inputs);
        return nullptr;
    }
    Unobserved unseen; /* takes a microsecond: PyTorch rebuilds its list of observers */
    Plan plan = followed(op, inputs, seen);
    if (!plan) forget_written(op, inputs);
    return plan;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction &seen) {
    Operator *op = operator_of(seen);
    if (!op || !op->is_pytorchs) return nullptr;
    sim_enter_operator();
    if (op->rule == Rule::ignore_ || seen.inputs().empty() || sim_expects_answer()) return nullptr;
    try {
        return plan_for(*op, seen.inputs());
    } catch (const Unknown &) {
        forget_written(*op, seen.inputs());
    } catch (const std::exception &) { /* the CPU kernel refuses arguments that the CUDA kernel takes */
        forget_written(*op, seen.inputs());
    }
    return nullptr;
}

Tensor broadcast(const Tensor &values, const Tensor &like) {
    return values.defined() && values.sizes() != like.sizes() && values.numel() == 1 ? values.reshape({}).expand(like.sizes()) : values;
}

void write_output(const PlannedOutputs &plan, const Tensor &out, size_t index, size_t count) {
    if (!is_on_device(out) || !has_memory(out)) return;
    bool draws = plan.op->rule == Rule::draw_ || plan.op->rule == Rule::permute_;
    if (draws)
        write(out, {draws_for(plan, out), {}, State::guess});
    else if (plan.picks_of >= 0 && index + 1 == count)
        write(out, {picks_for(plan, out), {}, State::guess});
    else if (index < plan.results.size() && plan.results[index].isTensor()) {
        bool has_marks = plan.marks.defined() && index == 0;
        State state = plan.marks.defined() && index ? State::guess : plan.state; /* the indices picked */
        write(out, {broadcast(plan.results[index].toTensor(), out), has_marks ? plan.marks : Tensor(), state});
    }
}

void end(const at::RecordFunction &seen, at::ObserverContext *context) {
    Operator *op = operator_of(seen);
    if (op && op->is_pytorchs) sim_leave_operator();
    if (!context) return;
    auto &plan = static_cast<PlannedOutputs &>(*context);
    Unobserved unseen;
    const auto &returns = plan.op->handle->schema().returns();
    const auto &outs = seen.outputs();
    for (size_t i = 0; i < outs.size(); i++) {
        bool is_argument = i < returns.size() && returns[i].alias_info() && returns[i].alias_info()->isWrite();
        if (outs[i].isTensor() && !is_argument) write_output(plan, outs[i].toTensor(), i, outs.size());
        if (outs[i].isTensorList() && i < plan.results.size() && plan.results[i].isTensorList()) {
            auto given = outs[i].toTensorVector(), found = plan.results[i].toTensorVector();
            for (size_t j = 0; j < given.size() && j < found.size(); j++) write(given[j], {found[j], {}, plan.state});
        }
    }
    for (auto &[device, host] : plan.written)
        write(device, {host.defined() ? broadcast(host, device) : draws_for(plan, device), {}, plan.state});
}

} // namespace

void llmmem_observe(void) {
    at::addGlobalCallback(at::RecordFunctionCallback(begin, end)
                              .needsInputs(true)
                              .needsOutputs(true)
                              .scopes({at::RecordScope::FUNCTION}));
}
