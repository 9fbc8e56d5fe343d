#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "kernels/buffers/schedule_buffers.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using cuda::DeviceBuffer;
using cuda::ScheduleBuffers;
using test::DeviceExperts;
using test::DeviceOutput;
using test::ExpertCase;
using test::make_shape;
using test::RoutingCase;
using test::RoutingSkew;

ScheduleOptions options_of(ScheduleKind kind, std::int64_t group_size) {
  return {.kind = kind, .group_size = group_size};
}

/// A schedule built on the device for a case.
struct Scheduled {
  ScheduleBuffers buffers;
  DeviceBuffer<std::byte> workspace;

  Scheduled(const ExpertCase& c, const DeviceExperts& device, const ScheduleOptions& options)
      : buffers(c.shape, options), workspace(cuda::schedule_capacity(c.shape, options).workspace_bytes) {
    cuda::launch_schedule(c.shape, options, device.routing(), buffers.view(), workspace.get(), nullptr);
  }
};

/// Fused output and scores of a case under `options` against the plain loop; a second run, over the first
/// one's output, gives the same (scores: bit for bit).
void expect_as_plain_loop(const ExpertCase& c, const std::vector<ScheduleOptions>& all_options) {
  const DeviceExperts device(c);
  const std::vector<double> p = c.scores();
  const std::vector<double> reference = c.combine(p);
  for (const ScheduleOptions& options : all_options) {
    SCOPED_TRACE(std::string(to_string(options.kind)) + " B=" + std::to_string(options.group_size));
    const Scheduled scheduled(c, device, options);
    const DeviceOutput y(c.shape.num_tokens * c.shape.hidden_size);
    for (int run = 0; run < 2; ++run) {
      cuda::launch_experts_tiles(c.shape, options, device.x(), device.weights(), device.routing(),
                                 scheduled.buffers.view(), y.get(), nullptr);
      EXPECT_LE(test::relative_error(y.host(), reference), test::error_limit(c.shape.dtype)) << "run " << run;
    }
    const DeviceOutput scores(c.shape.num_pairs());
    const auto launch_scores = [&] {
      scores.poison();
      cuda::launch_expert_scores_tiles(c.shape, options, device.x(), device.weights(), device.routing(),
                                       scheduled.buffers.view(), scores.get(), nullptr);
      return scores.host();
    };
    const std::vector<float> first = launch_scores();
    // No rounding to storage on the way: fp32's limit in both dtypes.
    EXPECT_LE(test::relative_error(first, p), test::error_limit(Dtype::kF32));
    EXPECT_EQ(launch_scores(), first);
  }
}

class ExpertTiles : public testing::TestWithParam<RoutingCase> {};

TEST_P(ExpertTiles, EqualThePlainLoop) {
  MOESCOPE_NEEDS_GPU();
  expect_as_plain_loop(ExpertCase::make(GetParam(), 7), {options_of(ScheduleKind::kStaircase, 64),
                                                         options_of(ScheduleKind::kExpertCentric, 64),
                                                         options_of(ScheduleKind::kExpertCentric, 7)});
}

INSTANTIATE_TEST_SUITE_P(Cases, ExpertTiles, testing::ValuesIn(test::expert_cases()),
                         [](const auto& test) { return test::case_name(test.param); });

class ExpertTilesOf : public testing::TestWithParam<Dtype> {
 protected:
  static ExpertCase make(LayerShape shape, RoutingSkew skew) {
    shape.dtype = GetParam();
    return ExpertCase::make({shape, skew}, 8);
  }
};

// More experts in an item than P holds at once: strips of 1000, groups of 700.
TEST_P(ExpertTilesOf, ItemsLongerThanPAreTakenInChunks) {
  MOESCOPE_NEEDS_GPU();
  const std::vector<ScheduleOptions> options = {options_of(ScheduleKind::kStaircase, 64),
                                                options_of(ScheduleKind::kExpertCentric, 700)};
  expect_as_plain_loop(make(make_shape(150, 40, 1, 1000, 90), RoutingSkew::kGaussian), options);
  expect_as_plain_loop(make(make_shape(150, 40, 1000, 1, 90), RoutingSkew::kUniform), options);
  expect_as_plain_loop(make(make_shape(33, 136, 900, 3, 200), RoutingSkew::kPopular), options);
}

