#include <type_traits>

#include "capi/operation.hpp"

using namespace moescope::capi;

namespace {

void require_mlp(const Problem& problem, const void* x, const void* gate, const void* up, const void* down) {
  const std::int64_t weights = problem.tokens == 0 ? 0 : problem.shared * problem.hidden;
  require_array("x", x, problem.tokens * problem.hidden);
  require_array("gate", gate, weights);
  require_array("up", up, weights);
  require_array("down", down, weights);
}

template <class S, class T>
void round_rows(const Problem& problem, const T* held, void* output) {
  if constexpr (!std::is_same_v<S, T>) {
    if (output != nullptr) {
      store_row<S, T>(nullptr, held, problem.tokens * problem.hidden, out<S>(output));
    }
  }
}

}  // namespace

moescope_status moescope_mlp_forward(const moescope_shape* shape, const moescope_execution* execution,
                                     const void* x, const void* gate, const void* up, const void* down,
                                     void* y) {
  return run_operation(
      MOESCOPE_MLP_FORWARD, shape, execution,
      [&](const Problem& problem) {
        require_mlp(problem, x, gate, up, down);
        require_array("y", y, problem.tokens * problem.hidden);
      },
      [&]<class S>(const Problem& problem, Scratch<S>& scratch) {
        using T = Compute<S>;
        T* const held = summed_in<S, T>(scratch.mlp.out, y);
        mlp_forward<S, T>(problem, scratch.mlp, in<S>(x), in<S>(gate), in<S>(up), in<S>(down), held);
        round_rows<S, T>(problem, held, y);
      },
      [&](const gpu::Call& call) { gpu::mlp_forward(call, x, gate, up, down, y); });
}

moescope_status moescope_mlp_backward(const moescope_shape* shape, const moescope_execution* execution,
                                      const void* x, const void* gate, const void* up, const void* down,
                                      const void* y_gradient, void* x_gradient, void* gate_gradient,
                                      void* up_gradient, void* down_gradient) {
  return run_operation(
      MOESCOPE_MLP_BACKWARD, shape, execution,
      [&](const Problem& problem) {
        require_mlp(problem, x, gate, up, down);
        require_array("y_gradient", y_gradient, problem.tokens * problem.hidden);
      },
      [&]<class S>(const Problem& problem, Scratch<S>& scratch) {
        using T = Compute<S>;
        T* const held = summed_in<S, T>(scratch.mlp.out, x_gradient);
        mlp_backward<S, T>(problem, scratch.mlp, in<S>(x), in<S>(gate), in<S>(up), in<S>(down),
                           in<S>(y_gradient), held, out<S>(gate_gradient), out<S>(up_gradient),
                           out<S>(down_gradient));
        round_rows<S, T>(problem, held, x_gradient);
      },
      [&](const gpu::Call& call) {
        gpu::mlp_backward(call, x, gate, up, down, y_gradient,
                          {x_gradient, gate_gradient, up_gradient, down_gradient});
      });
}
