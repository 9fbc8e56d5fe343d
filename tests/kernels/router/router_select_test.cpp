// router_select on the GPU: exact against brute force where log-softmax is exact, against the reference
// elsewhere; ties, awkward grids, bad logits, repeatability.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/runtime/device_info.hpp"
#include "reference/stages/stages.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/router_logits.hpp"

namespace moescope {
namespace {

using namespace cuda;
using test::exact_logits;
using test::normal_logits;

struct Selected {
  Routing routing;
  std::int64_t bad_logit = 0;
};

/// Runs the launcher on poisoned outputs. logits [L, Nr+Nc].
Selected select(const LayerShape& shape, const std::vector<float>& logits) {
  const Stream stream;
  const DeviceBuffer<float> device(std::ssize(logits));
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(device.get(), logits.data(), static_cast<std::size_t>(device.bytes()),
                                      cudaMemcpyHostToDevice, stream.get()));
  const RoutingBuffers routing(shape);
  const auto poison = [&](void* data, std::int64_t bytes) {
    MOESCOPE_CUDA_CHECK(cudaMemsetAsync(data, 0xff, static_cast<std::size_t>(bytes), stream.get()));
  };
  poison(routing.view().expert_ids, shape.num_pairs() * 4);
  poison(routing.view().gates, shape.num_pairs() * 4);
  const auto bad = make_filled<std::int64_t>(1, stream.get());
  const Bytes workspace(router_select_workspace_bytes(shape, current_gpu()));
  if (workspace.bytes() > 0) {
    poison(workspace.get(), workspace.bytes());
  }
  launch_router_select(shape, device.get(), routing.view(), bad.get(), workspace.get(), stream.get());
  Selected result{routing.download(shape, stream.get()), 0};
  MOESCOPE_CUDA_CHECK(
      cudaMemcpy(&result.bad_logit, bad.get(), sizeof result.bad_logit, cudaMemcpyDeviceToHost));
  return result;
}

class RouterSelectGpu : public testing::TestWithParam<LayerShape> {
 protected:
  void SetUp() override { MOESCOPE_NEEDS_GPU(); }
};
std::string label(const testing::TestParamInfo<LayerShape>& info) {
  return info.param.label() + "_" + std::to_string(info.index);
}
INSTANTIATE_TEST_SUITE_P(Shapes, RouterSelectGpu, testing::ValuesIn(test::select_shapes()), label);

TEST_P(RouterSelectGpu, ResolvesTiesToTheLowerIdExactly) {
  const LayerShape& shape = GetParam();
  const std::int64_t width = shape.grid_rows + shape.grid_cols;
  for (const double levels : {1.0, 3.0, 40.0, 100000.0}) {
    const auto logits = exact_logits(shape, static_cast<std::uint64_t>(levels), levels);
    const Routing routing = select(shape, logits).routing;
    ASSERT_NO_THROW(routing.validate());
    const std::int64_t step = std::max<std::int64_t>(1, shape.num_tokens / 50);
    for (std::int64_t token = 0; token < shape.num_tokens; token += step) {
      const auto side = [&](std::int64_t first, std::int64_t extent) {
        const auto begin = logits.begin() + token * width + first;
        return std::vector<double>(begin, begin + extent);
      };
      const auto expected = test::brute_force_top_k(side(0, shape.grid_rows),
                                                    side(shape.grid_rows, shape.grid_cols), shape.top_k);
      const auto ids = routing.ids_of(token);
      ASSERT_EQ(std::vector<std::int32_t>(ids.begin(), ids.end()), expected)
          << "token " << token << " levels " << levels;
    }
  }
}

/// Sets may differ only where scores are closer than the rounding of log-softmax.
TEST_P(RouterSelectGpu, AgreesWithTheReference) {
  LayerShape shape = GetParam();
  for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
    shape.gate_mode = mode;
    for (const double scale : {1.0, 4.0}) {
      const auto logits = test::split(shape, normal_logits(shape, 7, scale));
      const Routing expected = reference::router_select(shape, logits);
      const Routing actual = select(shape, test::join(shape, logits)).routing;
      ASSERT_NO_THROW(actual.validate());
      std::int64_t different = 0;
      for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
        const auto score = [&](std::int32_t id) {
          return static_cast<double>(logits.row.at(token, id / shape.grid_cols)) +
                 static_cast<double>(logits.col.at(token, id % shape.grid_cols));
        };
        const auto a = actual.ids_of(token);
        const auto e = expected.ids_of(token);
        std::vector<std::int32_t> only_a;
        std::vector<std::int32_t> only_e;
        std::set_difference(a.begin(), a.end(), e.begin(), e.end(), std::back_inserter(only_a));
        std::set_difference(e.begin(), e.end(), a.begin(), a.end(), std::back_inserter(only_e));
        ASSERT_EQ(only_a.size(), only_e.size());
        different += std::ssize(only_a);
        for (const auto x : only_a) {
          for (const auto y : only_e) {
            ASSERT_NEAR(score(x), score(y), 2e-5) << "token " << token << ": " << x << " instead of " << y;
          }
        }
        if (only_a.empty()) {
          for (std::int64_t k = 0; k < shape.top_k; ++k) {
            const float want = expected.gates_of(token)[static_cast<std::size_t>(k)];
            ASSERT_NEAR(actual.gates_of(token)[static_cast<std::size_t>(k)], want, 2e-5F * want + 1e-37F)
                << "token " << token << " pair " << k;
          }
        }
      }
      EXPECT_LE(different, 1 + shape.num_pairs() / 1000);
    }
  }
}

