#include <gtest/gtest.h>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "reference/backward/backward.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

double error_of(const HostTensor& ours, const HostTensor& theirs) {
  double difference = 0;
  double norm = 0;
  EXPECT_EQ(ours.size(), theirs.size());
  for (std::int64_t r = 0; r < theirs.rows(); ++r) {
    for (std::int64_t c = 0; c < theirs.cols(); ++c) {
      const double expected = theirs.at(r, c);
      difference += (ours.at(r, c) - expected) * (ours.at(r, c) - expected);
      norm += expected * expected;
    }
  }
  return std::sqrt(difference / norm);
}

class SharedMlpBackward : public testing::TestWithParam<LayerShape> {};

TEST_P(SharedMlpBackward, EqualsTheReference) {
  MOESCOPE_NEEDS_GPU();
  const LayerShape& shape = GetParam();
  const std::int64_t h = shape.shared_size;
  const std::int64_t d = shape.hidden_size;
  test::TrainingProblem problem(shape, 4);
  const auto& inputs = problem.inputs;
  HostTensor dx = HostTensor::zeros(Dtype::kF32, shape.num_tokens, d);
  const SharedMlpWeights expected = reference::gated_mlp_backward(
      inputs.hidden_states, problem.dy, *inputs.experts->shared, shape.activation, dx);

  const cuda::ExpertBuffers experts(shape, *inputs.experts, nullptr);
  cuda::DeviceWeights weights;
  experts.describe(weights);
  const auto x = cuda::upload(inputs.hidden_states, nullptr);
  const auto dy = cuda::upload(problem.dy, nullptr);
  const auto workspace =
      cuda::make_filled<std::byte>(cuda::shared_mlp_backward_workspace_bytes(shape), nullptr);
  const auto sums = cuda::make_filled<float>(shape.num_tokens * d, nullptr);
  cuda::CublasLt blas;
  // A product of fp32 matrices is not rounded to bf16 there.
  for (const Dtype dtype :
       shape.dtype == Dtype::kF32 ? std::vector{Dtype::kF32} : std::vector{Dtype::kF32, Dtype::kBF16}) {
    const auto gate_up = cuda::make_filled<std::byte>(2 * h * d * dtype_bytes(dtype), nullptr);
    const auto down = cuda::make_filled<std::byte>(h * d * dtype_bytes(dtype), nullptr);
    cuda::launch_shared_mlp_backward(blas, shape, x.get(), dy.get(), weights,
                                     {.dtype = dtype, .gate_up = gate_up.get(), .down = down.get()},
                                     sums.get(), workspace.get(), nullptr);
    // Operands rounded alike differ where fp32 sums do.
    const double limit = shape.dtype == Dtype::kF32 ? 1e-5 : 5e-3;
    const auto matrix = [&](std::int64_t rows, std::int64_t cols, const std::byte* from) {
      return cuda::download(dtype, rows, cols, from, nullptr);
    };
    EXPECT_LE(error_of(matrix(h, d, gate_up.get()), expected.gate), limit);
    EXPECT_LE(error_of(matrix(h, d, gate_up.get() + h * d * dtype_bytes(dtype)), expected.up), limit);
    EXPECT_LE(error_of(matrix(d, h, down.get()), expected.down), limit);
    EXPECT_LE(error_of(cuda::download(Dtype::kF32, shape.num_tokens, d, sums.get(), nullptr), dx), limit);
  }
}

std::vector<LayerShape> shapes() {
  std::vector<LayerShape> all;
  for (const LayerShape& shape :
       {test::make_shape(1, 8, 4, 4, 1, 1), test::make_shape(33, 24, 4, 4, 2, 5),
        test::make_shape(50, 16, 4, 4, 2, 24), test::make_shape(257, 96, 4, 4, 2, 130)}) {
    for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
      for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
        all.push_back(shape);
        all.back().activation = activation;
        all.back().dtype = dtype;
      }
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Shapes, SharedMlpBackward, testing::ValuesIn(shapes()), [](const auto& test) {
  const LayerShape& s = test.param;
  return s.label() + "_h" + std::to_string(s.shared_size) + "_" + std::string(to_string(s.activation)) +
         (s.dtype == Dtype::kF32 ? "_fp32" : "_bf16");
});

}  // namespace
}  // namespace moescope
