#include "profiler/cluster/volume_study.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>

#include "tests/support/routings.hpp"

namespace moescope {
namespace {

LayerVolume volume_at(std::int64_t tokens, std::int64_t side, std::int64_t top_k, std::int64_t ranks,
                      const ClusterSpec* cluster = nullptr) {
  LayerShape shape = test::make_shape(tokens, 64, side, side, top_k);
  shape.dtype = Dtype::kBF16;
  const Routing routing = test::make_routing({shape, test::RoutingSkew::kUniform}, 3);
  RankOptions options;
  options.group.ranks = ranks;
  return layer_volume(shape, routing, layer_point(shape, "cpu", "uniform", 3), options, cluster);
}

TEST(VolumeStudy, CountsDistinctExpertsAndWhatEachHomeFetches) {
  // Two tokens on two ranks; experts 0 and 1 lie on rank 0, 2 and 3 on rank 1. Token 0 is of rank 0.
  LayerShape shape = test::make_shape(2, 64, 2, 2, 2);
  shape.dtype = Dtype::kBF16;
  const Routing routing = test::routing_of(2, 2, {{0, 3}, {0, 3}});
  RankOptions options;
  options.group.ranks = 2;
  const LayerVolume volume =
      layer_volume(shape, routing, layer_point(shape, "cpu", "x", 0), options, nullptr);
  EXPECT_EQ(volume.active, 2);
  EXPECT_EQ(volume.most_active, 4);
  EXPECT_EQ(volume.weights, 2 * 2 * 64 * 2) << "expert 3 to rank 0, expert 0 to rank 1, two rows each";
  EXPECT_EQ(volume.dispatch, 2 * (128 + 8 + 8 + 128));
  EXPECT_EQ(volume.gather, 2 * (128 + 4 + 8 + 128));
  EXPECT_DOUBLE_EQ(volume.ranks_per_token, 2);
}

TEST(VolumeStudy, BytesFollowTheSizesThatTheyDependOn) {
  const auto axis_of = [](const char* name, std::vector<LayerVolume> layers) {
    return VolumeAxis{name, std::move(layers)};
  };
  const VolumeAxis experts =
      axis_of("N", {volume_at(64, 32, 8, 8), volume_at(64, 64, 8, 8), volume_at(64, 128, 8, 8)});
  EXPECT_NEAR(growth(experts, &LayerVolume::gather), 0, 0.01);
  EXPECT_NEAR(growth(experts, &LayerVolume::weights), 0, 0.1);
  const VolumeAxis few = axis_of("N", {volume_at(256, 4, 8, 8), volume_at(256, 8, 8, 8)});
  EXPECT_GT(growth(few, &LayerVolume::weights), 0.9) << "below min(N, L K) = L K they grow with N";
  const VolumeAxis tokens = axis_of("L", {volume_at(64, 64, 8, 8), volume_at(256, 64, 8, 8)});
  EXPECT_NEAR(growth(tokens, &LayerVolume::gather), 1, 0.05);
  EXPECT_NEAR(growth(tokens, &LayerVolume::dispatch), 1, 0.05);
  const VolumeAxis chosen = axis_of("K", {volume_at(64, 64, 1, 8), volume_at(64, 64, 4, 8)});
  EXPECT_GT(growth(chosen, &LayerVolume::dispatch), 0.5);
  for (const LayerVolume& layer : experts.layers) {
    EXPECT_LE(layer.active, layer.most_active);
  }
}

TEST(VolumeStudy, RowsAreOfEachLayerOnceAndTimesAreModelled) {
  const ClusterSpec cluster = find_cluster("h200-node");
  const LayerVolume base = volume_at(64, 32, 8, 8, &cluster);
  ASSERT_TRUE(base.gather_s && base.dispatch_s);
  const std::vector<VolumeAxis> axes = {{"N", {base, volume_at(64, 64, 8, 8, &cluster)}}, {"L", {base}}};
  std::map<std::pair<std::int64_t, std::string>, int> seen;
  for (const ResultRow& row : volume_rows(axes)) {
    row.validate();
    EXPECT_EQ(row.source, row.metric == "exchange_s" ? Source::kModelled : Source::kAnalytic);
    ++seen[{row.grid_rows, row.metric + row.exchange}];
  }
  for (const auto& [key, count] : seen) {
    EXPECT_EQ(count, 1) << key.first << " " << key.second;
  }
  EXPECT_EQ(seen.size(), 14U);
}

TEST(VolumeStudy, TheConclusionHasThePapersNumbersBesideTheModelled) {
  const ClusterSpec cluster = find_cluster("h200-node");
  const std::vector<VolumeAxis> axes = {{"N", {volume_at(64, 32, 8, 8), volume_at(64, 64, 8, 8)}}};
  std::string all;
  for (const std::string& text : volume_conclusion(axes, &cluster)) {
    all += text + "\n";
  }
  for (const char* part : {"N from 1024 to 4096 (L 64, K 8, P 8): gather constant", "0.521 ms on 8 GPUs",
                           "154 GB/s", "Modelled on 8 of 8 H200 of one node", "extrapolated from 2 GPUs"}) {
    EXPECT_NE(all.find(part), std::string::npos) << all;
  }
}

}  // namespace
}  // namespace moescope
