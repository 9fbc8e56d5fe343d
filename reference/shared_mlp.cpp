// shared_mlp: the dense branch of eq. 7.
#include "core/error.hpp"
#include "reference/activation.hpp"
#include "reference/matmul.hpp"
#include "reference/stages.hpp"

namespace moescope::reference {

HostTensor shared_mlp(const LayerInputs& inputs) {
  if (!inputs.experts->shared) {
    throw InvalidArgument("shared_size", "0", "the layer has no shared MLP");
  }
  const auto& weights = *inputs.experts->shared;
  HostTensor hidden = matmul_nt(inputs.hidden_states, weights.gate);
  {
    const HostTensor up = matmul_nt(inputs.hidden_states, weights.up);
    const auto h = hidden.f32();
    const auto u = up.f32();
    for (std::int64_t i = 0; i < h.size(); ++i) {
      h.data[i] = activate(inputs.shape.activation, h.data[i]) * u.data[i];
    }
  }
  return matmul_nt(hidden.to(inputs.shape.dtype), weights.down);
}

}  // namespace moescope::reference
