#pragma once

#include <span>
#include <string>

#include "profiler/placement/placement_study.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

/// A row for each placement: balance, ranks a token touches, bytes, memory.
Table placement_table(std::span<const PlacementStudy> studies);
/// What follows, a sentence a line: on what it was judged, whether copies pay, what moves least. Placements
/// that could not be made, with their reasons.
std::string placement_conclusion(std::span<const PlacementStudy> studies);
/// Load and rows sent of every placement, a series for each batch.
Figure placement_figure(std::span<const PlacementStudy> studies);

}  // namespace moescope
