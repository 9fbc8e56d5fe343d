#include "kernels/training/training_optimizer.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kStateArrays = 3;  // weights and two moments
constexpr std::int64_t kFloat = sizeof(float);

std::int64_t elements_of(const LayerShape& shape) { return shape.num_experts() * shape.hidden_size; }

}  // namespace

std::int64_t TrainingOptimizer::state_bytes(const LayerShape& shape) {
  // The clock: a step and two factors.
  return (2 * kStateArrays * elements_of(shape) + shape.num_experts() + 3) * kFloat;
}

std::int64_t TrainingOptimizer::weight_bytes(const LayerShape& shape) {
  return 2 * elements_of(shape) * dtype_bytes(shape.dtype);
}

TrainingOptimizer::TrainingOptimizer(const LayerShape& shape, const AdamWOptions& options,
                                     const DeviceWeights& given, Dtype gradient_dtype,
                                     const void* w_in_gradient, const void* w_out_gradient,
                                     cudaStream_t stream)
    : shape_(shape),
      options_(options),
      state_(2 * kStateArrays * elements_of(shape)),
      last_step_(shape.num_experts()),
      clock_(1),
      factors_(2),
      w_in_(weight_bytes(shape) / 2),
      w_out_(weight_bytes(shape) / 2) {
  const std::int64_t elements = elements_of(shape);
  const auto table = [&](int which, const Bytes& copy, const void* gradient) {
    float* const state = state_.get() + which * kStateArrays * elements;
    return AdamWTable{.master = state,
                      .first = state + elements,
                      .second = state + 2 * elements,
                      .gradient = gradient,
                      .weights = copy.get()};
  };
  tables_ = {.tables = {table(0, w_in_, w_in_gradient), table(1, w_out_, w_out_gradient)},
             .last_step = last_step_.get(),
             .num_experts = shape.num_experts(),
             .hidden_size = shape.hidden_size,
             .gradients = gradient_dtype,
             .storage = shape.dtype};
  given_[0] = given.w_in;
  given_[1] = given.w_out;
  restart(stream);
}

void TrainingOptimizer::restart(cudaStream_t stream) const {
  if (state_.count() == 0) {
    return;
  }
  for (int which = 0; which < 2; ++which) {
    MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(tables_.tables[which].weights, given_[which],
                                        static_cast<std::size_t>(w_in_.bytes()), cudaMemcpyDeviceToDevice,
                                        stream));
  }
  launch_adamw_start(tables_, clock(), stream);
}

void TrainingOptimizer::enqueue(OptimizerRows rows, cudaStream_t stream) const {
  launch_adamw_step(tables_, options_, rows, clock(), stream);
}

ExpertStep TrainingOptimizer::download(cudaStream_t stream) const {
  if (state_.count() == 0) {
    return {};
  }
  const auto copy = [&](const Bytes& from) {
    return cuda::download(shape_.dtype, shape_.num_experts(), shape_.hidden_size, from.get(), stream);
  };
  return {copy(w_in_), copy(w_out_)};
}

std::int64_t TrainingOptimizer::allocated_bytes() const {
  return state_.bytes() + last_step_.bytes() + clock_.bytes() + factors_.bytes() + w_in_.bytes() +
         w_out_.bytes();
}

}  // namespace moescope::cuda
