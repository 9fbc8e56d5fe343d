#include "core/layer/training.hpp"

#include <fmt/format.h>

#include <cmath>

#include "core/base/error.hpp"

namespace moescope {
namespace {

void require_weight(double weight, std::string_view field) {
  if (!std::isfinite(weight) || weight < 0) {
    throw InvalidArgument(field, fmt::to_string(weight), "must be finite and not negative");
  }
}

}  // namespace

Direction parse_direction(std::string_view text) {
  for (const auto direction : {Direction::kForward, Direction::kBackward}) {
    if (text == to_string(direction)) {
      return direction;
    }
  }
  throw InvalidArgument("direction", text, "must be forward or backward");
}

std::string_view to_string(SaveMode mode) {
  switch (mode) {
    case SaveMode::kMinimal:
      return "minimal";
    case SaveMode::kLogProbs:
      return "log_probs";
    case SaveMode::kScores:
      return "scores";
  }
  return "?";
}

SaveMode parse_save_mode(std::string_view text) {
  for (const auto mode : {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores}) {
    if (text == to_string(mode)) {
      return mode;
    }
  }
  throw InvalidArgument("save", text, "must be minimal, log_probs or scores");
}

std::string_view to_string(GradientForm form) {
  switch (form) {
    case GradientForm::kStored:
      return "stored";
    case GradientForm::kTouched:
      return "touched";
    case GradientForm::kAdded:
      return "added";
  }
  return "?";
}

GradientForm parse_gradient_form(std::string_view text) {
  for (const auto form : {GradientForm::kStored, GradientForm::kTouched, GradientForm::kAdded}) {
    if (text == to_string(form)) {
      return form;
    }
  }
  throw InvalidArgument("gradients", text, "must be stored, touched or added");
}

void validate_optimizer(const TrainingOptions& options) {
  if (options.optimizer == OptimizerForm::kNone) {
    return;
  }
  options.adamw.validate();
  if (options.form == GradientForm::kAdded) {
    throw InvalidArgument("optimizer", to_string(options.optimizer),
                          "takes the gradients of one backward, not sums over several (gradients added)");
  }
  if (options.optimizer == OptimizerForm::kDense && options.form == GradientForm::kTouched) {
    throw InvalidArgument("optimizer", to_string(options.optimizer),
                          "reads every row of dW and dV: gradients must be stored");
  }
}

void validate_training(const LayerInputs& inputs, const HostTensor& dy, const TrainingOptions& options) {
  const auto& shape = inputs.shape;
  if (dy.rows() != shape.num_tokens || dy.cols() != shape.hidden_size || dy.dtype() != shape.dtype) {
    throw InvalidArgument(
        "dy", fmt::format("[{}, {}] {}", dy.rows(), dy.cols(), to_string(dy.dtype())),
        fmt::format("must be [{}, {}] {}", shape.num_tokens, shape.hidden_size, to_string(shape.dtype)));
  }
  require_weight(options.losses.balance, "losses.balance");
  require_weight(options.losses.z, "losses.z");
  if (inputs.fixed_routing && options.losses.any()) {
    throw InvalidArgument("losses", fmt::format("{}, {}", options.losses.balance, options.losses.z),
                          "must be 0 where the routing is given: there is no router to train");
  }
  validate_optimizer(options);
  if (!options.batch_norm) {
    return;
  }
  const BatchNorm& norm = *options.batch_norm;
  if (inputs.fixed_routing) {
    throw InvalidArgument("batch_norm", "on", "there is no router where the routing is given");
  }
  if (!std::isfinite(norm.eps) || norm.eps <= 0) {
    throw InvalidArgument("batch_norm.eps", fmt::to_string(norm.eps), "must be positive and finite");
  }
  if (!(norm.momentum >= 0 && norm.momentum <= 1)) {
    throw InvalidArgument("batch_norm.momentum", fmt::to_string(norm.momentum), "must be in [0, 1]");
  }
  if (shape.num_tokens < 2) {
    throw InvalidArgument("num_tokens", fmt::to_string(shape.num_tokens),
                          "must be at least 2 for a batch norm in training");
  }
  if (!inputs.router.row_bias.empty() || !inputs.router.col_bias.empty()) {
    throw InvalidArgument("router.bias", "present", "must be empty before a batch norm, which takes it out");
  }
}

std::vector<std::int32_t> touched_experts(const Routing& routing) {
  const auto loads = expert_loads(routing);
  std::vector<std::int32_t> touched;
  for (std::size_t expert = 0; expert < loads.size(); ++expert) {
    if (loads[expert] > 0) {
      touched.push_back(static_cast<std::int32_t>(expert));
    }
  }
  return touched;
}

}  // namespace moescope
