// The selection as strips on the GPU (router_select_strips.cu, schedule_strips.cu): the same set as the CSR
// selection to the last id, the host's minimal cover, lists and tiles; ties, skew, awkward grids, bad logits,
// replay.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "core/schedule/schedule.hpp"
#include "core/workload/workload.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/buffers/strip_buffers.hpp"
#include "kernels/runtime/device_info.hpp"
#include "reference/stages/stages.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/host_strips.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/router_logits.hpp"

namespace moescope {
namespace {

using cuda::DeviceBuffer;
using cuda::StripBuffers;
using test::make_shape;

/// Logits on the device with the outputs of both selections.
class StripCase {
 public:
  StripCase(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens)
      : shape_(shape),
        rule_(rule),
        tile_tokens_(tile_tokens),
        logits_(shape.num_tokens * (shape.grid_rows + shape.grid_cols)),
        strips_(shape, rule, tile_tokens),
        routing_(shape),
        workspace_(cuda::router_select_workspace_bytes(shape, cuda::current_gpu())),
        bad_(1) {
    const cuda::DeviceStrips view = strips_.view();
    const std::int64_t tokens = shape.num_tokens;
    poison(view.row_log_probs, tokens * shape.grid_rows);
    poison(view.col_log_probs, tokens * shape.grid_cols);
    poison(view.uncovered_rows, tokens * shape.grid_rows);
    for (float* const per_token : {view.threshold, view.gate_shift}) poison(per_token, tokens);
    for (std::int32_t* const per_token : {view.tie_limit, view.cover_sizes}) poison(per_token, tokens);
    poison(view.cover, strips_.capacity().max_entries);
    poison(view.strip_tokens, strips_.capacity().max_entries);
    poison(view.strip_offsets, shape.grid_rows + shape.grid_cols + 1);
    poison(view.tiles, strips_.capacity().max_tiles);
    poison(view.counts, 4);
  }

  void upload(const std::vector<float>& logits) const {
    MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(logits_.get(), logits.data(),
                                        static_cast<std::size_t>(logits_.bytes()), cudaMemcpyHostToDevice,
                                        stream_.get()));
    stream_.synchronize();
  }
  void launch() const {
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(bad_.get(), 0xff, static_cast<std::size_t>(bad_.bytes()), stream_.get()));
    launch_router_select_strips(shape_, rule_, logits_.get(), strips_.view(), bad_.get(), stream_.get());
    launch_schedule_strips(shape_, rule_, tile_tokens_, strips_.view(), stream_.get());
  }
  cuda::HostStrips download() const { return strips_.download(stream_.get()); }
  std::int64_t bad_logit() const {
    stream_.synchronize();
    std::int64_t bad = 0;
    MOESCOPE_CUDA_CHECK(cudaMemcpy(&bad, bad_.get(), sizeof bad, cudaMemcpyDeviceToHost));
    return bad;
  }
  /// The same logits' CSR.
  Routing csr() const {
    launch_router_select(shape_, logits_.get(), routing_.view(), bad_.get(), workspace_.get(), stream_.get());
    return routing_.download(shape_, stream_.get());
  }
  const StripBuffers& strips() const { return strips_; }

 private:
  template <class T>
  void poison(T* data, std::int64_t count) const {
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(data, 0xa5, static_cast<std::size_t>(count) * sizeof(T), stream_.get()));
  }
  LayerShape shape_;
  StripRule rule_;
  std::int64_t tile_tokens_;
  cuda::Stream stream_;
  DeviceBuffer<float> logits_;
  StripBuffers strips_;
  cuda::RoutingBuffers routing_;
  cuda::Bytes workspace_;
  DeviceBuffer<std::int64_t> bad_;
};

