#pragma once

#include <map>
#include <string>
#include <vector>

#include "profiler/report/recorded_points.hpp"

/// Pieces of the report's page.
namespace moescope {

/// Layers that stand under one heading.
struct HtmlSection {
  std::string heading;  ///< text
  std::string body;     ///< HTML
};

/// Tables of every schedule on every timed layer, a section per system and workload. What was recorded
/// several times stands side by side. `run_numbers` are those of the page's table of runs, by run id; with a
/// single run they are left out. A last section says how many layers were not timed, where there are any.
std::vector<HtmlSection> layer_sections(const std::vector<RecordedLayer>& layers,
                                        const std::map<std::string, std::size_t>& run_numbers);

}  // namespace moescope
