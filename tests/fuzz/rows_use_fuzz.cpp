// Any text as rows.jsonl, through everything that reads rows afterwards: the report with its figures'
// scripts, phase diagrams, the roofline, claims, regressions, and the points that `validate` models again.
#include <sstream>

#include "core/results/result.hpp"
#include "core/schedule/schedule.hpp"
#include "core/workload/workload.hpp"
#include "fuzz_text.hpp"
#include "profiler/claims/claims.hpp"
#include "profiler/page/html_report.hpp"
#include "profiler/report/phase_diagram.hpp"
#include "profiler/report/regression.hpp"
#include "profiler/report/report_figures.hpp"
#include "profiler/report/roofline.hpp"

namespace moescope {
namespace {

void report(const std::vector<RecordedRun>& runs) {
  const auto layers = recorded_layers(runs);
  for (const Figure& figure : report_figures(layers, 4)) {
    (void)figure_script(figure, "fuzz");
  }
  (void)html_report("fuzz", runs, {.script = "/**/", .version = "4.0.0", .reason = ""});
  const auto panels = phase_panels(layers);
  (void)crossover_table(panels).text();
  if (!panels.empty()) {
    (void)figure_script(phase_figure(panels), "fuzz");
  }
}

void validation_points(const std::vector<RecordedRun>& runs) {
  for (const RecordedRun& run : runs) {
    for (const ResultRow& row : run.rows) {
      fuzz::may_refuse([&] {
        (void)parse_schedule(row.schedule);
        (void)WorkloadSpec::parse(row.workload);
        (void)parse_dtype(row.dtype);
      });
    }
  }
}

}  // namespace
}  // namespace moescope

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moescope;
  fuzz::may_refuse([&] {
    std::istringstream text{std::string(fuzz::text_of(data, size))};
    const std::vector<RecordedRun> runs = parse_rows(text, "fuzz").runs;
    fuzz::may_refuse([&] { report(runs); });
    fuzz::may_refuse([&] { (void)claims_text(judge_claims(recordings_of({"fuzz", runs}))); });
    for (const RooflineFlop flop : {RooflineFlop::kUseful, RooflineFlop::kExecuted}) {
      fuzz::may_refuse([&] {
        const Roofline roofline = read_roofline(runs, flop);
        for (const RooflineTable& layer : roofline_tables(roofline)) {
          (void)layer.table.text(80);
          (void)layer.table.json();
        }
        (void)figure_script(roofline_figure(roofline), "fuzz");
      });
    }
    fuzz::may_refuse([&] {
      const ReportBaseline same{"a", "b", 0.05, compare_times(runs, runs, {})};
      (void)html_report("fuzz", runs, {.script = "", .version = "", .reason = "none"}, &same);
    });
    fuzz::may_refuse([&] { validation_points(runs); });
  });
  return 0;
}
