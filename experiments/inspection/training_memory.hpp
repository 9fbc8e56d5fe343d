#pragma once

#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/training.hpp"
#include "core/results/result.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

/// What a training step of a layer takes, per schedule, layout and SaveMode (core/cost/memory_plan.hpp).
struct TrainingMemory {
  Table table;  ///< bytes in words
  std::vector<ResultRow>
      rows;  ///< of the mirror's layout: minimal_saved_bytes, ..._working_bytes, ..._gradient_bytes
};
TrainingMemory training_memory(const LayerInputs& inputs, const Routing& routing, const Point& point,
                               std::span<const SaveMode> saves);

}  // namespace moescope
