#pragma once

#include <cstdint>
#include <vector>

#include "core/cost/traffic.hpp"
#include "core/layer/routing.hpp"
#include "core/layer/stage.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system.hpp"

namespace moescope {

/// Stages of a baseline in order, without kLayer. dense_mlp is a shared_mlp and nothing else; pkm has no
/// scores of its own, so its expert stage is expert_combine; product keys need no schedule.
std::vector<Stage> system_stages(System system);
/// The same without the router's, which a layer with a fixed routing skips.
std::vector<Stage> system_stages(System system, bool fixed_routing);

/// The order of work of a baseline's expert stage, as prepare_system() runs it: expert_centric in groups of
/// one expert for FFN experts, token_centric for product keys (which a backend may also run as dense_masked:
/// SystemInputs::schedule); dense_mlp, which has none, computes all.
ScheduleOptions system_schedule(System system);

/// All stages of one baseline layer on this routing (empty for dense_mlp). Stage::kLayer sums the others.
/// `kind` is the order of work that ran: product keys also as dense_masked (all experts for every token, as
/// the GPU does it: one matrix [L, N] is scores, then P), FFN experts also as token_centric and dense_masked.
/// Throws
/// InvalidArgument("schedule", ...). `fixed_routing`: the router's stages do not run and cost nothing.
AnalyticCost analytic_cost(const SystemShape& shape, const Routing& routing, ScheduleKind kind,
                           bool fixed_routing = false);
/// The same as system_schedule() has it.
AnalyticCost analytic_cost(const SystemShape& shape, const Routing& routing);

/// Floor of the expert stage in bytes: weights of active experts and X read once, Y written once. pkm does
/// not read X; dense_mlp has no routed experts: 0.
std::int64_t expert_floor_bytes(const SystemShape& shape, const Routing& routing);

}  // namespace moescope
