#include "profiler/cluster/cluster_spec.hpp"

#include <gtest/gtest.h>

#include <string>

#include "core/base/error.hpp"
#include "core/files/regular_file.hpp"
#include "profiler/cluster/collective_fit.hpp"
#include "profiler/cluster/exchange_time.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

std::string text_of(const std::string& name) {
  return read_text(test::source_path("data/clusters/" + name + ".json"));
}

std::string changed(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string refusal(const std::string& text) {
  return test::error_text<FileError>([&] { (void)parse_cluster(text, "mine.json"); });
}

CollectiveRecord measured() {
  return read_collectives(test::source_path("data/clusters/measured/h200-x2.json"));
}

TEST(ClusterSpec, EveryFileReadsAndEveryValueHasASource) {
  for (const std::string& name : known_clusters()) {
    const ClusterSpec cluster = find_cluster(name);
    EXPECT_FALSE(cluster.sources.empty()) << name;
    for (const auto& [key, source] : cluster.sources) {
      EXPECT_FALSE(source.empty()) << name << " " << key;
    }
    EXPECT_TRUE(std::filesystem::exists(test::source_path("data/devices/" + cluster.device))) << name;
  }
  EXPECT_EQ(find_cluster("h200-x2").gpus(), 2);
  EXPECT_EQ(find_cluster("h200-node").gpus(), 8);
  EXPECT_EQ(find_cluster("h200-8x8").gpus(), 64);
}

TEST(ClusterSpec, RefusesWhatIsNoClusterByNameOfTheMember) {
  const std::string good = text_of("h200-8x8");
  EXPECT_EQ(refusal("{"), refusal("{"));
  EXPECT_NE(refusal("{").find("mine.json"), std::string::npos);
  EXPECT_EQ(refusal(changed(good, "\"gpus_per_node\"", "\"gpus\"")),
            "mine.json: values.gpus_per_node: missing");
  EXPECT_NE(refusal(changed(good, "\"value\": 8", "\"value\": 0")).find("must be in [1, 1024]"),
            std::string::npos);
  EXPECT_NE(refusal(changed(good, "\"basis\": \"assumption\"", "\"basis\": \"guess\""))
                .find("must be measured, data sheet or assumption"),
            std::string::npos);
  EXPECT_NE(refusal(changed(good, "\"message_s\": {\"value\": 5e-07", "\"message_s\": {\"value\": -1"))
                .find("values.message_s.value"),
            std::string::npos);
  EXPECT_NE(refusal(changed(good, "\"values\": {", "\"values\": {\"colour\": {},"))
                .find("values.colour: {}: is not a value of a cluster"),
            std::string::npos);
  EXPECT_NE(
      refusal(changed(good, "\"nic_latency_s\"", "\"nic_lateness_s\"")).find("values.nic_latency_s: missing"),
      std::string::npos);
  EXPECT_NE(test::error_text<InvalidArgument>([] { (void)find_cluster("h201"); }).find("h200-8x8"),
            std::string::npos);
}

TEST(ClusterSpec, RanksFillNodesAndOnlyANetworkGoesBeyondOne) {
  const ClusterSpec cluster = find_cluster("h200-8x8");
  EXPECT_EQ(cluster.group(7), (RankGroup{7, 1}));
  EXPECT_EQ(cluster.group(64), (RankGroup{64, 8}));
  EXPECT_EQ(cluster.group(512), (RankGroup{512, 64}));
  EXPECT_THROW((void)cluster.group(12), InvalidArgument);
  EXPECT_THROW((void)cluster.group(0), InvalidArgument);
  EXPECT_THROW((void)find_cluster("h200-node").group(16), InvalidArgument);
}

TEST(ClusterSpec, SaysWhatIsExtrapolated) {
  EXPECT_TRUE(find_cluster("h200-x2").extrapolated(2, 1e6).empty());
  EXPECT_EQ(find_cluster("h200-x2").extrapolated(2, 1e9).size(), 1U);
  const auto notes = find_cluster("h200-8x8").extrapolated(512, 1e6);
  std::string all;
  for (const std::string& note : notes) {
    all += note + "\n";
  }
  for (const char* part : {"more than 2 GPUs", "further nodes", "nic_bytes_per_s", "message_s"}) {
    EXPECT_NE(all.find(part), std::string::npos) << all;
  }
}

TEST(CollectiveFit, TellsHeldOutSizesWithinTheTargets) {
  const auto sizes = hold_out(measured().series);
  ASSERT_EQ(sizes.size(), 32U);
  const ErrorSummary all = summarise(sizes);
  EXPECT_LE(all.median, 0.10);
  EXPECT_LE(all.p90, 0.20);
  std::vector<HeldOutSize> large;
  for (const HeldOutSize& size : sizes) {
    if (size.bytes >= kLargeExchangeBytes) {
      large.push_back(size);
    }
  }
  const ErrorSummary of_large = summarise(large);
  EXPECT_LE(of_large.median, 0.06);
  EXPECT_LE(of_large.p90, 0.12);
  RecordProperty("median_percent", std::to_string(100 * all.median));
  RecordProperty("p90_percent", std::to_string(100 * all.p90));
  std::printf("held out: median %.1f %%, 90th percentile %.1f %%; sizes of the line: %.1f %%, %.1f %%\n",
              100 * all.median, 100 * all.p90, 100 * of_large.median, 100 * of_large.p90);
}

TEST(CollectiveFit, ASizeIsPredictedWithoutItself) {
  auto series = measured().series;
  const auto before = hold_out(series);
  for (std::size_t s = 0; s < series.size(); ++s) {
    for (std::size_t i = 0; i < series[s].bytes.size(); ++i) {
      auto moved = series;
      moved[s].time_s[i] *= 1.2;
      const auto after = hold_out(moved);
      EXPECT_EQ(after[s * 4 + i].predicted_s, before[s * 4 + i].predicted_s) << s << " " << i;
    }
  }
}

TEST(CollectiveFit, ClusterFilesHoldWhatWasFitted) {
  for (const std::string& name : known_clusters()) {
    const ClusterSpec cluster = find_cluster(name);
    for (const CollectiveSeries& series : measured().series) {
      if (series.launch != "graph" || series.primitive.starts_with("reduce")) {
        continue;
      }
      const TransferCurve fitted = fit_curve(series);
      const TransferCurve& kept = series.primitive == "all_gather" ? cluster.all_gather : cluster.all_to_all;
      EXPECT_NEAR(kept.small_s / fitted.small_s, 1, 1e-3) << name;
      EXPECT_NEAR(kept.alpha_s / fitted.alpha_s, 1, 1e-3) << name;
      EXPECT_NEAR(kept.bytes_per_s / fitted.bytes_per_s, 1, 1e-3) << name;
    }
  }
}

TEST(CollectiveFit, RefusesRecordsThatLie) {
  const std::string good = read_text(test::source_path("data/clusters/measured/h200-x2.json"));
  const auto refuse = [](const std::string& text) {
    return test::error_text<FileError>([&] { (void)parse_collectives(text, "r.json"); });
  };
  EXPECT_NE(refuse(changed(good, "[39, 45, 72, 175]", "[39, 45, 72]")).find("must have 4 times"),
            std::string::npos);
  EXPECT_NE(refuse(changed(good, "[39, 45", "[-39, 45")).find("must be positive"), std::string::npos);
  EXPECT_NE(refuse(changed(good, "[64, 1024", "[64, 32")).find("more than the one before"),
            std::string::npos);
}

TEST(ExchangeTime, TheSlowestLinkOrNicDecides) {
  const ClusterSpec cluster = find_cluster("h200-8x8");
  const RankGroup group{16, 2};
  std::vector<std::int64_t> bytes(256);
  bytes[0 * 16 + 1] = 40'000'000;
  ExchangeTime time = exchange_time(bytes, group, cluster.all_to_all, cluster);
  EXPECT_DOUBLE_EQ(time.time_s, cluster.all_to_all.time_s(4e7));
  EXPECT_FALSE(time.by_nic);
  EXPECT_EQ(time.rank_s[2], 0);
  EXPECT_EQ(time.rank_s[1], time.rank_s[0]) << "receiving takes as long as sending";
  bytes[3 * 16 + 9] = 40'000'000;
  bytes[3 * 16 + 10] = 5'000'000;
  time = exchange_time(bytes, group, cluster.all_to_all, cluster);
  EXPECT_TRUE(time.by_nic);
  EXPECT_EQ(time.slowest, 3);
  EXPECT_DOUBLE_EQ(time.time_s, cluster.nic_latency_s + cluster.message_s + 45e6 / cluster.nic_bytes_per_s);
  EXPECT_DOUBLE_EQ(time.bound_s, 45e6 / cluster.nic_bytes_per_s);
  EXPECT_EQ(time.bytes, 85'000'000);
  EXPECT_THROW((void)exchange_time(bytes, group, cluster.all_to_all, find_cluster("h200-node")),
               InvalidArgument);
}

TEST(ExchangeTime, TheCurveMeetsItsSmallTimeAndItsLine) {
  const TransferCurve curve = find_cluster("h200-x2").all_gather;
  EXPECT_EQ(curve.time_s(0), 0);
  EXPECT_DOUBLE_EQ(curve.time_s(1), curve.small_s);
  EXPECT_DOUBLE_EQ(curve.time_s(kSmallExchangeBytes), curve.small_s);
  EXPECT_NEAR(curve.time_s(kLargeExchangeBytes - 1), curve.time_s(kLargeExchangeBytes), 1e-10);
  EXPECT_DOUBLE_EQ(curve.time_s(1e9), curve.alpha_s + 1e9 / curve.bytes_per_s);
}

}  // namespace
}  // namespace moescope
