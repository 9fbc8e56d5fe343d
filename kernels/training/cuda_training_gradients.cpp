// Gradients of a step on their way to the host and back.
#include <fmt/format.h>

#include "core/base/error.hpp"
#include "kernels/runtime/host_copy.hpp"
#include "kernels/training/cuda_training.hpp"

namespace moescope::cuda {

const LayerGradients& CudaTraining::gradients() const {
  if (!stale_) {
    return gradients_;
  }
  const LayerShape& s = inputs_.shape;
  const Dtype dtype = path_->design().gradients;
  const cudaStream_t on = stream();
  const auto matrix = [&](std::int64_t rows, std::int64_t cols, const std::byte* from) {
    return download(dtype, rows, cols, from, on);
  };
  gradients_ = {};
  const void* const dx = s.dtype == Dtype::kF32 ? static_cast<const void*>(dx_sums_.get()) : dx_.get();
  gradients_.hidden_states = download(s.dtype, s.num_tokens, s.hidden_size, dx, on);
  gradients_.w_in = matrix(s.num_experts(), s.hidden_size, w_in_gradient_.get());
  gradients_.w_out = matrix(s.num_experts(), s.hidden_size, w_out_gradient_.get());
  gradients_.touched_experts = path_->touched_experts(on);
  gradients_.gates = path_->gate_gradients(on);
  if (has_router()) {
    const std::int64_t row_bytes = s.hidden_size * dtype_bytes(dtype);
    gradients_.logits = download_logits(s, logits_gradient_.get(), on);
    gradients_.router_row = matrix(s.grid_rows, s.hidden_size, router_gradient_.get());
    gradients_.router_col =
        matrix(s.grid_cols, s.hidden_size, router_gradient_.get() + s.grid_rows * row_bytes);
    const auto biases = copy_to_host(bias_gradient_.get(), bias_gradient_.count(), on);
    if (!inputs_.router.row_bias.empty()) {
      gradients_.row_bias.assign(biases.begin(), biases.begin() + s.grid_rows);
    }
    if (!inputs_.router.col_bias.empty()) {
      gradients_.col_bias.assign(biases.begin() + s.grid_rows, biases.end());
    }
  }
  if (s.shared_size > 0) {
    const std::int64_t gate_bytes = s.shared_size * s.hidden_size * dtype_bytes(dtype);
    gradients_.shared =
        SharedMlpWeights{matrix(s.shared_size, s.hidden_size, shared_gate_up_gradient_.get()),
                         matrix(s.shared_size, s.hidden_size, shared_gate_up_gradient_.get() + gate_bytes),
                         matrix(s.hidden_size, s.shared_size, shared_down_gradient_.get())};
  }
  if (losses_.count() > 0) {
    const auto losses = copy_to_host(losses_.get(), 2, on);
    gradients_.balance_loss = losses[0];
    gradients_.z_loss = losses[1];
  }
  stale_ = false;
  return gradients_;
}

void CudaTraining::set_gradients(const LayerGradients& start) {
  if (!adds()) {
    throw InvalidArgument("gradients", to_string(training_.form), "are not added to what is there");
  }
  const LayerShape& s = inputs_.shape;
  const Dtype dtype = path_->design().gradients;
  const auto put = [&](const char* name, const HostTensor& from, std::int64_t rows, std::int64_t cols,
                       void* to) {
    if (from.rows() != rows || from.cols() != cols || from.dtype() != dtype) {
      throw InvalidArgument(name, fmt::format("[{}, {}] {}", from.rows(), from.cols(), to_string(from.dtype())),
                            fmt::format("must be [{}, {}] {}", rows, cols, to_string(dtype)));
    }
    MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(to, from.data(), static_cast<std::size_t>(from.bytes()),
                                        cudaMemcpyHostToDevice, stream()));
  };
  const auto put_bias = [&](const char* name, const std::vector<float>& from, bool has, std::int64_t count,
                            float* to) {
    if (!has) {
      return;
    }
    if (std::ssize(from) != count) {
      throw InvalidArgument(name, fmt::format("{} values", from.size()), fmt::format("must be {}", count));
    }
    MOESCOPE_CUDA_CHECK(
        cudaMemcpyAsync(to, from.data(), from.size() * sizeof(float), cudaMemcpyHostToDevice, stream()));
  };
  put("w_in", start.w_in, s.num_experts(), s.hidden_size, w_in_gradient_.get());
  put("w_out", start.w_out, s.num_experts(), s.hidden_size, w_out_gradient_.get());
  if (has_router()) {
    const std::int64_t row_bytes = s.hidden_size * dtype_bytes(dtype);
    put("router_row", start.router_row, s.grid_rows, s.hidden_size, router_gradient_.get());
    put("router_col", start.router_col, s.grid_cols, s.hidden_size,
        router_gradient_.get() + s.grid_rows * row_bytes);
    put_bias("row_bias", start.row_bias, !inputs_.router.row_bias.empty(), s.grid_rows,
             bias_gradient_.get());
    put_bias("col_bias", start.col_bias, !inputs_.router.col_bias.empty(), s.grid_cols,
             bias_gradient_.get() + s.grid_rows);
  }
  if (s.shared_size > 0) {
    if (!start.shared) {
      throw InvalidArgument("shared", "none", "the layer has a shared MLP");
    }
    const std::int64_t gate_bytes = s.shared_size * s.hidden_size * dtype_bytes(dtype);
    put("shared.gate", start.shared->gate, s.shared_size, s.hidden_size, shared_gate_up_gradient_.get());
    put("shared.up", start.shared->up, s.shared_size, s.hidden_size,
        shared_gate_up_gradient_.get() + gate_bytes);
    put("shared.down", start.shared->down, s.hidden_size, s.shared_size, shared_down_gradient_.get());
  }
  synchronize();
  stale_ = true;
}

}  // namespace moescope::cuda
