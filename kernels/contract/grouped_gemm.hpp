#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/gpu_traits.hpp"
#include "core/layer/dtype.hpp"
#include "core/layer/layer_shape.hpp"

/// Products of rows that are grouped by expert with their experts' matrices: the FFN experts of the
/// baselines, and with one expert a dense gated MLP. Which rows belong to whom is read on the device, so that
/// nothing synchronises with the host (cuBLAS's grouped products of CUDA 13.0 want the sizes on the host).
///
/// Floor: the active experts' matrices once from HBM, 2 m n k FLOP. Rows are multiplied in tiles of
/// kGroupedTileRows, so an expert wastes less than one tile; while it waits for its weights the tensor cores
/// have the time (a stage of 32 KiB of weights takes an SM 2600 cycles from HBM, its products 1000:
/// docs/performance/).
namespace moescope::cuda {

inline constexpr std::int64_t kGroupedTileRows = 128;

/// Consecutive rows of one expert, at most kGroupedTileRows; 16 bytes, read as one.
struct alignas(16) GroupedTile {
  std::int32_t expert = 0;
  std::int32_t first_row = 0;
  std::int32_t count = 0;
  std::int32_t unused = 0;
};

/// Tiles that `rows` rows can make, however they are distributed over the experts.
constexpr std::int64_t max_grouped_tiles(std::int64_t rows, std::int64_t num_experts) {
  return rows / kGroupedTileRows + (rows < num_experts ? rows : num_experts);
}

/// Device pointers; matrices row-major and dense, elements as `dtype` says, sums in fp32.
struct GroupedGemm {
  Dtype dtype = Dtype::kBF16;
  std::int64_t num_experts = 0;             ///< [N]
  std::int64_t rows = 0;                    ///< [M]
  std::int64_t n = 0;                       ///< columns of the output
  std::int64_t k = 0;                       ///< columns of A
  const void* a = nullptr;                  ///< [*, k]
  const std::int32_t* row_ids = nullptr;    ///< [M] the row of A behind each row; null: row i is row i of A
  const void* weights = nullptr;            ///< [N, n, k]; gated: [N, 2 n, k], gate rows, then up rows
  void* out = nullptr;                      ///< [M, n]
  const GroupedTile* tiles = nullptr;       ///< [max_grouped_tiles(M, N)]
  const std::int32_t* num_tiles = nullptr;  ///< [1]
};

/// Whether the kernels run a product in `dtype` on this device in a build that holds their code: fp32
/// everywhere, bf16 on compute capability 9.0.
bool grouped_gemm_supported(Dtype dtype, const GpuTraits& gpu);

/// out = act(A gate^T) * (A up^T), rounded to storage. Belongs to its caller's stage, as does the next.
/// Deterministic: a row's result depends on nothing but the row and its expert. Throws InvalidArgument when
/// n or k is no multiple of 8 or an extent passes 2^31, CudaError.
void launch_grouped_gated(const GroupedGemm& gemm, Activation activation, cudaStream_t stream);
/// out = A W^T.
void launch_grouped_product(const GroupedGemm& gemm, cudaStream_t stream);

namespace detail {

// grouped_gemm_bf16.cu: wgmma and bulk tensor copies; grouped_gemm_f32.cu: fused multiply-adds. A null
// activation: the plain product.
bool grouped_gemm_bf16_built();
void launch_grouped_gemm_bf16(const GroupedGemm& gemm, const Activation* activation, cudaStream_t stream);
void launch_grouped_gemm_f32(const GroupedGemm& gemm, const Activation* activation, cudaStream_t stream);

}  // namespace detail

}  // namespace moescope::cuda
