#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace moescope {

/// Which way a stage goes: from hidden states to the output, or from the output's gradient to the others'.
enum class Direction : std::uint8_t { kForward, kBackward };

constexpr std::string_view to_string(Direction direction) {
  return direction == Direction::kForward ? "forward" : "backward";
}

/// Stages of a layer (DESIGN section 3): an operation and its direction. The printed name is also the NVTX
/// range, JSON key and plot label.
enum class Stage : std::uint8_t {
  kRouterProject,
  kRouterSelect,
  kTokenDispatch,  ///< several ranks: tokens and pairs to the ranks of their experts
  kSchedule,
  kExpertScores,
  kExpertCombine,
  kExperts,       ///< expert_scores and expert_combine fused into one kernel
  kTokenCombine,  ///< several ranks: partial sums back to the tokens' homes, where they are added
  kSharedMlp,
  kSharedMlpBackward,      ///< gradients of its input and of its three matrices
  kExpertsDgrad,           ///< data gradients of the experts: of their input and of the gates
  kExpertsWgrad,           ///< weight gradients of the experts: of W and V
  kRouterSelectBackward,   ///< from the gates' gradients to those of the logits; auxiliary losses join here
  kRouterProjectBackward,  ///< from the logits' gradients to those of the input and of the router's matrices
  kExpertsOptimizer,       ///< the optimizer's step on W and V
  kLayer,                  ///< all of one direction, from the first kernel to the last
};

inline constexpr std::array kStages = {Stage::kRouterProject,
                                       Stage::kRouterSelect,
                                       Stage::kTokenDispatch,
                                       Stage::kSchedule,
                                       Stage::kExpertScores,
                                       Stage::kExpertCombine,
                                       Stage::kExperts,
                                       Stage::kTokenCombine,
                                       Stage::kSharedMlp,
                                       Stage::kSharedMlpBackward,
                                       Stage::kExpertsDgrad,
                                       Stage::kExpertsWgrad,
                                       Stage::kRouterSelectBackward,
                                       Stage::kRouterProjectBackward,
                                       Stage::kExpertsOptimizer,
                                       Stage::kLayer};

/// Of the layer itself it is the point that says so (Point::direction).
constexpr Direction direction_of(Stage stage) {
  return stage >= Stage::kSharedMlpBackward && stage <= Stage::kExpertsOptimizer ? Direction::kBackward
                                                                                 : Direction::kForward;
}

/// The experts. A forward has the first two or, fused, the third; a backward the last two, and the first
/// where it computes scores again.
inline constexpr std::array kExpertStages = {Stage::kExpertScores, Stage::kExpertCombine, Stage::kExperts,
                                             Stage::kExpertsDgrad, Stage::kExpertsWgrad};

constexpr std::string_view to_string(Stage stage) {
  switch (stage) {
    case Stage::kRouterProject:
      return "router_project";
    case Stage::kRouterSelect:
      return "router_select";
    case Stage::kTokenDispatch:
      return "token_dispatch";
    case Stage::kSchedule:
      return "schedule";
    case Stage::kExpertScores:
      return "expert_scores";
    case Stage::kExpertCombine:
      return "expert_combine";
    case Stage::kExperts:
      return "experts";
    case Stage::kTokenCombine:
      return "token_combine";
    case Stage::kSharedMlp:
      return "shared_mlp";
    case Stage::kSharedMlpBackward:
      return "shared_mlp_backward";
    case Stage::kExpertsDgrad:
      return "experts_dgrad";
    case Stage::kExpertsWgrad:
      return "experts_wgrad";
    case Stage::kRouterSelectBackward:
      return "router_select_backward";
    case Stage::kRouterProjectBackward:
      return "router_project_backward";
    case Stage::kExpertsOptimizer:
      return "experts_optimizer";
    case Stage::kLayer:
      return "layer";
  }
  return "?";
}

}  // namespace moescope
