#include <fmt/format.h>

#include <memory>
#include <optional>

#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/table_options.hpp"
#include "experiments/points/sweep_points.hpp"
#include "profiler/report/regression_text.hpp"

namespace moescope {
namespace {

struct DiffOptions {
  std::string before;
  std::string after;
  std::string threshold = "5%";
  bool stages = false;
  bool all = false;
  bool any_device = false;
  std::string output;
  TableOptions tables;
};

ExitCode diff(const DiffOptions& options) {
  const TimeRules rules{.threshold = parse_threshold(options.threshold),
                        .layers_alone = !options.stages,
                        .any_device = options.any_device};
  StandardTables tables(options.tables);
  const auto before = read_rows(options.before);
  const auto after = read_rows(options.after);
  const RegressionReport report = compare_times(before, after, rules);
  const SideNames names{"A", "B"};
  std::optional<OutputFolder> folder;
  if (!options.output.empty()) {
    folder.emplace(options.output);
    claim_files(folder->path(), figure_files("diff"), {options.before, options.after});
  }
  tables.text() << "A: " << recording_line(options.before, before)
                << "\nB: " << recording_line(options.after, after) << "\n\n";
  print_regressions(tables, report, names, rules.threshold, options.all);
  if (folder) {
    const FigureResult figure =
        draw_figure(regression_figure(report, names, rules.threshold), folder->path(), "diff");
    tables.text() << figure_line(figure);
  }
  return report.holds() ? ExitCode::kOk : ExitCode::kCheckFailed;
}

}  // namespace

Command add_diff(Cli app, const Invocation& /*invocation*/) {
  auto options = std::make_shared<DiffOptions>();
  const Cli sub =
      app.add_subcommand("diff", "two recordings, point by point: faster, slower, or the same beyond noise");
  sub.footer(examples({"moescope diff results/before results/after",
                       "moescope diff before/rows.jsonl after/rows.jsonl --stages --format csv",
                       "moescope diff one-gpu/rows.jsonl another/rows.jsonl --any-device"}) +
             "\n\nExit code 0: B is nowhere slower; 1: it is slower somewhere, a time is lost, or "
             "nothing could be compared. A difference counts when it is above the threshold, and "
             "above the noise: where samples of the two do not meet.");
  sub.add_option("before", options->before, "rows.jsonl, or a run's folder").required().type_name("A");
  sub.add_option("after", options->after, "likewise: what is held against A").required().type_name("B");
  sub.add_option("--threshold", options->threshold, "share by which a time may grow (default 5%)")
      .type_name("SHARE");
  sub.add_flag("--stages", options->stages, "every stage, not the layers' times alone");
  sub.add_flag("--all", options->all, "list what is the same, too");
  sub.add_flag("--any-device", options->any_device, "also when the recordings are of different devices");
  sub.add_option("--output", options->output, "directory for diff.svg (default: none is drawn)")
      .type_name("DIR");
  add_table_options(sub, options->tables);
  return {sub, [options] { return diff(*options); }};
}

}  // namespace moescope