/// Threshold, ids, gates, uncovered rows and cover of one token against its CSR row and the host's cover.
void expect_token(const LayerShape& shape, StripRule rule, const cuda::HostStrips& strips, const Routing& csr,
                  std::int64_t token) {
  const std::int64_t rows = shape.grid_rows;
  const std::int64_t cols = shape.grid_cols;
  const float* const row = strips.row_log_probs.data() + token * rows;
  const float* const col = strips.col_log_probs.data() + token * cols;
  const auto at = static_cast<std::size_t>(token);
  float threshold = 0;
  std::int32_t tie_limit = 0;
  const auto ids = test::select_sums(row, rows, col, cols, shape.top_k, threshold, tie_limit);
  const auto csr_ids = csr.ids_of(token);
  ASSERT_EQ(std::vector<std::int32_t>(csr_ids.begin(), csr_ids.end()), ids) << "log-softmax differs";
  ASSERT_EQ(strips.threshold[at], threshold);
  // The limit may lie anywhere from the last selected tie to just before the first that is not.
  ASSERT_GE(strips.tie_limit[at], tie_limit);
  std::int64_t next_tie = std::int64_t{tie_limit} + 1;
  while (next_tie < shape.num_experts() && row[next_tie / cols] + col[next_tie % cols] != threshold)
    ++next_tie;
  ASSERT_TRUE(next_tie == shape.num_experts() || strips.tie_limit[at] < next_tie);
  for (std::size_t k = 0; k < ids.size(); ++k) {
    const float score = row[ids[k] / cols] + col[ids[k] % cols];
    const float gate = csr.gates_of(token)[k];
    const float sum = shape.gate_mode == GateMode::kProbability ? std::exp(strips.gate_shift[at]) : 1.0F;
    ASSERT_NEAR(std::exp(score - strips.gate_shift[at]) * sum, gate, 4e-6F * gate + 1e-37F) << "pair " << k;
  }

  StripCover cover;
  if (rule == StripRule::kMinimalCover) {
    cover = minimal_strip_cover(ids, rows, cols);
  } else {
    for (const std::int32_t id : ids) cover.rows.push_back(static_cast<std::int32_t>(id / cols));
    cover.rows.erase(std::unique(cover.rows.begin(), cover.rows.end()), cover.rows.end());
  }
  std::vector<std::int32_t> expected = cover.rows;
  for (const std::int32_t c : cover.cols) expected.push_back(static_cast<std::int32_t>(rows + c));
  const auto first = strips.cover.begin() + token * strips.max_cover;
  ASSERT_LE(strips.cover_sizes[at], strips.max_cover);
  ASSERT_EQ(std::vector<std::int32_t>(first, first + strips.cover_sizes[at]), expected);
  std::vector<float> uncovered(row, row + rows);
  for (const std::int32_t r : cover.rows)
    uncovered[static_cast<std::size_t>(r)] = -std::numeric_limits<float>::infinity();
  const auto actual = strips.uncovered_rows.begin() + token * rows;
  ASSERT_EQ(std::vector<float>(actual, actual + rows), uncovered);
}

/// Offsets, tokens and tiles against the covers.
void expect_lists(const LayerShape& shape, const cuda::HostStrips& strips, std::int64_t tile_tokens) {
  const auto num_strips = static_cast<std::size_t>(shape.grid_rows + shape.grid_cols);
  std::vector<std::vector<std::int32_t>> tokens(num_strips);
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    for (std::int32_t e = 0; e < strips.cover_sizes[static_cast<std::size_t>(token)]; ++e) {
      const std::int32_t strip = strips.cover[static_cast<std::size_t>(token * strips.max_cover + e)];
      tokens[static_cast<std::size_t>(strip)].push_back(static_cast<std::int32_t>(token));
    }
  }
  ASSERT_EQ(strips.strip_offsets.size(), num_strips + 1);
  ASSERT_EQ(strips.strip_offsets[0], 0);
  std::size_t tile = 0;
  for (std::size_t strip = 0; strip < num_strips; ++strip) {
    const std::int32_t first = strips.strip_offsets[strip];
    const std::int32_t end = strips.strip_offsets[strip + 1];
    ASSERT_EQ(end - first, std::ssize(tokens[strip])) << "strip " << strip;
    std::vector<std::int32_t> listed(strips.strip_tokens.begin() + first, strips.strip_tokens.begin() + end);
    std::sort(listed.begin(), listed.end());
    ASSERT_EQ(listed, tokens[strip]) << "strip " << strip;
    std::int32_t part = 0;
    for (std::int32_t next = first; next < end; ++tile, ++part) {
      ASSERT_LT(tile, strips.tiles.size());
      ASSERT_EQ(strips.tiles[tile].strip, static_cast<std::int32_t>(strip));
      ASSERT_EQ(strips.tiles[tile].first_entry, next);
      ASSERT_GE(strips.tiles[tile].count, 1);
      ASSERT_LE(strips.tiles[tile].count, tile_tokens);
      ASSERT_EQ(strips.tiles[tile].count,
                strip_tile_tokens(end - first, static_cast<std::int32_t>(tile_tokens), part));
      next += strips.tiles[tile].count;
    }
  }
  EXPECT_EQ(tile, strips.tiles.size());
  EXPECT_EQ(strips.counts[0], strips.strip_offsets.back());
  EXPECT_EQ(strips.counts[2], 0);
}

