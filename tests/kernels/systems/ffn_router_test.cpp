// Selection and permutation of the FFN-expert systems on the GPU: the selection exact against brute force
// where log-softmax is exact, against the reference elsewhere; the permutation equal to core's schedule.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "core/schedule/schedule.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/system_launch.hpp"
#include "reference/stages/router_select.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/router_logits.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

using namespace cuda;

void poison(void* data, std::int64_t bytes, cudaStream_t stream) {
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(data, 0xff, static_cast<std::size_t>(bytes), stream));
}

struct Selected {
  Routing routing;
  std::int64_t bad_logit = 0;
};

/// logits [L, N].
Selected select(const SystemShape& shape, const std::vector<float>& logits) {
  const Stream stream;
  const DeviceBuffer<float> device(std::ssize(logits));
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(device.get(), logits.data(), static_cast<std::size_t>(device.bytes()),
                                      cudaMemcpyHostToDevice, stream.get()));
  const LayerShape row = shape.row_shape();
  const RoutingBuffers routing(row);
  poison(routing.view().expert_ids, row.num_pairs() * 4, stream.get());
  poison(routing.view().gates, row.num_pairs() * 4, stream.get());
  const auto bad = make_filled<std::int64_t>(1, stream.get());
  launch_ffn_select(shape, device.get(), routing.view(), bad.get(), stream.get());
  Selected result{routing.download(row, stream.get()), 0};
  MOESCOPE_CUDA_CHECK(
      cudaMemcpy(&result.bad_logit, bad.get(), sizeof result.bad_logit, cudaMemcpyDeviceToHost));
  return result;
}

/// Logits of N experts, one of them 0 and the rest so low that log-softmax changes none: exact scores, with
/// ties.
std::vector<float> exact_expert_logits(const SystemShape& shape, std::uint64_t seed, double levels) {
  LayerShape row = shape.row_shape();
  const auto joined = test::exact_logits(row, seed, levels);
  std::vector<float> logits;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const auto from = joined.begin() + token * (shape.num_experts + 1) + 1;
    logits.insert(logits.end(), from, from + shape.num_experts);
  }
  return logits;
}

std::vector<SystemShape> shapes() {
  std::vector<SystemShape> all;
  for (const auto& [tokens, experts, top_k] : {std::array<std::int64_t, 3>{1, 1, 1},
                                               {5, 8, 2},
                                               {3, 31, 31},
                                               {130, 33, 7},
                                               {77, 64, 1},
                                               {300, 128, 16},
                                               {40, 200, 32},
                                               {1027, 256, 4},
                                               {9, 500, 100},
                                               {4, 1024, 1000}}) {
    all.push_back(test::system_shape(System::kGShard, tokens, 8, experts, top_k));
  }
  return all;
}

class FfnRouterGpu : public testing::TestWithParam<SystemShape> {
 protected:
  void SetUp() override { MOESCOPE_NEEDS_GPU(); }
};
INSTANTIATE_TEST_SUITE_P(Shapes, FfnRouterGpu, testing::ValuesIn(shapes()),
                         [](const auto& test) { return test.param.label(); });

TEST_P(FfnRouterGpu, ResolvesTiesToTheLowerIdExactly) {
  const SystemShape& shape = GetParam();
  for (const double levels : {1.0, 3.0, 100.0}) {
    const auto logits = exact_expert_logits(shape, static_cast<std::uint64_t>(levels), levels);
    const Routing routing = select(shape, logits).routing;
    ASSERT_NO_THROW(routing.validate());
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      const auto begin = logits.begin() + token * shape.num_experts;
      const std::vector<double> scores(begin, begin + shape.num_experts);
      const auto ids = routing.ids_of(token);
      ASSERT_EQ(std::vector<std::int32_t>(ids.begin(), ids.end()),
                test::brute_force_top_k({0.0}, scores, shape.top_k))
          << "token " << token << " levels " << levels;
    }
  }
}

TEST_P(FfnRouterGpu, AgreesWithTheReferenceInBothGateModes) {
  SystemShape shape = GetParam();
  for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
    shape.gate_mode = mode;
    RouterLogits logits{HostTensor::zeros(Dtype::kF32, shape.num_tokens, 1),
                        HostTensor(Dtype::kF32, shape.num_tokens, shape.num_experts)};
    std::vector<float> device_logits;
    const Philox random(7, 2);
    for (std::int64_t i = 0; i < logits.col.size(); ++i) {
      device_logits.push_back(static_cast<float>(test::normal(random, static_cast<std::uint64_t>(i))));
      logits.col.f32().data[i] = device_logits.back();
    }
    const Routing expected =
        reference::select_rows(logits, shape.top_k, mode, reference::Marginals::kLogSoftmax);
    const Routing actual = select(shape, device_logits).routing;
    EXPECT_EQ(actual.expert_ids, expected.expert_ids) << to_string(mode);
    for (std::size_t i = 0; i < expected.gates.size(); ++i) {
      ASSERT_NEAR(actual.gates[i], expected.gates[i], 4e-6F * expected.gates[i]) << i;
    }
  }
}

