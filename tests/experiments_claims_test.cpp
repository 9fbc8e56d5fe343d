// The claims table in README is what the program says of the recorded rows.
#include <gtest/gtest.h>

#include "tests/support/recorded_rows.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

TEST(Readme, ItsClaimsTableIsGeneratedFromTheRecordedRows) {
  std::vector<std::string> arguments = {"claims", "--markdown"};
  for (const fs::path& file : test::recorded_rows("h100")) {
    arguments.push_back(file.string());
  }
  ASSERT_GT(arguments.size(), 3U);
  const test::TemporaryDirectory directory;
  const test::Outcome outcome = test::run_moescope(arguments, directory);
  ASSERT_EQ(outcome.code, 0) << outcome.err;

  const std::string readme = test::read_text(fs::path(MOESCOPE_SOURCE_DIR) / "README.md");
  const std::string begin = "<!-- claims: begin -->\n";
  const auto from = readme.find(begin);
  const auto to = readme.find("<!-- claims: end -->");
  ASSERT_TRUE(from != std::string::npos && to != std::string::npos && from < to);
  EXPECT_EQ(readme.substr(from + begin.size(), to - from - begin.size()), outcome.out)
      << "scripts/update_claims.sh brings README up to date";
}

}  // namespace
}  // namespace moescope
