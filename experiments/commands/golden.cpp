#include "reference/golden/golden.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <memory>

#include "experiments/options/command.hpp"
#include "profiler/text/table.hpp"

namespace moescope {
namespace {

std::vector<std::string> replay_cells(const std::string& file, bool& held) {
  const std::string name = std::filesystem::path(file).filename().string();
  try {
    const GoldenResult result = replay_golden(file);
    const bool within = result.status == Status::kOk && result.max_relative_error <= kGoldenTolerance;
    held = held && within;
    return {name, result.kind, within ? "ok" : "FAILED", fmt::format("{:.2e}", result.max_relative_error),
            result.reason};
  } catch (const FileError& error) {
    held = false;
    return {name, "-", "FAILED", "-", error.what()};
  }
}

ExitCode golden(const std::vector<std::string>& files) {
  Table table({{"file", Align::kLeft},
               {"kind", Align::kLeft},
               {"status", Align::kLeft},
               {"error"},
               {"reason", Align::kLeft}});
  bool held = true;
  for (const std::string& file : files) {
    table.add_row(replay_cells(file, held));
  }
  std::cout << table.text();
  std::cout << fmt::format("error: max |ours - theirs| / max |theirs|, at most {:.0e}\n", kGoldenTolerance);
  return held ? ExitCode::kOk : ExitCode::kCheckFailed;
}

}  // namespace

Command add_golden(Cli app, const Invocation& /*invocation*/) {
  auto files = std::make_shared<std::vector<std::string>>();
  const Cli sub = app.add_subcommand(
      "golden", "replays recorded inputs and outputs of implementations from elsewhere on the CPU");
  sub.footer(examples({"moescope golden tests/data/golden/*.npz"}));
  sub.add_option("files", *files, "recorded .npz files").required().type_name("FILE");
  return {sub, [files] { return golden(*files); }};
}

}  // namespace moescope
