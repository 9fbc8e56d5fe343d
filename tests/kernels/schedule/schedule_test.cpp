#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/buffers/schedule_buffers.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/expert_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using cuda::DeviceBuffer;
using cuda::DeviceRouting;
using cuda::ScheduleBuffers;
using test::make_shape;
using test::RoutingCase;
using test::RoutingSkew;

ScheduleOptions options_of(ScheduleKind kind, std::int64_t group_size) {
  return {.kind = kind, .group_size = group_size};
}

/// B = 1 has as many items as experts, 7 divides nothing, 64 is the default.
const std::array kOptions = {
    options_of(ScheduleKind::kStaircase, 64), options_of(ScheduleKind::kStaircase, 7),
    options_of(ScheduleKind::kExpertCentric, 64), options_of(ScheduleKind::kExpertCentric, 7),
    options_of(ScheduleKind::kExpertCentric, 1)};

/// Routing on the device, schedule arrays and workspace filled with rubbish.
class DeviceCase {
 public:
  DeviceCase(const LayerShape& shape, const ScheduleOptions& options)
      : shape_(shape),
        options_(options),
        ids_(shape.num_pairs()),
        buffers_(shape, options),
        workspace_(cuda::schedule_capacity(shape, options).workspace_bytes) {
    MOESCOPE_CUDA_CHECK(cudaMemset(workspace_.get(), 0xa5, static_cast<std::size_t>(workspace_.bytes())));
    const cuda::DeviceSchedule view = buffers_.view();
    MOESCOPE_CUDA_CHECK(cudaMemset(view.entry_tokens, 0xa5, static_cast<std::size_t>(view.max_entries) * 4));
    MOESCOPE_CUDA_CHECK(cudaMemset(view.counts, 0xa5, 4 * 8));
    MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());  // the stream does not wait for the default one
  }
  void upload(const Routing& routing) const {
    MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(ids_.get(), routing.expert_ids.data(),
                                        static_cast<std::size_t>(ids_.bytes()), cudaMemcpyHostToDevice,
                                        stream_.get()));
    stream_.synchronize();
  }
  void launch(cudaStream_t stream) const {
    cuda::launch_schedule(shape_, options_, {ids_.get(), nullptr}, buffers_.view(), workspace_.get(), stream);
  }
  Schedule download() const { return buffers_.download(stream_.get()); }
  std::vector<std::int64_t> tile_offsets() const {
    const cuda::DeviceSchedule view = buffers_.view();
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(view.max_items) + 1);
    MOESCOPE_CUDA_CHECK(
        cudaMemcpy(offsets.data(), view.item_tile_offsets, offsets.size() * 8, cudaMemcpyDeviceToHost));
    return offsets;
  }
  const ScheduleBuffers& buffers() const { return buffers_; }
  cudaStream_t stream() const { return stream_.get(); }

 private:
  LayerShape shape_;
  ScheduleOptions options_;
  DeviceBuffer<std::int32_t> ids_;
  ScheduleBuffers buffers_;
  DeviceBuffer<std::byte> workspace_;
  cuda::Stream stream_;
};

void expect_equal(const Schedule& device, const Schedule& host) {
  ASSERT_EQ(device.items.size(), host.items.size());
  for (std::size_t i = 0; i < host.items.size(); ++i) {
    const WorkItem& a = device.items[i];
    const WorkItem& b = host.items[i];
    ASSERT_EQ(a.kind, b.kind) << "item " << i;
    ASSERT_EQ(a.strip, b.strip) << "item " << i;
    ASSERT_EQ(a.expert_begin, b.expert_begin) << "item " << i;
    ASSERT_EQ(a.expert_end, b.expert_end) << "item " << i;
    ASSERT_EQ(a.token_begin, b.token_begin) << "item " << i;
    ASSERT_EQ(a.token_end, b.token_end) << "item " << i;
  }
  EXPECT_EQ(device.experts, host.experts);
  EXPECT_EQ(device.tokens, host.tokens);
  EXPECT_EQ(device.pair_offsets, host.pair_offsets);
  EXPECT_EQ(device.sorted_pair_ids, host.sorted_pair_ids);
}

/// Builds on the device and compares with core, and the tiles with the entries of the items.
void expect_as_core(const RoutingCase& c, const ScheduleOptions& options, std::uint64_t seed) {
  SCOPED_TRACE(std::string(to_string(options.kind)) + " B=" + std::to_string(options.group_size));
  const Routing routing = test::make_routing(c, seed);
  const Schedule host = build_schedule(routing, options);
  const DeviceCase device(c.shape, options);
  device.upload(routing);
  device.launch(device.stream());
  const Schedule schedule = device.download();
  expect_equal(schedule, host);
  validate(schedule, routing);
  std::int64_t tiles = 0;
  for (const WorkItem& item : host.items) tiles += ceil_div(item.token_end - item.token_begin, kTileEntries);
  const std::vector<std::int64_t> offsets = device.tile_offsets();
  EXPECT_EQ(offsets.front(), 0);
  EXPECT_EQ(offsets.back(), tiles);
  EXPECT_LE(tiles, max_tiles(device.buffers().view().max_items, device.buffers().view().max_entries));
}

class DeviceScheduleOf : public testing::TestWithParam<RoutingCase> {};

