// What becomes of a step's gradients: stored or added to, and taken by the optimizer.
#include <fmt/format.h>

#include <utility>

#include "core/base/error.hpp"
#include "reference/backend/reference_training.hpp"
#include "reference/stages/matmul.hpp"

namespace moescope::reference {
namespace {

/// Rounded where that changes anything.
HostTensor in_dtype(HostTensor tensor, Dtype dtype) {
  return tensor.dtype() == dtype ? std::move(tensor) : tensor.to(dtype);
}

}  // namespace

/// Those of the last run go, but for what is added to.
void ReferenceTraining::start_gradients() {
  LayerGradients next;
  if (adds()) {
    next.w_in = std::move(gradients_.w_in);
    next.w_out = std::move(gradients_.w_out);
    next.router_row = std::move(gradients_.router_row);
    next.router_col = std::move(gradients_.router_col);
    next.row_bias = std::move(gradients_.row_bias);
    next.col_bias = std::move(gradients_.col_bias);
    next.shared = std::move(gradients_.shared);
  }
  gradients_ = std::move(next);
}

void ReferenceTraining::settle(HostTensor& into, HostTensor made) const {
  if (adds() && into.size() > 0) {
    add_in_place(made, into.to(Dtype::kF32));
  }
  into = in_dtype(std::move(made), training_.gradient_dtype(inputs_.shape.dtype));
}

void ReferenceTraining::settle(std::vector<float>& into, std::vector<float> made) const {
  for (std::size_t i = 0; adds() && i < into.size(); ++i) {
    made[i] += into[i];
  }
  into = std::move(made);
}

void ReferenceTraining::set_gradients(const LayerGradients& start) {
  if (!adds()) {
    throw InvalidArgument("gradients", to_string(training_.form), "are not added to what is there");
  }
  const auto& shape = inputs_.shape;
  const Dtype dtype = training_.gradient_dtype(shape.dtype);
  const auto fit = [&](const char* name, const HostTensor& tensor, std::int64_t rows) {
    if (tensor.rows() != rows || tensor.cols() != shape.hidden_size || tensor.dtype() != dtype) {
      throw InvalidArgument(
          name, fmt::format("[{}, {}] {}", tensor.rows(), tensor.cols(), to_string(tensor.dtype())),
          fmt::format("must be [{}, {}] {}", rows, shape.hidden_size, to_string(dtype)));
    }
    return tensor.clone();
  };
  const auto fit_bias = [](const char* name, const std::vector<float>& bias, std::size_t count) {
    if (bias.size() != count) {
      throw InvalidArgument(name, fmt::format("{} values", bias.size()), fmt::format("must be {}", count));
    }
    return bias;
  };
  LayerGradients next;
  next.w_in = fit("w_in", start.w_in, shape.num_experts());
  next.w_out = fit("w_out", start.w_out, shape.num_experts());
  if (!inputs_.fixed_routing) {
    next.router_row = fit("router_row", start.router_row, shape.grid_rows);
    next.router_col = fit("router_col", start.router_col, shape.grid_cols);
    next.row_bias = fit_bias("row_bias", start.row_bias, inputs_.router.row_bias.size());
    next.col_bias = fit_bias("col_bias", start.col_bias, inputs_.router.col_bias.size());
  }
  if (shape.shared_size > 0) {
    if (!start.shared) {
      throw InvalidArgument("shared", "none", "the layer has a shared MLP");
    }
    next.shared.emplace();
    next.shared->gate = fit("shared.gate", start.shared->gate, shape.shared_size);
    next.shared->up = fit("shared.up", start.shared->up, shape.shared_size);
    const HostTensor& down = start.shared->down;
    if (down.rows() != shape.hidden_size || down.cols() != shape.shared_size || down.dtype() != dtype) {
      throw InvalidArgument(
          "shared.down", fmt::format("[{}, {}] {}", down.rows(), down.cols(), to_string(down.dtype())),
          fmt::format("must be [{}, {}] {}", shape.hidden_size, shape.shared_size, to_string(dtype)));
    }
    next.shared->down = down.clone();
  }
  gradients_ = std::move(next);
}

void ReferenceTraining::step_experts() {
  if (training_.optimizer == OptimizerForm::kDense) {
    w_in_optimizer_->dense_step(stepped_.w_in, gradients_.w_in);
    w_out_optimizer_->dense_step(stepped_.w_out, gradients_.w_out);
  } else {
    w_in_optimizer_->step(stepped_.w_in, gradients_.w_in, gradients_.touched_experts);
    w_out_optimizer_->step(stepped_.w_out, gradients_.w_out, gradients_.touched_experts);
  }
}

}  // namespace moescope::reference