// Strips as wide as Table A's: wide tiles, two blocks of P.
TEST_P(ExpertTilesOf, EqualThePlainLoopOnLongStrips) {
  MOESCOPE_NEEDS_GPU();
  const std::vector<ScheduleOptions> options = {options_of(ScheduleKind::kStaircase, 64)};
  expect_as_plain_loop(make(make_shape(200, 96, 320, 320, 300), RoutingSkew::kGaussian), options);
  expect_as_plain_loop(make(make_shape(200, 200, 250, 170, 64), RoutingSkew::kTies), options);
}

// Every number of entries modulo the tile and its 16-row fragments, all in one strip.
TEST_P(ExpertTilesOf, TilesOfAnyFillEqualThePlainLoop) {
  MOESCOPE_NEEDS_GPU();
  for (const std::int64_t tokens : {15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 257}) {
    SCOPED_TRACE(tokens);
    expect_as_plain_loop(make(make_shape(tokens, 72, 1, 48, 5), RoutingSkew::kUniform),
                         {options_of(ScheduleKind::kStaircase, 64)});
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ExpertTilesOf, testing::Values(Dtype::kF32, Dtype::kBF16),
                         [](const auto& test) { return test.param == Dtype::kF32 ? "fp32" : "bf16"; });

TEST(ExpertTilesErrors, RowsThatAreNoMultipleOf16BytesAreNamed) {
  MOESCOPE_NEEDS_GPU();
  const ScheduleOptions options = options_of(ScheduleKind::kStaircase, 64);
  const LayerShape shape = make_shape(4, 12, 4, 4, 2);
  EXPECT_EQ(test::error_text<InvalidArgument>([&] {
              cuda::launch_expert_scores_tiles(shape, options, nullptr, {}, {}, {}, nullptr, nullptr);
            }),
            "hidden_size = 12: must be a multiple of 8 on the GPU");
}

// Schedule and experts in one graph, without a host in between: new routings give new results.
TEST(ExpertTilesGraph, ScheduleAndExpertsAreReplayedForNewRoutings) {
  MOESCOPE_NEEDS_GPU();
  const RoutingCase c{make_shape(90, 64, 24, 24, 20), RoutingSkew::kGaussian};
  const ScheduleOptions options = options_of(ScheduleKind::kStaircase, 64);
  ExpertCase inputs = ExpertCase::make(c, 9);
  const DeviceExperts device(inputs);
  const Scheduled scheduled(inputs, device, options);
  const DeviceOutput y(c.shape.num_tokens * c.shape.hidden_size);
  const cuda::Stream stream;
  MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  MOESCOPE_CUDA_CHECK(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal));
  cuda::launch_schedule(c.shape, options, device.routing(), scheduled.buffers.view(),
                        scheduled.workspace.get(), stream.get());
  cuda::launch_experts_tiles(c.shape, options, device.x(), device.weights(), device.routing(),
                             scheduled.buffers.view(), y.get(), stream.get());
  MOESCOPE_CUDA_CHECK(cudaStreamEndCapture(stream.get(), &graph));
  MOESCOPE_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  for (std::uint64_t seed = 10; seed < 13; ++seed) {
    inputs.routing = test::make_routing(c, seed);
    const cuda::DeviceRouting routing = device.routing();
    const std::size_t count = inputs.routing.expert_ids.size();
    MOESCOPE_CUDA_CHECK(
        cudaMemcpy(routing.expert_ids, inputs.routing.expert_ids.data(), count * 4, cudaMemcpyHostToDevice));
    MOESCOPE_CUDA_CHECK(
        cudaMemcpy(routing.gates, inputs.routing.gates.data(), count * 4, cudaMemcpyHostToDevice));
    MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());  // the stream does not wait for the default one
    MOESCOPE_CUDA_CHECK(cudaGraphLaunch(executable, stream.get()));
    EXPECT_LE(test::relative_error(y.host(), inputs.experts()), test::error_limit(c.shape.dtype));
  }
  MOESCOPE_CUDA_CHECK(cudaGraphExecDestroy(executable));
  MOESCOPE_CUDA_CHECK(cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace moescope
