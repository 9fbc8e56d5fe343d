#include "profiler/page/page_figures.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/line_text.hpp"
#include "profiler/page/static_figure.hpp"
#include "profiler/text/figure_style.hpp"
#include "profiler/text/html_text.hpp"

namespace moescope {
namespace {

using Json = nlohmann::ordered_json;

/// Texts that stand once and are named by their places.
class Texts {
 public:
  std::size_t place(const std::string& text) {
    const auto [found, is_new] = places_.try_emplace(text, list_.size());
    if (is_new) {
      list_.push_back(one_line(text));
    }
    return found->second;
  }
  const Json& list() const { return list_; }

 private:
  std::map<std::string, std::size_t> places_;
  Json list_ = Json::array();
};

/// Six digits: more than a screen shows, and a third of the page.
double rounded(double value) { return std::strtod(fmt::format("{:.6g}", value).c_str(), nullptr); }

Json series_json(const FigurePanel& panel, const FigureSeries& series, const SeriesStyle& style,
                 const std::map<std::string, int>& markers, Texts& texts) {
  Json json = {{"label", one_line(series.label)},
               {"colour", style.colour},
               {"shape", series.points ? point_type_of(series, style, markers) : 0},
               {"dash", style.dotted && series.variant == 0 ? -1 : series.variant},
               {"line", series.line}};
  for (const char* key : {"x", "y", "tags", "facts"}) {
    json[key] = Json::array();
  }
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    if (!drawable(panel, series.x[i], series.y[i])) {
      continue;
    }
    json["x"].push_back(rounded(series.x[i]));
    json["y"].push_back(rounded(series.y[i]));
    if (!series.tags.empty()) {
      json["tags"].push_back(one_line(series.tags[i]));
    }
    if (!series.facts.empty()) {
      Json facts = Json::array();
      for (const FigureFact& fact : series.facts[i]) {
        facts.push_back(texts.place(fact.name));
        facts.push_back(texts.place(fact.text));
      }
      json["facts"].push_back(std::move(facts));
    }
  }
  return json;
}

Json panel_json(const FigurePanel& panel, const std::map<std::string, SeriesStyle>& styles,
                const std::map<std::string, int>& markers, Texts& texts) {
  Json json = {{"title", one_line(panel.title)},
               {"x_label", one_line(panel.x_label)},
               {"y_label", one_line(panel.y_label)},
               {"log_x", panel.log_x},
               {"log_y", panel.log_y}};
  json["x_names"] = Json::array();
  for (const std::string& name : panel.x_names) {
    json["x_names"].push_back(one_line(name));
  }
  json["series"] = Json::array();
  for (const FigureSeries& series : panel.series) {
    require_equal_lengths(series);
    if (drawable(panel, series)) {
      json["series"].push_back(series_json(panel, series, styles.at(look_of(series)), markers, texts));
    }
  }
  return json;
}

}  // namespace

std::string PageFigures::add(const std::string& caption, Figure figure) {
  captions_.push_back(caption);
  figures_.push_back(std::move(figure));
  return fmt::format(
      "<figure id=figure-{0} class=chart data-columns={1}><figcaption>{0}. {2}</figcaption>"
      "<noscript>{3}</noscript></figure>\n",
      figures_.size(), figures_.back().columns == 1 ? 1 : 2, html_text(caption),
      static_figure(figures_.back()));
}

std::string PageFigures::json() const {
  Texts texts;
  Json figures = Json::array();
  for (const Figure& figure : figures_) {
    const auto styles = styles_of(figure);
    const auto markers = markers_of(figure);
    Json panels = Json::array();
    for (const FigurePanel& panel : figure.panels) {
      if (has_points(panel)) {
        panels.push_back(panel_json(panel, styles, markers, texts));
      }
    }
    figures.push_back({{"panels", std::move(panels)}});
  }
  const std::string text = Json{{"texts", texts.list()}, {"figures", std::move(figures)}}.dump(
      -1, ' ', true, Json::error_handler_t::replace);
  // A '<' stands in strings alone, and there it may be an escape: nothing ends the element that holds this.
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    out += c == '<' ? std::string("\\u003c") : std::string(1, c);
  }
  return out;
}

}  // namespace moescope
