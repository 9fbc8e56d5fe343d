// Analytic traffic of the optimizer's step, and the floor of the experts' backward: traffic_terms.hpp has the
// conventions.
#include <fmt/format.h>

#include "core/base/error.hpp"
#include "core/cost/traffic.hpp"
#include "core/cost/traffic_terms.hpp"
#include "core/layer/training.hpp"

namespace moescope {

AnalyticCost optimizer_cost(const LayerShape& shape, std::int64_t rows, const TrainingOptions& training) {
  shape.validate();
  if (rows < 0 || rows > shape.num_experts()) {
    throw InvalidArgument("rows", fmt::to_string(rows),
                          fmt::format("must be in [0, {}]", shape.num_experts()));
  }
  const Stage stage = Stage::kExpertsOptimizer;
  const auto elements = checked_product({2, rows, shape.hidden_size});
  const auto state = checked_product({3, elements, kFp32Bytes});
  const auto steps = checked_product({2, rows, kIdBytes});
  const auto gradients = checked_product({elements, dtype_bytes(training.gradient_dtype(shape.dtype))});
  AnalyticCost cost;
  const auto both = [&](Access access, std::int64_t bytes, std::string_view what) {
    for (const MemoryLevel level : {MemoryLevel::kHbm, MemoryLevel::kL2}) {
      cost.traffic.push_back({stage, level, access, bytes, what});
    }
  };
  both(kRead, gradients, "dW and dV");                                             // 2 R d
  both(kRead, state, "weights and moments");                                       // 6 R d fp32
  both(kWrite, state, "weights and moments");                                      // 6 R d fp32
  both(kRead, steps, "last step of a row");                                        // 2 R
  both(kWrite, steps, "last step of a row");                                       // 2 R
  both(kWrite, checked_product({elements, dtype_bytes(shape.dtype)}), "W and V");  // 2 R d
  return cost;
}

std::int64_t backward_floor_bytes(const LayerShape& shape, const Routing& routing,
                                  const TrainingOptions& training) {
  require_fit(shape, routing);
  const auto d = shape.hidden_size;
  const std::int64_t active = count_active_experts(routing);
  const std::int64_t rows = 2 * active + 3 * routing.num_tokens;  // W, V; X, dY, dX
  // dW and dV, which are read as well where they are added to.
  const std::int64_t gradients = training.form == GradientForm::kStored  ? 2 * shape.num_experts()
                                 : training.form == GradientForm::kAdded ? 4 * active
                                                                         : 2 * active;
  return checked_product({rows, d, dtype_bytes(shape.dtype)}) +
         checked_product({gradients, d, dtype_bytes(training.gradient_dtype(shape.dtype))});
}

}  // namespace moescope
