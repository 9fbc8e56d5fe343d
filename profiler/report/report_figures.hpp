#pragma once

#include <string>
#include <utility>
#include <vector>

#include "profiler/report/recorded_points.hpp"
#include "profiler/text/figure.hpp"

namespace moescope {

/// The figures that recorded layers give: for every quantity that was swept (tokens, experts, K, width, group
/// size) the time of the layer and of the expert stage over it, and the same over the skew of the workloads,
/// each with everything else held fixed: the title says what. Lines are systems and schedules; the same sweep
/// on several devices, revisions or by several runs stands in one figure, each line named, while there are
/// few enough lines. Otherwise, and where a sweep has many workloads, it takes several figures. At most
/// `limit` of them, those with the most points.
std::vector<Figure> report_figures(const std::vector<RecordedLayer>& layers, std::size_t limit);

}  // namespace moescope
