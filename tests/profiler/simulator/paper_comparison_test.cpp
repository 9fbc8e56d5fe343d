#include "profiler/simulator/paper_comparison.hpp"

#include <gtest/gtest.h>

#include "core/systems/system_cost.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

DeviceSpec a100() { return read_device(test::source_path("data/devices/a100-sxm-80gb/device.json")); }

TEST(SystemBound, IsALaunchAndTheLongestOfBytesAndFlop) {
  const DeviceSpec device = a100();
  SystemShape shape = find_system_preset(System::kDenseMlp, "table-a").shape;  // d 1024, width 4096
  shape.num_tokens = 4096;
  const StageBounds dense = system_bound(shape, device);
  ASSERT_EQ(dense.size(), 2U);
  // Three products of [4096, 1024] x [1024, 4096] and what stands between them.
  EXPECT_NEAR(dense[0].second, device.launch_s + 6.0 * 4096 * 1024 * 4096 / device.tensor_bf16_flop_per_s,
              2e-6);
  EXPECT_EQ(dense[1].first, Stage::kLayer);
  EXPECT_DOUBLE_EQ(dense[1].second, dense[0].second);
  // One token: the weights once from HBM.
  shape.num_tokens = 1;
  EXPECT_NEAR(system_bound(shape, device)[0].second,
              device.launch_s + 3.0 * 1024 * 4096 * 2 / device.hbm_read_bytes_per_s, 1e-7);
}

TEST(SystemBound, GathersRowsOfEveryPairFromL2) {
  const DeviceSpec device = a100();
  SystemShape shape = find_system_preset(System::kPeer, "table-a").shape;
  shape.num_tokens = 4096;
  const StageBounds peer = system_bound(shape, device);
  ASSERT_EQ(peer.size(), 4U);
  EXPECT_EQ(peer[2].first, Stage::kExperts);
  const double rows = 2.0 * 4096 * 1250 * 1024 * 2 / device.l2_bytes_per_s;
  EXPECT_NEAR(peer[2].second, rows, 0.01 * rows);
  EXPECT_DOUBLE_EQ(peer[3].second, peer[0].second + peer[1].second + peer[2].second);
  for (const System system : systems()) {
    if (system != System::kOmniMoe) {
      EXPECT_EQ(system_bound(find_system_preset(system, "small").shape, device).size(),
                system_stages(system).size() + 1);
    }
  }
}

TEST(SystemBound, AnNWayRouterIsAMatrixProductAndAPassOverItsLogits) {
  const DeviceSpec device = a100();
  const LayerShape shape = find_preset("table-a-4096-512").shape;
  const StageBounds bounds = full_router_bound(shape, device);
  ASSERT_EQ(bounds.size(), 3U);
  const double flop = 2.0 * 4096 * 1024 * 102400;
  EXPECT_NEAR(bounds[0].second, device.launch_s + flop / device.tensor_bf16_flop_per_s, 1e-9);
  EXPECT_GT(bounds[1].second, 4.0 * 4096 * 102400 / device.hbm_read_bytes_per_s);
}

/// A layer of the given stages and seconds.
LayerModel layer(std::initializer_list<std::pair<Stage, double>> stages) {
  LayerModel model;
  double sum = 0;
  for (const auto& [stage, time_s] : stages) {
    StageModel& made = model.stages.emplace_back();
    made.stage = stage;
    made.time_s = time_s;
    sum += time_s;
  }
  model.stages.emplace_back().time_s = sum;
  return model;
}

TEST(PaperComparison, PutsTheModelBesideEveryFigure) {
  PaperModel model;
  model.device = a100();
  model.shape = find_preset("table-a-4096-512").shape;
  model.peer = find_system_preset(System::kPeer, "table-a").shape;
  model.peer.num_tokens = 4096;
  model.expert_centric =
      layer({{Stage::kRouterProject, 1e-4}, {Stage::kSchedule, 1e-4}, {Stage::kExperts, 6.5e-3}});
  model.token_centric = layer({{Stage::kExperts, 13.4e-3}});
  model.staircase = layer({{Stage::kExperts, 1e-3}});
  model.without_shared = layer({{Stage::kExperts, 3.35e-3}});
  model.peer_gather = layer({{Stage::kExperts, 7.3e-3}});
  model.peer_bound_s = 5e-3;
  model.deepseekmoe_bound_s = 1e-3;
  model.full_router_bound_s = 1e-3;
  const auto lines = paper_lines(model);
  const auto line = [&](std::string_view figure, std::string_view means) {
    for (const PaperLine& one : lines) {
      if (one.figure == figure && one.means.starts_with(means)) {
        return one;
      }
    }
    ADD_FAILURE() << figure << ", " << means;
    return PaperLine{};
  };
  EXPECT_NEAR(line("OmniMoE layer", "simulated: expert_centric").ratio, 1, 1e-9);
  EXPECT_NEAR(line("PEER layer", "simulated: token_centric").ratio, 0.1, 1e-9);
  EXPECT_EQ(line("PEER layer", "roofline").model, "5.00 ms");
  EXPECT_EQ(line("latency without expert-centric scheduling", "simulated").model, "2x");
  // 2 L K d elements of 2 bytes, to HBM at its write and back at its read rate.
  const double copied =
      8589934592.0 / model.device.hbm_write_bytes_per_s + 8589934592.0 / model.device.hbm_read_bytes_per_s;
  EXPECT_NEAR(line("latency without expert-centric scheduling", "the same").ratio,
              (13.4e-3 + copied) / 6.7e-3 / 24.8, 1e-9);
  EXPECT_EQ(line("memory without expert-centric scheduling", "arithmetic").model, "512x");
  EXPECT_EQ(line("latency without the Cartesian router", "router alone").model, "10x");
  EXPECT_EQ(line("memory without the Cartesian router", "arithmetic").model, "160x");
  EXPECT_EQ(line("latency without the shared MLP", "simulated").model, "0.5x");
  EXPECT_EQ(line("scheduling, share of latency", "simulated").model, "1.5 %");
  EXPECT_EQ(paper_table(lines).num_rows(), static_cast<std::int64_t>(lines.size()));
}

}  // namespace
}  // namespace moescope
