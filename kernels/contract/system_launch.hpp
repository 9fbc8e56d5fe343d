#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/systems/system.hpp"
#include "kernels/contract/grouped_gemm.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cublas_lt.hpp"

/// Launchers of the baseline systems' stages that OmniMoE does not have (DESIGN section 5); conventions as in
/// launch.hpp. What they share with OmniMoE is launched from there: the selection among sums of sub-keys,
/// PEER's and PKM's gathers.
namespace moescope::cuda {

// ffn_select.cu: the K largest of log-softmax(logits [L, N]), ties to the lower id, sorted by id; gates are
// softmax over the selected or their probability among all N. *bad_logit as in launch_router_select:
// -1 before. At most kMaxFfnExperts experts.
inline constexpr std::int64_t kMaxFfnExperts = 1024;
void launch_ffn_select(const SystemShape& shape, const float* logits, DeviceRouting routing,
                       std::int64_t* bad_logit, cudaStream_t stream);

/// The batch permuted by expert: pairs of an expert together, experts ascending, pairs of one in CSR order
/// (core's expert_centric schedule with groups of one expert).
struct FfnPermutation {
  std::int32_t* row_tokens = nullptr;  ///< [L*K] token of each row
  std::int32_t* pair_rows = nullptr;   ///< [L*K] row of each pair
  GroupedTile* tiles = nullptr;        ///< [max_grouped_tiles(L*K, N)]
  std::int32_t* num_tiles = nullptr;   ///< [1]
};

// ffn_schedule.cu: counting sort of the pairs by expert in two kernels. Deterministic. L*K < 2^31, N at most
// kMaxFfnExperts.
std::int64_t ffn_schedule_workspace_bytes(std::int64_t num_pairs, std::int64_t num_experts);
void launch_ffn_schedule(const SystemShape& shape, DeviceRouting routing, const FfnPermutation& permutation,
                         void* workspace, cudaStream_t stream);

// expert_combine.cu: y_t = sum over k of weights[t*K + k] * rows[ids[t*K + k]], K = shape.top_k rows of d,
// plus output.addend. Belongs to its caller's stage. Deterministic.
void launch_row_sums(const LayerShape& shape, const void* rows, const std::int32_t* ids, const float* weights,
                     ExpertOutput output, cudaStream_t stream);

/// Weights of a product-key router, a head's two halves one after the other.
struct ProductKeys {
  const void* queries = nullptr;       ///< [H * 2 * key_size, d]
  const void* keys = nullptr;          ///< [H * 2 * n, key_size]
  const float* norm_weight = nullptr;  ///< [key_size], or null: no layer norm
  const float* norm_bias = nullptr;
};

// product_key_scores.cu, stage router_project: scores [L * H, 2 n] fp32, of every query first those of the
// grid's rows, then of its columns: what launch_router_select takes for logits. Two cuBLASLt products, and
// between them the layer norm where there is one.
std::int64_t product_key_workspace_bytes(const SystemShape& shape, bool has_norm);
void launch_product_key_scores(CublasLt& blas, const SystemShape& shape, const void* hidden_states,
                               const ProductKeys& keys, void* workspace, float* scores, cudaStream_t stream);

// product_key_masked.cu: PEER's experts and PKM's combine as products with all experts (dense_masked.hpp);
// output [L, d] in storage dtype. Deterministic.
std::int64_t masked_product_keys_workspace_bytes(const SystemShape& shape, const GpuTraits& gpu);
void launch_masked_product_keys(CublasLt& blas, const SystemShape& shape, const void* hidden_states,
                                const DeviceWeights& weights, DeviceRouting routing, void* workspace,
                                void* output, cudaStream_t stream);

}  // namespace moescope::cuda
