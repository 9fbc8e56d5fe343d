#include "profiler/placement/placement_study.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.hpp"
#include "core/files/npy.hpp"
#include "core/workload/trace_file.hpp"
#include "profiler/placement/placement_rows.hpp"
#include "profiler/placement/placement_text.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using test::error_text;

RoutedBatch batch_of(Routing routing, std::int64_t hidden_size = 0, std::int64_t expert_bytes = 0) {
  RoutedBatch batch;
  batch.name = "test";
  LayerShape shape;
  shape.num_tokens = routing.num_tokens;
  shape.hidden_size = std::max<std::int64_t>(hidden_size, 1);
  shape.grid_rows = routing.grid_rows;
  shape.grid_cols = routing.grid_cols;
  shape.top_k = 1;
  batch.point = layer_point(shape, "cpu", "trace:test", 0);
  batch.routing = std::move(routing);
  batch.hidden_size = hidden_size;
  batch.expert_bytes = expert_bytes;
  return batch;
}

/// 4096 tokens of a trained model of 64 experts, K 8 (tests/data/traces/README.md).
Routing trained_routing() {
  const std::string path = test::source_path("tests/data/traces/ffn64_unbalanced_layer1.npz");
  return trace_routing(read_array_file(path), path, std::nullopt);
}

std::vector<PlacementSpec> specs(std::initializer_list<const char*> texts) {
  std::vector<PlacementSpec> result;
  for (const char* text : texts) {
    result.push_back(PlacementSpec::parse(text));
  }
  return result;
}

/// The second half of the tokens, counted by NumPy with its own few lines: bincount, set, argsort.
TEST(PlacementStudy, CountsAsNumPyDoes) {
  const PlacementStudy study = study_placements(batch_of(trained_routing(), 256, 1000), {8, 2},
                                                specs({"linear", "round_robin", "lpt", "eplb:8"}));
  EXPECT_EQ(study.seen_tokens, 2048);
  EXPECT_EQ(study.judged_tokens, 2048);
  const PlacementUse& linear = study.placements[0].use;
  EXPECT_EQ(linear.pairs, (std::vector<std::int64_t>{6631, 454, 1618, 0, 1961, 4094, 1493, 133}));
  EXPECT_DOUBLE_EQ(linear.load_max_over_mean, 3.23779296875);
  EXPECT_DOUBLE_EQ(linear.ranks_per_token, 4.62158203125);
  EXPECT_DOUBLE_EQ(linear.remote_ranks_per_token, 4.03466796875);
  EXPECT_DOUBLE_EQ(linear.remote_nodes_per_token, 1);
  EXPECT_DOUBLE_EQ(linear.hottest_share, 1);
  EXPECT_EQ(linear.hottest_rank, 0);
  EXPECT_EQ(study.placements[0].dispatch.total(), 8642072);
  EXPECT_EQ(study.placements[0].gather.total(), 14852064);
  const PlacementUse& round_robin = study.placements[1].use;
  EXPECT_EQ(round_robin.pairs, (std::vector<std::int64_t>{2968, 1470, 2403, 1704, 391, 4606, 355, 2487}));
  EXPECT_DOUBLE_EQ(round_robin.remote_ranks_per_token, 5.05810546875);
  EXPECT_EQ(round_robin.hottest_rank, 5);
  EXPECT_EQ(study.placements[1].dispatch.total(), 10806104);
  EXPECT_DOUBLE_EQ(study.placements[2].use.load_max_over_mean, 1.1015625);
  EXPECT_DOUBLE_EQ(study.placements[3].use.load_max_over_mean, 1.09716796875);
}

TEST(PlacementStudy, SaysThatCopiesDoNotPayWhereTheyDoNot) {
  const PlacementStudy study =
      study_placements(batch_of(trained_routing()), {8, 1}, specs({"linear", "lpt", "eplb:8"}));
  const auto answer = copies_answer(study);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->verdict, CopiesVerdict::kDoNotPay);
  EXPECT_EQ(answer->without->spec.text(), "lpt");
  EXPECT_NEAR(answer->saved, 1 - 1.09716796875 / 1.1015625, 1e-12);
  EXPECT_NEAR(answer->ceiling, 1 - 1 / 1.1015625, 1e-12);
  const std::string text = placement_conclusion({&study, 1});
  EXPECT_TRUE(
      text.starts_with("copies do not pay. With eplb:8 the busiest rank has 1.097 times the mean, "
                       "0.4 % less than with lpt (1.102); perfect balance would save 9.2 %."))
      << text;
}

/// One expert has half of all pairs: without copies its rank cannot have less.
TEST(PlacementStudy, SaysThatCopiesPayWhereTheyDo) {
  std::vector<std::vector<std::int32_t>> tokens;
  for (std::int32_t t = 0; t < 400; ++t) {
    tokens.push_back({0, 1 + t % 31});
  }
  const PlacementStudy study =
      study_placements(batch_of(test::routing_of(1, 32, tokens)), {4, 1}, specs({"linear", "lpt", "eplb:4"}));
  const auto answer = copies_answer(study);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->verdict, CopiesVerdict::kPay);
  EXPECT_GE(answer->without->use.load_max_over_mean, 2);
  EXPECT_LT(answer->with->use.load_max_over_mean, 1.2);
  EXPECT_GT(answer->memory, 0);
}

