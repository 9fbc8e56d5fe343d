#include "profiler/cluster/ranks_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/base/error.hpp"
#include "profiler/cluster/rank_share.hpp"
#include "profiler/cluster/scaling_text.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/placements.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

DeviceSpec h200() { return read_device(test::source_path("data/devices/h200-sxm/device.json")); }
Calibration fits() { return read_calibration(test::source_path("data/devices/h200-sxm/calibration.json")); }

/// A small layer with its routing.
struct Small {
  LayerShape shape;
  Routing routing;
  ClusterSpec cluster = find_cluster("h200-8x8");
  DeviceSpec device = h200();
  Calibration calibration = fits();

  explicit Small(std::int64_t tokens = 96) {
    shape = test::make_shape(tokens, 64, 16, 16, 12);
    shape.dtype = Dtype::kBF16;
    shape.shared_size = 64;
    routing = test::make_routing({shape, test::RoutingSkew::kPopular}, 7);
  }
  ScheduleOptions schedule(std::int64_t ranks, const std::string& placement, Exchange exchange) const {
    ScheduleOptions options;
    options.ranks = {cluster.group(ranks), PlacementSpec::parse(placement), exchange};
    return options;
  }
  RanksModel model(const ScheduleOptions& options, std::int64_t chunks = 1, bool overlap = true,
                   int threads = 1) const {
    ReplayOptions replay;
    replay.threads = threads;
    return model_ranks({shape, routing, false, options, chunks, overlap},
                       {cluster, device, calibration, replay});
  }
};

TEST(RankShare, RanksHaveEveryPairOnceAndTheRowsOfTheirExchange) {
  const Small small;
  for (const Exchange exchange : {Exchange::kGather, Exchange::kDispatch}) {
    for (const std::string& name : test::all_placements()) {
      const RankGroup group{8, 1};
      const ExpertPlacement placement =
          make_placement(PlacementSpec::parse(name), group, 16, 16, &small.routing);
      const ExchangePlan plan =
          plan_exchange(exchange, placement, small.routing, homes_of(placement, small.routing));
      std::int64_t pairs = 0;
      for (std::int64_t rank = 0; rank < 8; ++rank) {
        const Routing own = rank_routing(plan, small.routing, rank);
        own.validate();
        pairs += own.num_pairs();
        std::int64_t jobs = 0;
        for (std::int64_t home = 0; home < 8; ++home) {
          jobs += plan.jobs(home, rank);
        }
        EXPECT_EQ(own.num_tokens, exchange == Exchange::kGather ? small.routing.num_tokens : jobs) << name;
        EXPECT_EQ(own.num_pairs(), plan.pairs_per_rank()[static_cast<std::size_t>(rank)]) << name;
        for (const std::int32_t expert : own.expert_ids) {
          EXPECT_TRUE(placement.holds(rank, expert)) << name;
        }
      }
      EXPECT_EQ(pairs, small.routing.num_pairs()) << name;
    }
  }
}

TEST(RankShare, ChunksDealOutTheTokensOfEveryHome) {
  const Small small(37);
  const RankGroup group{4, 1};
  const auto home = consecutive_homes(37, group);
  std::int64_t pairs = 0;
  std::vector<std::int64_t> tokens(4);
  for (std::int64_t chunk = 0; chunk < 3; ++chunk) {
    std::vector<std::int32_t> chunk_home;
    const Routing part = chunk_routing(small.routing, home, group, chunk, 3, chunk_home);
    part.validate();
    pairs += part.num_pairs();
    for (const std::int32_t rank : chunk_home) {
      ++tokens[static_cast<std::size_t>(rank)];
    }
  }
  EXPECT_EQ(pairs, small.routing.num_pairs());
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(tokens[static_cast<std::size_t>(rank)], std::ranges::count(home, rank));
  }
}

TEST(RanksModel, OneGpuHasTheTimesOfTheSimulatorOfOne) {
  const Small small;
  const ScheduleOptions options = small.schedule(1, "linear", Exchange::kGather);
  const Schedule built = build_schedule(small.routing, options);
  const auto launches = layer_stream(small.shape, small.routing, built,
                                     small.device.stream_options(small.calibration.stream_constants()));
  const LayerModel alone = simulate_layer(launches, small.device, small.calibration, {});
  const RanksModel model = small.model(options);
  EXPECT_DOUBLE_EQ(model.layer_s, alone.stages.back().time_s);
  EXPECT_DOUBLE_EQ(model.ranks.front().shared_s, alone.find(Stage::kSharedMlp)->time_s);
  EXPECT_EQ(model.exposed_s(), 0);
  EXPECT_EQ(model.bytes, 0);
}

