#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "core/layer/dtype.hpp"

namespace moescope::cuda {

/// One product of row-major matrices: D [m,n] = A B + beta D (+ bias), A as [m,k] or, with transpose_a, as
/// [k,m]; B as [n,k] (transpose_b, the layout of torch.nn.Linear) or as [k,n]. Accumulation in fp32; fp32
/// inputs are never rounded to tf32.
struct Gemm {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = true;
  Dtype in = Dtype::kBF16;  ///< storage of A and B
  Dtype out = Dtype::kF32;  ///< storage of D
  const void* a = nullptr;
  std::int64_t lda = 0;  ///< elements from row to row; 0: dense (k, or m when transpose_a)
  const void* b = nullptr;
  std::int64_t ldb = 0;  ///< 0: dense (k when transpose_b, else n)
  void* d = nullptr;
  std::int64_t ldd = 0;         ///< 0: dense (n)
  float beta = 0;               ///< 0: D is written and may hold anything before; 1: added to
  const float* bias = nullptr;  ///< [n] fp32, added to every row; null: none
  /// Products of one shape, their matrices a stride (in elements) apart.
  std::int64_t batch = 1;
  std::int64_t stride_a = 0;
  std::int64_t stride_b = 0;
  std::int64_t stride_d = 0;
};

/// cuBLASLt with its handle, workspace and the algorithm chosen once per problem (first heuristic result).
/// One instance serves one stream: products that run at the same time would share the workspace.
/// Bit-repeatable: the same product takes the same algorithm, and no algorithm here uses atomics whose
/// order matters.
class CublasLt {
 public:
  /// A quarter of what NVIDIA recommends for Hopper (cuBLAS documentation, cublasSetWorkspace). It holds the
  /// partial sums of products with few rows split over k: 64 x 1024 fp32, 32 times.
  static constexpr std::int64_t kWorkspaceBytes = std::int64_t{8} << 20;
  /// What products of `num_tokens` rows need: many rows fill the device without being split, and a layer at
  /// L=4096, d=1024 is to stay under 64 MiB of extra memory.
  static std::int64_t workspace_bytes(std::int64_t num_tokens);

  /// Allocates `workspace_bytes` of workspace on the device.
  explicit CublasLt(std::int64_t workspace_bytes = kWorkspaceBytes);
  CublasLt(CublasLt&&) noexcept;
  CublasLt& operator=(CublasLt&&) noexcept;
  ~CublasLt();

  /// Enqueues the product on `stream`; no synchronisation, no allocation on the device, capturable. Throws
  /// InvalidArgument on extents or leading dimensions that do not fit, CudaError when cuBLASLt refuses.
  void run(const Gemm& gemm, cudaStream_t stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moescope::cuda
