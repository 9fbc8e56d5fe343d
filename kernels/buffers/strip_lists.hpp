#pragma once

#include <cstdint>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/routing.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/buffers/strip_buffers.hpp"

/// Thresholds and strips, as the kernels left them, in core's form: what was selected and in which order,
/// pair by pair. Host arithmetic, no device needed; for comparison and for who wants the routing of a run.
namespace moescope::cuda {

/// The pairs that the experts' kernel weighs: for every token those of its strips that pass its threshold. A
/// pair that two of its strips hold is listed twice, one that none holds is missing: Routing::validate() or
/// their number tells. Throws InternalError for a strip that the grid has not.
Routing routing_of(const LayerShape& shape, const HostStrips& strips);

/// Where the pairs of routing_of() lie, in its order.
struct PairPlace {
  std::int32_t cover = 0;  ///< place of the strip in its token's cover
  std::int32_t place = 0;  ///< of the expert in the strip
};
std::vector<PairPlace> places_of(const LayerShape& shape, const HostStrips& strips);

/// The lists of strips as a Schedule of `routing`, which is routing_of() the same strips. Tokens of a strip,
/// which stand in no order, are sorted. Throws InternalError where a strip lists a pair that `routing` has
/// not, or tiles do not hold every entry once.
Schedule schedule_of(const LayerShape& shape, const ScheduleOptions& options, const HostStrips& strips,
                     const Routing& routing);

}  // namespace moescope::cuda
