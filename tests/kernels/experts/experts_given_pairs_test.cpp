#include "kernels/contract/given_pairs.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/runtime/device_info.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using test::DeviceExperts;
using test::DeviceOutput;
using test::ExpertCase;
using test::RoutingCase;

/// Pairs of a case in a caller's arrays; whatever is in the workspace must do.
class GivenPairsRun {
 public:
  explicit GivenPairsRun(const ExpertCase& c)
      : case_(c),
        device_(c),
        y_(c.shape.num_tokens * c.shape.hidden_size),
        workspace_(cuda::token_centric_workspace_bytes(c.shape, cuda::current_gpu())) {}

  template <class Id>
  std::vector<float> run(const std::vector<Id>& ids) {
    const auto device_ids = test::to_device(ids);
    cuda::GivenPairs pairs{.gates = device_.routing().gates};
    if constexpr (sizeof(Id) == 8) {
      pairs.wide_ids = reinterpret_cast<const std::int64_t*>(device_ids.get());
    } else {
      pairs.ids = reinterpret_cast<const std::int32_t*>(device_ids.get());
    }
    if (workspace_.bytes() > 0) {
      MOESCOPE_CUDA_CHECK(cudaMemset(workspace_.get(), 0x5A, static_cast<std::size_t>(workspace_.bytes())));
    }
    y_.poison();
    cuda::launch_experts_given_pairs(case_.shape, device_.x(), device_.weights(), pairs,
                                     workspace_.bytes() > 0 ? workspace_.get() : nullptr, {.y = y_.get()},
                                     nullptr);
    return y_.host();
  }

 private:
  const ExpertCase& case_;
  DeviceExperts device_;
  DeviceOutput y_;
  cuda::DeviceBuffer<std::byte> workspace_;
};

class GivenPairs : public testing::TestWithParam<RoutingCase> {};

TEST_P(GivenPairs, EqualThePlainLoopWithEitherTypeOfIds) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 5);
  GivenPairsRun given(c);
  const std::vector<float> y = given.run(c.routing.expert_ids);
  EXPECT_LE(test::relative_error(y, c.experts()), test::error_limit(c.shape.dtype));
  const std::vector<std::int64_t> wide(c.routing.expert_ids.begin(), c.routing.expert_ids.end());
  EXPECT_EQ(given.run(wide), y);
}

TEST_P(GivenPairs, AnIdOutsideMakesItsTokenNaNAndNoOther) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 6);
  GivenPairsRun given(c);
  const std::vector<float> expected = given.run(c.routing.expert_ids);
  const auto token = static_cast<std::size_t>(c.shape.num_tokens / 2);
  const auto width = static_cast<std::size_t>(c.shape.hidden_size);
  for (const std::int64_t outside : {std::int64_t{-1}, c.shape.num_experts(), std::int64_t{1} << 32}) {
    std::vector<std::int64_t> ids(c.routing.expert_ids.begin(), c.routing.expert_ids.end());
    ids.at(token * static_cast<std::size_t>(c.shape.top_k)) = outside;
    const std::vector<float> y = given.run(ids);
    for (std::size_t i = 0; i < y.size(); ++i) {
      if (i / width == token) {
        ASSERT_TRUE(std::isnan(y[i])) << i << " with id " << outside;
      } else {
        ASSERT_EQ(y[i], expected[i]) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GivenPairs, testing::ValuesIn(test::expert_cases()),
                         [](const auto& test) { return test::case_name(test.param); });

}  // namespace
}  // namespace moescope