void expect_strips(const LayerShape& shape, StripRule rule, std::int64_t tile_tokens,
                   const std::vector<float>& logits) {
  const StripCase gpu(shape, rule, tile_tokens);
  gpu.upload(logits);
  const Routing csr = gpu.csr();
  for (int run = 0; run < 2; ++run) {  // the second relies on what the first has left
    gpu.launch();
    const cuda::HostStrips strips = gpu.download();
    ASSERT_EQ(gpu.bad_logit(), -1);
    const std::int64_t step = std::max<std::int64_t>(1, shape.num_tokens / 200);
    for (std::int64_t token = 0; token < shape.num_tokens; token += step) {
      ASSERT_NO_FATAL_FAILURE(expect_token(shape, rule, strips, csr, token)) << "token " << token;
    }
    ASSERT_NO_FATAL_FAILURE(expect_lists(shape, strips, tile_tokens));
  }
}

std::vector<LayerShape> strip_shapes() {
  std::vector<LayerShape> shapes = test::select_shapes();
  for (const LayerShape& shape :
       {make_shape(700, 8, 48, 16, 33), make_shape(500, 8, 64, 64, 32), make_shape(130, 8, 100, 37, 900),
        make_shape(1500, 8, 320, 320, 512), make_shape(3, 8, 320, 320, 102400),
        make_shape(40, 8, 444, 444, 2500), make_shape(64, 8, 1024, 1024, 512),
        make_shape(20, 8, 1024, 16, 1000), make_shape(20, 8, 16, 1024, 1000),
        make_shape(6, 8, 1100, 1300, 600), make_shape(3, 8, 3, 5000, 40), make_shape(3, 8, 6000, 6000, 700),
        make_shape(1, 8, 1024, 1024, 300000)}) {
    shapes.push_back(shape);
  }
  return shapes;
}

class StripsGpu : public testing::TestWithParam<LayerShape> {
 protected:
  void SetUp() override { MOESCOPE_NEEDS_GPU(); }
};
std::string label(const testing::TestParamInfo<LayerShape>& info) {
  return info.param.label() + "_" + std::to_string(info.index);
}
INSTANTIATE_TEST_SUITE_P(Shapes, StripsGpu, testing::ValuesIn(strip_shapes()), label);

TEST_P(StripsGpu, SelectWhatTheCsrSelectionDoesOnNormalLogits) {
  LayerShape shape = GetParam();
  for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
    shape.gate_mode = mode;
    expect_strips(shape, StripRule::kMinimalCover, 128, test::normal_logits(shape, 7, 1));
  }
  expect_strips(shape, StripRule::kMinimalCover, 7, test::normal_logits(shape, 8, 4));
  expect_strips(shape, StripRule::kRowsOnly, 192, test::normal_logits(shape, 9, 1));
}

TEST_P(StripsGpu, ResolveTiesToTheLowerId) {
  const LayerShape& shape = GetParam();
  for (const double levels : {1.0, 3.0, 40.0, 100000.0}) {
    expect_strips(shape, StripRule::kMinimalCover, 128,
                  test::exact_logits(shape, static_cast<std::uint64_t>(levels), levels));
  }
  for (const double step : {1.0, 0.1, 0.01}) {
    expect_strips(shape, StripRule::kMinimalCover, 128, test::coarse_logits(shape, 3, step));
    expect_strips(shape, StripRule::kRowsOnly, 128, test::coarse_logits(shape, 4, step));
  }
}

TEST(StripsGpuSkew, AllTokensOnTheSameStrips) {
  MOESCOPE_NEEDS_GPU();
  const LayerShape shape = make_shape(5000, 8, 64, 48, 40);
  const LayerShape one = make_shape(1, 8, 64, 48, 40);
  const std::vector<float> token = test::normal_logits(one, 5, 2);
  std::vector<float> logits;
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) logits.insert(logits.end(), token.begin(), token.end());
  expect_strips(shape, StripRule::kMinimalCover, 192, logits);
}

