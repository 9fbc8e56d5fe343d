// experts_optimizer: AdamW on touched rows.
#include "reference/backward/experts_optimizer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/base/error.hpp"
#include "reference/stages/rounding.hpp"
#include "reference/stages/row_ops.hpp"

namespace moescope::reference {
namespace {

/// Factors of step `t` on what the moments hold.
struct StepFactors {
  float first;   ///< learning_rate / (1 - beta1^t)
  float second;  ///< 1 / (1 - beta2^t)

  StepFactors(const AdamWOptions& options, std::int64_t t)
      : first(static_cast<float>(options.learning_rate / (1 - std::pow(options.beta1, t)))),
        second(static_cast<float>(1 / (1 - std::pow(options.beta2, t)))) {}
};

}  // namespace

ExpertsOptimizer::ExpertsOptimizer(const HostTensor& weights, const AdamWOptions& options)
    : options_(options),
      weights_(weights.to(Dtype::kF32)),
      first_(HostTensor::zeros(Dtype::kF32, weights.rows(), weights.cols())),
      second_(HostTensor::zeros(Dtype::kF32, weights.rows(), weights.cols())),
      last_step_(static_cast<std::size_t>(weights.rows())) {
  options.validate();
}

void ExpertsOptimizer::require_fit(const HostTensor& weights) const {
  if (weights.rows() != weights_.rows() || weights.cols() != weights_.cols()) {
    throw InvalidArgument("weights", fmt::format("[{}, {}]", weights.rows(), weights.cols()),
                          fmt::format("must be [{}, {}]", weights_.rows(), weights_.cols()));
  }
}

void ExpertsOptimizer::require_rows(std::span<const std::int32_t> rows) const {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 0 || rows[i] >= weights_.rows() || (i > 0 && rows[i] <= rows[i - 1])) {
      throw InvalidArgument(fmt::format("rows[{}]", i), fmt::to_string(rows[i]),
                            fmt::format("must ascend and be in [0, {})", weights_.rows()));
    }
  }
}

/// Steps without a gradient, up to `until` inclusive.
void ExpertsOptimizer::make_up(std::int64_t row, std::int64_t until) {
  auto& last = last_step_[static_cast<std::size_t>(row)];
  const std::int64_t missed = until - last;
  if (missed <= 0) {
    return;
  }
  const auto w = weights_.f32().row_span(row);
  const auto m = first_.f32().row_span(row);
  const auto v = second_.f32().row_span(row);
  const auto keep = static_cast<float>(1 - options_.learning_rate * options_.weight_decay);
  const auto eps = static_cast<float>(options_.eps);
  const std::int64_t replayed = std::min(missed, options_.replay_steps);
  for (std::int64_t t = last + 1; t <= last + replayed; ++t) {
    const StepFactors factors(options_, t);
    for (std::size_t k = 0; k < w.size(); ++k) {
      m[k] *= static_cast<float>(options_.beta1);
      v[k] *= static_cast<float>(options_.beta2);
      w[k] = w[k] * keep - factors.first * m[k] / (std::sqrt(v[k] * factors.second) + eps);
    }
  }
  if (const auto rest = static_cast<double>(missed - replayed); rest > 0) {
    const auto first = static_cast<float>(std::pow(options_.beta1, rest));
    const auto second = static_cast<float>(std::pow(options_.beta2, rest));
    const auto decay = static_cast<float>(std::pow(1 - options_.learning_rate * options_.weight_decay, rest));
    for (std::size_t k = 0; k < w.size(); ++k) {
      m[k] *= first;
      v[k] *= second;
      w[k] *= decay;
    }
  }
  last = static_cast<std::int32_t>(until);
}

/// Step steps_ of a row that took part in all before.
void ExpertsOptimizer::update(std::int64_t row, std::span<const float> gradient) {
  const auto w = weights_.f32().row_span(row);
  const auto m = first_.f32().row_span(row);
  const auto v = second_.f32().row_span(row);
  const auto keep = static_cast<float>(1 - options_.learning_rate * options_.weight_decay);
  const auto eps = static_cast<float>(options_.eps);
  const auto beta1 = static_cast<float>(options_.beta1);
  const auto beta2 = static_cast<float>(options_.beta2);
  const StepFactors factors(options_, steps_);
  for (std::size_t k = 0; k < w.size(); ++k) {
    const float g = gradient[k];
    m[k] = beta1 * m[k] + (1 - beta1) * g;
    v[k] = beta2 * v[k] + (1 - beta2) * g * g;
    w[k] = w[k] * keep - factors.first * m[k] / (std::sqrt(v[k] * factors.second) + eps);
  }
  last_step_[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(steps_);
}

void ExpertsOptimizer::store(std::int64_t row, HostTensor& weights) const {
  const auto from = weights_.f32().row_span(row);
  if (weights.dtype() == Dtype::kF32) {
    std::ranges::copy(from, weights.f32().row(row));
  } else {
    std::ranges::transform(from, weights.bf16().row(row), to_bf16);
  }
}

void ExpertsOptimizer::step(HostTensor& weights, const HostTensor& gradient,
                            std::span<const std::int32_t> rows) {
  require_fit(weights);
  require_fit(gradient);
  require_rows(rows);
  ++steps_;
#pragma omp parallel
  {
    std::vector<float> g(static_cast<std::size_t>(weights.cols()));
#pragma omp for schedule(dynamic, 16)
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t row = rows[i];
      with_storage_type(gradient.dtype(), [&]<class T>(T) {
        load_row(view_as<T>(gradient).row(row), weights.cols(), g.data());
      });
      make_up(row, steps_ - 1);
      update(row, g);
      store(row, weights);
    }
  }
}

void ExpertsOptimizer::dense_step(HostTensor& weights, const HostTensor& gradient) {
  step(weights, gradient, all_rows());
}

void ExpertsOptimizer::catch_up(HostTensor& weights, std::span<const std::int32_t> rows) {
  require_fit(weights);
  require_rows(rows);
#pragma omp parallel for schedule(dynamic, 16)
  for (std::size_t i = 0; i < rows.size(); ++i) {
    make_up(rows[i], steps_);
    store(rows[i], weights);
  }
}

void ExpertsOptimizer::flush(HostTensor& weights) { catch_up(weights, all_rows()); }

std::vector<std::int32_t> ExpertsOptimizer::all_rows() const {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(weights_.rows()));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

std::int64_t ExpertsOptimizer::state_bytes() const {
  return weights_.bytes() + first_.bytes() + second_.bytes() +
         std::ssize(last_step_) * static_cast<std::int64_t>(sizeof(last_step_[0]));
}

}  // namespace moescope::reference
