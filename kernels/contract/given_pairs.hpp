#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/contract/launch.hpp"

namespace moescope::cuda {

/// Pairs [L, K] as a caller has them, unchecked: ids of either type. A pair with an id outside [0, N) reads
/// row 0 and makes its token NaN.
struct GivenPairs {
  const std::int32_t* ids = nullptr;       ///< not used when wide_ids is given
  const std::int64_t* wide_ids = nullptr;  ///< null: ids
  const float* gates = nullptr;
};

/// launch_experts_token_centric() of pairs that nobody has checked, in one ordinary launch: what wrote the
/// arrays need not be one of the layer's kernels. `workspace`: token_centric_workspace_bytes(), whatever is
/// in it.
void launch_experts_given_pairs(const LayerShape& shape, const void* hidden_states,
                                const DeviceWeights& weights, const GivenPairs& pairs, void* workspace,
                                ExpertOutput output, cudaStream_t stream);

}  // namespace moescope::cuda
