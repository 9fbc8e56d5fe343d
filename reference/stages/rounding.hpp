#pragma once

#include <span>

#include "core/base/error.hpp"
#include "core/layer/dtype.hpp"
#include "core/layer/tensor.hpp"

/// Rounding at stage borders, where the GPU writes a value in storage dtype.
namespace moescope::reference {

/// Rounds in place to what storage in `dtype` keeps.
inline void round_span(std::span<float> values, Dtype dtype) {
  if (dtype == Dtype::kBF16) {
    for (float& value : values) {
      value = to_float(to_bf16(value));
    }
  }
}

/// Typed view of a tensor whose storage type is known from a dispatch on its dtype.
template <class T>
MatrixView<const T> view_as(const HostTensor& tensor) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return tensor.bf16();
  } else {
    return tensor.f32();
  }
}

/// Calls function(T{}) with T the element type of `dtype`.
template <class Function>
decltype(auto) with_storage_type(Dtype dtype, Function&& function) {
  if (dtype == Dtype::kBF16) {
    return std::forward<Function>(function)(Bf16{});
  }
  return std::forward<Function>(function)(float{});
}

}  // namespace moescope::reference
