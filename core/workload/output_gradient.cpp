#include "core/workload/output_gradient.hpp"

#include "core/workload/deterministic_math.hpp"

namespace moescope {

HostTensor make_output_gradient(const LayerShape& shape, std::uint64_t seed) {
  shape.validate();
  HostTensor dy(shape.dtype, shape.num_tokens, shape.hidden_size);
  fill_normal(dy, 1, seed, RandomStream::kOutputGradient);
  return dy;
}

}  // namespace moescope
