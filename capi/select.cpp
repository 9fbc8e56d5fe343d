#include "capi/operation.hpp"

using namespace moescope::capi;

moescope_status moescope_select_forward(const moescope_shape* shape, const moescope_execution* execution,
                                        const void* row_logits, const void* col_logits, void* ids,
                                        void* gates, void* scores) {
  return run_operation(
      MOESCOPE_SELECT_FORWARD, shape, execution,
      [&](const Problem& problem) {
        require_array("row_logits", row_logits, problem.tokens * problem.grid_rows);
        require_array("col_logits", col_logits, problem.tokens * problem.grid_cols);
        require_array("ids", ids, problem.pairs());
        require_array("gates", gates, problem.pairs());
      },
      [&]<class S>(const Problem& problem, Scratch<S>& scratch) {
        using T = Compute<S>;
        select_forward(problem, scratch.select, in<T>(row_logits), in<T>(col_logits), ids, out<T>(gates),
                       out<T>(scores));
      },
      [&](const gpu::Call& call) { gpu::select_forward(call, row_logits, col_logits, ids, gates, scores); });
}

moescope_status moescope_select_backward(const moescope_shape* shape, const moescope_execution* execution,
                                         const void* row_logits, const void* col_logits, const void* ids,
                                         const void* gates_gradient, void* row_gradient, void* col_gradient) {
  return run_operation(
      MOESCOPE_SELECT_BACKWARD, shape, execution,
      [&](const Problem& problem) {
        require_array("row_logits", row_logits, problem.tokens * problem.grid_rows);
        require_array("col_logits", col_logits, problem.tokens * problem.grid_cols);
        require_array("ids", ids, problem.pairs());
        require_array("gates_gradient", gates_gradient, problem.pairs());
      },
      [&]<class S>(const Problem& problem, Scratch<S>& scratch) {
        using T = Compute<S>;
        require_ids(problem, {ids, problem.wide_ids});
        select_backward(problem, scratch.select, in<T>(row_logits), in<T>(col_logits),
                        {ids, problem.wide_ids}, in<T>(gates_gradient), out<T>(row_gradient),
                        out<T>(col_gradient));
      },
      [&](const gpu::Call& call) {
        gpu::select_backward(call, row_logits, col_logits, ids, gates_gradient, row_gradient, col_gradient);
      });
}
