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

TEST(Readme, ItsClaimsTableIsGeneratedFromTheRecordedRows) {
  std::vector<std::string> arguments = {"claims", "--format", "md"};
  for (const fs::path& file : test::recorded_rows("h100")) {
    arguments.push_back(file.string());
  }
  ASSERT_GT(arguments.size(), 3U);
  const test::TemporaryDirectory directory;
  const test::Outcome outcome = test::run_moescope(arguments, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;

  const std::string readme = test::read_text(std::filesystem::path(test::source_dir()) / "README.md");
  const std::string begin = "<!-- claims: begin -->\n";
  const auto from = readme.find(begin);
  const auto to = readme.find("<!-- claims: end -->");
  ASSERT_TRUE(from != std::string::npos && to != std::string::npos && from < to);
  EXPECT_EQ(readme.substr(from + begin.size(), to - from - begin.size()), outcome.out)
      << "scripts/update_claims.sh brings README up to date";
}

/// Whole tables take minutes to compute again (scripts/update_validation.sh --check); whether they are of
/// these rows and this calibration shows at once.
TEST(SimulatorDocument, ItsTablesAreOfTheRecordedRowsAndTheCalibrationThatComesAlong) {
  const fs::path root(test::source_dir());
  const Calibration calibration = read_calibration(root / "data/calibration-h100.json");
  const std::string hint = "scripts/update_validation.sh brings both up to date";
  const std::string document = test::read_text(root / "docs/simulator.md");
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
