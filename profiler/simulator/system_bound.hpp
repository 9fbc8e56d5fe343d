#pragma once

#include <utility>
#include <vector>

#include "core/cost/traffic.hpp"
#include "core/systems/system.hpp"
#include "profiler/simulator/sim_device.hpp"

/// Roofline bounds of baseline layers on modelled devices: what no implementation with their analytic
/// traffic can beat. Not a simulation: nothing is replayed.
namespace moescope {

/// Seconds of every stage in order; the last is Stage::kLayer, their sum.
using StageBounds = std::vector<std::pair<Stage, double>>;

/// A stage takes a launch plus the longest of: its compulsory bytes from HBM, its requested bytes from L2,
/// its FLOP (matrix products on tensor cores, gathered rows of pkm and peer on CUDA cores). Experts' load is
/// even, so that all of them are active where there are pairs enough. Throws what analytic_cost() throws.
StageBounds system_bound(const SystemShape& shape, const DeviceSpec& device);

/// The same for an N-way router instead of a Cartesian one: [L, d] x [d, N], then the top K of every row of
/// fp32 logits; router_project, router_select and their sum.
StageBounds full_router_bound(const LayerShape& shape, const DeviceSpec& device);

}  // namespace moescope
