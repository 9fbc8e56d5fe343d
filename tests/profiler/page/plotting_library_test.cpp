#include "profiler/page/plotting_library.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::TemporaryDirectory;
using test::write_text;

constexpr const char* kBanner = "/*!\n * Chart.js v4.4.0\n */\n";

TEST(PlottingLibrary, IsLookedForWhereTheSystemKeepsScripts) {
  const auto usual = plotting_library_files(nullptr);
  EXPECT_EQ(usual, plotting_library_files(""));
  EXPECT_NE(std::ranges::find(usual, fs::path("/usr/share/javascript/chart.js/chart.min.js")), usual.end());
  EXPECT_EQ(usual.front().string().find("/usr/local/share/"), 0U);
  const auto own = plotting_library_files("/one::/two");
  EXPECT_EQ(own.size(), usual.size());
  EXPECT_EQ(own.back().string().find("/two/javascript/chart.js/"), 0U);
}

TEST(PlottingLibrary, TakesTheFirstThatIsThere) {
  const TemporaryDirectory directory;
  const fs::path folder = directory.path() / "javascript" / "chart.js";
  fs::create_directories(folder);
  const auto files = plotting_library_files(directory.path().c_str());
  PlottingLibrary none = find_plotting_library(files);
  EXPECT_EQ(none.script, "");
  EXPECT_NE(none.reason.find("apt-get install libjs-chart.js"), std::string::npos) << none.reason;
  write_text(folder / "chart.min.js", std::string(kBanner) + "1;");
  const PlottingLibrary found = find_plotting_library(files);
  EXPECT_EQ(found.version, "4.4.0");
  EXPECT_EQ(found.reason, "");
  EXPECT_TRUE(found.script.ends_with("1;"));
  write_text(folder / "chart.min.js", "not it");
  none = find_plotting_library(files);
  EXPECT_EQ(none.script, "");
  EXPECT_NE(none.reason.find("is no Chart.js 3 or 4"), std::string::npos) << none.reason;
}

TEST(PlottingLibrary, RefusesWhatCannotStandInAPage) {
  const TemporaryDirectory directory;
  const auto refused = [&](const std::string& name, const std::string& text) {
    write_text(directory.path() / name, text);
    return test::error_text<FileError>([&] { (void)read_plotting_library(directory.path() / name); });
  };
  EXPECT_NE(refused("a.js", "var x;").find("is no Chart.js"), std::string::npos);
  EXPECT_NE(refused("a.js", "/*! Chart.js v2.9.4 */").find("is no Chart.js"), std::string::npos);
  EXPECT_NE(refused("chart.esm.js", kBanner).find("is no Chart.js"), std::string::npos) << "a module";
  for (const char* end : {"'</SCRIPT>'", "'<!--'", "'\xe9'"}) {
    EXPECT_NE(refused("a.js", kBanner + std::string(end)).find("cannot stand inside"), std::string::npos)
        << end;
  }
  EXPECT_THROW((void)read_plotting_library(directory.path() / "absent.js"), FileError);
}

}  // namespace
}  // namespace moescope
