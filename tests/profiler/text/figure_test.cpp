#include "profiler/text/figure.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "core/base/error.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::read_text;
using test::TemporaryDirectory;
using test::write_text;

Figure make_figure() {
  FigurePanel time{"time", "skew", "seconds", true, {}};
  time.series.push_back({"staircase_\"1\"", {0, 1, 2}, {1e-3, NAN, 2e-3}, true, {}});
  time.series.push_back({"empty", {0}, {0}, true, {}});
  time.series.push_back({"snapshot", {1.5}, {3e-3}, false, {"small layer"}});
  time.series.push_back({"", {1}, {4e-3}, false, {}, 0});
  FigurePanel bytes{"bytes", "skew", "bytes", false, {}};
  bytes.series.push_back({"staircase", {0, 1}, {0, 5}, true, {}});
  return {"Cost over skew", {time, bytes}};
}

/// A stand-in for gnuplot that does what `body` says.
std::string fake_gnuplot(const std::filesystem::path& directory, const std::string& body) {
  const auto file = directory / "fake_gnuplot";
  write_text(file, "#!/bin/sh\n" + body + "\n");
  std::filesystem::permissions(file, std::filesystem::perms::owner_all);
  return file.string();
}

TEST(Figure, WritesAScriptWithItsDataInline) {
  const std::string script = figure_script(make_figure(), "skew");
  EXPECT_NE(script.find("set output \"skew.svg\""), std::string::npos);
  EXPECT_NE(script.find("$panel0_series0 << END_OF_DATA\n0 0.001 \"\"\n2 0.002 \"\"\nEND_OF_DATA\n"),
            std::string::npos)
      << script;
  EXPECT_NE(script.find("title \"staircase_\\\"1\\\"\""), std::string::npos)
      << "quotes in labels are escaped";
  EXPECT_EQ(script.find("series1"), std::string::npos)
      << "a series without a point on a log axis is left out";
  EXPECT_NE(script.find("$panel0_series2 using 1:2 with points"), std::string::npos);
  EXPECT_NE(script.find("$panel0_series3 using 1:2 with points linestyle 1 pointsize 1.6 notitle"),
            std::string::npos)
      << "a series may share the colour of another and stay out of the legend";
  EXPECT_NE(script.find("1.5 0.003 \"small layer\""), std::string::npos);
  EXPECT_NE(script.find("$panel1_series0 << END_OF_DATA\n0 0 \"\"\n1 5 \"\"\nEND_OF_DATA\n"),
            std::string::npos)
      << "zero stays on a linear axis";
}

TEST(Figure, LaysPanelsOutInRowsOnLogarithmicAxesAsPng) {
  Figure figure = make_figure();
  figure.panels.push_back(figure.panels[0]);
  figure.panels[2].log_x = true;
  figure.panels[2].series[0].points = false;
  figure.columns = 2;
  figure.png = true;
  figure.panel_width = 300;
  figure.panel_height = 200;
  const std::string script = figure_script(figure, "three");
  EXPECT_NE(script.find("set terminal pngcairo size 600,400"), std::string::npos) << script;
  EXPECT_NE(script.find("set output \"three.png\""), std::string::npos);
  EXPECT_NE(script.find("layout 2,2"), std::string::npos);
  EXPECT_NE(script.find("$panel2_series0 << END_OF_DATA\n2 0.002 \"\"\nEND_OF_DATA\n"), std::string::npos)
      << "x = 0 has no place on a log axis\n"
      << script;
  EXPECT_NE(script.find("$panel2_series0 using 1:2 with lines "), std::string::npos);
}

