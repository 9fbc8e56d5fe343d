#pragma once

#include <string>

#include "profiler/text/figure.hpp"

namespace moescope {

/// The figure as one plain SVG, for readers of a page without scripts: panels below each other, axes with
/// their ends, series as lines and dots, a legend. No title of the figure, no tags or facts. Texts are
/// escaped; empty when no panel has a point that its axes can show.
std::string static_figure(const Figure& figure);

}  // namespace moescope
