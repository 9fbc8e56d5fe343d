#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

#include "core/layer/dtype.hpp"

namespace moescope::cuda {

/// A three-dimensional tensor in device memory and the boxes that the bulk copy engine moves of it, in
/// 128-byte swizzle: box[0] elements are 128 bytes. Beyond the tensor it reads zeros and writes nothing.
struct BoxMap {
  const void* memory = nullptr;
  Dtype dtype = Dtype::kBF16;
  std::array<std::int64_t, 3> extents = {};  ///< innermost first
  std::array<std::int64_t, 2> strides = {};  ///< of the outer two, in bytes, multiples of 16
  std::array<std::int64_t, 3> box = {};
};
/// Throws CudaError.
CUtensorMap make_box_map(const BoxMap& map);

/// Map of the experts' rows [grid_rows, grid_cols, hidden_size] at `weights`, for boxes of 128 bytes of
/// columns by `experts` experts of one grid row or one grid column. Throws CudaError.
enum class StripKind : std::uint8_t { kRow, kCol };
CUtensorMap make_strip_map(const void* weights, std::int64_t grid_rows, std::int64_t grid_cols,
                           std::int64_t hidden_size, StripKind kind, int experts, Dtype dtype = Dtype::kBF16);

}  // namespace moescope::cuda
