#include "reference/stages/batch_norm.hpp"

#include <fmt/format.h>

#include <cmath>

#include "core/base/error.hpp"

namespace moescope::reference {

FoldedLinear fold_batch_norm(const HostTensor& weight, std::span<const float> running_mean,
                             std::span<const float> running_var, double eps) {
  const auto require_size = [&](std::string_view field, std::span<const float> values) {
    if (std::ssize(values) != weight.rows()) {
      throw InvalidArgument(field, fmt::format("[{}]", values.size()),
                            fmt::format("must be [{}]", weight.rows()));
    }
  };
  require_size("running_mean", running_mean);
  require_size("running_var", running_var);
  FoldedLinear folded{weight.to(Dtype::kF32), {}};
  const auto view = folded.weight.f32();
  for (std::int64_t row = 0; row < view.rows; ++row) {
    const auto at = static_cast<std::size_t>(row);
    const double variance = static_cast<double>(running_var[at]) + eps;
    if (!(variance > 0)) {
      throw InvalidArgument(fmt::format("running_var[{}]", row), fmt::format("{}", running_var[at]),
                            fmt::format("running_var + eps (eps = {}) must be positive", eps));
    }
    const double scale = 1.0 / std::sqrt(variance);
    for (float& w : view.row_span(row)) {
      w = static_cast<float>(w * scale);
    }
    folded.bias.push_back(static_cast<float>(-running_mean[at] * scale));
  }
  return folded;
}

}  // namespace moescope::reference
