#include "experiments/points/regression_text.hpp"

#include <fmt/format.h>

#include <ostream>

#include "profiler/text/format.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

void print_regressions(std::ostream& out, const RegressionReport& report, double threshold) {
  Table table({{"", Align::kLeft},
               {"workload", Align::kLeft},
               {"shape", Align::kLeft},
               {"schedule", Align::kLeft},
               {"stage", Align::kLeft},
               {"before"},
               {"after"},
               {"ratio"},
               {"noise"}});
  for (const TimeComparison& time : report.times) {
    if (time.verdict == TimeVerdict::kSame) {
      continue;
    }
    const ResultRow& row = time.after;
    const bool lost = time.verdict == TimeVerdict::kLost;
    table.add_row({std::string(to_string(time.verdict)), row.workload,
                   fmt::format("L{} d{} {}x{} K{}", row.num_tokens, row.hidden_size, row.grid_rows,
                               row.grid_cols, row.top_k),
                   row.schedule, row.stage, format_seconds(time.before_s),
                   lost ? row.reason : format_seconds(*row.value),
                   lost ? "-" : fmt::format("{:.3f}", time.ratio), format_seconds(time.noise_s)});
  }
  if (table.num_rows() > 0) {
    out << '\n' << table.text();
  }
  out << fmt::format(
      "\nagainst the baseline: {} same, {} faster, {} slower by more than {:g} % and noise, {} unclear, {} "
      "lost; {} "
      "only in the baseline, {} only here\n",
      report.count(TimeVerdict::kSame), report.count(TimeVerdict::kFaster),
      report.count(TimeVerdict::kSlower), 100 * threshold, report.count(TimeVerdict::kUnclear),
      report.count(TimeVerdict::kLost), report.only_before, report.only_after);
}

}  // namespace moescope
