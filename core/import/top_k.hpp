#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moescope {

/// How gates come from a token's logits, once its K largest are selected.
enum class ScoreMode : std::uint8_t {
  kSoftmax,            ///< softmax over the selected (Mixtral); the same as renormalised probabilities
  kProbability,        ///< softmax over all experts, not renormalised (OLMoE, DeepSeek-V2)
  kSigmoid,            ///< sigmoid of each
  kSigmoidNormalised,  ///< the same, made to sum to one (DeepSeek-V3)
};
std::string_view to_string(ScoreMode mode);
/// Throws InvalidArgument("scores", ...).
ScoreMode parse_score_mode(std::string_view text);

/// Gates [ids] in fp64, rounded once. All logits are finite.
void make_gates(std::span<const float> logits, std::span<const std::int32_t> ids, ScoreMode mode,
                std::span<float> gates);

/// Experts of the K largest logits in descending order of logit; of equal ones the lower id first. Returns
/// the experts that share the last place when not all with that logit were selected: `ids` holds the first of
/// them. Empty without such a tie. All logits are finite, K <= logits.size().
std::vector<std::int32_t> select_top_k(std::span<const float> logits, std::span<std::int32_t> ids);

}  // namespace moescope