TEST(StripsGpuSkew, TrainedRouter) {
  MOESCOPE_NEEDS_GPU();
  // The tests may run on another machine than the one they were built on, from a copy of the tree.
  const std::string file = "data/small_layer2.safetensors";
  const std::string path = std::filesystem::exists(file) ? file : test::source_path("") + file;
  LayerShape shape = make_shape(4096, 256, 64, 64, 32);
  shape.dtype = Dtype::kBF16;
  const LayerInputs inputs = make_workload(WorkloadSpec::parse("snapshot:" + path), shape, 1);
  const RouterLogits logits = reference::router_project(inputs);
  expect_strips(inputs.shape, StripRule::kMinimalCover, 128, test::join(inputs.shape, logits));
}

TEST(StripsGpuValues, LogitsThatOverflowLogSoftmaxStillSelect) {
  MOESCOPE_NEEDS_GPU();
  const LayerShape shape = make_shape(1, 8, 4, 4, 5);
  const StripCase gpu(shape, StripRule::kMinimalCover, 128);
  // One side's differences exceed the largest float: its log-probabilities become -infinity and tie.
  gpu.upload({3e38F, -3e38F, -3e38F, -3e38F, 1, 2, 3, 4});
  gpu.launch();
  const cuda::HostStrips strips = gpu.download();
  EXPECT_EQ(strips.threshold[0], -std::numeric_limits<float>::infinity());
  EXPECT_EQ(strips.tie_limit[0], 4);
  EXPECT_EQ(strips.cover[0], 0);  // row 0 whole, and expert 4 in row 1
  EXPECT_EQ(strips.cover_sizes[0], 2);
  EXPECT_EQ(gpu.bad_logit(), -1);
}

TEST(StripsGpuValues, ReportsTheFirstBadLogitAndGivesItsTokenNoStrips) {
  MOESCOPE_NEEDS_GPU();
  for (const std::int64_t extent : {24, 1200}) {  // in registers, in memory
    const LayerShape shape = make_shape(300, 8, 16, extent, 33);
    const std::int64_t width = 16 + extent;
    const StripCase gpu(shape, StripRule::kMinimalCover, 128);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      auto logits = test::normal_logits(shape, 3, 1);
      gpu.upload(logits);
      gpu.launch();
      EXPECT_EQ(gpu.bad_logit(), -1);
      logits[static_cast<std::size_t>(3 * width + 20)] = bad;
      logits[static_cast<std::size_t>(4 * width + 1)] = bad;
      gpu.upload(logits);
      gpu.launch();
      EXPECT_EQ(gpu.bad_logit(), 3 * width + 20);
      const cuda::HostStrips strips = gpu.download();
      EXPECT_EQ(strips.cover_sizes[3], 0);
      EXPECT_EQ(strips.cover_sizes[4], 0);
      EXPECT_NO_FATAL_FAILURE(expect_lists(shape, strips, 128));
    }
  }
}

TEST(StripsGpuValues, BuffersHoldWhatTheCapacitySays) {
  MOESCOPE_NEEDS_GPU();
  for (const LayerShape& shape : strip_shapes()) {
    for (const StripRule rule : {StripRule::kMinimalCover, StripRule::kRowsOnly}) {
      const StripBuffers buffers(shape, rule, 128);
      EXPECT_EQ(buffers.bytes(), cuda::strip_capacity(shape, rule, 128, cuda::current_gpu()).bytes)
          << shape.label();
    }
  }
}

TEST(StripCapacity, RefusesWhatDoesNotFitNamingTheField) {
  const LayerShape shape = make_shape(std::int64_t{1} << 27, 8, 320, 320, 512);
  EXPECT_EQ(test::error_text<InvalidArgument>([&] {
              (void)cuda::strip_capacity(shape, StripRule::kMinimalCover, 128, test::large_gpu());
            }).find("num_tokens = 134217728"),
            0U);
  EXPECT_THROW(
      (void)cuda::strip_capacity(make_shape(1, 8, 4, 4, 1), StripRule::kRowsOnly, 0, test::large_gpu()),
      InvalidArgument);
}

}  // namespace
}  // namespace moescope
