// Golden vectors of the published OmniMoE module in torch: its layer, and the gradients of sum(dy * y).
#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "core/backend/training_execution.hpp"
#include "core/base/error.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/golden/golden_file.hpp"
#include "reference/stages/batch_norm.hpp"

namespace moescope::detail {
namespace {

/// Row or column half of the published router with its batch norm.
reference::FoldedLinear folded_router(const Golden& golden, std::string_view side, double eps) {
  return reference::fold_batch_norm(golden.matrix(fmt::format("router_gate_{}.weight", side)),
                                    golden.floats(fmt::format("router_norm_{}.running_mean", side)),
                                    golden.floats(fmt::format("router_norm_{}.running_var", side)), eps);
}

/// The worst of several comparisons, and where it was.
struct Worst {
  double error = 0;
  std::string where;

  void add(double one, std::string_view what, const ScheduleOptions& schedule) {
    if (where.empty() || !(one <= error)) {
      error = one;
      where = fmt::format("{}, {}", what, to_string(schedule));
    }
  }
};

/// Gradient of the matrix before its batch norm was folded in: each row scaled as the weights were.
HostTensor unfolded(const Golden& golden, std::string_view side, HostTensor gradient, double eps) {
  const auto variance = golden.floats(fmt::format("router_norm_{}.running_var", side));
  const auto view = gradient.f32();
  for (std::int64_t row = 0; row < view.rows; ++row) {
    const double scale = 1 / std::sqrt(static_cast<double>(variance[static_cast<std::size_t>(row)]) + eps);
    for (float& value : view.row_span(row)) {
      value = static_cast<float>(value * scale);
    }
  }
  return gradient;
}

void compare_gradients(const Golden& golden, const LayerGradients& ours, const ScheduleOptions& schedule,
                       Worst& worst) {
  const auto eps = static_cast<double>(golden.number("bn_eps"));
  const auto add = [&](const std::string& name, const HostTensor& gradient) {
    worst.add(max_relative_error(gradient, golden.matrix("grad." + name)), "grad." + name, schedule);
  };
  add("x", ours.hidden_states);
  add("up_embed.weight", ours.w_in);
  add("down_embed.weight", ours.w_out);
  add("gate_proj.weight", ours.shared->gate);
  add("up_proj.weight", ours.shared->up);
  add("down_proj.weight", ours.shared->down);
  add("router_gate_x.weight", unfolded(golden, "x", ours.router_row.clone(), eps));
  add("router_gate_y.weight", unfolded(golden, "y", ours.router_col.clone(), eps));
}

}  // namespace

LayerInputs omnimoe_inputs(const Golden& golden) {
  LayerInputs inputs;
  inputs.hidden_states = golden.matrix("x");
  const auto eps = golden.number("bn_eps");
  auto row = folded_router(golden, "x", eps);
  auto col = folded_router(golden, "y", eps);
  inputs.router = {std::move(row.weight), std::move(col.weight), std::move(row.bias), std::move(col.bias)};
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = golden.matrix("up_embed.weight");
  experts->w_out = golden.matrix("down_embed.weight");
  experts->shared = SharedMlpWeights{golden.matrix("gate_proj.weight"), golden.matrix("up_proj.weight"),
                                     golden.matrix("down_proj.weight")};
  inputs.shape.num_tokens = inputs.hidden_states.rows();
  inputs.shape.hidden_size = inputs.hidden_states.cols();
  inputs.shape.grid_rows = inputs.shape.grid_cols = golden.integer("grid");
  inputs.shape.top_k = golden.integer("top_k");
  inputs.shape.shared_size = experts->shared->gate.rows();
  inputs.shape.dtype = Dtype::kF32;
  inputs.shape.activation = Activation::kSilu;
  inputs.shape.gate_mode = GateMode::kProbability;
  inputs.experts = std::move(experts);
  inputs.workload = golden.path;
  inputs.validate();
  return inputs;
}

GoldenResult replay_omnimoe(const Golden& golden) {
  const LayerInputs inputs = omnimoe_inputs(golden);
  const HostTensor expected = golden.matrix("y");
  // Recorded since the module's backward was; without it the layer alone is replayed.
  const bool has_gradients = golden.file.has("dy");
  const HostTensor dy = has_gradients ? golden.matrix("dy") : HostTensor();
  ReferenceBackend backend;
  Worst worst;
  for (const char* name :
       {"token_centric", "expert_centric", "staircase", "staircase:rows", "dense_masked"}) {
    const ScheduleOptions schedule = parse_schedule(name);
    const auto execution = backend.prepare(inputs, schedule);
    execution->run(L2State::kWarm);
    worst.add(max_relative_error(execution->output(), expected), "y", schedule);
    for (const SaveMode save : {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores}) {
      if (!has_gradients) {
        break;
      }
      TrainingOptions training;
      training.save = save;
      const auto step = backend.prepare_training(inputs, dy, schedule, training);
      step->run(L2State::kWarm);
      worst.add(max_relative_error(step->output(), expected), "y of training", schedule);
      compare_gradients(golden, step->gradients(), schedule, worst);
    }
  }
  return judged(has_gradients ? "omnimoe, with gradients" : "omnimoe", worst.error, worst.where);
}

}  // namespace moescope::detail
