#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "profiler/report/recorded_points.hpp"

namespace moescope {

/// HTML: what the recorded layers say, before any detail. Per device one sentence a direct answer needs (the
/// schedule that is fastest most often, by how much, and on how many layers nothing can be told apart), a
/// table of schedules, and a folded table of every layer with its fastest schedule, which can be sorted and
/// filtered. Empty when no layer has two times.
std::string html_summary(const std::vector<RecordedLayer>& layers);

/// Script of the page: a click on a head sorts its table, text in a field above filters its rows.
std::string_view html_table_script();

}  // namespace moescope
