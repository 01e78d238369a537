/* Tensors on the device as memory: where they lie, how far they reach, how much of them is followed. */
#pragma once

#include "value_rules.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>

#include <cstring>

namespace {

using at::IValue;
using at::Tensor;

bool is_on_device(const Tensor &t) { return t.defined() && t.is_cuda(); }

/* False for tensor subclasses and for tensors without plain strided memory. */
bool has_memory(const Tensor &t) {
    auto keys = t.unsafeGetTensorImpl()->key_set();
    return t.layout() == c10::kStrided && !keys.has(c10::DispatchKey::Python) && !keys.has_any(c10::functorch_transforms_ks) &&
           t.has_storage() && !t.is_quantized() && !t.is_complex() && !t.is_neg();
}

uintptr_t address_of(const Tensor &t) {
    auto *storage = static_cast<const char *>(t.storage().data());
    return storage ? reinterpret_cast<uintptr_t>(storage) + t.storage_offset() * t.element_size() : 0;
}

/* Elements from the first to the last, gaps included. */
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

/* A view of host memory with the strides of a tensor on the device. */
Tensor laid_out_like(const Tensor &t, const Tensor &flat) { return flat.as_strided(t.sizes(), t.strides(), 0); }

bool is_same(const Tensor &a, const Tensor &b) {
    return a.is_cuda() && b.is_cuda() && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
           address_of(a) == address_of(b);
}

bool is_integral(c10::ScalarType type) { return c10::isIntegralType(type, true); }

} // namespace
