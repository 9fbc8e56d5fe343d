#pragma once

#include <string>
#include <vector>

#include "profiler/report/recorded_points.hpp"

namespace moescope {

/// HTML of what recorded layers say; both are empty when no layer has two times.
struct HtmlSummary {
  /// A paragraph per device: on how many layers each schedule is the fastest, by how much, and on how many
  /// nothing can be told apart.
  std::string conclusions;
  /// Per device the same by the number of tokens and by schedule, and a folded table of every layer.
  std::string details;
};
HtmlSummary html_summary(const std::vector<RecordedLayer>& layers);

}  // namespace moescope
