#pragma once

#include <string>

#include "profiler/report/regression.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table_output.hpp"

namespace moescope {

/// How two recordings are called where they stand side by side.
struct RecordingNames {
  std::string before;
  std::string after;
};

/// Times that are not the same, the slower ones first, then the conclusion. `all`: the same ones too;
/// programs (csv, json) always get all.
void print_regressions(TableOutput& out, const RegressionReport& report, const RecordingNames& names,
                       double threshold, bool all);

/// Ratios over layers, a colour for each schedule, between the lines of the threshold.
Figure regression_figure(const RegressionReport& report, const RecordingNames& names, double threshold);

}  // namespace moescope
