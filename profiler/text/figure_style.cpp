#include "profiler/text/figure_style.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <set>
#include <vector>

#include "core/base/error.hpp"
#include "core/schedule/schedule_info.hpp"

namespace moescope {
namespace {

/// Colours for what is no schedule, told apart by colour-blind readers (Okabe and Ito 2008, Tol 2021).
constexpr std::array<std::string_view, 12> kColours = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                       "#E69F00", "#56B4E9", "#332288", "#882255",
                                                       "#999933", "#117733", "#661100", "#000000"};
constexpr std::array kPointTypes = {5, 7, 9, 11, 13, 15, 1, 2, 3};
constexpr std::string_view kReferenceColour = "#595959";

}  // namespace

bool drawable(const FigurePanel& panel, double x, double y) {
  return std::isfinite(x) && std::isfinite(y) && (!panel.log_x || x > 0) && (!panel.log_y || y > 0);
}

bool drawable(const FigurePanel& panel, const FigureSeries& series) {
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    if (drawable(panel, series.x[i], series.y[i])) {
      return true;
    }
  }
  return false;
}

const std::string& look_of(const FigureSeries& series) {
  return series.look.empty() ? series.label : series.look;
}

std::map<std::string, int> markers_of(const Figure& figure) {
  constexpr std::array kOpen = {4, 6, 8, 10, 14, 12};
  std::map<std::string, int> markers;
  for (const FigurePanel& panel : figure.panels) {
    for (const FigureSeries& series : panel.series) {
      if (!series.marker.empty()) {
        markers.try_emplace(series.marker, kOpen[markers.size() % kOpen.size()]);
      }
    }
  }
  return markers;
}

std::map<std::string, SeriesStyle> styles_of(const Figure& figure) {
  std::map<std::string, SeriesStyle> styles;
  std::set<std::string_view> taken;
  std::vector<std::string> others;
  for (const FigurePanel& panel : figure.panels) {
    for (const FigureSeries& series : panel.series) {
      const std::string& look = look_of(series);
      if (const ScheduleInfo* info = find_schedule_info(look)) {
        styles[look] = {info->colour, info->point_type, info->chosen};
        taken.insert(info->colour);
      } else if (look == kReferenceLook) {
        styles[look] = {kReferenceColour, 6, false};
      } else if (styles.try_emplace(look).second) {
        others.push_back(look);
      }
    }
  }
  std::vector<std::string_view> left;
  std::ranges::copy_if(kColours, std::back_inserter(left),
                       [&](auto colour) { return !taken.contains(colour); });
  for (std::size_t i = 0; i < others.size(); ++i) {
    styles[others[i]] = {left[i % left.size()], kPointTypes[(i + i / left.size()) % kPointTypes.size()],
                         false};
  }
  return styles;
}

int point_type_of(const FigureSeries& series, const SeriesStyle& style,
                  const std::map<std::string, int>& markers) {
  const int shape = series.marker.empty() ? style.point_type : markers.at(series.marker);
  const bool open = series.variant % 2 == 1 && shape >= 5 && shape % 2 == 1;
  return open ? shape - 1 : shape;
}

void require_equal_lengths(const FigureSeries& series) {
  if (series.x.size() != series.y.size() || (!series.tags.empty() && series.tags.size() != series.x.size()) ||
      series.tag_x.size() != series.tag_y.size() ||
      (!series.tag_x.empty() && series.tag_x.size() != series.tags.size()) ||
      (!series.facts.empty() && series.facts.size() != series.x.size())) {
    throw InternalError(fmt::format("figure series \"{}\" has {} x, {} y, {} tags", series.label,
                                    series.x.size(), series.y.size(), series.tags.size()));
  }
}

}  // namespace moescope
