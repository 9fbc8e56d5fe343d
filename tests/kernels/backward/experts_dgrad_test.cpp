#include <gtest/gtest.h>

#include "kernels/contract/backward.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/device_info.hpp"
#include "tests/support/backward_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using test::BackwardCase;
using test::DeviceExperts;
using test::DeviceOutput;
using test::RoutingCase;

constexpr double kLimitBf16 = 5e-3;  // a gradient's, docs/training.md
constexpr double kLimitF32 = 1e-5;

/// One road of the stage on buffers of its own.
class Dgrad {
 public:
  Dgrad(const BackwardCase& c, bool dense)
      : shape_(c.experts.shape),
        dense_(dense),
        device_(c.experts),
        dy_(test::to_device(c.dy, shape_.dtype)),
        pairs_(3 * shape_.num_pairs()),
        dx_(shape_.num_tokens * shape_.hidden_size),
        workspace_(dense ? cuda::dense_masked_dgrad_workspace_bytes(shape_)
                         : cuda::experts_dgrad_workspace_bytes(shape_, cuda::current_gpu())) {
    if (workspace_.bytes() > 0) {
      MOESCOPE_CUDA_CHECK(cudaMemset(workspace_.get(), 0, static_cast<std::size_t>(workspace_.bytes())));
    }
  }

  void run(const float* saved, float* save, bool adds) {
    const std::int64_t count = shape_.num_pairs();
    const cuda::DgradInputs inputs{
        .hidden_states = device_.x(), .dy = dy_.get(), .saved = saved, .save = save};
    const cuda::DevicePairGradients pairs{
        .gates = pairs_.get(), .p = pairs_.get() + count, .q = pairs_.get() + 2 * count};
    if (dense_) {
      cuda::launch_experts_dgrad_dense_masked(blas_, shape_, inputs, device_.weights(), device_.routing(),
                                              pairs, workspace_.get(), adds, dx_.get(), nullptr);
    } else {
      cuda::launch_experts_dgrad(shape_, inputs, device_.weights(), device_.routing(), pairs,
                                 workspace_.get(), adds, dx_.get(), nullptr);
    }
  }
  /// Gates' gradients, p or q.
  std::vector<float> of_pairs(std::int64_t which) const {
    const auto all = pairs_.host();
    const auto first = all.begin() + which * shape_.num_pairs();
    return {first, first + shape_.num_pairs()};
  }
  std::vector<float> dx() const { return dx_.host(); }
  const DeviceOutput& dx_buffer() const { return dx_; }
  void poison() const {
    pairs_.poison();
    dx_.poison();
  }

 private:
  LayerShape shape_;
  bool dense_;
  DeviceExperts device_;
  cuda::DeviceBuffer<std::byte> dy_;
  DeviceOutput pairs_;
  DeviceOutput dx_;
  cuda::DeviceBuffer<std::byte> workspace_;
  cuda::CublasLt blas_;
};

class ExpertsDgrad : public testing::TestWithParam<std::tuple<RoutingCase, bool>> {};

TEST_P(ExpertsDgrad, EqualsThePlainLoopAndRepeatsBitForBit) {
  MOESCOPE_NEEDS_GPU();
  const auto& [routing, dense] = GetParam();
  const BackwardCase c(routing, 5);
  const bool bf16 = c.experts.shape.dtype == Dtype::kBF16;
  const double limit = bf16 ? kLimitBf16 : kLimitF32;
  Dgrad dgrad(c, dense);
  const DeviceOutput z(c.experts.shape.num_pairs());
  dgrad.run(nullptr, z.get(), false);
  const std::vector<float> dx = dgrad.dx();
  EXPECT_LE(test::relative_error(z.host(), c.z), kLimitF32);
  EXPECT_LE(test::relative_error(dgrad.of_pairs(0), c.gates), kLimitF32);
  EXPECT_LE(test::relative_error(dgrad.of_pairs(1), c.p), kLimitF32);
  EXPECT_LE(test::relative_error(dgrad.of_pairs(2), c.q), kLimitF32);
  EXPECT_LE(test::relative_error(dx, c.dx), dense ? limit : kLimitF32);

  const auto q = dgrad.of_pairs(2);
  dgrad.poison();
  dgrad.run(z.get(), nullptr, false);  // z that is saved is z that is computed
  EXPECT_EQ(dgrad.of_pairs(2), q);
  EXPECT_EQ(dgrad.dx(), dx);
}

TEST_P(ExpertsDgrad, AddsToWhatIsThere) {
  MOESCOPE_NEEDS_GPU();
  const auto& [routing, dense] = GetParam();
  const BackwardCase c(routing, 8);
  Dgrad dgrad(c, dense);
  dgrad.run(nullptr, nullptr, false);
  std::vector<double> expected;
  std::vector<float> before;
  for (const float value : dgrad.dx()) {
    before.push_back(static_cast<float>(before.size() % 7) - 3);
    expected.push_back(static_cast<double>(value) + before.back());
  }
  MOESCOPE_CUDA_CHECK(cudaMemcpy(dgrad.dx_buffer().get(), before.data(), before.size() * sizeof(float),
                                 cudaMemcpyHostToDevice));
  dgrad.run(nullptr, nullptr, true);
  EXPECT_LE(test::relative_error(dgrad.dx(), expected), 1e-6);
}

std::string name_of(const testing::TestParamInfo<std::tuple<RoutingCase, bool>>& test) {
  return test::case_name(std::get<0>(test.param)) + (std::get<1>(test.param) ? "_dense" : "_pairs");
}
INSTANTIATE_TEST_SUITE_P(Cases, ExpertsDgrad,
                         testing::Combine(testing::ValuesIn(test::backward_cases()), testing::Bool()),
                         name_of);

}  // namespace
}  // namespace moescope
