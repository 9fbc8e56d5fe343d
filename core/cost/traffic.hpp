#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/stage.hpp"
#include "core/schedule/schedule.hpp"

namespace moescope {

struct TrainingOptions;  // core/layer/training.hpp

/// Memory level a term counts.
/// kHbm: compulsory - each distinct byte a stage needs moves once (an infinitely large cache).
/// kL2: requested - every work item loads what it needs, nothing is kept from item to item.
enum class MemoryLevel : std::uint8_t { kHbm, kL2 };
enum class Access : std::uint8_t { kRead, kWrite };

std::string_view to_string(MemoryLevel level);
std::string_view to_string(Access access);

/// One term of the analytic traffic, so that a report can print the sum's parts.
struct TrafficTerm {
  Stage stage;
  MemoryLevel level;
  Access access;
  std::int64_t bytes;
  std::string_view what;  ///< e.g. "W rows of active experts"
};

/// Floating-point operations of a stage (a multiply-add counts 2). Useful: what the mathematics needs;
/// executed: what the schedule computes, masked-out products included.
struct FlopCount {
  Stage stage;
  std::int64_t useful_flop;
  std::int64_t executed_flop;
};

struct AnalyticCost {
  std::vector<TrafficTerm> traffic;
  std::vector<FlopCount> flop;
  /// Of staircase on strips: units of work, a tile of tokens against a segment of a strip each; else 0.
  std::int64_t strip_units = 0;

  std::int64_t bytes(Stage stage, MemoryLevel level, Access access) const;
  std::int64_t bytes(Stage stage, MemoryLevel level) const;
  std::int64_t useful_flop(Stage stage) const;
  std::int64_t executed_flop(Stage stage) const;
};

/// All stages of one layer that run under one schedule. `fixed_routing`: the routing was recorded or made up
/// (LayerInputs::fixed_routing), so that the router's stages do not run and cost nothing. Stage::kLayer sums
/// the others.
AnalyticCost analytic_cost(const LayerShape& shape, const Routing& routing, const Schedule& schedule,
                           bool fixed_routing);

/// The backward of the same layer (backward_traffic.cpp), what it computes again and the optimizer's step
/// included. Stage::kLayer sums it.
AnalyticCost backward_cost(const LayerShape& shape, const Routing& routing, const Schedule& schedule,
                           bool fixed_routing, const TrainingOptions& training);

/// AdamW on `rows` rows of W and V (stage experts_optimizer; optimizer_traffic.cpp): all N of them is the dense
/// step.
AnalyticCost optimizer_cost(const LayerShape& shape, std::int64_t rows, const TrainingOptions& training);

/// Floor of the experts' backward in bytes: the active rows of W and V, X and dY read once; dX, and every row
/// of dW and dV (those without tokens are zero) written once, or by GradientForm the active ones, or these
/// read as well.
std::int64_t backward_floor_bytes(const LayerShape& shape, const Routing& routing,
                                  const TrainingOptions& training);

/// Floor of the expert stage in bytes: the active rows of W and V read once, X read once, Y written once.
std::int64_t expert_floor_bytes(const LayerShape& shape, const Routing& routing);

}  // namespace moescope
