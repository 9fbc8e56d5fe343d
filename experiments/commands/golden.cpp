#include "reference/golden/golden.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "core/base/error.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/table_options.hpp"

namespace moescope {
namespace {

std::vector<TableCell> replay_cells(const std::string& file, bool& held) {
  const std::string name = std::filesystem::path(file).filename().string();
  try {
    const GoldenResult result = replay_golden(file);
    const bool within = result.status == Status::kOk && result.max_relative_error <= kGoldenTolerance;
    held = held && within;
    return {name, result.kind, within ? "ok" : "FAILED",
            TableCell(fmt::format("{:.2e}", result.max_relative_error), result.max_relative_error),
            result.reason};
  } catch (const InternalError&) {
    throw;                        // no file's fault
  } catch (const Error& error) {  // one bad file does not take the others' results away
    held = false;
    return {name, "-", "FAILED", "-", error.what()};
  }
}

struct GoldenOptions {
  std::vector<std::string> files;
  TableOptions tables;
};

ExitCode golden(const GoldenOptions& options) {
  StandardTables out(options.tables);
  Table table({{"file", Align::kLeft},
               {"kind", Align::kLeft},
               {"status", Align::kLeft},
               {"error"},
               {"reason", Align::kLeft, Need::kBelow}});
  bool held = true;
  for (const std::string& file : options.files) {
    table.add_row(replay_cells(file, held));
  }
  out.show("golden", table);
  out.text() << fmt::format("error: max |ours - theirs| / max |theirs|, at most {:.0e}\n", kGoldenTolerance);
  return held ? ExitCode::kOk : ExitCode::kCheckFailed;
}

}  // namespace

Command add_golden(Cli app, const Invocation& /*invocation*/) {
  auto options = std::make_shared<GoldenOptions>();
  const Cli sub = app.add_subcommand(
      "golden", "replays recorded inputs and outputs of implementations from elsewhere on the CPU");
  sub.footer(examples({"moescope golden tests/data/golden/*.npz"}));
  sub.add_option("files", options->files, "recorded .npz files").required().type_name("FILE");
  add_table_options(sub, options->tables);
  return {sub, [options] { return golden(*options); }};
}

}  // namespace moescope
