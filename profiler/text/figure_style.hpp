#pragma once

#include <map>
#include <string>
#include <string_view>

#include "profiler/text/figure.hpp"

/// How series look: one rule for images and for pages.
namespace moescope {

/// Colour and marker of a series.
struct SeriesStyle {
  std::string_view colour;  ///< "#rrggbb"
  int point_type = 0;       ///< gnuplot's number of the shape; even ones from 4 on are open
  bool dotted = false;      ///< of a choice among others
};

/// Whether the panel's axes can show the point.
bool drawable(const FigurePanel& panel, double x, double y);
/// Whether they can show any of the series' points.
bool drawable(const FigurePanel& panel, const FigureSeries& series);

/// What colour and marker of a series stand for.
const std::string& look_of(const FigureSeries& series);

/// Of every look in the figure: one colour means one thing in all panels, and no two things share one while
/// colours last; beyond that the marker differs. Schedules have those of schedule_infos().
std::map<std::string, SeriesStyle> styles_of(const Figure& figure);

/// Markers of what is named by them alone, in order of appearance: open shapes, which no schedule has.
std::map<std::string, int> markers_of(const Figure& figure);

/// The series' marker: that of its look, an open one for every second variant of a shape that has one, or the
/// one that stands for something of its own.
int point_type_of(const FigureSeries& series, const SeriesStyle& style,
                  const std::map<std::string, int>& markers);

/// Throws InternalError when the series' lists are not of one length.
void require_equal_lengths(const FigureSeries& series);

}  // namespace moescope
