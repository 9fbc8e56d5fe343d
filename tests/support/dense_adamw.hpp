#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/layer/optimizer.hpp"
#include "core/layer/tensor.hpp"

namespace moescope::test {

/// AdamW of all weights in fp64, from its paper's algorithm 2.
class DenseAdamW {
 public:
  DenseAdamW(const HostTensor& weights, const AdamWOptions& options)
      : options_(options),
        first_(static_cast<std::size_t>(weights.size())),
        second_(static_cast<std::size_t>(weights.size())) {
    const HostTensor floats = weights.to(Dtype::kF32);
    weights_.assign(floats.f32().data, floats.f32().data + floats.size());
  }

  template <class Gradient>  // of an index
  void step_with(const Gradient& gradient) {
    ++steps_;
    const auto t = static_cast<double>(steps_);
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      const double g = gradient(i);
      first_[i] = options_.beta1 * first_[i] + (1 - options_.beta1) * g;
      second_[i] = options_.beta2 * second_[i] + (1 - options_.beta2) * g * g;
      const double m = first_[i] / (1 - std::pow(options_.beta1, t));
      const double v = second_[i] / (1 - std::pow(options_.beta2, t));
      weights_[i] -= options_.learning_rate * options_.weight_decay * weights_[i];
      weights_[i] -= options_.learning_rate * m / (std::sqrt(v) + options_.eps);
    }
  }
  void step(const HostTensor& gradient) {
    step_with([&](std::size_t i) { return static_cast<double>(gradient.f32().data[i]); });
  }
  const std::vector<double>& weights() const { return weights_; }

 private:
  AdamWOptions options_;
  std::vector<double> weights_;
  std::vector<double> first_;
  std::vector<double> second_;
  std::int64_t steps_ = 0;
};

}  // namespace moescope::test
