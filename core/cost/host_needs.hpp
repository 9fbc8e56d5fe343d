#pragma once

#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"

/// How much host memory a layer takes, known before anything is allocated.
namespace moescope {

/// Bytes of host memory, upper bounds from the shape alone. In floating point: the product of two extents
/// that are valid alone may not fit an integer.
struct HostNeeds {
  double kept = 0;     ///< as long as the thing lives
  double passing = 0;  ///< besides, while it is made or used
};

/// Ids, gates and offsets of a Routing.
double routing_host_bytes(const LayerShape& shape);

/// LayerInputs of a synthetic workload: weights (unless they are there already), router, tokens, and the
/// routing where it is fixed.
double inputs_host_bytes(const LayerShape& shape, bool fixed_routing, bool has_experts);

/// A Schedule and what building it takes; of kAuto whichever it may choose, and the choice.
HostNeeds schedule_host_needs(const LayerShape& shape, bool fixed_routing, const ScheduleOptions& options,
                              int threads);

/// While skew or analytic costs are worked out: loads per expert, last tokens per column and thread.
double analysis_host_bytes(const LayerShape& shape, int threads);

}  // namespace moescope
