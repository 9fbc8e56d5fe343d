#include <gtest/gtest.h>

#include <vector>

#include "core/tiling/chunks.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using test::DeviceExperts;
using test::DeviceOutput;
using test::ExpertCase;
using test::RoutingCase;

/// Runs the stage and returns y; workspace poisoned with NaN, so that a stale entry shows.
std::vector<float> run(const ExpertCase& c, const DeviceExperts& device, cuda::CublasLt& blas) {
  const std::int64_t workspace_bytes = cuda::dense_masked_workspace_bytes(c.shape);
  const DeviceOutput workspace(workspace_bytes / 4);
  const DeviceOutput y(c.shape.num_tokens * c.shape.hidden_size);
  cuda::launch_experts_dense_masked(blas, c.shape, device.x(), device.weights(), device.routing(),
                                    workspace.get(), y.get(), nullptr);
  return y.host();
}

class DenseMasked : public testing::TestWithParam<RoutingCase> {};

TEST_P(DenseMasked, EqualsThePlainLoopAndRepeatsBitForBit) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 15);
  const DeviceExperts device(c);
  cuda::CublasLt blas;
  const std::vector<float> first = run(c, device, blas);
  EXPECT_LE(test::relative_error(first, c.experts()), test::error_limit(c.shape.dtype));
  EXPECT_EQ(run(c, device, blas), first);
}

INSTANTIATE_TEST_SUITE_P(Cases, DenseMasked, testing::ValuesIn(test::expert_cases()),
                         [](const auto& test) { return test::case_name(test.param); });

// S goes from one product to the other unrounded, whatever the number of tokens: beside P rounded to storage
// once there is nothing left to err by. (Rounding S too was 1.7e-3 on average, several times that where few
// pairs decide.)
TEST(DenseMaskedPrecision, RoundsPAndNothingElse) {
  MOESCOPE_NEEDS_GPU();
  for (const std::int64_t num_tokens : {1, 255, 256, 1031}) {
    for (const std::int64_t top_k : {1, 7}) {
      const RoutingCase routing{test::make_shape(num_tokens, 64, 20, 20, top_k), test::RoutingSkew::kUniform};
      ASSERT_EQ(routing.shape.dtype, Dtype::kBF16);
      const ExpertCase c = ExpertCase::make(routing, 17);
      const DeviceExperts device(c);
      cuda::CublasLt blas;
      std::vector<double> p = c.scores();
      for (double& value : p) {
        value = round_to(Dtype::kBF16, static_cast<float>(value));
      }
      // What is left: fp32 sums in another order, and with them P that rounds the other way at one pair in
      // thousands.
      EXPECT_LE(test::relative_error(run(c, device, blas), c.combine(p)), 4e-4) << c.shape.label();
    }
  }
}

TEST(DenseMaskedChunks, SeveralChunksGiveTheSameResult) {
  MOESCOPE_NEEDS_GPU();
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF32}) {
    // Long enough that S of all experts is above the workspace limit; the last chunk is an odd width.
    RoutingCase routing{test::make_shape(1031, 16, 401, 503, 21), test::RoutingSkew::kUniform};
    routing.shape.dtype = dtype;
    const ExpertCase c = ExpertCase::make(routing, 16);
    ASSERT_LT(DenseChunks::plan(c.shape).experts, c.shape.num_experts());
    const DeviceExperts device(c);
    cuda::CublasLt blas;
    EXPECT_LE(test::relative_error(run(c, device, blas), c.experts()), test::error_limit(dtype));
  }
}

// No GPU needed.
TEST(DenseMaskedWorkspace, IsBoundedWhateverTheShape) {
  for (const std::int64_t num_tokens : {1, 64, 4096, 16384, 100000}) {
    for (const std::int64_t side : {1, 48, 320, 1024}) {
      const LayerShape shape = test::make_shape(num_tokens, 1024, side, side, 1);
      const std::int64_t bytes = cuda::dense_masked_workspace_bytes(shape);
      EXPECT_GE(bytes, num_tokens * (4 + 2));
      EXPECT_LE(bytes, std::max<std::int64_t>(DenseChunks::kMaxWorkspaceBytes, num_tokens * 256 * (4 + 2)))
          << shape.label();
    }
  }
}

}  // namespace
}  // namespace moescope
