#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/tiling/chunks.hpp"
#include "kernels/contract/launch.hpp"

/// The dense masked form of layers that select single experts or values: y = P V with P = G o sigma(X W^T),
/// or P = G where there is no first product. G [L, N] are the gates, zero where nothing is selected.
namespace moescope::cuda {

/// What is computed, from shapes alone.
struct DenseMasked {
  /// L, d, N, dtype, activation; top_k: experts of one list.
  LayerShape shape;
  /// Selections of a token (heads). Row token * lists + list of the routing has top_k distinct experts,
  /// ascending; an expert of several lists has the sum of their gates, lists ascending.
  std::int64_t lists = 1;
  bool scored = true;  ///< false: P = G, w_in is not read
  /// P V is cut into so many parts along the experts, each summed into a matrix of its own.
  std::int64_t parts = 1;

  DenseChunks chunks() const { return DenseChunks::plan(shape, scored); }
};

// experts_dense_masked.cu: cuBLASLt products over chunks of experts. sums [parts, L, d] fp32, to be added up
// by the caller; workspace chunks().bytes. Deterministic. Belongs to its caller's stage.
void launch_dense_masked(CublasLt& blas, const DenseMasked& masked, const void* hidden_states,
                         const DeviceWeights& weights, DeviceRouting routing, void* workspace, float* sums,
                         cudaStream_t stream);

}  // namespace moescope::cuda
