#pragma once

#include <cstdint>
#include <vector>

#include "core/cost/traffic.hpp"
#include "core/layer/routing.hpp"
#include "core/layer/stage.hpp"
#include "core/schedule/schedule.hpp"
#include "core/schedule/token_assignment.hpp"
#include "core/systems/system.hpp"
#include "core/systems/system_traits.hpp"

namespace moescope {

/// Stages of a baseline in order, without kLayer. dense_mlp is a shared_mlp and nothing else; pkm has no
/// scores of its own, so its expert stage is expert_combine; product keys need no schedule.
std::vector<Stage> system_stages(System system);
/// The same without the router's, which a layer with a fixed routing skips.
std::vector<Stage> system_stages(System system, bool fixed_routing);

/// All stages of one baseline layer on this routing (empty for dense_mlp). Stage::kLayer sums the others.
/// `kind` is the order of work that ran: product keys also as dense_masked (all experts for every token, as
/// the GPU does it: one matrix [L, N] is scores, then P), FFN experts also as token_centric and dense_masked.
/// Throws
/// InvalidArgument("schedule", ...). `fixed_routing`: the router's stages do not run and cost nothing.
AnalyticCost analytic_cost(const SystemShape& shape, const Routing& routing, ScheduleKind kind,
                           bool fixed_routing = false);
/// The same as system_schedule() has it.
AnalyticCost analytic_cost(const SystemShape& shape, const Routing& routing);

/// FFN experts as expert_centric over the pairs that a rule left of `routing`, the router's choice; null:
/// all. Under a capacity all rows of all experts are executed, of which the pairs that run are useful. Throws
/// InvalidArgument("schedule", ...) for another kind or system.
AnalyticCost analytic_cost(const SystemShape& shape, const Routing& routing, const ScheduleOptions& schedule,
                           const TokenAssignment* assignment, bool fixed_routing);

/// Rows of FFN experts' products: what a schedule executes for the pairs that count.
struct FfnRows {
  std::int64_t useful = 0;  ///< pairs that run
  std::int64_t executed =
      0;  ///< expert_centric: tiles of kGroupedTile rows; token_centric: pairs; dense_masked: L N
  double padding_waste() const {
    return useful > 0 ? static_cast<double>(executed) / static_cast<double>(useful) : 0;
  }
};
/// Throws what analytic_cost() throws.
FfnRows ffn_rows(const SystemShape& shape, const Routing& routing, const ScheduleOptions& schedule,
                 const TokenAssignment* assignment);

/// Floor of the expert stage in bytes: weights of active experts and X read once, Y written once. pkm does
/// not read X; dense_mlp has no routed experts: 0.
std::int64_t expert_floor_bytes(const SystemShape& shape, const Routing& routing);

}  // namespace moescope