TEST_P(RouterSelectGpu, IsBitRepeatable) {
  const LayerShape& shape = GetParam();
  const auto logits = normal_logits(shape, 11, 1.5);
  const Routing once = select(shape, logits).routing;
  const Routing again = select(shape, logits).routing;
  EXPECT_EQ(once.expert_ids, again.expert_ids);
  EXPECT_EQ(once.gates, again.gates);
}

TEST(RouterSelectGpuLarge, UsesGlobalScratchForGridsBeyondSharedMemory) {
  MOESCOPE_NEEDS_GPU();
  const LayerShape shape = test::make_shape(300, 8, 5000, 5000, 700);
  ASSERT_GT(router_select_workspace_bytes(shape, current_gpu()), 0);
  const auto logits = exact_logits(shape, 5, 1000);
  const Routing routing = select(shape, logits).routing;
  ASSERT_NO_THROW(routing.validate());
  for (const std::int64_t token : {std::int64_t{0}, std::int64_t{299}}) {
    const auto begin = logits.begin() + token * 10000;
    const std::vector<double> row(begin, begin + 5000);
    const std::vector<double> col(begin + 5000, begin + 10000);
    const auto ids = routing.ids_of(token);
    ASSERT_EQ(std::vector<std::int32_t>(ids.begin(), ids.end()),
              test::brute_force_top_k(row, col, shape.top_k));
  }
}

TEST(RouterSelectGpuValues, AllEqualLogitsSelectTheLowestIds) {
  MOESCOPE_NEEDS_GPU();
  const LayerShape shape = test::make_shape(4, 8, 24, 40, 100);
  const Routing routing = select(shape, std::vector<float>(4 * 64, 1.25F)).routing;
  for (std::int64_t token = 0; token < 4; ++token) {
    for (std::int32_t k = 0; k < 100; ++k) {
      ASSERT_EQ(routing.ids_of(token)[static_cast<std::size_t>(k)], k);
      ASSERT_NEAR(routing.gates_of(token)[static_cast<std::size_t>(k)], 0.01F, 1e-7F);
    }
  }
}

TEST(RouterSelectGpuValues, LogitsThatOverflowLogSoftmaxStillSelect) {
  MOESCOPE_NEEDS_GPU();
  const LayerShape shape = test::make_shape(2, 8, 4, 4, 5);
  // One side's differences exceed the largest float: its log-probabilities become -infinity and tie.
  const std::vector<float> token = {3e38F, -3e38F, -3e38F, -3e38F, 1, 2, 3, 4};
  std::vector<float> logits = token;
  logits.insert(logits.end(), token.begin(), token.end());
  const Selected selected = select(shape, logits);
  EXPECT_EQ(selected.bad_logit, -1);
  for (std::int64_t t = 0; t < 2; ++t) {
    const auto ids = selected.routing.ids_of(t);
    EXPECT_EQ(std::vector<std::int32_t>(ids.begin(), ids.end()), (std::vector<std::int32_t>{0, 1, 2, 3, 4}));
    EXPECT_EQ(selected.routing.gates_of(t)[4], 0.0F);
  }
}

TEST(RouterSelectGpuValues, ReportsTheFirstBadLogitAndLeavesAValidRouting) {
  MOESCOPE_NEEDS_GPU();
  for (const std::int64_t num_tokens : {5, 300, 2500}) {
    const LayerShape shape = test::make_shape(num_tokens, 8, 16, 24, 33);
    auto logits = normal_logits(shape, 3, 1);
    EXPECT_EQ(select(shape, logits).bad_logit, -1);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      logits[3 * 40 + 20] = bad;
      logits[4 * 40 + 1] = bad;
      const Selected selected = select(shape, logits);
      EXPECT_EQ(selected.bad_logit, 3 * 40 + 20);
      EXPECT_NO_THROW(selected.routing.validate());
    }
  }
}

TEST(RouterSelectPlan, RefusesMoreColumnsThanItSorts) {
  const LayerShape shape = test::make_shape(1, 8, 1, (std::int64_t{1} << 24) + 1, 1);
  EXPECT_EQ(test::error_text<InvalidArgument>([&] {
              (void)router_select_workspace_bytes(shape, test::large_gpu());
            }).find("grid_cols = 16777217"),
            0U);
}

}  // namespace
}  // namespace moescope
