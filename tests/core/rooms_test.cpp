// Holds the house's arrows: which wing may include which, and within a wing which room which. Reads the
// #include lines.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "tests/support/paths.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

/// A wing may include itself and these.
const std::map<std::string, std::vector<std::string>> kWings = {
    {"core", {}},
    {"reference", {"core"}},
    {"kernels", {"core"}},
    {"profiler", {"core"}},
    {"capi", {"core", "reference", "kernels"}},
    {"experiments", {"core", "reference", "kernels", "profiler"}},
};

/// The rooms of each wing from the ground up: a room may include itself and those before it.
const std::vector<std::string> kRooms = {
    "core/base",
    "core/layer",
    "core/files",
    "core/schedule",
    "core/ranks",
    "core/tiling",
    "core/cost",
    "core/devices",
    "core/workload",
    "core/systems",
    "core/import",
    "core/backend",
    "core/results",
    "reference/stages",
    "reference/backward",
    "reference/oracle",
    "reference/systems",
    "reference/ranks",
    "reference/backend",
    "reference/golden",
    "capi/base",
    "capi/cpu",
    "capi/python",
    "capi/gpu",
    "capi",
    "capi/cuda",
    "kernels/runtime",
    "kernels/contract",
    "kernels/device",
    "kernels/buffers",
    "kernels/experts",
    "kernels/mlp",
    "kernels/probes",
    "kernels/router",
    "kernels/schedule",
    "kernels/backward",
    "kernels/optimizer",
    "kernels/layer",
    "kernels/training",
    "kernels/ranks",
    "kernels/systems",
    "kernels",
    "profiler/text",
    "profiler/study",
    "profiler/counters",
    "profiler/limits",
    "profiler/report",
    "profiler/page",
    "profiler/placement",
    "profiler/claims",
    "profiler/simulator/streams",
    "profiler/simulator",
    "profiler/cluster",
    "profiler/calibration",
    "experiments/options",
    "experiments/points",
    "experiments/clusters",
    "experiments/calibration",
    "experiments/manual",
    "experiments/inspection",
    "experiments/commands",
    "experiments/bench",
    "experiments",
};

/// Most files that one room may hold directly: more than a screen of names is no orientation.
constexpr std::size_t kMostFiles = 25;

std::string wing_of(const std::string& room) { return room.substr(0, room.find('/')); }

bool is_source(const fs::path& file) {
  const std::string extension = file.extension();
  return extension == ".cpp" || extension == ".hpp" || extension == ".cu" || extension == ".cuh";
}

/// Folder of the file an #include line names, empty for anything else.
std::string included_room(const std::string& line) {
  constexpr std::string_view kStart = "#include \"";
  if (!line.starts_with(kStart)) {
    return {};
  }
  const std::string path = line.substr(kStart.size(), line.find('"', kStart.size()) - kStart.size());
  return fs::path(path).parent_path();
}

bool may_include(const std::string& from, const std::string& to) {
  if (wing_of(from) != wing_of(to)) {
    const auto& wings = kWings.at(wing_of(from));
    return std::ranges::find(wings, wing_of(to)) != wings.end();
  }
  return std::ranges::find(kRooms, to) <= std::ranges::find(kRooms, from);
}

std::vector<fs::path> sources_of(const std::string& wing) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(test::source_dir()) / wing)) {
    if (is_source(entry.path())) {
      files.push_back(entry.path());
    }
  }
  return files;
}

TEST(Rooms, IncludeOnlyWhatLiesBelow) {
  std::size_t seen = 0;
  for (const auto& [wing, allowed] : kWings) {
    for (const fs::path& file : sources_of(wing)) {
      const std::string from = file.parent_path().lexically_relative(test::source_dir());
      ASSERT_NE(std::ranges::find(kRooms, from), kRooms.end()) << from << " is no room of kRooms";
      std::ifstream text(file);
      for (std::string line; std::getline(text, line);) {
        const std::string to = included_room(line);
        if (to.empty()) {  // a generated header, or a library's
          continue;
        }
        ++seen;
        ASSERT_NE(std::ranges::find(kRooms, to), kRooms.end()) << file << ": " << line;
        EXPECT_TRUE(may_include(from, to)) << file << ": " << line;
      }
    }
  }
  EXPECT_GT(seen, 500U);  // the test reads something
}

TEST(Rooms, RefuseAnArrowThatClimbs) {
  EXPECT_FALSE(may_include("core/base", "core/results"));
  EXPECT_FALSE(may_include("profiler/limits", "reference/oracle"));
  EXPECT_FALSE(may_include("core/cost", "profiler/study"));
  EXPECT_TRUE(may_include("experiments/commands", "reference/oracle"));
  EXPECT_TRUE(may_include("core/results", "core/base"));
}

TEST(Rooms, HoldFewEnoughFilesToSee) {
  std::map<std::string, std::size_t> count;
  for (const auto& [wing, allowed] : kWings) {
    for (const fs::path& file : sources_of(wing)) {
      ++count[file.parent_path().lexically_relative(test::source_dir())];
    }
  }
  for (const auto& [room, files] : count) {
    EXPECT_LE(files, kMostFiles) << room;
  }
}

}  // namespace
}  // namespace moescope
