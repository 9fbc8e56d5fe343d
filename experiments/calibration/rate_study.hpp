#pragma once

#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/results/result.hpp"
#include "experiments/options/options.hpp"

namespace moescope {

/// Measures what rates for schedule auto are fitted to: every candidate on Table A's layer from 1 to 16384
/// tokens, flat and skewed, and on other grids. Rows as `compare` has them. Throws what PointStudy does; a
/// point that fails is among the rows with its reason.
std::vector<ResultRow> rate_study_rows(MoeBackend& backend, const CommonOptions& options);

}  // namespace moescope
