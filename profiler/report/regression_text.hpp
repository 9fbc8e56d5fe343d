#pragma once

#include <span>
#include <string>

#include "profiler/report/regression.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table.hpp"
#include "profiler/text/table_output.hpp"

namespace moescope {

/// How two recordings are called where they stand side by side.
struct SideNames {
  std::string before;
  std::string after;
};

/// "NAME: DEVICE, revision REVISION, DAY", of the last of its runs, which are at least one.
std::string recording_line(const std::string& name, std::span<const RecordedRun> runs);

/// Times that are not the same, those that need a look first; `all`: the same ones too.
Table regression_table(const RegressionReport& report, bool all);

/// The answer, then how many there are of each, then what to do where it is not clear: lines of text.
std::string regression_conclusion(const RegressionReport& report, const SideNames& names, double threshold);

/// Table and conclusion; programs (csv, json) always get all.
void print_regressions(TableOutput& out, const RegressionReport& report, const SideNames& names,
                       double threshold, bool all);

/// Ratios over layers, a colour for each schedule, between the lines of the threshold.
Figure regression_figure(const RegressionReport& report, const SideNames& names, double threshold);

}  // namespace moescope
