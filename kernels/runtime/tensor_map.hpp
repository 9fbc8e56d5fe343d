#pragma once

#include <cuda.h>

#include <cstdint>

namespace moescope::cuda {

/// Tensor map of the experts' rows [grid_rows, grid_cols, hidden_size] bf16 at `weights`, for boxes of 64
/// columns by `experts` experts of one grid row or one grid column, 128-byte swizzle; beyond the tensor it
/// reads zeros. Throws CudaError.
enum class StripKind : std::uint8_t { kRow, kCol };
CUtensorMap make_strip_map(const void* weights, std::int64_t grid_rows, std::int64_t grid_cols,
                           std::int64_t hidden_size, StripKind kind, int experts);

}  // namespace moescope::cuda
