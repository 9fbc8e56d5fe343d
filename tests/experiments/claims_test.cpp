// What documents say of the recorded rows is what the program says of them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>

#include "core/devices/device_folders.hpp"
#include "core/results/result.hpp"
#include "profiler/simulator/sim_calibration.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/recorded_rows.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

TEST(ClaimsPage, ItsTableIsGeneratedFromTheRecordedRowsOfEveryDevice) {
  const test::TemporaryDirectory directory;
  for (const std::string& gpu : test::recorded_gpu_names()) {
    std::vector<std::string> arguments = {"claims", "--format", "md"};
    for (const fs::path& file : test::recorded_rows(gpu)) {
      arguments.push_back(file.string());
    }
    ASSERT_GT(arguments.size(), 3U);
    const test::Outcome outcome = test::run_moescope(arguments, directory);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const std::string page =
        test::read_text(fs::path(test::source_dir()) / fmt::format("docs/results/claims-{}.md", gpu));
    const std::string begin = "<!-- claims: begin -->\n";
    const auto from = page.find(begin);
    const auto to = page.find("<!-- claims: end -->");
    ASSERT_TRUE(from != std::string::npos && to != std::string::npos && from < to) << gpu;
    EXPECT_EQ(page.substr(from + begin.size(), to - from - begin.size()), outcome.out)
        << "scripts/update_claims.sh brings the page up to date";
  }
}

/// Whole tables take minutes to compute again (scripts/update_validation.sh --check); whether they are of
/// these rows and this calibration shows at once.
TEST(SimulatorDocument, ItsTablesAreOfTheRecordedRowsAndTheCalibrationThatComesAlong) {
  const fs::path root(test::source_dir());
  const std::string hint = "scripts/update_validation.sh brings both up to date";
  const std::string document = test::read_text(root / "docs/simulator/validation.md");
  const auto folders = device_folders(root / kDevicesFolder);
  int calibrated = 0;
  for (const std::string& gpu : test::recorded_gpu_names()) {
    const fs::path rows = root / "results" / gpu / "validation.jsonl.gz";
    if (!fs::exists(rows)) {
      continue;
    }
    std::set<std::string> revisions;
    std::string device;
    for (const RecordedRun& run : read_rows(rows)) {
      revisions.insert(run.header.git_revision.substr(0, 7));
      device = run.header.device;
    }
    const DeviceFolder* const folder = folder_of(folders, device);
    ASSERT_NE(folder, nullptr) << device;
    const Calibration calibration = read_calibration(folder->path / kCalibrationFile);
    // The calibration of every table: of the layers, and where there are fits of their kernels of the
    // baselines and of the backward.
    std::string rest = calibration.source;
    for (const std::string_view next : {"; of the baselines: ", "; of the backward: ", ""}) {
      const std::size_t end = next.empty() ? std::string::npos : rest.find(next);
      if (end == std::string::npos && !next.empty()) {
        continue;
      }
      EXPECT_NE(document.find("calibration: " + rest.substr(0, end)), std::string::npos) << hint << '\n'
                                                                                         << rest;
      rest = end == std::string::npos ? "" : rest.substr(end + next.size());
    }
    EXPECT_NE(calibration.source.find(fmt::format("(revision {})", fmt::join(revisions, ", "))),
              std::string::npos)
        << hint;
    ++calibrated;
  }
  EXPECT_GE(calibrated, 1);
}

}  // namespace
}  // namespace moescope
