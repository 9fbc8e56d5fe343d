// What documents say of the recorded rows is what the program says of them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>

#include "core/results/result.hpp"
#include "profiler/simulator/sim_calibration.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/recorded_rows.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

class ClaimsPage : public testing::TestWithParam<const char*> {};

TEST_P(ClaimsPage, ItsTableIsGeneratedFromTheRecordedRows) {
  std::vector<std::string> arguments = {"claims", "--markdown"};
  for (const fs::path& file : test::recorded_rows(GetParam())) {
    arguments.push_back(file.string());
  }
  ASSERT_GT(arguments.size(), 3U);
  const test::TemporaryDirectory directory;
  const test::Outcome outcome = test::run_moescope(arguments, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;

  const std::string page =
      test::read_text(fs::path(test::source_dir()) / fmt::format("docs/results/claims-{}.md", GetParam()));
  const std::string begin = "<!-- claims: begin -->\n";
  const auto from = page.find(begin);
  const auto to = page.find("<!-- claims: end -->");
  ASSERT_TRUE(from != std::string::npos && to != std::string::npos && from < to);
  EXPECT_EQ(page.substr(from + begin.size(), to - from - begin.size()), outcome.out)
      << "scripts/update_claims.sh brings the page up to date";
}
INSTANTIATE_TEST_SUITE_P(Devices, ClaimsPage, testing::Values("h100", "h200"),
                         [](const auto& device) { return std::string(device.param); });

/// Whole tables take minutes to compute again (scripts/update_validation.sh --check); whether they are of
/// these rows and this calibration shows at once.
TEST(SimulatorDocument, ItsTablesAreOfTheRecordedRowsAndTheCalibrationThatComesAlong) {
  const fs::path root(test::source_dir());
  const Calibration calibration = read_calibration(root / "data/calibration-h100.json");
  const std::string hint = "scripts/update_validation.sh brings both up to date";
  const std::string document = test::read_text(root / "docs/simulator/validation.md");
  EXPECT_NE(document.find("calibration: " + calibration.source), std::string::npos) << hint;
  std::set<std::string> revisions;
  for (const RecordedRun& run : read_rows(root / "results/h100/validation.jsonl.gz")) {
    revisions.insert(run.header.git_revision.substr(0, 7));
  }
  EXPECT_NE(calibration.source.find(fmt::format("(revision {})", fmt::join(revisions, ", "))),
            std::string::npos)
      << hint;
}

}  // namespace
}  // namespace moescope
