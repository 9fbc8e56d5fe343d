#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/token_split.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using test::DeviceExperts;
using test::DeviceOutput;
using test::ExpertCase;
using test::RoutingCase;

class TokenCentric : public testing::TestWithParam<RoutingCase> {};

TEST_P(TokenCentric, EqualsThePlainLoopAndRepeatsBitForBit) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 5);
  const DeviceExperts device(c);
  const DeviceOutput y(c.shape.num_tokens * c.shape.hidden_size);
  cuda::launch_experts_token_centric(c.shape, device.x(), device.weights(), device.routing(), y.get(),
                                     nullptr);
  const std::vector<float> first = y.host();
  EXPECT_LE(test::relative_error(first, c.experts()), test::error_limit(c.shape.dtype));
  y.poison();
  cuda::launch_experts_token_centric(c.shape, device.x(), device.weights(), device.routing(), y.get(),
                                     nullptr);
  EXPECT_EQ(y.host(), first);
}

TEST_P(TokenCentric, ScoresEqualThePlainLoop) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 6);
  const DeviceExperts device(c);
  const DeviceOutput scores(c.shape.num_pairs());
  cuda::launch_expert_scores(c.shape, device.x(), device.weights(), device.routing(), scores.get(), nullptr);
  // No rounding to storage on the way: fp32's limit in both dtypes.
  EXPECT_LE(test::relative_error(scores.host(), c.scores()), test::error_limit(Dtype::kF32));
}

INSTANTIATE_TEST_SUITE_P(Cases, TokenCentric, testing::ValuesIn(test::expert_cases()),
                         [](const auto& test) { return test::case_name(test.param); });

TEST(TokenCentricErrors, RowsThatDoNotFitTheKernelsAreNamed) {
  MOESCOPE_NEEDS_GPU();
  for (const std::int64_t hidden_size : {9, 12, 16384}) {
    const LayerShape shape = test::make_shape(4, hidden_size, 4, 4, 2);
    try {
      cuda::launch_experts_token_centric(shape, nullptr, {}, {}, nullptr, nullptr);
      ADD_FAILURE() << "no error for hidden_size " << hidden_size;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find("hidden_size = " + std::to_string(hidden_size)),
                std::string::npos)
          << error.what();
    }
  }
}

// W and V beyond 2^32 elements: row i is row i mod 65521 of a small block, so that an offset cut to 32 bits
// hits another row.
TEST(TokenCentricLarge, OffsetsBeyond32BitsAreExact) {
  MOESCOPE_NEEDS_GPU();
  constexpr std::int64_t kDistinctRows = 65521;
  RoutingCase large{test::make_shape(5, 4104, 1024, 1024, 300), test::RoutingSkew::kUniform};
  const std::int64_t row_bytes = large.shape.hidden_size * 2;
  const std::int64_t bytes = large.shape.num_experts() * row_bytes;
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (static_cast<std::int64_t>(free_bytes) < 2 * bytes + (std::int64_t{1} << 30)) {
    GTEST_SKIP() << "needs " << 2 * bytes << " bytes of device memory, " << free_bytes << " are free";
  }
  RoutingCase small{test::make_shape(5, 4104, 1, kDistinctRows, 300), test::RoutingSkew::kUniform};
  ExpertCase c = ExpertCase::make(small, 7);
  c.routing = test::make_routing(large, 7);
  const DeviceExperts block(c);
  const auto repeat = [&](const void* rows) {
    cuda::DeviceBuffer<std::byte> all(bytes);
    for (std::int64_t first = 0; first < large.shape.num_experts(); first += kDistinctRows) {
      const std::int64_t count = std::min(kDistinctRows, large.shape.num_experts() - first);
      MOESCOPE_CUDA_CHECK(cudaMemcpy(all.get() + first * row_bytes, rows,
                                     static_cast<std::size_t>(count * row_bytes), cudaMemcpyDeviceToDevice));
    }
    return all;
  };
  const auto w_in = repeat(block.weights().w_in);
  const auto w_out = repeat(block.weights().w_out);
  cuda::DeviceWeights weights;
  weights.w_in = w_in.get();
  weights.w_out = w_out.get();
  const DeviceOutput y(large.shape.num_tokens * large.shape.hidden_size);
  cuda::launch_experts_token_centric(large.shape, block.x(), weights, block.routing(), y.get(), nullptr);
  for (std::int32_t& id : c.routing.expert_ids) id %= kDistinctRows;
  EXPECT_LE(test::relative_error(y.host(), c.experts()), test::error_limit(Dtype::kBF16));
}

// No GPU needed: how work is shared is arithmetic on the shape.
TEST(TokenSplitChoice, CoversEveryTokenPairAndColumnOnce) {
  for (const std::int64_t num_tokens : {1, 2, 3, 7, 63, 64, 100, 528, 1024, 1025, 4096, 1 << 20}) {
    for (const std::int64_t top_k : {1, 2, 3, 31, 512, 4096}) {
      for (const std::int64_t row_bytes : {16, 192, 512, 513, 2048, 2064, 4096, 8192, 16384}) {
        for (const bool clusters : {false, true}) {
          const TokenSplit split = TokenSplit::choose(num_tokens, top_k, row_bytes, clusters);
          EXPECT_GE(split.team * split.chunks * TokenSplit::kBytesPerChunk, row_bytes);
          EXPECT_LE(split.team, TokenSplit::kWarpsPerBlock);
          EXPECT_EQ(split.workers_per_block() * split.team, split.warps_per_block());
          EXPECT_LE(split.warps_per_block(), TokenSplit::kWarpsPerBlock);
          EXPECT_EQ(split.tokens_per_block() * split.block_splits, split.workers_per_block());
          EXPECT_GE(split.num_blocks / split.cluster_blocks * split.tokens_per_block(), num_tokens);
          EXPECT_LT((split.num_blocks / split.cluster_blocks - 1) * split.tokens_per_block(), num_tokens);
          EXPECT_LE(split.splits(), std::max<std::int64_t>(top_k / TokenSplit::kMinPairsPerWorker, 1));
          EXPECT_LE(split.cluster_blocks, clusters ? TokenSplit::kMaxClusterBlocks : 1);
          EXPECT_TRUE(split.cluster_blocks == 1 || split.tokens_per_block() == 1);
          EXPECT_LE(split.shared_bytes(row_bytes / 2), 48 * 1024);
        }
      }
    }
  }
}

TEST(TokenSplitChoice, FewTokensGetManyWorkersAndManyTokensOne) {
  EXPECT_EQ(TokenSplit::choose(1, 512, 2048, true).splits(), 64);
  EXPECT_EQ(TokenSplit::choose(1, 512, 2048, false).splits(), 8);
  EXPECT_EQ(TokenSplit::choose(64, 512, 2048, true).splits(), 16);
  EXPECT_EQ(TokenSplit::choose(1024, 512, 2048, true).splits(), 2);
  EXPECT_EQ(TokenSplit::choose(4096, 512, 2048, true).splits(), 1);
}

}  // namespace
}  // namespace moescope
