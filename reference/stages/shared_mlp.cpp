// shared_mlp: the dense branch of eq. 7.
#include "core/base/error.hpp"
#include "reference/stages/activation.hpp"
#include "reference/stages/matmul.hpp"
#include "reference/stages/stages.hpp"

namespace moescope::reference {

HostTensor gated_mlp(const HostTensor& x, const SharedMlpWeights& weights, Activation activation) {
  HostTensor hidden = matmul_nt(x, weights.gate);
  {
    const HostTensor up = matmul_nt(x, weights.up);
    const auto h = hidden.f32();
    const auto u = up.f32();
    for (std::int64_t i = 0; i < h.size(); ++i) {
      h.data[i] = activate(activation, h.data[i]) * u.data[i];
    }
  }
  return matmul_nt(hidden.to(x.dtype()), weights.down);
}

HostTensor shared_mlp(const LayerInputs& inputs) {
  if (!inputs.experts->shared) {
    throw InvalidArgument("shared_size", "0", "the layer has no shared MLP");
  }
  return gated_mlp(inputs.hidden_states, *inputs.experts->shared, inputs.shape.activation);
}

}  // namespace moescope::reference
