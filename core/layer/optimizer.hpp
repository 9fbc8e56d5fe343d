#pragma once

#include <cstdint>
#include <string_view>

namespace moescope {

/// Whether a backward ends with a step of the optimizer on W and V, and on which of their rows.
enum class OptimizerForm : std::uint8_t {
  kNone,
  kTouched,  ///< experts that had tokens; what the others miss is made up for when they have some again
  kDense,    ///< all experts
};
std::string_view to_string(OptimizerForm form);
/// Inverse; throws InvalidArgument("optimizer", ...).
OptimizerForm parse_optimizer_form(std::string_view text);

/// AdamW (Loshchilov and Hutter 2019) as torch.optim.AdamW computes it, with decoupled weight decay:
///   w *= 1 - learning_rate weight_decay;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
///   w -= learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
  /// Of rows that had no gradient for a while: how many of the missed steps are made up for one by one. What
  /// is left of the first moment behind them is dropped: with b = beta1 / sqrt(beta2), of a row's missed
  /// movement no more than a fraction b^replay_steps, 1.2e-7 by default. Decay and moments are made up for in
  /// whole.
  std::int64_t replay_steps = 152;

  /// Throws InvalidArgument naming the field.
  void validate() const;
};

}  // namespace moescope
