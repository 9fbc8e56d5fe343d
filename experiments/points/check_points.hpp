#pragma once

#include <string>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "experiments/options/options.hpp"

namespace moescope {

/// One layer that `check` runs every schedule on.
struct CheckPoint {
  NamedWorkload workload;
  LayerShape shape;
  bool one_hot = false;  ///< routing made here: expert 0 has every token, the other K - 1 experts are uniform
};

/// The awkward shapes and skews; with `full` also paper Table A at L = 1024 and 4096, on Gaussian and skewed
/// routing. Throws FileError when the recorded layer is not there.
std::vector<CheckPoint> check_points(bool full);

/// What the backward is checked on: every point whose gates are free under either kind, and routing that
/// drifts.
std::vector<CheckPoint> training_points(std::vector<CheckPoint> points);

/// The point's inputs; throws what make_inputs() throws.
LayerInputs make_check_inputs(const CheckPoint& point, std::uint64_t seed, const LayerUse& use);

}  // namespace moescope
