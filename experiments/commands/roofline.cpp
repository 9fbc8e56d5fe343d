#include "profiler/report/roofline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <memory>
#include <utility>

#include "core/base/line_text.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/table_options.hpp"
#include "profiler/limits/ceilings.hpp"

namespace moescope {
namespace {

struct RooflineOptions {
  std::vector<std::string> rows;
  std::string output = ".";
  std::string flop = "useful";
  bool png = false;
  TableOptions tables;
};

RooflineFlop parse_flop(const std::string& text) {
  if (text == "useful") {
    return RooflineFlop::kUseful;
  }
  if (text == "executed") {
    return RooflineFlop::kExecuted;
  }
  throw InvalidArgument("flop", text, "must be useful or executed");
}

ExitCode roofline(const RooflineOptions& options) {
  StandardTables out(options.tables);
  const RooflineFlop flop = parse_flop(options.flop);
  const OutputFolder folder(options.output);
  const std::vector<std::filesystem::path> inputs{options.rows.begin(), options.rows.end()};
  claim_files(folder.path(), figure_files("roofline", options.png), inputs);
  std::vector<RecordedRun> runs;
  for (const std::string& file : options.rows) {
    std::ranges::move(read_rows(file), std::back_inserter(runs));
  }
  const auto rooflines = read_rooflines(std::move(runs), flop);
  std::vector<std::string> names = {"roofline"};
  while (names.size() < rooflines.size()) {
    names.push_back(fmt::format("roofline-{}", names.size() + 1));
    claim_files(folder.path(), figure_files(names.back(), options.png), inputs);
  }
  for (std::size_t i = 0; i < rooflines.size(); ++i) {
    const Roofline& read = rooflines[i];
    out.text() << (i == 0 ? "" : "\n") << one_line(read.ceilings.device) << "\n\n";
    out.show("ceilings", ceilings_table(read.ceilings));
    for (const RooflineTable& layer : roofline_tables(read)) {
      out.text() << fmt::format("\n{}\n", one_line(layer.label));
      out.show(layer.label, layer.table);
    }
    out.text() << '\n' << roofline_legend(read) << '\n';
    Figure figure = roofline_figure(read);
    figure.png = options.png;
    const FigureResult drawn = draw_figure(figure, folder.path(), names[i]);
    out.text() << figure_line(drawn);
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_roofline(Cli app, const Invocation& /*invocation*/) {
  auto options = std::make_shared<RooflineOptions>();
  const Cli sub = app.add_subcommand(
      "roofline", "recorded stages of every schedule against the roofs of HBM and L2; needs no GPU");
  sub.footer(examples({"moescope roofline results/h200/profile.jsonl --output docs",
                       "moescope roofline ceilings/rows.jsonl profile/rows.jsonl --flop executed --png"}));
  sub.add_option("rows", options->rows, "rows.jsonl of `moescope profile` (and of `moescope ceilings`)")
      .required()
      .type_name("ROWS");
  sub.add_option("--output", options->output,
                 "directory for roofline.svg, with several devices roofline-2.svg and so on (default: .)")
      .type_name("DIR");
  sub.add_option("--flop", options->flop,
                 "useful (default): what the mathematics needs; executed: what was counted")
      .type_name("KIND");
  sub.add_flag("--png", options->png, "roofline.png instead of roofline.svg");
  add_table_options(sub, options->tables);
  return {sub, [options] { return roofline(*options); }};
}

}  // namespace moescope