TEST(Figure, NamesPlacesOnTheAxisAndMakesRoomForThem) {
  Figure figure = make_figure();
  figure.panels[0].x_names = {"uniform", "hot \"1\""};
  const std::string script = figure_script(figure, "skew");
  EXPECT_NE(
      script.find("set xtics rotate by -25 (\"uniform\" 0, \"hot \\\"1\\\"\" 1)\nset xrange [-0.3:1.3]\n"),
      std::string::npos)
      << script;
  EXPECT_LT(script.find("set xrange [-0.3:1.3]"),
            script.find("set xtics autofreq norotate\nset autoscale x", script.find("$panel0_series0")))
      << "the next panel has numbers again";
}

TEST(Figure, KeepsALabelFromBecomingACommand) {
  Figure figure = make_figure();
  figure.title = "a\"\n!touch owned\n";
  const std::string script = figure_script(figure, "skew");
  EXPECT_EQ(script.find("\n!touch"), std::string::npos);
}

TEST(Figure, IsDrawnInItsDirectory) {
  const TemporaryDirectory directory;
  const auto gnuplot =
      fake_gnuplot(directory.path(), "grep -q multiplot \"$1\" && echo '<svg></svg>' > skew.svg");
  const FigureResult result = draw_figure(make_figure(), directory.path(), "skew", gnuplot);
  EXPECT_EQ(result.status, Status::kOk) << result.reason;
  EXPECT_EQ(read_text(result.image), "<svg></svg>\n");
  EXPECT_EQ(result.image, directory.path() / "skew.svg");
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "skew.gp.log"));
}

TEST(Figure, IsDrawnByTheInstalledGnuplot) {
  const TemporaryDirectory directory;
  const FigureResult result = draw_figure(make_figure(), directory.path(), "skew");
  if (result.status != Status::kOk && result.reason.find("is not installed") != std::string::npos) {
    GTEST_SKIP() << result.reason;
  }
  ASSERT_EQ(result.status, Status::kOk) << result.reason;
  const std::string svg = read_text(result.image);
  EXPECT_NE(svg.find("<svg"), std::string::npos);
  EXPECT_NE(svg.find("</svg>"), std::string::npos);
  EXPECT_NE(svg.find("small layer"), std::string::npos);
}

TEST(Figure, IsUnavailableWithoutGnuplotButKeepsItsScript) {
  const TemporaryDirectory directory;
  const FigureResult result = draw_figure(make_figure(), directory.path(), "skew", "no-such-gnuplot");
  EXPECT_EQ(result.status, Status::kUnavailable);
  EXPECT_EQ(
      result.reason,
      "no-such-gnuplot is not installed; after `apt-get install gnuplot-nox`, `gnuplot skew.gp` draws it");
  EXPECT_EQ(read_text(result.script), figure_script(make_figure(), "skew"));
}

TEST(Figure, IsUnavailableWithGnuplotsOwnMessageWhenItFails) {
  const TemporaryDirectory directory;
  const auto gnuplot =
      fake_gnuplot(directory.path(),
                   "echo half > skew.svg; echo; echo '\"skew.gp\" line 3: no such terminal' >&2; exit 2");
  const FigureResult result = draw_figure(make_figure(), directory.path(), "skew", gnuplot);
  EXPECT_EQ(result.status, Status::kUnavailable);
  EXPECT_EQ(result.reason, "gnuplot failed with status 2: \"skew.gp\" line 3: no such terminal");
  EXPECT_FALSE(std::filesystem::exists(result.image)) << "no half-written image stays";
}

TEST(Figure, IsUnavailableWhenThereIsNothingToDraw) {
  const TemporaryDirectory directory;
  Figure figure = make_figure();
  figure.panels[1].series.clear();
  const FigureResult result = draw_figure(figure, directory.path(), "skew", "no-such-gnuplot");
  EXPECT_EQ(result.status, Status::kUnavailable);
  EXPECT_EQ(result.reason, "panel \"bytes\" has no point to draw");
}

TEST(Figure, NamesADirectoryItCannotWriteTo) {
  EXPECT_THROW(draw_figure(make_figure(), "/no/such/directory", "skew"), FileError);
}

}  // namespace
}  // namespace moescope
