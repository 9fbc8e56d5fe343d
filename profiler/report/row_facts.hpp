#pragma once

#include <string>
#include <vector>

#include "core/results/result.hpp"
#include "profiler/text/figure.hpp"

namespace moescope {

/// "L1024 d256 32x32 K16 bf16".
std::string short_shape(const ResultRow& row);

/// What a row of a time says, as facts of the point that shows it: the time with its spread, what ran, where
/// and when, and the command that measures it again. `time_s` is what the point shows: the row's own, or the
/// sum of an expert stage's two parts.
std::vector<FigureFact> row_facts(const ResultRow& row, const RunHeader& header, double time_s);

}  // namespace moescope
