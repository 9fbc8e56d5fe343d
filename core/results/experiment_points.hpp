#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/results/experiment.hpp"
#include "core/results/experiment_fields.hpp"

/// Points of an experiment from its axes. Not for use outside core/results/experiment*.cpp.
namespace moescope::detail {

/// An axis of this experiment with its values as the file has them.
struct Axis {
  RequestField kind;
  bool is_text = false;
  std::vector<Json> values;
};

/// Axes that go in step, each group as indices into the axes; the last group changes fastest.
using AxisGroups = std::vector<std::vector<std::size_t>>;

/// Every combination of the groups' values as a point, or those that "draw" of `file` asks for, with
/// `draw_seed` in the place of its seed where it is given. Ids count the schedules of `experiment`. Throws
/// FileError naming field and value.
std::vector<ExperimentPoint> experiment_points(const ExperimentFields& fields, const Json& file,
                                               const std::vector<Axis>& axes, const AxisGroups& groups,
                                               const Experiment& experiment,
                                               std::optional<std::int64_t> draw_seed);

}  // namespace moescope::detail
