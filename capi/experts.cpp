#include "capi/operation.hpp"

using namespace moescope::capi;

namespace {

void require_pairs(const Problem& problem, const void* x, const void* w_in, const void* w_out,
                   const void* ids, const void* gates) {
  require_array("x", x, problem.tokens * problem.hidden);
  require_array("w_in", w_in, problem.tokens == 0 ? 0 : problem.experts() * problem.hidden);
  require_array("w_out", w_out, problem.tokens == 0 ? 0 : problem.experts() * problem.hidden);
  require_array("ids", ids, problem.pairs());
  require_array("gates", gates, problem.pairs());
}

}  // namespace

moescope_status moescope_experts_forward(const moescope_shape* shape, const moescope_execution* execution,
                                         const void* x, const void* w_in, const void* w_out, const void* ids,
                                         const void* gates, void* y) {
  return run_operation(
      MOESCOPE_EXPERTS_FORWARD, shape, execution,
      [&](const Problem& problem) {
        require_pairs(problem, x, w_in, w_out, ids, gates);
        require_array("y", y, problem.tokens * problem.hidden);
      },
      [&]<class S>(const Problem& problem, Scratch<S>& scratch) {
        using T = Compute<S>;
        require_ids(problem, {ids, problem.wide_ids});
        experts_forward<S, T>(problem, scratch.experts, in<S>(x), in<S>(w_in), in<S>(w_out),
                              {ids, problem.wide_ids}, in<T>(gates), nullptr, out<S>(y));
      },
      [&](const gpu::Call& call) { gpu::experts_forward(call, x, w_in, w_out, ids, gates, y); });
}

moescope_status moescope_experts_backward(const moescope_shape* shape, const moescope_execution* execution,
                                          const void* x, const void* w_in, const void* w_out, const void* ids,
                                          const void* gates, const void* y_gradient, void* x_gradient,
                                          void* w_in_gradient, void* w_out_gradient, void* gates_gradient) {
  return run_operation(
      MOESCOPE_EXPERTS_BACKWARD, shape, execution,
      [&](const Problem& problem) {
        require_pairs(problem, x, w_in, w_out, ids, gates);
        require_array("y_gradient", y_gradient, problem.tokens * problem.hidden);
      },
      [&]<class S>(const Problem& problem, Scratch<S>& scratch) {
        using T = Compute<S>;
        const IdsView view{ids, problem.wide_ids};
        require_ids(problem, view);
        const bool weights = w_in_gradient != nullptr || w_out_gradient != nullptr;
        experts_dgrad<S, T>(problem, scratch.experts, in<S>(x), in<S>(w_in), in<S>(w_out), view, in<T>(gates),
                            in<S>(y_gradient), nullptr, out<S>(x_gradient), out<T>(gates_gradient),
                            weights ? scratch.p : nullptr, weights ? scratch.q : nullptr);
        experts_weights<S, T>(problem, scratch.sorted, view, in<S>(x), in<S>(y_gradient), scratch.p,
                              scratch.q, out<S>(w_in_gradient), out<S>(w_out_gradient));
      },
      [&](const gpu::Call& call) {
        gpu::experts_backward(call, x, w_in, w_out, ids, gates, y_gradient,
                              {x_gradient, w_in_gradient, w_out_gradient, gates_gradient});
      });
}
