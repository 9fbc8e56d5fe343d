#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/schedule/schedule.hpp"
#include "core/systems/system.hpp"
#include "core/workload/workload.hpp"

namespace moescope {

/// What a command does with a layer once its inputs are there, as far as that takes host memory.
struct LayerUse {
  std::string_view backend = "cpu";        ///< the layer's stages run on the host, or on a device
  std::vector<ScheduleOptions> schedules;  ///< prepared; none: routed alone
  bool side_by_side = true;                ///< all of them are kept at once
  std::int64_t judged_tokens = 0;          ///< held against the oracle; 0: none
  bool trains = false;                     ///< forward and backward, one schedule after the other
};

/// Host bytes that inputs and use take at the worst moment, an upper bound from the shape and the size of the
/// workload's file. `has_experts`: the weights are there already.
double layer_host_bytes(const LayerShape& shape, const WorkloadSpec& spec, bool has_experts,
                        const LayerUse& use);
/// The same of a baseline system, run and judged.
double system_host_bytes(const SystemShape& shape, const WorkloadSpec& spec, std::string_view backend,
                         std::int64_t judged_tokens);

}  // namespace moescope
