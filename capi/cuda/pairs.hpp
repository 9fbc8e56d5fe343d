#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/gpu_traits.hpp"

/// Kernels between the interface's arrays and those of kernels/contract/launch.hpp. Each is launched as an
/// ordinary kernel: it begins when all before it on the stream is done, so that what follows as a dependent
/// launch (kernels/device/dependent_launch.cuh) may read the caller's arrays before it waits.
namespace moescope::capi::gpu {

/// logits [L, rows + cols] of row_logits [L, rows] and col_logits [L, cols]; *bad_logit = -1; `cleared_count`
/// of `cleared` set to 0.
void launch_pack_logits(std::int64_t tokens, std::int64_t rows, std::int64_t cols, const float* row_logits,
                        const float* col_logits, float* logits, std::int64_t* bad_logit, unsigned* cleared,
                        std::int64_t cleared_count, cudaStream_t stream);

/// A token's pairs in the interface's order: by falling score, equal scores by rising id.
struct OrderPairs {
  std::int64_t tokens = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t top_k = 0;
  std::int32_t gate_mode = 0;  ///< MOESCOPE_GATES_*
  bool log_softmax = true;
  bool wide_ids = false;
  const float* logits = nullptr;           ///< [L, rows + cols]
  const std::int32_t* selected = nullptr;  ///< [L, K] as launch_router_select() leaves them
  void* ids = nullptr;                     ///< [L, K] int32 or int64
  float* gates = nullptr;                  ///< [L, K]; NaN for a token with a logit that is not finite
  float* scores = nullptr;                 ///< [L, K], or null
  std::int32_t* narrow_ids = nullptr;      ///< [L, K] the ids once more as int32, or null
  std::uint64_t* sort_space = nullptr;     ///< order_pairs_bytes()
  unsigned* cleared = nullptr;             ///< set to 0, `cleared_count` of them
  std::int64_t cleared_count = 0;
};
/// 0 where shared memory is enough.
std::int64_t order_pairs_bytes(std::int64_t tokens, std::int64_t top_k, const GpuTraits& gpu);
void launch_order_pairs(const OrderPairs& order, const GpuTraits& gpu, cudaStream_t stream);

/// Ids [pairs] as int32. An id outside [0, experts) becomes 0 with a gate that is NaN: the token's output
/// then says so, and no kernel reads beyond the weights.
struct TakePairs {
  std::int64_t pairs = 0;
  std::int64_t experts = 0;
  bool wide_ids = false;
  const void* ids = nullptr;
  const float* gates = nullptr;
  std::int32_t* narrow_ids = nullptr;  ///< [pairs]
  float* checked_gates = nullptr;      ///< [pairs]
  unsigned* cleared = nullptr;
  std::int64_t cleared_count = 0;
};
void launch_take_pairs(const TakePairs& take, cudaStream_t stream);

}  // namespace moescope::capi::gpu