TEST_P(FfnRouterGpu, PermutesThePairsAsCoreSchedulesThem) {
  const SystemShape& shape = GetParam();
  const std::int64_t pairs = shape.num_tokens * shape.top_k;
  for (const double levels : {1.0, 100.0}) {  // 1: all tokens want the same experts but one
    const Stream stream;
    const auto logits = exact_expert_logits(shape, 3, levels);
    const Routing routing = select(shape, logits).routing;
    const RoutingBuffers device(shape.row_shape(), routing, stream.get());
    const std::int64_t max_tiles = max_grouped_tiles(pairs, shape.num_experts);
    const DeviceBuffer<std::int32_t> row_tokens(pairs);
    const DeviceBuffer<std::int32_t> pair_rows(pairs);
    const DeviceBuffer<GroupedTile> tiles(max_tiles);
    const DeviceBuffer<std::int32_t> num_tiles(1);
    const Bytes workspace(ffn_schedule_workspace_bytes(pairs, shape.num_experts));
    poison(row_tokens.get(), row_tokens.bytes(), stream.get());
    poison(pair_rows.get(), pair_rows.bytes(), stream.get());
    poison(tiles.get(), tiles.bytes(), stream.get());
    poison(workspace.get(), workspace.bytes(), stream.get());
    launch_ffn_schedule(shape, device.view(),
                        {row_tokens.get(), pair_rows.get(), tiles.get(), num_tiles.get()}, workspace.get(),
                        stream.get());
    stream.synchronize();
    const auto fetch = [](const auto& buffer, auto&& host) {
      host.resize(static_cast<std::size_t>(buffer.count()));
      MOESCOPE_CUDA_CHECK(cudaMemcpy(host.data(), buffer.get(), static_cast<std::size_t>(buffer.bytes()),
                                     cudaMemcpyDeviceToHost));
    };
    std::vector<std::int32_t> tokens;
    std::vector<std::int32_t> rows;
    std::vector<std::int32_t> count;
    std::vector<GroupedTile> listed;
    fetch(row_tokens, tokens);
    fetch(pair_rows, rows);
    fetch(num_tiles, count);
    fetch(tiles, listed);

    ScheduleOptions options;
    options.kind = ScheduleKind::kExpertCentric;
    options.group_size = 1;
    const Schedule schedule = build_schedule(routing, options);
    std::int64_t tile = 0;
    for (const WorkItem& item : schedule.items) {
      const std::int32_t expert = schedule.experts[static_cast<std::size_t>(item.expert_begin)];
      for (std::int64_t row = item.token_begin; row < item.token_end; ++row) {
        const auto pair = schedule.sorted_pair_ids[static_cast<std::size_t>(row)];
        ASSERT_EQ(rows[static_cast<std::size_t>(pair)], row);
        ASSERT_EQ(tokens[static_cast<std::size_t>(row)], pair / shape.top_k);
      }
      for (std::int64_t row = item.token_begin; row < item.token_end; row += kGroupedTileRows) {
        ASSERT_LT(tile, count.front());
        const GroupedTile& have = listed[static_cast<std::size_t>(tile++)];
        EXPECT_EQ(have.expert, expert);
        EXPECT_EQ(have.first_row, row);
        EXPECT_EQ(have.count, std::min(item.token_end - row, kGroupedTileRows));
      }
    }
    EXPECT_EQ(tile, count.front());
  }
}

TEST(FfnRouterGpuValues, SchedulesMoreThanABlockOfPairsEach) {
  MOESCOPE_NEEDS_GPU();
  // 400 000 pairs: parts of more than the least size, the last one short.
  const SystemShape shape = test::system_shape(System::kGShard, 50000, 8, 100, 8);
  const std::int64_t pairs = shape.num_tokens * shape.top_k;
  const Stream stream;
  Routing routing;
  routing.num_tokens = shape.num_tokens;
  routing.grid_rows = 1;
  routing.grid_cols = shape.num_experts;
  routing.token_offsets.push_back(0);
  const Philox random(5, 3);
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const auto ids = test::random_ids(random, static_cast<std::uint64_t>(token), 0, 100, 8);
    routing.expert_ids.insert(routing.expert_ids.end(), ids.begin(), ids.end());
    routing.token_offsets.push_back(std::ssize(routing.expert_ids));
  }
  routing.gates.assign(routing.expert_ids.size(), 1.0F);
  const RoutingBuffers device(shape.row_shape(), routing, stream.get());
  const DeviceBuffer<std::int32_t> row_tokens(pairs);
  const DeviceBuffer<std::int32_t> pair_rows(pairs);
  const DeviceBuffer<GroupedTile> tiles(max_grouped_tiles(pairs, shape.num_experts));
  const DeviceBuffer<std::int32_t> num_tiles(1);
  const Bytes workspace(ffn_schedule_workspace_bytes(pairs, shape.num_experts));
  launch_ffn_schedule(shape, device.view(), {row_tokens.get(), pair_rows.get(), tiles.get(), num_tiles.get()},
                      workspace.get(), stream.get());
  std::vector<std::int32_t> rows(static_cast<std::size_t>(pairs));
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(rows.data(), pair_rows.get(),
                                      static_cast<std::size_t>(pair_rows.bytes()), cudaMemcpyDeviceToHost,
                                      stream.get()));
  stream.synchronize();
  std::vector<std::int32_t> next(100, 0);
  for (const std::int32_t id : routing.expert_ids) {
    ++next[static_cast<std::size_t>(id)];
  }
  std::int32_t before = 0;
  for (std::int32_t& row : next) {
    row = std::exchange(before, before + row);
  }
  for (std::size_t pair = 0; pair < rows.size(); ++pair) {
    ASSERT_EQ(rows[pair], next[static_cast<std::size_t>(routing.expert_ids[pair])]++) << pair;
  }
}

TEST(FfnRouterGpuValues, ReportsTheFirstBadLogitAndLeavesAValidRouting) {
  MOESCOPE_NEEDS_GPU();
  const SystemShape shape = test::system_shape(System::kGShard, 300, 8, 40, 5);
  auto logits = exact_expert_logits(shape, 3, 10);
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

}  // namespace
}  // namespace moescope
