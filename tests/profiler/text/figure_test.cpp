#include "profiler/text/figure.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "core/base/error.hpp"
#include "core/schedule/schedule_info.hpp"
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
  time.series.push_back({"", {1}, {4e-3}, false, {}, "staircase_\"1\""});
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
  EXPECT_NE(script.find(R"(title "staircase_\042\061\042")"), std::string::npos)
      << "quotes in labels are escaped";
  EXPECT_EQ(script.find("series1"), std::string::npos)
      << "a series without a point on a log axis is left out";
  EXPECT_NE(script.find("$panel0_series2 using 1:2 with points"), std::string::npos);
  const auto colour_of = [&](const std::string& series) {
    const auto at = script.find("linecolor", script.find(series + " using 1:2 "));
    return script.substr(at, script.find(" point", at) - at).substr(0, 23);
  };
  EXPECT_EQ(colour_of("$panel0_series3"), colour_of("$panel0_series0"));
  EXPECT_NE(colour_of("$panel0_series2"), colour_of("$panel0_series0"));
  EXPECT_NE(script.find("notitle", script.find("$panel0_series3 using")), std::string::npos)
      << "a series may share the look of another and stay out of the legend";
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
  figure.plot_height = 200;
  const std::string script = figure_script(figure, "three");
  EXPECT_NE(script.find("set terminal pngcairo size 600,"), std::string::npos) << script;
  EXPECT_NE(script.find("set output \"three.png\""), std::string::npos);
  EXPECT_NE(script.find("set origin 0,0\nset size 0.5,"), std::string::npos) << "the third below the first";
  EXPECT_NE(script.find("$panel2_series0 << END_OF_DATA\n2 0.002 \"\"\nEND_OF_DATA\n"), std::string::npos)
      << "x = 0 has no place on a log axis\n"
      << script;
  EXPECT_NE(script.find("$panel2_series0 using 1:2 with lines "), std::string::npos);
}

TEST(Figure, FillsALogarithmicAxisWithWhatIsDrawn) {
  FigurePanel panel{"", "x", "y", true, {}};
  panel.series.push_back({"a", {1, 2, 3}, {0.1, 0.13, 0}, true, {}});
  Figure figure;
  figure.panels = {panel, panel, panel};
  figure.panels[1].series[0].y[2] = 100;
  figure.panels[2].series[0].tags = {"one", "two", "three"};
  const std::string script = figure_script(figure, "log");
  const std::string close = "set yrange [0.064:0.203125]\nset ytics (0.07, 0.1, 0.2)\nset logscale y\n";
  EXPECT_NE(script.find(close), std::string::npos) << script;
  EXPECT_EQ(script.find(close), script.rfind(close)) << "two decades and more, and tags, have whole decades";
  EXPECT_NE(script.find("set autoscale y\nset ytics autofreq\n"), std::string::npos);
}

TEST(Figure, NamesPlacesOnTheAxisAndMakesRoomForThem) {
  Figure figure = make_figure();
  figure.panels[0].x_names = {"uniform", "hot \"1\""};
  const std::string script = figure_script(figure, "skew");
  EXPECT_NE(
      script.find(
          "set xtics rotate by -25 (\"uniform\" 0, \"hot \\042\\061\\042\" 1)\nset xrange [-0.3:1.3]\n"),
      std::string::npos)
      << script;
  EXPECT_LT(script.find("set xrange [-0.3:1.3]"),
            script.find("set xtics autofreq norotate\nset autoscale x", script.find("$panel0_series0")))
      << "the next panel has numbers again";
}

/// Names that would run, end a string, change the markup or the format, if anything read them.
const std::vector<std::string>& hostile_names() {
  static const std::vector<std::string> names = {"run`touch owned`b",
                                                 "a`b",
                                                 "$(touch owned)",
                                                 "'; system('touch owned'); '",
                                                 "\"; !touch owned; \"",
                                                 "a\"\n!touch owned\n",
                                                 "@owned",
                                                 "back\\slash\\",
                                                 "100 %d %s",
                                                 "{/Bold x}_1^2",
                                                 "<script>alert(1)</script>",
                                                 "=cmd()",
                                                 "\x1b[31mred",
                                                 "caf\xe9",
                                                 "END_OF_DATA",
                                                 "#comment",
                                                 "&amp;",
                                                 "''",
                                                 "\"12\"77",
                                                 "$4,$5",
                                                 "]]>",
                                                 ""};
  return names;
}

/// Hostile names in every text of a figure.
Figure hostile_figure() {
  Figure figure;
  for (const std::string& name : hostile_names()) {
    FigurePanel panel{"title " + name, "x " + name, "y " + name, true, {}};
    panel.series.push_back({"series " + name, {0, 1}, {1, 2}, true, {"tag " + name, ""}});
    panel.x_names = {"place " + name, "other"};
    figure.panels.push_back(panel);
    figure.title += name;
  }
  figure.columns = 3;
  return figure;
}

TEST(Figure, HasNothingOfANameInItsScriptThatGnuplotWouldReadAsMoreThanText) {
  const std::string script = figure_script(hostile_figure(), "hostile");
  EXPECT_EQ(script.find_first_of("`@'"), std::string::npos);
  EXPECT_EQ(script.find("\n!"), std::string::npos);
  // Every line ends outside of a string: an even number of quotes, none of them escaped.
  std::istringstream lines(script);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_EQ(std::ranges::count(line, '"') % 2, 0) << line;
    EXPECT_EQ(line.find("\\\""), std::string::npos) << line;
  }
}

