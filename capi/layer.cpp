// The fused layer: selection, experts and shared MLP under one call.
#include "capi/operation.hpp"

using namespace moescope::capi;

namespace {

void require_inputs(const Problem& problem, const moescope_layer_inputs* given) {
  const moescope_layer_inputs& inputs = require_struct("inputs", given, kTensorsBytes);
  const std::int64_t any = problem.tokens == 0 ? 0 : 1;
  require_array("inputs.x", inputs.x, problem.tokens * problem.hidden);
  require_array("inputs.row_logits", inputs.row_logits, problem.tokens * problem.grid_rows);
  require_array("inputs.col_logits", inputs.col_logits, problem.tokens * problem.grid_cols);
  require_array("inputs.w_in", inputs.w_in, any * problem.experts() * problem.hidden);
  require_array("inputs.w_out", inputs.w_out, any * problem.experts() * problem.hidden);
  require_array("inputs.shared_gate", inputs.shared_gate, any * problem.shared * problem.hidden);
  require_array("inputs.shared_up", inputs.shared_up, any * problem.shared * problem.hidden);
  require_array("inputs.shared_down", inputs.shared_down, any * problem.shared * problem.hidden);
}

template <class S>
void layer_forward(const Problem& problem, Scratch<S>& scratch, const moescope_layer_inputs& inputs, void* y,
                   void* ids, void* gates) {
  using T = Compute<S>;
  select_forward(problem, scratch.select, in<T>(inputs.row_logits), in<T>(inputs.col_logits), ids,
                 out<T>(gates), static_cast<T*>(nullptr));
  const T* base = nullptr;
  if (problem.shared > 0) {
    T* const held = summed_in<S, T>(scratch.mlp.out, y);
    mlp_forward<S, T>(problem, scratch.mlp, in<S>(inputs.x), in<S>(inputs.shared_gate),
                      in<S>(inputs.shared_up), in<S>(inputs.shared_down), held);
    base = held;
  }
  experts_forward<S, T>(problem, scratch.experts, in<S>(inputs.x), in<S>(inputs.w_in), in<S>(inputs.w_out),
                        {ids, problem.wide_ids}, in<T>(gates), base, out<S>(y));
}

template <class S>
void layer_backward(const Problem& problem, Scratch<S>& scratch, const moescope_layer_inputs& inputs,
                    const void* ids, const void* gates, const void* dy, const moescope_layer_gradients& to) {
  using T = Compute<S>;
  const T* base = nullptr;
  if (problem.shared > 0 && (to.x != nullptr || to.shared_gate != nullptr || to.shared_up != nullptr ||
                             to.shared_down != nullptr)) {
    T* const held = summed_in<S, T>(scratch.mlp.out, to.x);
    mlp_backward<S, T>(problem, scratch.mlp, in<S>(inputs.x), in<S>(inputs.shared_gate),
                       in<S>(inputs.shared_up), in<S>(inputs.shared_down), in<S>(dy), held,
                       out<S>(to.shared_gate), out<S>(to.shared_up), out<S>(to.shared_down));
    base = held;
  }
  const bool logits = to.row_logits != nullptr || to.col_logits != nullptr;
  const bool weights = to.w_in != nullptr || to.w_out != nullptr;
  if (!logits && !weights && to.x == nullptr) {
    return;
  }
  const IdsView view{ids, problem.wide_ids};
  experts_dgrad<S, T>(problem, scratch.experts, in<S>(inputs.x), in<S>(inputs.w_in), in<S>(inputs.w_out),
                      view, in<T>(gates), in<S>(dy), base, out<S>(to.x),
                      logits ? scratch.gates_gradient : nullptr, weights ? scratch.p : nullptr,
                      weights ? scratch.q : nullptr);
  experts_weights<S, T>(problem, scratch.sorted, view, in<S>(inputs.x), in<S>(dy), scratch.p, scratch.q,
                        out<S>(to.w_in), out<S>(to.w_out));
  if (logits) {
    select_backward<T>(problem, scratch.select, in<T>(inputs.row_logits), in<T>(inputs.col_logits), view,
                       scratch.gates_gradient, out<T>(to.row_logits), out<T>(to.col_logits));
  }
}

}  // namespace

moescope_status moescope_layer_forward(const moescope_shape* shape, const moescope_execution* execution,
                                       const moescope_layer_inputs* inputs, void* y, void* ids, void* gates) {
  return run_operation(
      MOESCOPE_LAYER_FORWARD, shape, execution,
      [&](const Problem& problem) {
        require_inputs(problem, inputs);
        require_array("y", y, problem.tokens * problem.hidden);
        // On CUDA a layer can do without a list of pairs; both are then left out.
        const bool listed = execution->device == MOESCOPE_CPU || ids != nullptr || gates != nullptr;
        require_array("ids", ids, listed ? problem.pairs() : 0);
        require_array("gates", gates, listed ? problem.pairs() : 0);
      },
      [&]<class S>(const Problem& problem, Scratch<S>& scratch) {
        layer_forward<S>(problem, scratch, *inputs, y, ids, gates);
      },
      [&](const gpu::Call& call) { gpu::layer_forward(call, *inputs, y, ids, gates); });
}

moescope_status moescope_layer_backward(const moescope_shape* shape, const moescope_execution* execution,
                                        const moescope_layer_inputs* inputs, const void* ids,
                                        const void* gates, const void* y_gradient,
                                        const moescope_layer_gradients* gradients) {
  return run_operation(
      MOESCOPE_LAYER_BACKWARD, shape, execution,
      [&](const Problem& problem) {
        require_inputs(problem, inputs);
        // On CUDA a layer can do without a list of pairs; both are then left out.
        const bool listed = execution->device == MOESCOPE_CPU || ids != nullptr || gates != nullptr;
        require_array("ids", ids, listed ? problem.pairs() : 0);
        require_array("gates", gates, listed ? problem.pairs() : 0);
        require_array("y_gradient", y_gradient, problem.tokens * problem.hidden);
        require_struct("gradients", gradients, kTensorsBytes);
      },
      [&]<class S>(const Problem& problem, Scratch<S>& scratch) {
        require_ids(problem, {ids, problem.wide_ids});
        layer_backward<S>(problem, scratch, *inputs, ids, gates, y_gradient, *gradients);
      },
      [&](const gpu::Call& call) { gpu::layer_backward(call, *inputs, ids, gates, y_gradient, *gradients); });
}