TEST_P(DeviceScheduleOf, EqualsCoresSchedule) {
  MOESCOPE_NEEDS_GPU();
  for (const ScheduleOptions& options : kOptions) {
    expect_as_core(GetParam(), options, 3);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, DeviceScheduleOf, testing::ValuesIn(test::routing_cases()),
                         [](const auto& test) { return test.param.name(); });

TEST(DeviceSchedule, EqualsCoresScheduleAtTableAGrid) {
  MOESCOPE_NEEDS_GPU();
  for (const RoutingSkew skew : {RoutingSkew::kGaussian, RoutingSkew::kUniform, RoutingSkew::kSameExperts}) {
    const RoutingCase c{make_shape(260, 8, 320, 320, 512), skew};
    expect_as_core(c, options_of(ScheduleKind::kStaircase, 64), 4);
    expect_as_core(c, options_of(ScheduleKind::kExpertCentric, 64), 4);
    expect_as_core(c, options_of(ScheduleKind::kExpertCentric, 1), 4);  // over 65536 items: 32-bit keys
  }
}

TEST(DeviceSchedule, EqualsCoresScheduleOnGridsTooLargeForSharedMemory) {
  MOESCOPE_NEEDS_GPU();
  expect_as_core({make_shape(40, 8, 1, 30000, 33), RoutingSkew::kUniform},
                 options_of(ScheduleKind::kStaircase, 64), 5);
  expect_as_core({make_shape(40, 8, 30000, 1, 33), RoutingSkew::kUniform},
                 options_of(ScheduleKind::kStaircase, 64), 5);
  expect_as_core({make_shape(400, 8, 4, 9000, 33), RoutingSkew::kPopular},
                 options_of(ScheduleKind::kStaircase, 64), 5);
}

TEST(DeviceSchedule, MixesStripsAndGroupsInOneBatch) {
  MOESCOPE_NEEDS_GPU();
  const LayerShape shape = make_shape(120, 8, 40, 40, 36);
  Routing routing = test::make_routing({shape, RoutingSkew::kGaussian}, 6);
  const Routing scattered = test::make_routing({shape, RoutingSkew::kUniform}, 7);
  for (std::int64_t token = 1; token < shape.num_tokens; token += 3) {
    for (std::int64_t p = token * shape.top_k; p < (token + 1) * shape.top_k; ++p) {
      routing.expert_ids[static_cast<std::size_t>(p)] = scattered.expert_ids[static_cast<std::size_t>(p)];
    }
  }
  const ScheduleOptions options = options_of(ScheduleKind::kStaircase, 16);
  const DeviceCase device(shape, options);
  device.upload(routing);
  device.launch(device.stream());
  const Schedule host = build_schedule(routing, options);
  ASSERT_FALSE(host.experts.empty());
  ASSERT_EQ(host.items.front().kind, WorkItemKind::kRowStrip);
  expect_equal(device.download(), host);
}

TEST(DeviceSchedule, IsCapturedOnceAndReplayedForNewRoutings) {
  MOESCOPE_NEEDS_GPU();
  const RoutingCase c{make_shape(200, 8, 32, 32, 24), RoutingSkew::kGaussian};
  for (const ScheduleOptions& options : kOptions) {
    const DeviceCase device(c.shape, options);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    MOESCOPE_CUDA_CHECK(cudaStreamBeginCapture(device.stream(), cudaStreamCaptureModeGlobal));
    device.launch(device.stream());
    MOESCOPE_CUDA_CHECK(cudaStreamEndCapture(device.stream(), &graph));
    MOESCOPE_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      const Routing routing = test::make_routing(c, seed);
      device.upload(routing);
      MOESCOPE_CUDA_CHECK(cudaGraphLaunch(executable, device.stream()));
      expect_equal(device.download(), build_schedule(routing, options));
    }
    MOESCOPE_CUDA_CHECK(cudaGraphExecDestroy(executable));
    MOESCOPE_CUDA_CHECK(cudaGraphDestroy(graph));
  }
}

TEST(ScheduleCapacity, KeepsStaircaseWithItsOutputUnder64MiBAtTableA) {
  const LayerShape shape = make_shape(4096, 1024, 320, 320, 512);
  const auto capacity = cuda::schedule_capacity(shape, options_of(ScheduleKind::kStaircase, 64));
  const std::int64_t y_bytes = shape.num_tokens * shape.hidden_size * 4;
  EXPECT_LE(capacity.array_bytes + capacity.workspace_bytes + y_bytes, std::int64_t{64} << 20);
}

TEST(ScheduleCapacity, CountsTheArraysThatAreAllocated) {
  MOESCOPE_NEEDS_GPU();
  for (const LayerShape& shape : test::routing_shapes()) {
    for (const ScheduleOptions& options : kOptions) {
      EXPECT_EQ(ScheduleBuffers(shape, options).bytes(), cuda::schedule_capacity(shape, options).array_bytes);
    }
  }
}

TEST(ScheduleCapacity, NamesWhatCannotWork) {
  using test::error_text;
  const LayerShape shape = make_shape(4, 8, 4, 4, 2);
  EXPECT_EQ(error_text<InvalidArgument>(
                [&] { (void)cuda::schedule_capacity(shape, options_of(ScheduleKind::kStaircase, 0)); }),
            "group_size = 0: must be at least 1");
  const LayerShape large = make_shape(1 << 20, 8, 64, 64, 2048);
  EXPECT_EQ(error_text<InvalidArgument>(
                [&] { (void)cuda::schedule_capacity(large, options_of(ScheduleKind::kExpertCentric, 64)); }),
            "num_tokens * top_k = 2147483648: must be below 2^31 for schedule expert_centric");
  EXPECT_NE(error_text<InternalError>([&] {
              (void)cuda::schedule_capacity(shape, options_of(ScheduleKind::kTokenCentric, 64));
            }).find("token_centric"),
            std::string::npos);
}

}  // namespace
}  // namespace moescope