TEST(RanksModel, BytesAreThoseOfThePlanWhateverTheChunks) {
  const Small small;
  for (const Exchange exchange : {Exchange::kGather, Exchange::kDispatch}) {
    const ScheduleOptions options = small.schedule(8, "strips", exchange);
    const ExpertPlacement placement =
        make_placement(options.ranks.placement, options.ranks.group, 16, 16, &small.routing);
    const ExchangePlan plan =
        plan_exchange(exchange, placement, small.routing, homes_of(placement, small.routing));
    const LinkBytes bytes = link_bytes(plan, ExchangeSizes::of(exchange, 64, Dtype::kBF16));
    for (const std::int64_t chunks : {1, 3}) {
      const RanksModel model = small.model(options, chunks);
      EXPECT_EQ(model.bytes, bytes.total()) << chunks;
      const auto pairs =
          std::accumulate(model.ranks.begin(), model.ranks.end(), std::int64_t{0},
                          [](std::int64_t sum, const RankModel& rank) { return sum + rank.pairs; });
      EXPECT_EQ(pairs, small.routing.num_pairs());
      EXPECT_EQ(std::ssize(model.times.rows_s), chunks);
      EXPECT_GT(model.exposed_s(), 0);
      EXPECT_LE(model.exposed_s(), model.exchange_s * 1.0000001);
      EXPECT_GE(model.exchange_s, model.bound_s);
    }
  }
}

TEST(RanksModel, OverlapNeverTakesLongerAndThreadsChangeNothing) {
  const Small small;
  for (const std::string& name : test::all_placements()) {
    const ScheduleOptions options = small.schedule(4, name, Exchange::kGather);
    const RanksModel with = small.model(options);
    const RanksModel without = small.model(options, 1, false);
    EXPECT_LT(with.layer_s, without.layer_s) << name;
    EXPECT_DOUBLE_EQ(with.exchange_s, without.exchange_s) << name;
    EXPECT_EQ(small.model(options, 1, true, 2).layer_s, with.layer_s) << name;
  }
}

TEST(RanksModel, MoreRanksThanTokensLeaveSomeWithoutWork) {
  const Small small(5);
  const RanksModel model = small.model(small.schedule(64, "linear", Exchange::kDispatch), 2);
  EXPECT_TRUE(std::ranges::any_of(model.ranks, [](const RankModel& r) { return r.tokens == 0; }));
  EXPECT_TRUE(std::ranges::any_of(model.ranks, [](const RankModel& r) { return r.pairs == 0; }));
  EXPECT_GT(model.layer_s, 0);
  EXPECT_FALSE(model.extrapolated.empty());
}

TEST(RanksModel, RefusesWhatCannotBe) {
  const Small small;
  const ScheduleOptions options = small.schedule(4, "linear", Exchange::kGather);
  const auto refusal = [&](std::int64_t chunks, bool overlap, const ScheduleOptions& schedule) {
    return test::error_text<InvalidArgument>([&] { (void)small.model(schedule, chunks, overlap); });
  };
  EXPECT_EQ(refusal(0, true, options), "chunks = 0: must be at least 1");
  EXPECT_EQ(refusal(2, false, options), "chunks = 2: are for exchanges that overlap");
  EXPECT_EQ(refusal(2, true, small.schedule(1, "linear", Exchange::kGather)),
            "chunks = 2: are for several ranks");
  Small large;
  large.device.memory_bytes = 1 << 12;
  EXPECT_THROW((void)large.model(options), OutOfMemory);
}

TEST(ScalingText, EfficiencyIsAgainstTheFewestGpus) {
  ScalingStudy study;
  const auto add = [&](std::int64_t ranks, double layer_s) {
    ScalingPoint point;
    point.point.schedule = "staircase";
    point.model.group = {ranks, 1};
    point.model.layer_s = layer_s;
    study.points.push_back(point);
  };
  add(1, 8);
  add(4, 4);
  EXPECT_DOUBLE_EQ(*study.efficiency(study.points[0]), 1);
  EXPECT_DOUBLE_EQ(*study.efficiency(study.points[1]), 0.5);
  study.scaling = Scaling::kWeak;
  EXPECT_DOUBLE_EQ(*study.efficiency(study.points[1]), 2);
  study.points.erase(study.points.begin());
  EXPECT_FALSE(study.efficiency(study.points[0]).has_value());
}

TEST(ScalingText, RowsAreModelledAndSayWhatIsExtrapolated) {
  const Small small;
  ScalingStudy study;
  study.workload = "popular";
  for (const std::int64_t chunks : {1, 2}) {
    ScalingPoint point;
    const ScheduleOptions options = small.schedule(4, "linear", Exchange::kGather);
    point.point = layer_point(small.shape, "sim: x", "popular", 7);
    point.point.set_schedule(options);
    point.model = small.model(options, chunks);
    study.points.push_back(std::move(point));
  }
  int layers = 0;
  for (const ResultRow& row : scaling_rows(study)) {
    row.validate();
    EXPECT_EQ(row.source, Source::kModelled);
    EXPECT_EQ(row.ranks, 4);
    if (row.metric == "time_s" && row.stage == "layer" && !row.rank) {
      EXPECT_NE(row.reason.find("more than 2 GPUs were not measured"), std::string::npos);
      ++layers;
    }
  }
  EXPECT_EQ(layers, 1) << "the other is chunks2_time_s";
}

}  // namespace
}  // namespace moescope
