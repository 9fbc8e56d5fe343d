#include <cmath>

#include "core/workload/deterministic_math.hpp"
#include "core/workload/workload.hpp"

namespace moescope {
namespace {

/// Written straight into storage: W and V are most of a layer's memory, so there is no second copy.
HostTensor make_weight(const LayerShape& shape, std::int64_t rows, std::int64_t cols, std::uint64_t seed,
                       RandomStream stream) {
  HostTensor tensor(shape.dtype, rows, cols);
  fill_normal(tensor, 1 / std::sqrt(static_cast<double>(shape.hidden_size)), seed, stream);
  return tensor;
}

}  // namespace

std::shared_ptr<const ExpertWeights> make_expert_weights(const LayerShape& shape, std::uint64_t seed) {
  shape.validate();
  const auto d = shape.hidden_size;
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = make_weight(shape, shape.num_experts(), d, seed, RandomStream::kExpertIn);
  experts->w_out = make_weight(shape, shape.num_experts(), d, seed, RandomStream::kExpertOut);
  if (shape.shared_size > 0) {
    experts->shared =
        SharedMlpWeights{make_weight(shape, shape.shared_size, d, seed, RandomStream::kSharedGate),
                         make_weight(shape, shape.shared_size, d, seed, RandomStream::kSharedUp),
                         make_weight(shape, d, shape.shared_size, seed, RandomStream::kSharedDown)};
  }
  return experts;
}

}  // namespace moescope
