#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/layer/routing.hpp"
#include "core/layer/stage.hpp"
#include "core/layer/training.hpp"
#include "core/schedule/schedule.hpp"

/// What a training step keeps in memory, in bytes, before anything of it runs.
namespace moescope {

enum class MemoryPart : std::uint8_t {
  kInput,     ///< weights, X and dY, and a routing that is given
  kSaved,     ///< left by the forward for the backward (SaveMode)
  kWorking,   ///< made and used up within the backward
  kGradient,  ///< what the step is for
};
std::string_view to_string(MemoryPart part);

struct MemoryTerm {
  MemoryPart part;
  std::string_view what;  ///< e.g. "log-probabilities"
  std::int64_t bytes = 0;
  Stage first = Stage::kLayer;  ///< kWorking: alive from this stage of the backward ...
  Stage last = Stage::kLayer;   ///< ... to the end of this one
};

/// How a backend lays out what belongs to pairs.
struct TrainingLayout {
  /// Tiles of strips (tokens x experts of a strip) with lists of tokens alone; false: lists of pairs.
  bool strips = false;
  Dtype operands = Dtype::kF32;  ///< z that is saved, and p and q between experts_dgrad and experts_wgrad
};
/// The CPU mirror's: lists of pairs, fp32.
inline constexpr TrainingLayout kMirrorLayout = {};

struct MemoryPlan {
  std::vector<MemoryTerm> terms;
  std::vector<Stage> stages;  ///< of the backward, in order; those of the forward among them run again

  std::int64_t bytes(MemoryPart part) const;
  /// kWorking that is alive while `stage` runs.
  std::int64_t working_bytes(Stage stage) const;
  /// Most that is held at once beside inputs and gradients: what is saved, and the worst stage's working
  /// memory.
  std::int64_t peak_bytes() const;
};

/// Stages of the backward in order, with those of the forward that SaveMode has computed again, and the
/// optimizer's step last where there is one.
std::vector<Stage> backward_stages(const LayerShape& shape, bool fixed_routing, SaveMode save,
                                   OptimizerForm optimizer = OptimizerForm::kNone);
/// Bytes of an AdamW's state on both tables: weights and moments in fp32, the last step of every row.
std::int64_t optimizer_state_bytes(const LayerShape& shape);

/// Exact for the routing and the schedule that will run: every size follows from the shape, the mode, and,
/// with strips, from how many tokens each strip has. `has_bias`: the router has biases (of a given
/// routing there is no router). Throws
/// InvalidArgument when routing and shape do not fit, or a term overflows.
MemoryPlan training_memory_plan(const LayerShape& shape, const Routing& routing, const Schedule& schedule,
                                bool fixed_routing, bool has_bias, const TrainingOptions& training,
                                const TrainingLayout& layout);

}  // namespace moescope
