#pragma once

#include <span>
#include <vector>

#include "core/layer/tensor.hpp"

namespace moescope::reference {

/// A linear map with its batch norm folded in: weight [n,d] fp32, bias [n].
struct FoldedLinear {
  HostTensor weight;
  std::vector<float> bias;
};

/// Folds an inference-time batch norm without affine part into the linear map before it (DESIGN section 2):
/// (w x - mean) / sqrt(var + eps) = (w / sqrt(var + eps)) x - mean / sqrt(var + eps).
/// weight [n,d]; running_mean, running_var [n]. Throws InvalidArgument when sizes differ or var + eps is not
/// positive.
FoldedLinear fold_batch_norm(const HostTensor& weight, std::span<const float> running_mean,
                             std::span<const float> running_var, double eps);

}  // namespace moescope::reference
