#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/gpu_traits.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/contract/strips.hpp"

/// Arguments and launchers of every stage's kernels. Includable from plain C++.
/// Conventions, the same for all: pointers are device memory; matrices are row-major and contiguous; T-typed
/// data
/// (`void*`) is bf16 or fp32 as `shape.dtype` says; a launcher validates, opens an NVTX range with the
/// stage's name, launches on `stream` without synchronising, and checks the launch. No launcher allocates or
/// reads device memory on the host, so a layer can be captured in a CUDA graph. Every launcher may be run
/// again on the same arguments (what it accumulates into, it clears). Workspace sizes come from the
/// *_workspace_bytes functions.
namespace moescope::cuda {

/// The batch's routing on the device: every token has exactly shape.top_k pairs, so the CSR offsets are token
/// * K.
struct DeviceRouting {
  std::int32_t* expert_ids = nullptr;  ///< [L*K], ascending and distinct within a token
  float* gates = nullptr;              ///< [L*K]
};

/// Weights as the kernels read them.
struct DeviceWeights {
  const void* router = nullptr;        ///< [Nr+Nc, d]: row weights, then column weights
  const float* router_bias = nullptr;  ///< [Nr+Nc]; zeros when the router has no bias
  const void* w_in = nullptr;          ///< [N, d]
  const void* w_out = nullptr;         ///< [N, d]
  /// Where rows and columns of the grid are stored apart (several ranks): w_in and w_out hold `strip_rows`
  /// rows of it [strip_rows, Nc, d], these `strip_cols` columns [strip_cols, Nr, d]. Null: there is one of
  /// each expert.
  const void* w_in_cols = nullptr;
  const void* w_out_cols = nullptr;
  std::int64_t strip_rows = 0;
  std::int64_t strip_cols = 0;
  const void* shared_gate_up = nullptr;  ///< [2h, d]: gate rows, then up rows; null without shared MLP
  const void* shared_down = nullptr;     ///< [d, h]
};

/// Device form of core's Schedule for the schedules that group pairs (expert_centric, staircase). Capacities
/// are upper bounds known on the host; actual counts are on the device (`counts`), so that nothing is read
/// back. Item i covers entries [item_entry_offsets[i], item_entry_offsets[i+1]); entry e is one distinct
/// token of its item with pairs sorted_pair_ids[entry_pair_offsets[e] .. entry_pair_offsets[e+1]). The order
/// equals core's Schedule. Item index space: expert_centric: group g. staircase: row strip r in [0,Nr),
/// column strip Nr + c, explicit group Nr + Nc + g; strips without tokens are empty ranges. The position of a
/// pair's expert within its item follows from its id (strips) or from a search in group_experts (groups).
/// Pair ids and entry offsets are 32-bit: L*K < 2^31 is required of these schedules.
struct DeviceSchedule {
  std::int64_t max_items = 0;
  std::int64_t max_entries = 0;
  std::int64_t* item_entry_offsets = nullptr;  ///< [max_items + 1]
  std::int64_t* item_tile_offsets = nullptr;   ///< [max_items + 1]: tiles of kTileEntries entries
                                               ///< (core/tiling/tile_config.hpp) before item i
  std::int32_t* entry_tokens = nullptr;        ///< [max_entries]
  std::int32_t* entry_pair_offsets = nullptr;  ///< [max_entries + 1]
  std::int32_t* sorted_pair_ids = nullptr;     ///< [L*K]
  std::int32_t* group_experts = nullptr;       ///< [max_group_experts] experts in id order, B to a group
  std::int64_t* counts =
      nullptr;  ///< [4]: items, entries, experts in groups, next tile (scratch of the tile kernels)
};

/// Capacity of a schedule's arrays and its build workspace; pure arithmetic on the shape, no device needed.
struct ScheduleCapacity {
  std::int64_t max_items = 0;
  std::int64_t max_entries = 0;
  std::int64_t max_group_experts = 0;
  std::int64_t array_bytes = 0;      ///< all arrays of DeviceSchedule
  std::int64_t workspace_bytes = 0;  ///< scratch while it is built
};

// router_project.cu: logits [L, Nr+Nc] fp32 = X @ router^T + bias (paper eq. 9), cuBLASLt.
class CublasLt;  ///< handle, algorithm choice and workspace; cublas_lt.hpp
void launch_router_project(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                           const DeviceWeights& weights, float* logits, cudaStream_t stream);

/// What of the logits is summed and selected from.
enum class SelectMarginals : std::uint8_t {
  kLogSoftmax,  ///< paper eq. 10
  kAsGiven,     ///< product keys: the logits are the scores of sub-keys
};

// router_select.cu: exact top K of log_softmax(row)[i] + log_softmax(col)[j], ties to the lower id; gates;
// sorted by id. With marginals as given, of row[i] + col[j]. *bad_logit (device int64) must be -1 before; the
// smallest flat index of a NaN or infinite logit is left there, and stays until its owner clears it.
std::int64_t router_select_workspace_bytes(const LayerShape& shape, const GpuTraits& gpu);
void launch_router_select(const LayerShape& shape, const float* logits, DeviceRouting routing,
                          std::int64_t* bad_logit, void* workspace, cudaStream_t stream,
                          SelectMarginals marginals = SelectMarginals::kLogSoftmax);

// router_select_strips.cu: the same selection as thresholds and strip covers, no pair listed: every array of
// DeviceStrips with a token in its shape. A token with a NaN or infinite logit gets no strips; *bad_logit as
// above. Deterministic.
void launch_router_select_strips(const LayerShape& shape, StripRule rule, const float* logits,
                                 DeviceStrips strips, std::int64_t* bad_logit, cudaStream_t stream);

// schedule_strips.cu: from the covers (launch_router_select_strips must have run before on the same stream,
// each time) strip_offsets, strip_tokens, tiles of at most tile_tokens tokens and counts. The owner of the
// arrays is in strip_buffers.hpp. Deterministic but for the order of tokens within a strip.
void launch_schedule_strips(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens,
                            DeviceStrips strips, cudaStream_t stream);

// schedule.cu: strip cover or groups, then stable sort of the pairs by item. The owner of the arrays and
// their download are in schedule_buffers.hpp. Throws InvalidArgument when L*K >= 2^31 or group_size < 1,
// InternalError for a schedule that is not grouped. Deterministic.
ScheduleCapacity schedule_capacity(const LayerShape& shape, const ScheduleOptions& options);
void launch_schedule(const LayerShape& shape, const ScheduleOptions& options, DeviceRouting routing,
                     DeviceSchedule schedule, void* workspace, cudaStream_t stream);

/// Where an expert stage that finishes the layer leaves its result.
struct ExpertOutput {
  float* y = nullptr;  ///< [L, d] fp32; not used when `rounded` is given
  const float* addend =
      nullptr;              ///< [L, d] added to the experts' sums (the shared MLP's result); null: nothing
  void* rounded = nullptr;  ///< [L, d] bf16: the result rounded to storage; null: it goes to y
};

// experts_token_centric.cu: fused. Deterministic. The workspace is zero before its first use and left so;
// without it (null) few tokens are shared by fewer workers.
std::int64_t token_centric_workspace_bytes(const LayerShape& shape, const GpuTraits& gpu);
void launch_experts_token_centric(const LayerShape& shape, const void* hidden_states,
                                  const DeviceWeights& weights, DeviceRouting routing, void* workspace,
                                  ExpertOutput output, cudaStream_t stream);

// experts_tiles.cu: expert_centric and staircase on tensor cores. Fused: y is cleared and added to with fp32
// atomics.
void launch_experts_tiles(const LayerShape& shape, const ScheduleOptions& options, const void* hidden_states,
                          const DeviceWeights& weights, DeviceRouting routing, DeviceSchedule schedule,
                          float* y, cudaStream_t stream);

// experts_staircase.cu: the staircase schedule straight from strips (wgmma and TMA, compute capability 9.0,
// bf16), fused. Sums are kept scaled, y_t = sums_t * 2^-exponent_t, so that each addition moves 2 or 4 bytes
// a value.
enum class StaircaseSums : std::uint8_t {
  kFp16,        ///< fp16 atomics: fastest; the last bits depend on the order in which tiles finish
  kFixedPoint,  ///< int32 atomics: integer addition commutes, so results are bit-identical from run to run
};
/// What the experts' outputs are summed in; `launch_round_output` turns it into the layer's output.
struct StaircaseOutput {
  StaircaseSums kind = StaircaseSums::kFixedPoint;
  void* sums = nullptr;               ///< [L, d] fp16 or int32
  std::int32_t* exponents = nullptr;  ///< [L]
  /// [L] logarithm of what a token's sums are multiplied with at the end (gates `probability`:
  /// DeviceStrips::gate_shift); null: nothing.
  const float* log_scales = nullptr;
};
/// Whether the kernel takes this shape (bf16 storage, hidden_size a multiple of 8, 32-bit strip entries) on
/// this device, in a build that holds its code.
bool experts_staircase_supported(const LayerShape& shape, const GpuTraits& gpu);
/// Bytes of StaircaseOutput::sums.
std::int64_t staircase_sums_bytes(const LayerShape& shape, StaircaseSums kind);
/// *bound (device, one float) = max over experts of |w_in[i]|_2 * |w_out[i]|_inf. Once per set of weights.
void launch_expert_bound(const LayerShape& shape, const DeviceWeights& weights, float* bound,
                         cudaStream_t stream);
/// Before every launch_experts_staircase, at any time after the batch is known (it does not need the
/// routing): exponents from |x_t|_2 and `bound`, sums and the tile counter (strips.counts[2]) cleared.
void launch_staircase_prepare(const LayerShape& shape, const void* hidden_states, const float* bound,
                              DeviceStrips strips, StaircaseOutput output, cudaStream_t stream);
/// output.sums += the experts' outputs. `strips` holds tiles of at most kStripTileTokens.
void launch_experts_staircase(const LayerShape& shape, const void* hidden_states,
                              const DeviceWeights& weights, DeviceStrips strips, StaircaseOutput output,
                              cudaStream_t stream);

// experts_tiles.cu: p[pair] = gate * sigma(x . w_in[expert]) fp32 in CSR order, from tiles (staircase where
// its sums are to be repeatable). Deterministic.
void launch_expert_scores_tiles(const LayerShape& shape, const ScheduleOptions& options,
                                const void* hidden_states, const DeviceWeights& weights,
                                DeviceRouting routing, DeviceSchedule schedule, float* scores,
                                cudaStream_t stream);

// expert_combine.cu: y [L,d] fp32 = sum over a token's pairs of p * w_out. Token by token; deterministic.
void launch_expert_combine(const LayerShape& shape, const DeviceWeights& weights, DeviceRouting routing,
                           const float* scores, float* y, cudaStream_t stream);

// experts_dense_masked.cu: cuBLASLt products over chunks of experts; deterministic.
std::int64_t dense_masked_workspace_bytes(const LayerShape& shape);
void launch_experts_dense_masked(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                 const DeviceWeights& weights, DeviceRouting routing, void* workspace,
                                 float* y, cudaStream_t stream);

// experts_sparse_library.cu: cuSPARSE SDDMM, activation, SpMM.
class SparseLibrary;  ///< handles and descriptors for one shape; sparse_library.hpp

// shared_mlp.cu: y [L,d] = (act(x gate^T) * (x up^T)) down^T, cuBLASLt; h rounded to storage before `down`.
std::int64_t shared_mlp_workspace_bytes(const LayerShape& shape);
void launch_shared_mlp(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                       const DeviceWeights& weights, void* workspace, float* y, cudaStream_t stream);

// round_output.cu: output [L,d] in storage dtype = y + addend; belongs to the layer's last stage. addend
// [L,d] fp32 (the shared MLP's result) or null. With fp32 storage the output may be y itself.
void launch_round_output(const LayerShape& shape, const float* y, const float* addend, void* output,
                         cudaStream_t stream);
/// output = round(sums * 2^-exponent * exp(log_scale) + addend), bf16; addend [L,d] fp32 (the shared MLP's
/// result) or null.
void launch_round_output(const LayerShape& shape, const StaircaseOutput& sums, const float* addend,
                         void* output, cudaStream_t stream);

}  // namespace moescope::cuda
