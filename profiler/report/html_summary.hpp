#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "profiler/report/recorded_points.hpp"

namespace moescope {

/// HTML: what the recorded layers say, before any detail. Per device: on how many layers each schedule is the
/// fastest, by how much, and on how many nothing can be told apart; the same by the number of tokens and by
/// schedule; and a folded table of every layer, which can be sorted and filtered. Empty when no layer has two
/// times.
std::string html_summary(const std::vector<RecordedLayer>& layers);

/// Script of the page: a click on a head sorts its table, text in a field above filters its rows.
std::string_view html_table_script();

}  // namespace moescope
