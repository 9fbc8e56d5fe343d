// router_project (eq. 9): row and column logits, bias added.
#include "reference/stages/matmul.hpp"
#include "reference/stages/stages.hpp"

namespace moescope::reference {
namespace {

void add_bias(HostTensor& logits, const std::vector<float>& bias) {
  if (bias.empty()) {
    return;
  }
  const auto view = logits.f32();
  for (std::int64_t token = 0; token < view.rows; ++token) {
    for (std::int64_t j = 0; j < view.cols; ++j) {
      view.row(token)[j] += bias[static_cast<std::size_t>(j)];
    }
  }
}

}  // namespace

RouterLogits router_project(const LayerInputs& inputs) {
  RouterLogits logits{scores_nt(inputs.hidden_states, inputs.router.row),
                      scores_nt(inputs.hidden_states, inputs.router.col)};
  add_bias(logits.row, inputs.router.row_bias);
  add_bias(logits.col, inputs.router.col_bias);
  return logits;
}

}  // namespace moescope::reference