TEST(Figure, ShowsHostileNamesAndRunsNoneOfThem) {
  const TemporaryDirectory directory;
  const FigureResult result = draw_figure(hostile_figure(), directory.path(), "hostile");
  if (result.status != Status::kOk && result.reason.find("is not installed") != std::string::npos) {
    GTEST_SKIP() << result.reason;
  }
  ASSERT_EQ(result.status, Status::kOk) << result.reason;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
    EXPECT_TRUE(entry.path() == result.image || entry.path() == result.script) << entry.path();
  }
  const std::string svg = read_text(result.image);
  EXPECT_EQ(svg.find("<script>"), std::string::npos);
  EXPECT_EQ(svg.find('\x1b'), std::string::npos);
  EXPECT_EQ(svg.find("]]>"), std::string::npos) << "is no XML in a text";
  for (const char* kind : {"title ", "series ", "tag ", "place "}) {
    for (const char* name :
         {"run`touch owned`b", "a`b", "$(touch owned)", "back\\slash\\", "100 %d %s", "{/Bold x}_1^2",
          "&lt;script>alert(1)&lt;/script>", "=cmd()", "\\x1b[31mred", "caf\\xe9", "END_OF_DATA", "#comment",
          "@owned", "\"12\"77", "$4,$5", "]]&gt;"}) {
      EXPECT_NE(svg.find(std::string(kind) + name), std::string::npos) << kind << name;
    }
  }
}

TEST(Figure, BreaksLinesBeforeDigits) {
  const TemporaryDirectory directory;
  Figure figure = make_figure();
  figure.panels.resize(1);
  figure.panels[0].title = std::string(90, 'a') + " 128 pairs";  // the break falls before 128
  figure.panel_width = 640;
  const FigureResult result = draw_figure(figure, directory.path(), "lines");
  if (result.status != Status::kOk && result.reason.find("is not installed") != std::string::npos) {
    GTEST_SKIP() << result.reason;
  }
  ASSERT_EQ(result.status, Status::kOk) << result.reason;
  EXPECT_NE(read_text(result.image).find("128 pairs"), std::string::npos);
}

TEST(Figure, GivesEverySeriesALookOfItsOwn) {
  Figure figure;
  FigurePanel panel{"time", "x", "y", false, {}};
  for (const char* name : {"token_centric", "expert_centric", "other", "one more", "staircase", "auto"}) {
    panel.series.push_back({name, {0, 1}, {1, 2}, true, {}});
  }
  figure.panels = {panel, panel};
  std::ranges::reverse(figure.panels[1].series);
  const std::string script = figure_script(figure, "looks");
  std::map<std::string, std::set<std::string>> colours;  // by title
  const std::regex plot(R"re(linecolor rgb "(#[0-9A-F]{6})"[^\n]* title "([^"]*)")re");
  for (auto at = std::sregex_iterator(script.begin(), script.end(), plot); at != std::sregex_iterator();
       ++at) {
    colours[(*at)[2]].insert((*at)[1]);
  }
  ASSERT_EQ(colours.size(), 6U) << script;
  std::set<std::string> all;
  for (const auto& [title, one] : colours) {
    EXPECT_EQ(one.size(), 1U) << title << " has one colour in all panels";
    EXPECT_TRUE(all.insert(*one.begin()).second) << title << " shares its colour";
    if (const ScheduleInfo* info = find_schedule_info(title)) {
      EXPECT_EQ(*one.begin(), info->colour);
    }
  }
}

TEST(Figure, GrowsWithItsNamesAndLegend) {
  const auto height_of = [](const Figure& figure) {
    const std::string script = figure_script(figure, "tall");
    const auto at = script.find(',', script.find("size ")) + 1;
    return std::stoi(script.substr(at));
  };
  Figure figure;
  FigurePanel panel{"time", "x", "y", false, {}};
  panel.series.push_back({"a", {0, 1}, {1, 2}, true, {}});
  figure.panels = {panel};
  const int plain = height_of(figure);
  EXPECT_GT(plain, figure.plot_height);
  for (int i = 0; i < 20; ++i) {
    figure.panels[0].x_names.push_back("a workload with a long name " + std::to_string(i));
    figure.panels[0].series.push_back({"schedule " + std::to_string(i), {0, 1}, {1, 2}, true, {}});
  }
  EXPECT_GT(height_of(figure), plain + 100);
  EXPECT_NE(figure_script(figure, "wide").find("size 9"), std::string::npos) << "40 pixels a name";
}

TEST(Figure, RefusesAFileNameThatIsNone) {
  EXPECT_THROW((void)figure_script(make_figure(), "|touch owned"), InternalError);
  EXPECT_THROW((void)image_name(make_figure(), "../x"), InternalError);
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
  write_text(directory.path() / "skew.svg", "of other rows");
  const FigureResult result = draw_figure(figure, directory.path(), "skew", "no-such-gnuplot");
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "skew.svg"));
  EXPECT_EQ(result.status, Status::kUnavailable);
  EXPECT_EQ(result.reason, "panel \"bytes\" has no point to draw");
}

TEST(Figure, NamesADirectoryItCannotWriteTo) {
  EXPECT_THROW(draw_figure(make_figure(), "/no/such/directory", "skew"), FileError);
}

}  // namespace
}  // namespace moescope
