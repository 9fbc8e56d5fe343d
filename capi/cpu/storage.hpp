#pragma once

#include <cstdint>

#include "core/layer/dtype.hpp"
#include "moescope.h"

/// Element types of the interface: storage, and what it is computed in.
namespace moescope::capi {

template <class Storage>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class Storage>
using Compute = typename ComputeOf<Storage>::type;

constexpr float load(Bf16 value) { return to_float(value); }
constexpr float load(float value) { return value; }
constexpr double load(double value) { return value; }

constexpr void store(Bf16& to, float value) { to = to_bf16(value); }
constexpr void store(float& to, float value) { to = value; }
constexpr void store(double& to, double value) { to = value; }

/// Ids of pairs in either width.
struct IdsView {
  const void* data = nullptr;
  bool wide = false;

  std::int64_t operator[](std::int64_t pair) const {
    return wide ? static_cast<const std::int64_t*>(data)[pair] : static_cast<const std::int32_t*>(data)[pair];
  }
};

inline void store_id(void* data, bool wide, std::int64_t pair, std::int64_t id) {
  if (wide) {
    static_cast<std::int64_t*>(data)[pair] = id;
  } else {
    static_cast<std::int32_t*>(data)[pair] = static_cast<std::int32_t>(id);
  }
}

}  // namespace moescope::capi
