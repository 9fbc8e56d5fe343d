#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/contract/strips.hpp"

/// Backward of the expert stage on strips (staircase schedule; wgmma and TMA, compute capability 9.0, bf16).
/// Symbols as in core/layer/training.hpp, conventions as in launch.hpp. In order:
///
///   launch_strips_order             once a selection; before the forward where that is to leave z
///   launch_strips_backward_prepare  clears what the others add to
///   launch_strips_scores            z = X W^T
///   launch_strips_dgrad             p, q, h of every pair; dX += q W
///   launch_strips_finish            dX as fp32
///   launch_strips_wgrad             dW = q^T X, dV = p^T dY
///   launch_strips_router_select_backward   the logits' gradients from sums of h and of gates
///
/// All but dX are bit-identical from run to run; dX is where its sums are in fixed point.
/// experts_staircase_supported() says whether they run; weights, X and dY must be finite.
namespace moescope::cuda {

/// Strips in a fixed order. launch_schedule_strips leaves a strip's tokens in none, and sums over tokens
/// would follow it.
struct StripsOrder {
  std::int32_t* strip_tokens = nullptr;  ///< [max_entries] ascending within a strip
  std::int32_t* entries = nullptr;  ///< [L, max_cover] place in strip_tokens of each strip of a token's cover

  /// The same strips with the tokens in order; what all other launchers here take.
  DeviceStrips apply(DeviceStrips strips) const {
    strips.strip_tokens = strip_tokens;
    return strips;
  }
};
void launch_strips_order(const LayerShape& shape, StripRule rule, DeviceStrips strips, StripsOrder order,
                         cudaStream_t stream);

/// How what belongs to pairs lies in memory: one row per entry of strip_tokens, in it a place per expert of
/// the strip. Places behind a strip's end hold anything.
struct StripsPairsLayout {
  std::int64_t entries = 0;   ///< rows there is room for
  std::int64_t tiles = 0;     ///< StripTiles there is room for
  std::int64_t pitch = 0;     ///< places of a row, a multiple of 64
  std::int64_t segments = 0;  ///< parts that the longer kind of strip is taken in
  std::int64_t z_bytes = 0;
  std::int64_t row_bytes = 0;  ///< of p, of q and of h
  std::int64_t sum_bytes = 0;  ///< of h_sums and of gate_sums
};
/// For all that a batch can have (strip_capacity()), or for counts that are known: then a batch with more
/// entries or tiles must not be run.
StripsPairsLayout strips_pairs_layout(const LayerShape& shape, std::int64_t entries, std::int64_t tiles);

struct StripsPairs {
  StripsPairsLayout layout;
  void* z = nullptr;        ///< bf16, tile by tile as the tensor cores hold it; 16-byte aligned as all here
  void* p = nullptr;        ///< [entries, pitch] bf16: gate * act(z); 0 where nothing is selected, as q and h
  void* q = nullptr;        ///< gradient of z
  void* h = nullptr;        ///< p * u: the gate's gradient times the gate
  float* h_sums = nullptr;  ///< [entries, segments] sum of an entry's h over the segment's experts
  float* gate_sums = nullptr;  ///< the same of gates
};

/// Before launch_strips_scores and launch_strips_dgrad, each time. `bound`: launch_expert_bound() of the
/// weights with w_in and w_out exchanged. Exponents of dX's sums from |dy_t|, the sums and counters cleared.
void launch_strips_backward_prepare(const LayerShape& shape, const void* dy, const float* bound,
                                    DeviceStrips strips, StripsPairs pairs, StaircaseOutput dx,
                                    cudaStream_t stream);
/// pairs.z = x . w_in of every pair of a tile, selected or not.
void launch_strips_scores(const LayerShape& shape, const void* hidden_states, const DeviceWeights& weights,
                          DeviceStrips strips, StripsPairs pairs, cudaStream_t stream);
/// launch_experts_staircase() that leaves pairs.z on its way: the forward of a step that saves z.
void launch_strips_forward(const LayerShape& shape, const void* hidden_states, const DeviceWeights& weights,
                           DeviceStrips strips, StripsPairs pairs, StaircaseOutput output,
                           cudaStream_t stream);
/// p, q, h and sums from pairs.z; dx.sums += q W. dx.log_scales is not used: null.
void launch_strips_dgrad(const LayerShape& shape, const void* dy, const DeviceWeights& weights,
                         DeviceStrips strips, StripsPairs pairs, StaircaseOutput dx, cudaStream_t stream);

/// dx [L, d] fp32 = sums * 2^-exponent; added to what is there where `adds`.
void launch_strips_finish(const LayerShape& shape, StaircaseOutput sums, bool adds, float* dx,
                          cudaStream_t stream);

/// logits_gradient [L, Nr+Nc] fp32: of what the softmax reads, rows then columns, without auxiliary losses;
/// from pairs.h and the sums.
std::int64_t strips_router_select_backward_workspace_bytes(const LayerShape& shape);
void launch_strips_router_select_backward(const LayerShape& shape, StripRule rule, DeviceStrips strips,
                                          StripsOrder order, StripsPairs pairs, float* logits_gradient,
                                          void* workspace, cudaStream_t stream);

/// Gradients of the experts' weights. An expert's row strip stores, its column strip adds: an expert without
/// pairs gets zeros. Tokens are added in order, so results are bit-identical from run to run.
struct StripsWeightGradients {
  Dtype dtype = Dtype::kBF16;
  void* w_in = nullptr;   ///< dW [N, d], 16-byte aligned
  void* w_out = nullptr;  ///< dV [N, d]
  bool adds = false;      ///< to what is there
};
void launch_strips_wgrad(const LayerShape& shape, StripRule rule, const void* hidden_states, const void* dy,
                         DeviceStrips strips, StripsPairs pairs, StripsWeightGradients gradients,
                         cudaStream_t stream);

/// loads[i] += pairs of expert i; loads [N].
void launch_strips_loads(const LayerShape& shape, StripRule rule, DeviceStrips strips, std::int32_t* loads,
                         cudaStream_t stream);
/// lse [2, L]: log-sum-exp of the row logits, then of the column logits, from logits [L, Nr+Nc] and their
/// log-probabilities.
void launch_strips_log_sums(const LayerShape& shape, const float* logits, DeviceStrips strips, float* lse,
                            cudaStream_t stream);

}  // namespace moescope::cuda
