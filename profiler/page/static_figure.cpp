#include "profiler/page/static_figure.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <map>
#include <vector>

#include "core/base/line_text.hpp"
#include "profiler/text/figure_style.hpp"
#include "profiler/text/html_text.hpp"

namespace moescope {
namespace {

constexpr double kWidth = 720;
constexpr double kHeight = 240;  ///< of the plot
constexpr double kLeft = 70;
constexpr double kTop = 40;
constexpr double kLine = 16;  ///< of text

/// From values to pixels.
class Axis {
 public:
  Axis(bool log, double from, double to) : log_(log), from_(from), to_(to) {}
  void take(double value) {
    low_ = std::min(low_, scaled(value));
    high_ = std::max(high_, scaled(value));
  }
  double at(double value) const {
    const double share = high_ > low_ ? (scaled(value) - low_) / (high_ - low_) : 0.5;
    return from_ + share * (to_ - from_);
  }
  double low() const { return log_ ? std::exp(low_) : low_; }
  double high() const { return log_ ? std::exp(high_) : high_; }

 private:
  double scaled(double value) const { return log_ ? std::log(value) : value; }
  bool log_;
  double from_;
  double to_;
  double low_ = std::numeric_limits<double>::infinity();
  double high_ = -std::numeric_limits<double>::infinity();
};

std::string text_at(double x, double y, const std::string& text, const char* anchor = "start") {
  return fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     html_text(one_line(text)));
}

/// One series: a line through its points, and dots.
std::string series_at(const FigurePanel& panel, const FigureSeries& series, const SeriesStyle& style,
                      const Axis& x, const Axis& y) {
  std::string line;
  std::string dots;
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    if (!drawable(panel, series.x[i], series.y[i])) {
      continue;
    }
    const double at_x = x.at(series.x[i]);
    const double at_y = y.at(series.y[i]);
    line += fmt::format("{:.1f},{:.1f} ", at_x, at_y);
    if (series.points) {
      dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", at_x, at_y,
                          style.colour);
    }
  }
  return (series.line
              ? fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\"/>\n", line, style.colour)
              : "") +
         dots;
}

/// Draws a panel from `top` on and moves that below it.
std::string panel_at(const FigurePanel& panel, const std::map<std::string, SeriesStyle>& styles,
                     double& top) {
  Axis x(panel.log_x, kLeft, kWidth - kLine);
  Axis y(panel.log_y, top + kTop + kHeight, top + kTop);
  std::vector<const FigureSeries*> shown;
  for (const FigureSeries& series : panel.series) {
    if (!drawable(panel, series)) {
      continue;
    }
    shown.push_back(&series);
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (drawable(panel, series.x[i], series.y[i])) {
        x.take(series.x[i]);
        y.take(series.y[i]);
      }
    }
  }
  std::string svg = text_at(kLeft, top + kLine, panel.title) + text_at(kLeft, top + 2 * kLine, panel.y_label);
  svg +=
      fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#999999\"/>\n",
                  kLeft, top + kTop, kWidth - kLine - kLeft, kHeight);
  svg += text_at(kLeft - 4, top + kTop + kLine, fmt::format("{:.3g}", y.high()), "end") +
         text_at(kLeft - 4, top + kTop + kHeight, fmt::format("{:.3g}", y.low()), "end");
  for (const FigureSeries* const series : shown) {
    svg += series_at(panel, *series, styles.at(look_of(*series)), x, y);
  }
  top += kTop + kHeight + kLine;
  if (panel.x_names.empty()) {
    svg += text_at(kLeft, top, fmt::format("{:.3g}", x.low())) +
           text_at(kWidth - kLine, top, fmt::format("{:.3g}", x.high()), "end");
    top += kLine;
  } else {  // below each other: they may be long
    for (std::size_t i = 0; i < panel.x_names.size(); ++i, top += kLine) {
      svg += text_at(kLeft, top, fmt::format("{}: {}", i, panel.x_names[i]));
    }
  }
  svg += text_at(kLeft, top, panel.x_label);
  top += kLine;
  for (const FigureSeries* const series : shown) {
    if (!series->label.empty()) {
      svg += fmt::format("<circle cx=\"{}\" cy=\"{:.0f}\" r=\"4\" fill=\"{}\"/>\n", kLeft + 4, top - 5,
                         styles.at(look_of(*series)).colour) +
             text_at(kLeft + kLine, top, series->label);
      top += kLine;
    }
  }
  return svg;
}

}  // namespace

std::string static_figure(const Figure& figure) {
  const auto styles = styles_of(figure);
  std::string svg;
  double top = 0;
  for (const FigurePanel& panel : figure.panels) {
    if (has_points(panel)) {
      svg += panel_at(panel, styles, top);
    }
  }
  return svg.empty() ? svg
                     : fmt::format(
                           "<svg viewBox=\"0 0 {0} {1:.0f}\" "
                           "width=\"{0}\" height=\"{1:.0f}\" font-family=\"sans-serif\" "
                           "font-size=\"12\">\n{2}</svg>",
                           kWidth, top, svg);
}

}  // namespace moescope
