#pragma once

#include "core/cost/host_needs.hpp"
#include "core/systems/system.hpp"

namespace moescope {

/// Running the router's stages on the CPU: kept is the routing, passing its logits and what selects.
HostNeeds cpu_router_needs(const LayerShape& shape);

/// A LayerExecution on the CPU: kept are its routing (unless it is fixed), schedule and output; passing is
/// what the stage that takes most works with. Beside its inputs.
HostNeeds cpu_execution_needs(const LayerShape& shape, bool fixed_routing, const ScheduleOptions& options);

/// Forward and backward of a layer on the CPU at the worst moment, beside its inputs; `gradients`: dtype of
/// those of parameters. An upper bound from the shape.
double cpu_training_bytes(const LayerShape& shape, bool fixed_routing, const ScheduleOptions& options,
                          Dtype gradients);

/// Running a baseline system, as cpu_execution_needs().
HostNeeds cpu_system_needs(const SystemShape& shape, bool fixed_routing, const TokenRule& tokens = {});

/// The most of `passing` and of a cold run's flush of the cache, with what the heap keeps of what passed
/// before.
double with_cold_runs(double passing);

/// The fp64 oracle on so many tokens, with what it is compared with.
double oracle_host_bytes(const LayerShape& shape, std::int64_t sampled_tokens);

}  // namespace moescope
