#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "core/results/result.hpp"
#include "profiler/page/plotting_library.hpp"
#include "profiler/report/regression.hpp"
#include "profiler/report/regression_text.hpp"

namespace moescope {

/// What the runs of a page are held against: what `moescope diff` says of the two.
struct ReportBaseline {
  std::string before;  ///< what A is, a line of text
  std::string after;   ///< likewise B, the page's runs
  double threshold = 0;
  RegressionReport report;
};

struct ReportPage {
  std::string html;
  std::size_t figures = 0;  ///< how many it has; 0 without a plotting library
};

/// One HTML page of recorded runs that needs no other file and no network, and fetches none: what they say
/// first, then the comparison with a baseline, figures, rooflines of profiled stages, a table of every
/// schedule on every layer (time, spread, speed-up, bytes against the floor, error), what is missing and why,
/// what ran where. Tables are plain HTML; page.js sorts and filters them and draws the figures with
/// `library`, which is embedded. Without one the page says so in the figures' place. `baseline` may be null.
ReportPage html_report(const std::string& title, std::span<const RecordedRun> runs,
                       const PlottingLibrary& library, const ReportBaseline* baseline = nullptr);

}  // namespace moescope
