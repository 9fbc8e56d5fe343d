// shared_mlp_backward: of y = hidden down^T with hidden = act(gate) * up, gate = x G^T, up = x U^T:
// dhidden = dy down, dgate = dhidden * up * act'(gate), dup = dhidden * act(gate).
#include "reference/backward/activation_slope.hpp"
#include "reference/backward/backward.hpp"
#include "reference/backward/products.hpp"
#include "reference/stages/activation.hpp"
#include "reference/stages/matmul.hpp"

namespace moescope::reference {

SharedMlpWeights gated_mlp_backward(const HostTensor& x, const HostTensor& dy,
                                    const SharedMlpWeights& weights, Activation activation, HostTensor& dx) {
  HostTensor gate = matmul_nt(x, weights.gate);
  HostTensor up = matmul_nt(x, weights.up);
  HostTensor hidden = HostTensor::zeros(Dtype::kF32, x.rows(), weights.gate.rows());
  add_product_nn(dy, weights.down, hidden);
  const auto g = gate.f32();
  const auto u = up.f32();
  const auto h = hidden.f32();
#pragma omp parallel for
  for (std::int64_t i = 0; i < h.size(); ++i) {
    const float back = h.data[i];
    const float active = activate(activation, g.data[i]);
    h.data[i] = active * u.data[i];
    g.data[i] = back * u.data[i] * activation_slope(activation, g.data[i]);
    u.data[i] = back * active;
  }
  gate = gate.to(x.dtype());
  up = up.to(x.dtype());
  hidden = hidden.to(x.dtype());
  add_product_nn(gate, weights.gate, dx);
  add_product_nn(up, weights.up, dx);
  return {matmul_tn(gate, x), matmul_tn(up, x), matmul_tn(dy, hidden)};
}

}  // namespace moescope::reference
