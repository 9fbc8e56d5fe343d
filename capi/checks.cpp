#include "capi/checks.hpp"

#include <array>
#include <string_view>

#include "capi/base/arena.hpp"
#include "capi/base/failure.hpp"
#include "capi/cpu/parallel.hpp"
#include "capi/gpu/gpu.hpp"

namespace moescope::capi {
namespace {

constexpr std::int64_t kMostExtent = (std::int64_t{1} << 31) - 1;
constexpr std::int64_t kMostElements = std::int64_t{1} << 47;  // sums of bytes stay far below 2^63

void require_range(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most) {
    refuse(name, std::to_string(value),
           "must be in [" + std::to_string(least) + ", " + std::to_string(most) + "]");
  }
}

/// A product of two extents that were checked.
void require_elements(const char* name, std::int64_t a, std::int64_t b) {
  if (a != 0 && b > kMostElements / a) {
    refuse(name, std::to_string(a) + " x " + std::to_string(b), "are more than 2^47 elements");
  }
}

bool one_of(moescope_operation operation, std::initializer_list<moescope_operation> these) {
  for (const auto one : these) {
    if (operation == one) {
      return true;
    }
  }
  return false;
}

bool selects(moescope_operation operation) {
  return one_of(operation, {MOESCOPE_SELECT_FORWARD, MOESCOPE_SELECT_BACKWARD, MOESCOPE_LAYER_FORWARD,
                            MOESCOPE_LAYER_BACKWARD});
}

bool has_pairs(moescope_operation operation) {
  return !one_of(operation, {MOESCOPE_MLP_FORWARD, MOESCOPE_MLP_BACKWARD});
}

void require_extents(moescope_operation operation, const moescope_shape& shape) {
  require_range("num_tokens", shape.num_tokens, 0, kMostExtent);
  if (!one_of(operation, {MOESCOPE_SELECT_FORWARD, MOESCOPE_SELECT_BACKWARD})) {
    require_range("hidden_size", shape.hidden_size, 1, kMostExtent);
    require_elements("num_tokens x hidden_size", shape.num_tokens, shape.hidden_size);
  }
  if (has_pairs(operation)) {
    require_range("grid_rows", shape.grid_rows, 1, kMostExtent);
    require_range("grid_cols", shape.grid_cols, 1, kMostExtent / shape.grid_rows);
    const std::int64_t experts = shape.grid_rows * shape.grid_cols;
    require_range("top_k", shape.top_k, 1, selects(operation) ? experts : kMostExtent);
    require_elements("num_tokens x top_k", shape.num_tokens, shape.top_k);
    if (!one_of(operation, {MOESCOPE_SELECT_FORWARD, MOESCOPE_SELECT_BACKWARD})) {
      require_elements("experts x hidden_size", experts, shape.hidden_size);
    }
    if (selects(operation)) {
      require_elements("num_tokens x grid_rows", shape.num_tokens, shape.grid_rows);
      require_elements("num_tokens x grid_cols", shape.num_tokens, shape.grid_cols);
    }
  }
  const bool mlp = one_of(operation, {MOESCOPE_MLP_FORWARD, MOESCOPE_MLP_BACKWARD});
  if (mlp || one_of(operation, {MOESCOPE_LAYER_FORWARD, MOESCOPE_LAYER_BACKWARD})) {
    require_range("shared_size", shape.shared_size, mlp ? 1 : 0, kMostExtent);
    require_elements("num_tokens x shared_size", shape.num_tokens, shape.shared_size);
    require_elements("shared_size x hidden_size", shape.shared_size, shape.hidden_size);
  }
}

void require_options(const moescope_shape& shape, const moescope_execution& execution) {
  require_range("dtype", shape.dtype, MOESCOPE_F32, MOESCOPE_BF16);
  require_range("id_dtype", shape.id_dtype, MOESCOPE_INT32, MOESCOPE_INT64);
  require_range("activation", shape.activation, MOESCOPE_SILU, MOESCOPE_RELU);
  require_range("gate_mode", shape.gate_mode, MOESCOPE_GATES_SOFTMAX, MOESCOPE_GATES_SCORE);
  require_range("marginals", shape.marginals, MOESCOPE_LOG_SOFTMAX, MOESCOPE_AS_GIVEN);
  require_range("shape.reserved", shape.reserved, 0, 0);
  require_range("num_threads", execution.num_threads, 0, kMostExtent);
  require_range("deterministic", execution.deterministic, 0, 1);
  require_range("schedule", execution.schedule, 0, 0);
  require_range("execution.reserved", execution.reserved, 0, 0);
  if (execution.struct_bytes >= kStripsBytes) {
    require_range("strip_entries", execution.strip_entries, 0, kMostExtent);
    require_range("strip_tiles", execution.strip_tiles, 0, kMostExtent);
  }
}

constexpr std::array<std::string_view, 8> kOperations = {
    "select_forward", "select_backward", "experts_forward", "experts_backward",
    "mlp_forward",    "mlp_backward",    "layer_forward",   "layer_backward"};

void require_device(moescope_operation operation, const moescope_execution& execution) {
  require_range("device", execution.device, MOESCOPE_CPU, MOESCOPE_CUDA);
  if (execution.device == MOESCOPE_CPU) {
    return;
  }
  const std::string name(kOperations[static_cast<std::size_t>(operation)]);
  if (!gpu::built()) {
    throw Failure(MOESCOPE_ERROR_NOT_BUILT,
                  "device: this libmoescope was not built with CUDA, which " + name + " was asked for");
  }
}

}  // namespace