/// Fitted to noise, a placement by counts gains on what it saw and nothing on what it did not.
TEST(PlacementStudy, JudgesOnTokensThatNoPlacementSaw) {
  const Routing routing =
      test::make_routing({test::make_shape(60, 8, 1, 64, 2), test::RoutingSkew::kUniform}, 3);
  const PlacementStudy study = study_placements(batch_of(routing), {8, 1}, specs({"lpt", "linear"}));
  const JudgedPlacement& lpt = study.placements[0];
  EXPECT_LT(lpt.seen_max_over_mean, 1.1);
  EXPECT_GT(lpt.use.load_max_over_mean, lpt.seen_max_over_mean);
  EXPECT_EQ(study.placements[1].seen_max_over_mean, study.placements[1].use.load_max_over_mean);
  // The first half alone decides where experts lie.
  Routing other = routing;
  for (std::int64_t p = other.token_offsets[30]; p < other.num_pairs(); p += 2) {
    other.expert_ids[p] = 0;
    other.expert_ids[p + 1] = 1;
  }
  const PlacementStudy changed = study_placements(batch_of(other), {8, 1}, specs({"lpt"}));
  EXPECT_EQ(changed.placements[0].placement.holders, lpt.placement.holders);
  EXPECT_NE(changed.placements[0].use.pairs, lpt.use.pairs);
}

TEST(PlacementStudy, LeavesOutWhatDoesNotFitAndSaysWhy) {
  const PlacementStudy study = study_placements(batch_of(test::routing_of(2, 2, {{0, 1}, {2, 3}, {0, 3}})),
                                                {2, 1}, specs({"linear", "strips+hot:9", "eplb:99"}));
  EXPECT_EQ(study.seen_tokens, 1);
  EXPECT_TRUE(study.placements[0].reason.empty());
  const std::string text = placement_conclusion({&study, 1});
  EXPECT_NE(text.find("strips+hot:9 was left out: placement = strips+hot:9: a grid of 2 x 2 has 4 strips"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("eplb:99 was left out: copies = 99"), std::string::npos) << text;
  EXPECT_EQ(placement_table({&study, 1}).num_rows(), 1);
  EXPECT_EQ(error_text<InvalidArgument>([] {
              study_placements(batch_of(test::routing_of(1, 2, {{0}})), {2, 1}, specs({"linear"}));
            }),
            "num_tokens = 1: must be at least 2: one half is for placing, the other for judging");
}

TEST(PlacementRows, HoldTheStudyAndAreValid) {
  const PlacementStudy study = study_placements(batch_of(trained_routing(), 256, 1000), {4, 2},
                                                specs({"linear", "eplb:4", "strips+hot:99"}));
  const std::vector<ResultRow> rows = placement_rows(study, true);
  std::map<std::string, double> sum;
  for (const ResultRow& row : rows) {
    EXPECT_NO_THROW(row.validate()) << row.metric;
    EXPECT_EQ(row.ranks, 4);
    EXPECT_EQ(row.source, Source::kAnalytic);
    sum[row.placement + " " + row.exchange + " " + row.metric] += row.value.value_or(0);
  }
  EXPECT_EQ(sum["linear none rank_pairs"], 2048 * 8);
  EXPECT_EQ(sum["linear none rank_experts"], 64);
  EXPECT_EQ(sum["linear none rank_expert_bytes"], 64000);
  EXPECT_EQ(sum["linear dispatch link_bytes"], sum["linear dispatch exchange_bytes"]);
  EXPECT_EQ(sum["linear gather link_bytes"], sum["linear gather exchange_bytes"]);
  EXPECT_EQ(std::ranges::count(rows, "strips+hot:99", &ResultRow::placement), 1);
  EXPECT_EQ(rows.back().status, Status::kSkipped);
  const auto has_links = [](const ResultRow& row) { return row.metric == "link_bytes"; };
  EXPECT_TRUE(std::ranges::none_of(placement_rows(study, false), has_links));
}

TEST(MergeHeads, JoinsExpertsOfATokensHeads) {
  const Routing rows = test::routing_of(2, 3, {{0, 4}, {1, 4}, {2, 3}, {2, 5}});
  const Routing merged = merge_heads(rows, 2);
  EXPECT_NO_THROW(merged.validate());
  EXPECT_EQ(merged.num_tokens, 2);
  EXPECT_EQ(merged.expert_ids, (std::vector<std::int32_t>{0, 1, 4, 2, 3, 5}));
  EXPECT_EQ(merged.gates[2], 1.0F);
  EXPECT_EQ(error_text<InvalidArgument>([&] { merge_heads(rows, 3); }),
            "heads = 3: must divide 4 rows of routing");
}

TEST(SliceTokens, IsARoutingOfItsOwn) {
  const Routing part = slice_tokens(test::routing_of(2, 2, {{0}, {1, 2}, {3}}), 1, 3);
  EXPECT_NO_THROW(part.validate());
  EXPECT_EQ(part.token_offsets, (std::vector<std::int64_t>{0, 2, 3}));
  EXPECT_EQ(part.expert_ids, (std::vector<std::int32_t>{1, 2, 3}));
}

}  // namespace
}  // namespace moescope
