#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "core/layer/layer_shape.hpp"
#include "kernels/contract/launch.hpp"

namespace moescope::cuda {

/// The expert stage through cuSPARSE: S = (X W^T) sampled at the routing's pairs (SDDMM, fp32), p = gate *
/// sigma(S) (a kernel of ours), y = P V (SpMM). One instance is bound to one layer's buffers.
///
/// cuSPARSE samples dense products in fp32 only, so with bf16 storage fp32 copies of X (every launch) and of
/// W (once, in the constructor) are kept; P is rounded to bf16 for SpMM, which takes bf16 with fp32 output.
/// cuSPARSE does not promise bit-identical sums for the algorithm used (CSR_ALG2, the one for row-major).
class SparseLibrary {
 public:
  /// Device memory an instance takes beside cuSPARSE's own buffers; pure arithmetic, no device needed.
  static std::int64_t memory_bytes(const LayerShape& shape);

  /// Binds hidden_states [L,d], weights, routing and y [L,d] fp32 (device pointers that outlive it),
  /// allocates, and enqueues the conversion of W on `stream`. Throws InvalidArgument when L*K >= 2^31 (32-bit
  /// CSR offsets), CudaError when cuSPARSE refuses.
  SparseLibrary(const LayerShape& shape, const void* hidden_states, const DeviceWeights& weights,
                DeviceRouting routing, float* y, cudaStream_t stream);
  SparseLibrary(SparseLibrary&&) noexcept;
  SparseLibrary& operator=(SparseLibrary&&) noexcept;
  ~SparseLibrary();

  /// Enqueues the whole expert stage; no synchronisation, no allocation, capturable. y is overwritten.
  void launch(cudaStream_t stream);
  /// Device memory held, cuSPARSE's buffers included.
  std::int64_t bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moescope::cuda
