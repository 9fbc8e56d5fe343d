#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/tiling/token_split.hpp"
#include "kernels/runtime/device_info.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/gpus.hpp"

namespace moescope {
namespace {

using test::DeviceExperts;
using test::DeviceOutput;
using test::ExpertCase;
using test::RoutingCase;

/// As a layer keeps it: zero before the first launch, then left alone.
class TokenWorkspace {
 public:
  explicit TokenWorkspace(const LayerShape& shape)
      : buffer_(cuda::token_centric_workspace_bytes(shape, cuda::current_gpu())) {
    if (buffer_.bytes() > 0) {
      MOESCOPE_CUDA_CHECK(cudaMemset(buffer_.get(), 0, static_cast<std::size_t>(buffer_.bytes())));
    }
  }
  void* get() const { return buffer_.get(); }

 private:
  cuda::DeviceBuffer<std::byte> buffer_;
};

class TokenCentric : public testing::TestWithParam<RoutingCase> {};

TEST_P(TokenCentric, EqualsThePlainLoopAndRepeatsBitForBit) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 5);
  const DeviceExperts device(c);
  const DeviceOutput y(c.shape.num_tokens * c.shape.hidden_size);
  const TokenWorkspace workspace(c.shape);
  const auto run = [&](float* to) {
    cuda::launch_experts_token_centric(c.shape, device.x(), device.weights(), device.routing(),
                                       workspace.get(), {.y = to}, nullptr);
  };
  run(y.get());
  const std::vector<float> first = y.host();
  EXPECT_LE(test::relative_error(first, c.experts()), test::error_limit(c.shape.dtype));
  y.poison();
  run(y.get());
  EXPECT_EQ(y.host(), first);
}

TEST_P(TokenCentric, AddsAndRoundsAsItsOutputAsks) {
  MOESCOPE_NEEDS_GPU();
  const ExpertCase c = ExpertCase::make(GetParam(), 8);
  const DeviceExperts device(c);
  const std::int64_t count = c.shape.num_tokens * c.shape.hidden_size;
  const DeviceOutput y(count);
  const TokenWorkspace workspace(c.shape);
  std::vector<float> addend(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < addend.size(); ++i) addend[i] = static_cast<float>(i % 7) - 3;
  const auto device_addend = test::to_device(addend);
  const auto* const more = reinterpret_cast<const float*>(device_addend.get());
  const auto run = [&](const cuda::ExpertOutput& output) {
    cuda::launch_experts_token_centric(c.shape, device.x(), device.weights(), device.routing(),
                                       workspace.get(), output, nullptr);
  };
  run({.y = y.get()});
  std::vector<float> expected = y.host();
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += addend[i];
  run({.y = y.get(), .addend = more});
  EXPECT_EQ(y.host(), expected);
  if (c.shape.dtype == Dtype::kBF16) {
    const cuda::DeviceBuffer<Bf16> rounded(count);
    run({.addend = more, .rounded = rounded.get()});
    std::vector<Bf16> out(expected.size());
    MOESCOPE_CUDA_CHECK(cudaMemcpy(out.data(), rounded.get(), static_cast<std::size_t>(rounded.bytes()),
                                   cudaMemcpyDeviceToHost));
    for (std::size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(out[i].bits, to_bf16(expected[i]).bits) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, TokenCentric, testing::ValuesIn(test::expert_cases()),
                         [](const auto& test) { return test::case_name(test.param); });

TEST(TokenCentricErrors, RowsThatDoNotFitTheKernelsAreNamed) {
  MOESCOPE_NEEDS_GPU();
  for (const std::int64_t hidden_size : {9, 12, 16384}) {
    const LayerShape shape = test::make_shape(4, hidden_size, 4, 4, 2);
    try {
      cuda::launch_experts_token_centric(shape, nullptr, {}, {}, nullptr, {}, nullptr);
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
  const TokenWorkspace workspace(large.shape);
  cuda::launch_experts_token_centric(large.shape, block.x(), weights, block.routing(), workspace.get(),
                                     {.y = y.get()}, nullptr);
  for (std::int32_t& id : c.routing.expert_ids) id %= kDistinctRows;
  EXPECT_LE(test::relative_error(y.host(), c.experts()), test::error_limit(Dtype::kBF16));
}

// No GPU needed: how work is shared is arithmetic on the shape.
TEST(TokenSplitChoice, CoversEveryTokenPairAndColumnOnce) {
  for (const std::int64_t num_tokens : {1, 2, 3, 7, 63, 64, 100, 528, 1024, 1025, 4096, 1 << 20}) {
    for (const std::int64_t top_k : {1, 2, 3, 31, 512, 4096}) {
      for (const std::int64_t row_bytes : {16, 192, 512, 513, 2048, 2064, 4096, 8192, 16384}) {
        for (const auto& [blocks, clusters] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {8, 1}, {8, 8}}) {
          const TokenSplit split =
              TokenSplit::choose(test::large_gpu(), num_tokens, top_k, row_bytes, blocks, clusters);
          EXPECT_GE(split.team * split.chunks * TokenSplit::kBytesPerChunk, row_bytes);
          EXPECT_LE(split.team, TokenSplit::kWarpsPerBlock);
          EXPECT_EQ(split.workers_per_block() * split.team, split.warps);
          EXPECT_TRUE(split.warps == TokenSplit::kWarpsPerBlock ||
                      (split.warps == split.team && split.splits() == 1));
          EXPECT_EQ(split.tokens_per_block() * split.block_splits, split.workers_per_block());
          const std::int64_t blocks_per_token = split.cluster_blocks * split.clusters;
          EXPECT_EQ(split.num_blocks % blocks_per_token, 0);
          EXPECT_GE(split.num_blocks / blocks_per_token * split.tokens_per_block(), num_tokens);
          EXPECT_LT((split.num_blocks / blocks_per_token - 1) * split.tokens_per_block(), num_tokens);
          EXPECT_LE(split.splits(), std::max<std::int64_t>(top_k / TokenSplit::kMinPairsPerWorker, 1));
          EXPECT_LE(split.cluster_blocks, blocks);
          EXPECT_LE(split.clusters, clusters);
          EXPECT_TRUE(split.cluster_blocks == 1 || split.tokens_per_block() == 1);
          EXPECT_TRUE(split.clusters == 1 || split.cluster_blocks == blocks);
          EXPECT_LE(split.shared_bytes(row_bytes / 2), 64 * 1024);
        }
      }
    }
  }
}

TEST(TokenSplitChoice, FewTokensGetManyWorkersAndManyTokensOne) {
  const auto splits = [](std::int64_t num_tokens, std::int64_t blocks, std::int64_t clusters) {
    return TokenSplit::choose(test::large_gpu(), num_tokens, 512, 2048, blocks, clusters).splits();
  };
  EXPECT_EQ(splits(1, 8, 8), 256);
  EXPECT_EQ(splits(1, 8, 1), 64);
  EXPECT_EQ(splits(1, 1, 1), 8);
  EXPECT_EQ(splits(4, 8, 8), 128);
  EXPECT_EQ(splits(8, 8, 8), 64);
  EXPECT_EQ(splits(64, 8, 8), 16);
  EXPECT_EQ(splits(1024, 8, 8), 2);
  EXPECT_EQ(splits(4096, 8, 8), 1);
}

}  // namespace
}  // namespace moescope
