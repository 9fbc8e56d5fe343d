// router_project_backward: dWr = da^T X, dWc = db^T X, biases the column sums, dX += da Wr + db Wc.
#include "reference/backward/backward.hpp"
#include "reference/backward/products.hpp"
#include "reference/stages/stages.hpp"

namespace moescope::reference {
namespace {

std::vector<float> column_sums(const HostTensor& tensor) {
  const auto view = tensor.f32();
  std::vector<float> sums(static_cast<std::size_t>(view.cols));
  for (std::int64_t t = 0; t < view.rows; ++t) {
    for (std::int64_t r = 0; r < view.cols; ++r) {
      sums[static_cast<std::size_t>(r)] += view.row(t)[r];
    }
  }
  return sums;
}

}  // namespace

RouterProjectBackward router_project_backward(const LayerInputs& inputs, const RouterLogits& gradients,
                                              HostTensor& dx) {
  const HostTensor da = gradients.row.to(inputs.shape.dtype);
  const HostTensor db = gradients.col.to(inputs.shape.dtype);
  RouterProjectBackward out{matmul_tn(da, inputs.hidden_states), matmul_tn(db, inputs.hidden_states),
                            column_sums(gradients.row), column_sums(gradients.col)};
  add_product_nn(da, inputs.router.row, dx);
  add_product_nn(db, inputs.router.col, dx);
  return out;
}

}  // namespace moescope::reference
