#include "core/layer/optimizer.hpp"

#include <fmt/format.h>

#include <cmath>
#include <string_view>

#include "core/base/error.hpp"

namespace moescope {
namespace {

void require(bool holds, std::string_view field, double value, std::string_view requirement) {
  if (!holds) {
    throw InvalidArgument(field, fmt::to_string(value), requirement);
  }
}

}  // namespace

std::string_view to_string(OptimizerForm form) {
  switch (form) {
    case OptimizerForm::kNone:
      return "none";
    case OptimizerForm::kTouched:
      return "touched";
    case OptimizerForm::kDense:
      return "dense";
  }
  return "?";
}

OptimizerForm parse_optimizer_form(std::string_view text) {
  for (const auto form : {OptimizerForm::kNone, OptimizerForm::kTouched, OptimizerForm::kDense}) {
    if (text == to_string(form)) {
      return form;
    }
  }
  throw InvalidArgument("optimizer", text, "must be none, touched or dense");
}

void AdamWOptions::validate() const {
  require(std::isfinite(learning_rate) && learning_rate >= 0, "learning_rate", learning_rate,
          "must be finite and not negative");
  require(beta1 >= 0 && beta1 < 1, "beta1", beta1, "must be in [0, 1)");
  require(beta2 >= 0 && beta2 < 1, "beta2", beta2, "must be in [0, 1)");
  require(beta1 * beta1 < beta2, "beta2", beta2,
          "must be above beta1^2, or a missed step weighs more later on");
  require(std::isfinite(eps) && eps > 0, "eps", eps, "must be positive and finite");
  require(weight_decay >= 0 && weight_decay * learning_rate < 1, "weight_decay", weight_decay,
          "must not be negative, and below 1 / learning_rate");
  require(replay_steps >= 0, "replay_steps", static_cast<double>(replay_steps), "must not be negative");
}

}  // namespace moescope
