#include <gtest/gtest.h>

#include <vector>

#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using test::DeviceExperts;
using test::DeviceOutput;
using test::ExpertCase;
using test::RoutingCase;

class ExpertCombine : public testing::TestWithParam<RoutingCase> {};

TEST_P(ExpertCombine, EqualsThePlainLoopAndRepeatsBitForBit) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 8);
  const DeviceExperts device(c);
  // Scores of the reference are injected, so that an error of the previous stage cannot hide one here.
  const std::vector<double> reference_scores = c.scores();
  const std::vector<float> injected(reference_scores.begin(), reference_scores.end());
  const auto scores = test::to_device(injected);
  const auto* p = reinterpret_cast<const float*>(scores.get());
  const DeviceOutput y(c.shape.num_tokens * c.shape.hidden_size);
  cuda::launch_expert_combine(c.shape, device.weights(), device.routing(), p, y.get(), nullptr);
  const std::vector<float> first = y.host();
  // p stays fp32 and y too: fp32's limit in both dtypes.
  EXPECT_LE(test::relative_error(first, c.combine(injected)), test::error_limit(Dtype::kF32));
  y.poison();
  cuda::launch_expert_combine(c.shape, device.weights(), device.routing(), p, y.get(), nullptr);
  EXPECT_EQ(y.host(), first);
}

INSTANTIATE_TEST_SUITE_P(Cases, ExpertCombine, testing::ValuesIn(test::expert_cases()),
                         [](const auto& test) { return test::case_name(test.param); });

}  // namespace
}  // namespace moescope
