#include "profiler/report/headroom.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <set>

#include "core/base/line_text.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/table_options.hpp"

namespace moescope {
namespace {

struct HeadroomOptions {
  std::vector<std::string> rows;
  std::string stage = "layer";
  TableOptions tables;
};

HeadroomStage parse_headroom_stage(const std::string& text) {
  if (text == "layer") {
    return HeadroomStage::kLayer;
  }
  if (text == "experts") {
    return HeadroomStage::kExperts;
  }
  throw InvalidArgument("stage", text, "must be layer or experts");
}

/// The device that the ceilings are of, and the layers recorded on others, which are left out.
std::set<std::string> other_devices(const std::vector<RecordedLayer>& layers, const std::string& device) {
  std::set<std::string> others;
  for (const RecordedLayer& layer : layers) {
    if (layer.header->device != device) {
      others.insert(layer.header->device);
    }
  }
  return others;
}

ExitCode headroom_command(const HeadroomOptions& options) {
  StandardTables out(options.tables);
  const HeadroomStage stage = parse_headroom_stage(options.stage);
  std::vector<RecordedRun> runs;
  for (const std::string& file : options.rows) {
    std::ranges::move(read_rows(file), std::back_inserter(runs));
  }
  const auto ceilings = recorded_ceilings(runs);
  if (!ceilings) {
    throw InvalidArgument("rows", options.rows.front(),
                          "has no ceilings: add the rows of `moescope ceilings` on that device");
  }
  const auto layers = recorded_layers(runs);
  const auto measured = headroom(layers, *ceilings, stage);
  for (const std::string& other : other_devices(layers, ceilings->device)) {
    out.text() << fmt::format("left out: layers of {}: the ceilings are of {}\n", one_line(other),
                              one_line(ceilings->device));
  }
  if (measured.empty()) {
    throw InvalidArgument(
        "rows", options.rows.front(),
        fmt::format("has no layer of omnimoe with times and formulas on {}", one_line(ceilings->device)));
  }
  out.text() << fmt::format("{}: times of the {} against its floor\n\n", one_line(ceilings->device),
                            stage == HeadroomStage::kLayer ? "layer" : "expert stage");
  out.show("headroom", headroom_table(measured));
  out.text() << '\n' << headroom_text(measured);
  return ExitCode::kOk;
}

}  // namespace

Command add_headroom(Cli app, const Invocation& /*invocation*/) {
  auto options = std::make_shared<HeadroomOptions>();
  const Cli sub = app.add_subcommand(
      "headroom", "recorded layers against what the device allows, and what auto gave away; needs no GPU");
  sub.footer(
      examples({"moescope headroom results/h200/ceilings.jsonl results/h200/compare-1024-512.jsonl.gz",
                "moescope headroom ceilings/rows.jsonl before/rows.jsonl --stage experts --format csv"}) +
      "\n\nThe floor of a stage: the bytes that have to move at the best HBM rate, or its FLOP at "
      "the rate of the units that can do them, whichever takes longer. Above 1x is what a better "
      "kernel could win at most.");
  sub.add_option("rows", options->rows, "rows.jsonl of layers, and of `moescope ceilings` on the same device")
      .required()
      .type_name("ROWS");
  sub.add_option("--stage", options->stage, "layer (default) or experts").type_name("STAGE");
  add_table_options(sub, options->tables);
  return {sub, [options] { return headroom_command(*options); }};
}

}  // namespace moescope
