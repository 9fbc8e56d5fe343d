#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"
#include "core/schedule/schedule.hpp"

/// What one task (a token with its pairs of one work item) does; shared by the separate and the fused stages,
/// so that both give the same bits.
namespace moescope::reference {

/// What a thread scores pairs with.
struct PairScratch {
  std::vector<float> x;       ///< [d]
  std::vector<float> scores;  ///< of one task
};
/// One for each of `threads`, for tasks of up to `most_pairs`.
inline std::vector<PairScratch> pair_scratch(int threads, std::int64_t hidden_size, std::int64_t most_pairs) {
  const PairScratch one{std::vector<float>(static_cast<std::size_t>(hidden_size)),
                        std::vector<float>(static_cast<std::size_t>(most_pairs))};
  return std::vector<PairScratch>(static_cast<std::size_t>(threads), one);
}

/// scores[q] = gate * sigma(x . w_in[e]) of pair pair_ids[q]; x [d] fp32.
void score_pairs(const LayerInputs& inputs, const Routing& routing, std::span<const std::int64_t> pair_ids,
                 const float* x, std::span<float> scores);

/// y [d] += sum over q of scores[q] * w_out[e], in the order of q.
void combine_pairs(const LayerInputs& inputs, const Routing& routing, std::span<const std::int64_t> pair_ids,
                   std::span<const float> scores, float* y);

/// Row `token` of hidden_states in fp32.
void load_token(const LayerInputs& inputs, std::int64_t token, std::span<float> x);

/// Throws InvalidArgument when routing, schedule or scores do not belong to `inputs`.
void require_same_layer(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule);
void require_scores(const Routing& routing, std::span<const float> scores);

}  // namespace moescope::reference
