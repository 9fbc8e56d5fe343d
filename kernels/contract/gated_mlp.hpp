#pragma once

#include <cuda_runtime_api.h>

#include "core/layer/layer_shape.hpp"

/// The shared MLP for callers whose matrices lie apart. Conventions as in launch.hpp.
namespace moescope::cuda {

class CublasLt;

struct GatedMlpWeights {
  const void* gate = nullptr;  ///< [h, d]; without `up` [2h, d]: gate rows, then up rows
  const void* up = nullptr;    ///< [h, d]
  const void* down = nullptr;  ///< [d, h]
};

// shared_mlp.cu: launch_shared_mlp() with the same workspace; where `up` lies apart, of three products.
void launch_gated_mlp(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                      const GatedMlpWeights& weights, void* workspace, float* y, cudaStream_t stream);

}  // namespace moescope::cuda
