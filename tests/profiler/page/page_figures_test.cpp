#include "profiler/page/page_figures.hpp"
#include "profiler/page/static_figure.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "core/base/error.hpp"
#include "core/schedule/schedule_info.hpp"

namespace moescope {
namespace {

using Json = nlohmann::json;

FigureSeries series_of(const std::string& label, std::vector<double> y) {
  FigureSeries series;
  series.label = label;
  for (std::size_t i = 0; i < y.size(); ++i) {
    series.x.push_back(static_cast<double>(i));
    series.facts.push_back({{"time", std::to_string(i) + " s"}, {"device", "one"}});
  }
  series.y = std::move(y);
  return series;
}

Figure figure_of(std::vector<FigureSeries> series) {
  Figure figure;
  figure.panels.push_back({"title", "x", "y", true, std::move(series)});
  return figure;
}

TEST(PageFigures, CarryPointsAndWhatIsBehindThem) {
  PageFigures figures;
  const std::string html = figures.add("first", figure_of({series_of("staircase", {1, 1.23456789, 3})}));
  EXPECT_EQ(html.find("<figure id=figure-1 class=chart"), 0U) << html;
  EXPECT_NE(figures.add("second", figure_of({})).find("figure-2"), std::string::npos);
  EXPECT_EQ(figures.count(), 2U);
  const Json json = Json::parse(figures.json());
  ASSERT_EQ(json["figures"].size(), 2U) << "a figure keeps its number when there is nothing to draw";
  EXPECT_TRUE(json["figures"][1]["panels"].empty());
  const Json& series = json["figures"][0]["panels"][0]["series"][0];
  EXPECT_EQ(series["y"], (Json{1, 1.23457, 3}));
  EXPECT_EQ(series["shape"], schedule_info(ScheduleKind::kStaircase).point_type);
  EXPECT_EQ(series["colour"], schedule_info(ScheduleKind::kStaircase).colour);
  const Json& texts = json["texts"];
  EXPECT_EQ(texts.size(), 6U) << "what points share stands once";
  const Json& facts = series["facts"][2];
  EXPECT_EQ(texts[facts[0].get<std::size_t>()], "time");
  EXPECT_EQ(texts[facts[1].get<std::size_t>()], "2 s");
  EXPECT_EQ(texts[facts[3].get<std::size_t>()], "one");
}

TEST(PageFigures, LeaveOutWhatTheAxesCannotShow) {
  PageFigures figures;
  const double nothing = std::numeric_limits<double>::quiet_NaN();
  (void)figures.add("f", figure_of({series_of("a", {0, 2, nothing, 5e-324}), series_of("b", {-1})}));
  const Json json = Json::parse(figures.json());
  const Json& all = json["figures"][0]["panels"][0]["series"];
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]["x"], (Json{1, 3}));
  EXPECT_EQ(all[0]["facts"].size(), 2U);
  FigureSeries uneven = series_of("a", {1, 2});
  uneven.facts.pop_back();
  (void)figures.add("g", figure_of({uneven}));
  EXPECT_THROW((void)figures.json(), InternalError);
}

TEST(PageFigures, KeepHostileTextsAsData) {
  const std::string hostile = "</script><!--]]>\"'\\`\n\x1b[2J\xe9\xe2\x80\xa8";
  const std::string shown = "</script><!--]]>\"'\\`\\n\\x1b[2J\\xe9\\u2028";
  FigureSeries series = series_of(hostile, {1});
  series.tags = {hostile};
  series.facts = {{{hostile, hostile}}};
  Figure figure = figure_of({series});
  figure.panels[0].title = figure.panels[0].x_label = figure.panels[0].y_label = hostile;
  figure.panels[0].x_names = {hostile};
  PageFigures figures;
  const std::string html = figures.add(hostile, figure);
  EXPECT_EQ(html.find("</script>"), std::string::npos) << html;
  const std::string text = figures.json();
  for (const char* never : {"<", "\x1b", "\xe9", "\xe2", "\n"}) {
    EXPECT_EQ(text.find(never), std::string::npos) << never;
  }
  const Json json = Json::parse(text);
  const Json& panel = json["figures"][0]["panels"][0];
  for (const char* key : {"title", "x_label", "y_label"}) {
    EXPECT_EQ(panel[key], shown) << key;
  }
  EXPECT_EQ(panel["x_names"][0], shown);
  EXPECT_EQ(panel["series"][0]["label"], shown);
  EXPECT_EQ(panel["series"][0]["tags"][0], shown);
  EXPECT_EQ(json["texts"][0], shown);
}

TEST(PageFigures, HaveAPlainFigureForReadersWithoutScripts) {
  Figure figure = figure_of({series_of("<b>`touch x`", {1, 4, 2})});
  PageFigures figures;
  const std::string html = figures.add("caption", figure);
  const auto from = html.find("<noscript><svg ");
  ASSERT_NE(from, std::string::npos) << html;
  EXPECT_NE(html.find("</svg></noscript>", from), std::string::npos);
  EXPECT_NE(html.find("&lt;b&gt;`touch x`</text>", from), std::string::npos) << html;
  std::size_t dots = 0;
  for (auto at = html.find("r=\"3\"", from); at != std::string::npos; at = html.find("r=\"3\"", at + 1)) {
    ++dots;
  }
  EXPECT_EQ(dots, 3U);
  figure.panels[0].log_y = true;
  figure.panels[0].series[0].y = {-1, 0, -2};
  EXPECT_EQ(static_figure(figure), "") << "no point that can be shown";
}

}  // namespace
}  // namespace moescope
