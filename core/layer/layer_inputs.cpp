#include "core/layer/layer_inputs.hpp"

#include <fmt/format.h>

#include "core/base/error.hpp"

namespace moescope {
namespace {

void require_tensor(const HostTensor& tensor, std::string_view name, const LayerShape& shape,
                    std::int64_t rows, std::int64_t cols) {
  if (tensor.rows() != rows || tensor.cols() != cols || tensor.dtype() != shape.dtype) {
    throw InvalidArgument(
        name, fmt::format("[{}, {}] {}", tensor.rows(), tensor.cols(), to_string(tensor.dtype())),
        fmt::format("must be [{}, {}] {} for {}", rows, cols, to_string(shape.dtype), shape.label()));
  }
}

void require_bias(const std::vector<float>& bias, std::string_view name, std::int64_t extent) {
  if (!bias.empty() && std::ssize(bias) != extent) {
    throw InvalidArgument(name, fmt::format("[{}]", bias.size()),
                          fmt::format("must be empty or [{}]", extent));
  }
}

void require_experts(const ExpertWeights& experts, const LayerShape& shape) {
  const auto d = shape.hidden_size;
  require_tensor(experts.w_in, "experts.w_in", shape, shape.num_experts(), d);
  require_tensor(experts.w_out, "experts.w_out", shape, shape.num_experts(), d);
  if (experts.shared.has_value() != (shape.shared_size > 0)) {
    throw InvalidArgument("experts.shared", experts.shared ? "present" : "absent",
                          fmt::format("shape.shared_size is {}", shape.shared_size));
  }
  if (experts.shared) {
    require_tensor(experts.shared->gate, "shared.gate", shape, shape.shared_size, d);
    require_tensor(experts.shared->up, "shared.up", shape, shape.shared_size, d);
    require_tensor(experts.shared->down, "shared.down", shape, d, shape.shared_size);
  }
}

}  // namespace

void require_fixed_routing(const Routing& routing, const LayerShape& shape) {
  if (routing.num_tokens != shape.num_tokens || routing.grid_rows != shape.grid_rows ||
      routing.grid_cols != shape.grid_cols) {
    throw InvalidArgument(
        "fixed_routing",
        fmt::format("{} tokens, grid {} x {}", routing.num_tokens, routing.grid_rows, routing.grid_cols),
        fmt::format("must have {} tokens, grid {} x {}", shape.num_tokens, shape.grid_rows, shape.grid_cols));
  }
  routing.validate();
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    if (std::ssize(routing.ids_of(token)) != shape.top_k) {
      throw InvalidArgument(fmt::format("fixed_routing, experts of token {}", token),
                            fmt::to_string(routing.ids_of(token).size()),
                            fmt::format("must be top_k = {}", shape.top_k));
    }
  }
}

void LayerInputs::validate() const {
  shape.validate();
  require_tensor(hidden_states, "hidden_states", shape, shape.num_tokens, shape.hidden_size);
  if (!experts) {
    throw InvalidArgument("experts", "null", "a layer needs expert weights");
  }
  require_experts(*experts, shape);
  if (fixed_routing) {
    require_fixed_routing(*fixed_routing, shape);
    return;
  }
  require_tensor(router.row, "router.row", shape, shape.grid_rows, shape.hidden_size);
  require_tensor(router.col, "router.col", shape, shape.grid_cols, shape.hidden_size);
  require_bias(router.row_bias, "router.row_bias", shape.grid_rows);
  require_bias(router.col_bias, "router.col_bias", shape.grid_cols);
}

}  // namespace moescope
