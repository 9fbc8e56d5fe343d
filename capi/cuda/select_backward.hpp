#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/gpu_traits.hpp"

/// moescope_select_backward() on a device.
namespace moescope::capi::gpu {

/// Row-major device arrays, fp32. Sums have the order of the pairs: the same bits in every run.
struct SelectBackward {
  std::int64_t tokens = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t top_k = 0;
  std::int32_t gate_mode = 0;  ///< MOESCOPE_GATES_*
  bool log_softmax = true;
  bool wide_ids = false;
  const float* row_logits = nullptr;  ///< [L, rows]
  const float* col_logits = nullptr;  ///< [L, cols]
  const void* ids = nullptr;          ///< [L, K] int32 or int64; a pair with one outside the grid is left out
  const float* gates_gradient = nullptr;  ///< [L, K]
  float* row_gradient = nullptr;          ///< [L, rows], or null
  float* col_gradient = nullptr;          ///< [L, cols], or null
  float* sums = nullptr;                  ///< select_backward_bytes()
};
/// 0 where shared memory is enough.
std::int64_t select_backward_bytes(std::int64_t tokens, std::int64_t rows, std::int64_t cols);
void launch_select_backward(const SelectBackward& call, const GpuTraits& gpu, cudaStream_t stream);

}  // namespace moescope::capi::gpu
