// The real program: what golden prints of recorded files, good and bad.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;
using test::write_text;

TEST(Golden, ReplaysEveryRecordedFile) {
  const TemporaryDirectory directory;
  std::vector<std::string> arguments = {"golden"};
  for (const auto& entry : std::filesystem::directory_iterator(test::source_path("tests/data/golden"))) {
    arguments.push_back(entry.path().string());
  }
  const Outcome outcome = run_moescope(arguments, directory);
  EXPECT_EQ(outcome.code, 0) << outcome.out;
  for (const char* word : {"omnimoe_a.npz", "router_tall.npz", "pkm.npz", "peer_relu.npz", "peer, relu gates",
                           "gshard_topk_mixtral.npz", "deepseekmoe_v2.npz"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word;
  }
  EXPECT_EQ(outcome.out.find("skipped"), std::string::npos) << outcome.out;
}

TEST(Golden, FailsOnAFileThatIsNone) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "none.npz", "no zip file");
  const Outcome outcome = run_moescope({"golden", "none.npz"}, directory);
  EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kCheckFailed));
  EXPECT_NE(outcome.out.find("FAILED"), std::string::npos) << outcome.out;
}

}  // namespace
}  // namespace moescope
