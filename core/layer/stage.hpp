#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace moescope {

/// Stages of a layer (DESIGN section 3). The printed name is also the NVTX range, JSON key and plot label.
enum class Stage : std::uint8_t {
  kRouterProject,
  kRouterSelect,
  kSchedule,
  kExpertScores,
  kExpertCombine,
  kExperts,  ///< expert_scores and expert_combine fused into one kernel
  kSharedMlp,
  kLayer,  ///< all of them, from the first kernel to the last
};

inline constexpr std::array kStages = {Stage::kRouterProject, Stage::kRouterSelect,  Stage::kSchedule,
                                       Stage::kExpertScores,  Stage::kExpertCombine, Stage::kExperts,
                                       Stage::kSharedMlp,     Stage::kLayer};

/// The experts, apart or fused: a layer has the first two or the last.
inline constexpr std::array kExpertStages = {Stage::kExpertScores, Stage::kExpertCombine, Stage::kExperts};

constexpr std::string_view to_string(Stage stage) {
  switch (stage) {
    case Stage::kRouterProject:
      return "router_project";
    case Stage::kRouterSelect:
      return "router_select";
    case Stage::kSchedule:
      return "schedule";
    case Stage::kExpertScores:
      return "expert_scores";
    case Stage::kExpertCombine:
      return "expert_combine";
    case Stage::kExperts:
      return "experts";
    case Stage::kSharedMlp:
      return "shared_mlp";
    case Stage::kLayer:
      return "layer";
  }
  return "?";
}

}  // namespace moescope
