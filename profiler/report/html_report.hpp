#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/results/result.hpp"

namespace moescope {

/// A figure as it stands in a report.
struct ReportFigure {
  std::string title;
  std::string svg;     ///< text of the image; empty when there is none
  std::string reason;  ///< why not
};

/// One HTML page of recorded runs that needs no other file and no network: what ran where, the figures, a
/// table of every schedule on every layer (time, spread, speed-up, bytes against the floor, error), what is
/// missing and why, and the command that measures each layer again.
std::string html_report(const std::string& title, std::span<const RecordedRun> runs,
                        const std::vector<ReportFigure>& figures);

}  // namespace moescope
