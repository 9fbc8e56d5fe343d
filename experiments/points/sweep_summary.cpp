#include "experiments/points/sweep_summary.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "core/base/line_text.hpp"
#include "core/results/result.hpp"

namespace moescope {
namespace {

/// The reason of a point that came to nothing, else that of each schedule that failed.
std::vector<std::string> troubles_of(const RecordedPoint& point,
                                     const std::vector<const ResultRow*>& failed) {
  if (point.status != Status::kOk) {
    return {point.reason};
  }
  std::vector<std::string> troubles;
  for (const ResultRow* row : failed) {
    std::string text = fmt::format("{}: {}", row->schedule, row->reason);
    if (std::ranges::find(troubles, text) == troubles.end()) {
      troubles.push_back(std::move(text));
    }
  }
  return troubles;
}

}  // namespace

std::string SweepSummary::text() const {
  return failed == 0 ? troubles : fmt::format("{} of {} points failed\n{}", failed, points, troubles);
}

SweepSummary summarize(const std::filesystem::path& directory, const std::vector<PlannedPoint>& planned) {
  std::map<std::string, std::string> labels;
  for (const PlannedPoint& each : planned) {
    labels[each.point.id] = each.point.label;
  }
  SweepSummary summary;
  for (const RecordedRun& run : read_rows(directory / "rows.jsonl")) {
    std::map<std::string, std::vector<const ResultRow*>> failed;
    std::map<std::string, std::string> repro;
    for (const ResultRow& row : run.rows) {
      repro.emplace(row.point, row.repro);
      if (row.status == Status::kFailed) {
        failed[row.point].push_back(&row);
      }
    }
    for (const RecordedPoint& point : run.points) {
      const std::vector<std::string> troubles = troubles_of(point, failed[point.id]);
      ++summary.points;
      summary.failed += point.status != Status::kSkipped && !troubles.empty() ? 1 : 0;
      summary.any = summary.any || point.status != Status::kFailed;
      summary.elapsed_s += point.elapsed_s;
      for (const std::string& trouble : troubles) {
        summary.troubles +=
            fmt::format("{}: {}: {}\n", point.status == Status::kSkipped ? "skipped" : "failed",
                        one_line(labels[point.id]), one_line(trouble));
      }
      if (!troubles.empty()) {
        summary.troubles += fmt::format("  {}\n", one_line(repro[point.id]));
      }
    }
  }
  return summary;
}

}  // namespace moescope