Problem checked_problem(moescope_operation operation, const moescope_shape* shape,
                        const moescope_execution* execution) {
  require_range("operation", operation, MOESCOPE_SELECT_FORWARD, MOESCOPE_LAYER_BACKWARD);
  require_struct("shape", shape, kShapeBytes);
  require_struct("execution", execution, kExecutionBytes);
  require_options(*shape, *execution);
  require_extents(operation, *shape);
  require_device(operation, *execution);
  Problem problem;
  problem.tokens = shape->num_tokens;
  problem.hidden = shape->hidden_size;
  problem.grid_rows = shape->grid_rows;
  problem.grid_cols = shape->grid_cols;
  problem.top_k = shape->top_k;
  problem.shared = shape->shared_size;
  constexpr std::array kActivations = {Activation::kSilu, Activation::kGelu, Activation::kRelu};
  problem.activation = kActivations[static_cast<std::size_t>(shape->activation)];
  problem.gate_mode = shape->gate_mode;
  problem.log_softmax = shape->marginals == MOESCOPE_LOG_SOFTMAX;
  problem.wide_ids = shape->id_dtype == MOESCOPE_INT64;
  problem.threads = resolved_threads(execution->num_threads);
  return problem;
}

void require_array(const char* name, const void* array, std::int64_t count) {
  if (array == nullptr && count > 0) {
    throw Failure(MOESCOPE_ERROR_NULL,
                  std::string(name) + ": null, where " + std::to_string(count) + " elements are needed");
  }
}

void require_workspace(const moescope_execution& execution, std::size_t needed) {
  if (needed == 0) {
    return;
  }
  if (execution.workspace_bytes < needed) {
    throw Failure(MOESCOPE_ERROR_WORKSPACE, "workspace_bytes: " + std::to_string(execution.workspace_bytes) +
                                                " must be at least " + std::to_string(needed));
  }
  require_array("workspace", execution.workspace, static_cast<std::int64_t>(needed));
  if (reinterpret_cast<std::uintptr_t>(execution.workspace) % Arena::kAlignment != 0) {
    refuse("workspace", std::to_string(reinterpret_cast<std::uintptr_t>(execution.workspace)),
           "must be aligned to 64 bytes");
  }
}

}  // namespace moescope::capi
