/* Follows known values through PyTorch's operators, with PyTorch's own CPU kernels.
 *
 * An observer of operators (at::RecordFunction) sees the inputs and outputs of each. Where all that an
 * operator reads from the device is known (values.h), the same operator is called on copies on the host,
 * and the results are written to the simulated memory. What holds for operators of which that is not
 * enough is told by a table that the trace shares (llmmem/value_rules.py; here value_rules.h).
 *
 * The observer changes no dispatch and is seen by no mode, by no compiler and by no other thread. It is
 * loaded by operators.c as soon as a program that has PyTorch uses a device.
 */
#include "observer/observer.h"

#include "values/operators.h"
#include "values/values.h"
#include "value_rules.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/record_function.h>

#include <cmath>
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace {

using at::IValue;
using at::Tensor;

/* From here on a number is so large that what is not known is small beside it: what programs mask with. */
constexpr double HUGE_NUMBER = 1e8;

enum class State { unknown, guess, known };

State both(State a, State b) { return std::min(a, b); }

/* ---- operators ------------------------------------------------------------------------------------------- */

struct Operator {
    std::string name;
    std::optional<c10::OperatorHandle> handle; /* none of what is not followed */
    Rule rule = Rule::ignore_;
    bool is_pytorchs = false;
    std::vector<bool> written, only_written; /* by argument */
    std::unordered_set<int> refused; /* types that the CPU's kernel does not take */
};

bool overwrites_first(std::string_view name) {
    return name == "copy_" || name == "fill_" || name == "zero_" || name == "random_";
}

Rule rule_of(const c10::OperatorHandle &handle, std::string_view name) {
    auto found = RULES.find(name);
    if (found != RULES.end()) return found->second;
    /* What consists of other operators is followed through those. */
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

/* By the address of the name, which is part of the schema; an operator of a program may come and go. */
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

/* ---- values of tensors ----------------------------------------------------------------------------------- */

bool is_on_device(const Tensor &t) { return t.defined() && t.is_cuda(); }

/* A tensor of a program's own class, or one without memory, is none that can be looked at. */
bool has_memory(const Tensor &t) {
    auto keys = t.unsafeGetTensorImpl()->key_set();
    return t.layout() == c10::kStrided && !keys.has(c10::DispatchKey::Python) && !keys.has_any(c10::functorch_transforms_ks) &&
           t.has_storage() && !t.is_quantized() && !t.is_complex() && !t.is_neg();
}

uintptr_t address_of(const Tensor &t) {
    auto *storage = static_cast<const char *>(t.storage().data());
    return storage ? reinterpret_cast<uintptr_t>(storage) + t.storage_offset() * t.element_size() : 0;
}

/* Elements from the first to the last, with those between them. */
size_t extent_of(const Tensor &t) {
    if (t.numel() == 0) return 0;
    size_t elements = 1;
    for (int64_t d = 0; d < t.dim(); d++) elements += (t.size(d) - 1) * t.stride(d);
    return elements;
}

bool is_dense(const Tensor &t) { return extent_of(t) == static_cast<size_t>(t.numel()) && t.is_non_overlapping_and_dense(); }

size_t most_bytes(c10::ScalarType type) { return c10::isIntegralType(type, true) ? MOST_INTEGER_BYTES : MOST_FLOAT_BYTES; }

bool is_small(const Tensor &t) { return extent_of(t) * t.element_size() <= most_bytes(t.scalar_type()); }

bool has_values(c10::ScalarType type) { return c10::isIntegralType(type, true) || c10::isFloatingType(type); }

Tensor constant_of(const Tensor &like, uint64_t bits) {
    Tensor one = at::empty({}, like.options().device(c10::kCPU).pinned_memory(false));
    std::memcpy(one.mutable_data_ptr(), &bits, like.element_size());
    return one.expand(like.sizes());
}

bool is_constant(const Tensor &host) {
    for (int64_t d = 0; d < host.dim(); d++)
        if (host.size(d) > 1 && host.stride(d)) return false;
    return true;
}

/* A tensor of the host over memory of ours that is laid out as that on the device is. */
Tensor laid_out_like(const Tensor &t, const Tensor &flat) { return flat.as_strided(t.sizes(), t.strides(), 0); }

/* The values of a tensor, zero where they are not known. */
struct Host {
    Tensor values; /* undefined where nothing is known */
    Tensor marks;  /* of each element (values.h); undefined where all have the same */
    State state = State::unknown; /* of the least known */
};

State state_of_marks(const unsigned char *marks, size_t n) {
    if (std::memchr(marks, SIM_NO_VALUE, n)) return State::unknown;
    return std::memchr(marks, SIM_GUESSED, n) ? State::guess : State::known;
}

unsigned char mark_of(State state) {
    return state == State::unknown ? SIM_NO_VALUE : state == State::guess ? SIM_GUESSED : SIM_KNOWN;
}

/* What is known of a tensor on the device; of a large one, whether it is one value all along. */
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
    Tensor own = laid_out_like(t, marks).contiguous(); /* without what lies between the elements */
    host.state = state_of_marks(own.const_data_ptr<uint8_t>(), own.numel());
    if (host.state == State::unknown) host.marks = own;
    return host;
}

void forget(const Tensor &t) {
    if (is_on_device(t) && has_memory(t) && t.numel()) sim_values_forget(address_of(t), extent_of(t) * t.element_size());
}

/* Element by element: where a tensor does not fill its memory, what lies between its elements stays. */
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

/* What does not fit, is not known, or is too large is forgotten. */
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

/* ---- calls ----------------------------------------------------------------------------------------------- */

/* While one of our own operators runs: no observer, no autograd, no mode, no transform sees it. */
struct Unseen {
    at::DisableRecordFunctionGuard no_observer;
    c10::impl::ExcludeDispatchKeyGuard guard{c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                                             c10::autocast_dispatch_keyset | c10::python_ks |
                                             c10::DispatchKeySet(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) |
                                             c10::DispatchKeySet(c10::DispatchKey::FuncTorchDynamicLayerBackMode)};
};

/* What is done where an operator ends. */
struct Followed : at::ObserverContext {
    const Operator *op = nullptr;
    State state = State::unknown;
    std::vector<IValue> results; /* on the host */
    Tensor marks;                /* of the only result, where its elements have different ones */
    std::vector<std::pair<Tensor, Tensor>> written; /* arguments on the device, and on the host */
    int64_t picks_of = -1, dimension = 0, low = 0; /* of a choice */
    bool answers = false; /* a number waits for who reads one */
    ~Followed() override {
        if (answers) sim_forget_answer();
    }
};

using Plan = std::unique_ptr<Followed>;

/* The inputs of a call, as far as following it needs them. */
struct Inputs {
    bool device = false;     /* one is on the device, or is to be made there */
    bool readable = true;    /* all that are on the device have values that could be known */
    bool any_known = false;  /* something is known of one of them */
    State state = State::known; /* unknown where one of them is, or perhaps a part of it */
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

/* Without copying: whether it is worth while. */
Inputs survey(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    Inputs seen;
    for (size_t i = 0; i < inputs.size(); i++) {
        /* No other input makes a plain operator's outputs known then. */
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

Tensor scratch_like(const Tensor &t) {
    return at::empty_strided(t.sizes(), t.strides(), t.options().device(c10::kCPU).pinned_memory(false));
}

/* Thrown where an argument is not known, or partly. */
struct Unknown {};

Host on_host(const Tensor &t) {
    if (t.is_cuda()) return has_values(t.scalar_type()) ? read(t) : Host{};
    if (!t.is_cpu() || !has_memory(t)) throw Unknown{};
    return {t, {}, State::known};
}

/* With zeros for what is not known, if they may stand for it. */
Host whole(const Tensor &t, bool zeros) {
    Host host = on_host(t);
    if (host.state != State::unknown) return host;
    if (!zeros) throw Unknown{};
    return {host.values.defined() ? host.values : constant_of(t, 0), {}, State::guess};
}

struct Stack {
    std::vector<IValue> values;
    std::vector<std::pair<Tensor, Tensor>> written;
    State state = State::known;
    bool constant = true; /* all tensors with dimensions are one value all along */
    bool small = true;
};

Tensor argument(Stack &stack, const Tensor &t, bool is_written, bool is_read, bool zeros) {
    if (!is_read && t.is_cuda()) {
        if (!is_small(t)) stack.small = false;
        Tensor host = stack.small ? scratch_like(t) : Tensor();
        if (!host.defined()) throw Unknown{};
        stack.written.emplace_back(t, host);
        stack.constant = false;
        return host;
    }
    Host host = whole(t, zeros);
    stack.state = both(stack.state, host.state);
    stack.constant &= is_constant(host.values);
    stack.small &= is_small(t);
    if (is_written && t.is_cuda()) {
        if (!is_small(t)) throw Unknown{};
        Tensor own = scratch_like(t);
        own.copy_(host.values);
        stack.written.emplace_back(t, own);
        stack.constant = false;
        return own;
    }
    return host.values;
}

IValue converted(Stack &stack, const IValue &value, bool is_written, bool is_read, bool zeros) {
    auto convert = [&](const Tensor &t) { return argument(stack, t, is_written, is_read, zeros); };
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

Stack converted(const Operator &op, c10::ArrayRef<const IValue> inputs, bool zeros) {
    Stack stack;
    for (size_t i = 0; i < inputs.size(); i++) {
        bool is_written = i < op.written.size() && op.written[i];
        bool is_read = !(i < op.only_written.size() && op.only_written[i]);
        stack.values.push_back(converted(stack, inputs[i], is_written, is_read, zeros));
    }
    return stack;
}

/* Of what is one value all along, one element says it all where elements are taken one by one. */
void collapse(Stack &stack) {
    for (IValue &value : stack.values) {
        if (!value.isTensor() || !value.toTensor().defined() || !value.toTensor().dim()) continue;
        Tensor t = value.toTensor();
        value = t.numel() ? t.as_strided(std::vector<int64_t>(t.dim(), 1), std::vector<int64_t>(t.dim(), 1)) : t;
    }
}

/* The CPU's own kernel; false where it has none for this. */
bool call(const Operator &op, Stack &stack, int type) {
    if (op.refused.count(type)) return false;
    try {
        op.handle->callBoxed(stack.values);
        return true;
    } catch (const std::exception &) {
        const_cast<Operator &>(op).refused.insert(type);
        return false;
    }
}

Plan planned(const Operator &op, State state) {
    auto plan = std::make_unique<Followed>();
    plan->op = &op;
    plan->state = state;
    return plan;
}

bool takes_elements_one_by_one(const Operator &op) { return op.handle->hasTag(at::Tag::pointwise); }

Plan follow(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen, bool zeros) {
    Stack stack = converted(op, inputs, zeros);
    bool is_reduced = op.rule == Rule::any_ || op.rule == Rule::all_;
    if (!stack.small) {
        if (!stack.constant || !(takes_elements_one_by_one(op) || is_reduced)) return nullptr;
        collapse(stack);
    }
    if (!call(op, stack, static_cast<int>(seen.type))) return nullptr;
    Plan plan = planned(op, stack.state);
    plan->results = std::move(stack.values);
    plan->written = std::move(stack.written);
    return plan;
}

int argument_of(const Operator &op, const char *name) {
    auto found = op.handle->schema().argumentIndexWithName(name);
    return found ? *found : -1;
}

/* ---- what follows from values that are not known --------------------------------------------------------- */

Plan answer(const Operator &op, State state, bool value) {
    Plan plan = planned(op, state);
    plan->results = {at::full({}, value, at::TensorOptions().dtype(c10::kBool))};
    return plan;
}

bool is_same(const Tensor &a, const Tensor &b) {
    return a.is_cuda() && b.is_cuda() && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
           address_of(a) == address_of(b);
}

/* A number of the program, or a tensor of one that is known. */
std::optional<double> number(const IValue &value) {
    if (value.isScalar()) return value.toScalar().isComplex() ? std::optional<double>() : value.toScalar().toDouble();
    if (!value.isTensor() || !value.toTensor().defined() || !has_values(value.toTensor().scalar_type())) return {};
    Tensor t = value.toTensor();
    if (t.numel() != 1) return {};
    if (!t.is_cuda()) return t.is_cpu() ? std::optional<double>(t.item().toDouble()) : std::nullopt;
    Host host = read(t);
    return host.state == State::unknown ? std::optional<double>() : host.values.item().toDouble();
}

/* The tensors of a call that hold what its output consists of, with a mark for each of their elements. */
struct Parts {
    std::vector<IValue> values, marks; /* all arguments, with the tensors replaced */
    bool any = false, small = true;
};

Tensor marks_of(const Host &host, const Tensor &t) {
    return host.marks.defined() ? host.marks : at::full({}, mark_of(host.state), at::kByte).expand(t.sizes());
}

std::pair<Tensor, Tensor> part(Parts &parts, const Tensor &t) {
    Host host = on_host(t);
    if (!is_small(t)) parts.small = false;
    if (host.values.defined()) parts.any = true;
    return {host.values.defined() ? host.values : constant_of(t, 0), marks_of(host, t)};
}

bool is_about_places(const std::string &argument) { return argument == "index" || argument == "indices" || argument == "mask" || argument == "condition"; }

/* The same call on values, and on marks. Throws where the places that it takes are not known. */
Parts taken_apart(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    Parts parts;
    Stack places;
    for (size_t i = 0; i < inputs.size(); i++) {
        const std::string &name = op.handle->schema().arguments()[i].name();
        const IValue &value = inputs[i];
        if (is_about_places(name) || !(value.isTensor() || value.isTensorList())) {
            IValue same = converted(places, value, false, true, false);
            parts.values.push_back(same);
            /* What pads or fills is known, and marks are bytes. */
            bool fills = name == "value" && value.isScalar();
            parts.any |= fills;
            bool is_type = name == "dtype" && value.isInt();
            parts.marks.push_back(fills ? IValue(int64_t{SIM_KNOWN}) : is_type ? IValue(static_cast<int64_t>(c10::kByte)) : same);
        } else if (value.isTensor()) {
            auto [values, marks] = part(parts, value.toTensor());
            parts.values.push_back(values);
            parts.marks.push_back(marks);
        } else {
            c10::List<Tensor> values, marks;
            for (const Tensor &t : value.toTensorVector()) {
                auto [v, m] = part(parts, t);
                values.push_back(v);
                marks.push_back(m);
            }
            parts.values.push_back(values);
            parts.marks.push_back(marks);
        }
    }
    return parts;
}

/* One value all along, which a number tells, or the name. */
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

/* Elements that are moved take their marks along. */
Plan move(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    Parts parts = taken_apart(op, inputs);
    if (!parts.any || !parts.small) return nullptr;
    op.handle->callBoxed(parts.values);
    op.handle->callBoxed(parts.marks);
    Plan plan = planned(op, State::unknown);
    plan->results = {parts.values[0]};
    plan->marks = parts.marks[0].toTensor();
    return plan;
}

/* A sum with what is huge is that; of other numbers both have to be known. */
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
    /* Most sums are of such tensors: they are left at once. */
    if (!is_huge && !seen.any_known && is_on_device(a) && is_on_device(inputs[1].toTensor())) return nullptr;
    Parts parts = taken_apart(op, inputs);
    if ((!parts.any && !is_huge) || !parts.small) return nullptr;
    Tensor marks = parts.marks[0].toTensor().eq(SIM_NO_VALUE).logical_not(), huge = parts.values[0].toTensor().abs().ge(HUGE_NUMBER);
    if (inputs[1].isTensor()) {
        marks = marks & parts.marks[1].toTensor().eq(SIM_NO_VALUE).logical_not();
        huge = huge | parts.values[1].toTensor().abs().ge(HUGE_NUMBER);
    } else if (is_huge)
        huge = at::full_like(huge, true);
    op.handle->callBoxed(parts.values);
    Plan plan = planned(op, State::unknown);
    plan->results = {parts.values[0]};
    plan->marks = (marks | huge).to(c10::kByte);
    return plan;
}

/* The weight of what is masked is zero. */
Plan weigh(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    const Tensor &scores = inputs[0].toTensor();
    Host host = is_small(scores) ? read(scores) : Host{};
    if (!host.marks.defined()) return nullptr;
    Plan plan = planned(op, State::unknown);
    plan->results = {at::zeros_like(host.values)};
    plan->marks = host.values.le(-HUGE_NUMBER).to(c10::kByte);
    return plan;
}

/* What is not known equals nothing but itself. */
Plan compare(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen) {
    bool differs = op.rule == Rule::unequal_;
    if (inputs[0].isTensor() && inputs[1].isTensor() && is_same(inputs[0].toTensor(), inputs[1].toTensor())) return answer(op, State::known, !differs);
    for (size_t i = 0; i < 2; i++)
        if (auto n = number(inputs[i]); n && !std::isfinite(*n) && !seen.any_known) return answer(op, State::known, differs);
    if (!seen.any_known || !inputs[0].isTensor()) return answer(op, State::guess, differs);
    Parts parts = taken_apart(op, inputs);
    if (!parts.any || !parts.small || op.name == "aten::isin") return answer(op, State::guess, differs);
    Tensor unknown = parts.marks[0].toTensor().eq(SIM_NO_VALUE);
    if (inputs[1].isTensor()) unknown = unknown | parts.marks[1].toTensor().eq(SIM_NO_VALUE);
    op.handle->callBoxed(parts.values);
    Plan plan = planned(op, State::guess);
    plan->results = {parts.values[0].toTensor().masked_fill(unknown, differs)};
    return plan;
}

/* Whether any or all is true: what is not known is not, or is. */
Plan quantify(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen) {
    bool all = op.rule == Rule::all_;
    if (!seen.any_known) return answer(op, State::guess, all);
    Parts parts = taken_apart(op, inputs);
    if (!parts.any || !parts.small) return answer(op, State::guess, all);
    parts.values[0] = parts.values[0].toTensor().ne(0).masked_fill(parts.marks[0].toTensor().eq(SIM_NO_VALUE), all);
    op.handle->callBoxed(parts.values);
    Plan plan = planned(op, State::guess);
    plan->results = {parts.values[0]};
    return plan;
}

/* Scores that put what is not known behind each other as picks are (value_rules.py), and what is known where it
 * belongs: all unknown ones are between -1 and 0, unknown weights above that. */
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

/* Which of how many are picked, along which dimension. */
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

/* What is picked evenly (value_rules.py): of each row, one after the other along the dimension. */
Tensor picks_for(const Followed &plan, const Tensor &out) {
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

Tensor drawn_for(const Followed &plan, const Tensor &out) {
    Tensor host = at::empty(out.sizes(), at::TensorOptions().dtype(c10::kLong));
    int64_t n = std::max<int64_t>(plan.picks_of, 1);
    for (int64_t i = 0; i < out.numel(); i++) host.mutable_data_ptr<int64_t>()[i] = plan.low + (n / 2 + i) % n;
    return host;
}

/* How many rows or elements an operator finds; of what is not known none are true, and all are one. */
int64_t found_by(const Operator &op, c10::ArrayRef<const IValue> inputs, const Followed *plan) {
    if (plan) return plan->results[0].toTensor().size(op.name.find("_dim") != std::string::npos ? inputs[1].toInt() : 0);
    return op.rule == Rule::unique_ && inputs[0].toTensor().numel();
}

int64_t is_equal(c10::ArrayRef<const IValue> inputs, const Followed *plan) {
    return plan ? plan->results[0].toBool() : is_same(inputs[0].toTensor(), inputs[1].toTensor());
}

/* What an operator's own kernels find, and it reads: unseen ones, so that nothing else tells. */
Plan find(const Operator &op, c10::ArrayRef<const IValue> inputs, const Inputs &seen) {
    Plan plan;
    try {
        if (seen.state != State::unknown) plan = follow(op, inputs, seen, false);
    } catch (const Unknown &) {
    }
    if (!plan || plan->state == State::guess) sim_note_guess(op.name.c_str());
    sim_expect_answer(op.rule == Rule::same_ ? is_equal(inputs, plan.get()) : found_by(op, inputs, plan.get()));
    if (!plan) plan = planned(op, State::unknown);
    plan->answers = true;
    return plan;
}

/* ---- the observer ---------------------------------------------------------------------------------------- */

bool is_whole(c10::ScalarType type) { return c10::isIntegralType(type, true); }

/* A program is about to read whole numbers or booleans that it may decide by. */
void note_read(const Operator &op, c10::ArrayRef<const IValue> inputs) {
    const Tensor &t = inputs[op.name == "aten::copy_" ? 1 : 0].toTensor();
    if (!is_on_device(t) || !has_memory(t) || !is_whole(t.scalar_type()) || !t.numel()) return;
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

bool is_finite(const Tensor &host) {
    if (!host.defined() || !host.numel()) return true;
    return at::isfinite(is_constant(host) ? host.as_strided({}, {}) : host).all().item<bool>();
}

/* Notes numbers that are known not to be finite; those that are not known read as zero. */
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
        case Rule::weigh_: return seen.any_known ? weigh(op, inputs) : nullptr;
        case Rule::move_: return seen.any_known ? move(op, inputs) : nullptr;
        case Rule::copy_: { /* to a boolean: what equals nothing is not zero */
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

/* Whether the rule has no answer, without asking it: of most operators of a step. */
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
        Unseen unseen;
        if (op.name != "aten::_to_copy") note_read(op, inputs); /* which copies by copy_ */
        return nullptr;
    }
    if (op.rule == Rule::copy_ && comes_from_host(op, inputs)) return nullptr; /* copies.c sees to it */
    Inputs seen = survey(op, inputs);
    if (!seen.device || !seen.readable) return nullptr;
    if (is_without_answer(op, seen)) {
        forget_written(op, inputs);
        return nullptr;
    }
    Unseen unseen; /* which takes a microsecond: PyTorch lists the observers of each scope anew */
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
    } catch (const std::exception &) { /* the CPU's kernel refuses what the device's takes */
        forget_written(*op, seen.inputs());
    }
    return nullptr;
}

Tensor spread(const Tensor &values, const Tensor &like) {
    return values.defined() && values.sizes() != like.sizes() && values.numel() == 1 ? values.reshape({}).expand(like.sizes()) : values;
}

void give(const Followed &plan, const Tensor &out, size_t index, size_t count) {
    if (!is_on_device(out) || !has_memory(out)) return;
    bool draws = plan.op->rule == Rule::draw_ || plan.op->rule == Rule::permute_;
    if (draws)
        write(out, {drawn_for(plan, out), {}, State::guess});
    else if (plan.picks_of >= 0 && index + 1 == count)
        write(out, {picks_for(plan, out), {}, State::guess});
    else if (index < plan.results.size() && plan.results[index].isTensor()) {
        bool has_marks = plan.marks.defined() && index == 0;
        State state = plan.marks.defined() && index ? State::guess : plan.state; /* which ones were picked */
        write(out, {spread(plan.results[index].toTensor(), out), has_marks ? plan.marks : Tensor(), state});
    }
}

void end(const at::RecordFunction &seen, at::ObserverContext *context) {
    Operator *op = operator_of(seen);
    if (op && op->is_pytorchs) sim_leave_operator();
    if (!context) return;
    auto &plan = static_cast<Followed &>(*context);
    Unseen unseen;
    const auto &returns = plan.op->handle->schema().returns();
    const auto &outs = seen.outputs();
    for (size_t i = 0; i < outs.size(); i++) {
        bool is_argument = i < returns.size() && returns[i].alias_info() && returns[i].alias_info()->isWrite();
        if (outs[i].isTensor() && !is_argument) give(plan, outs[i].toTensor(), i, outs.size());
        if (outs[i].isTensorList() && i < plan.results.size() && plan.results[i].isTensorList()) {
            auto given = outs[i].toTensorVector(), found = plan.results[i].toTensorVector();
            for (size_t j = 0; j < given.size() && j < found.size(); j++) write(given[j], {found[j], {}, plan.state});
        }
    }
    for (auto &[device, host] : plan.written)
        write(device, {host.defined() ? spread(host, device) : drawn_for(plan, device), {}, plan.state});
}

} // namespace

void llmmem_observe(void) {
    at::addGlobalCallback(at::RecordFunctionCallback(begin, end)
                              .needsInputs(true)
                              .needsOutputs(true)
                              .scopes({at::RecordScope::FUNCTION}));
}
