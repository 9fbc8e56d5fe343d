#pragma once

#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "moescope.h"

namespace moescope::capi {

/// A shape that was checked, and the threads it may use.
struct Problem {
  std::int64_t tokens = 0;     ///< [L]
  std::int64_t hidden = 0;     ///< [d]
  std::int64_t grid_rows = 0;  ///< [Nr]
  std::int64_t grid_cols = 0;  ///< [Nc]
  std::int64_t top_k = 0;      ///< [K]
  std::int64_t shared = 0;     ///< [f]
  Activation activation = Activation::kSilu;
  std::int32_t gate_mode = MOESCOPE_GATES_SOFTMAX;
  bool log_softmax = true;
  bool wide_ids = false;
  int threads = 1;

  std::int64_t experts() const { return grid_rows * grid_cols; }  ///< [N]
  std::int64_t pairs() const { return tokens * top_k; }           ///< [M]
};

}  // namespace moescope::capi
