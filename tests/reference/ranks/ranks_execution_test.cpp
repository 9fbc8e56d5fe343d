// A layer on P ranks of one process: the same output as on one, whatever the placement and the exchange.
#include "reference/ranks/ranks_execution.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include "core/base/error.hpp"
#include "core/layer/training.hpp"
#include "reference/backend/cpu_rates.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/oracle.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/layers.hpp"
#include "tests/support/placements.hpp"

namespace moescope {
namespace {

using reference::RanksExecution;
using test::error_text;

#ifdef MOESCOPE_SANITIZED
constexpr std::array kRankCounts = {1, 3, 64};  // all of them take minutes there
#else
constexpr std::array kRankCounts = {1, 2, 3, 4, 7, 8, 64};
#endif
constexpr std::array kExchanges = {Exchange::kGather, Exchange::kDispatch};
constexpr std::array kKinds = {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                               ScheduleKind::kStaircase};

double tolerance(Dtype dtype) { return dtype == Dtype::kBF16 ? 4e-3 : 1e-5; }

ScheduleOptions options_of(ScheduleKind kind, std::int64_t ranks, const PlacementSpec& spec,
                           Exchange exchange) {
  ScheduleOptions options;
  options.kind = kind;
  options.ranks = {{ranks, 1}, spec, exchange};
  return options;
}

bool same_bits(const HostTensor& a, const HostTensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

/// A layer with what one device and the oracle make of it.
struct Truth {
  LayerInputs inputs;
  Routing routing;
  std::vector<std::int64_t> tokens;
  OracleLayer oracle;

  explicit Truth(LayerInputs made) : inputs(std::move(made)) {
    ReferenceBackend backend;
    routing = inputs.fixed_routing ? *inputs.fixed_routing
                                   : backend.router_select(inputs.shape, backend.router_project(inputs));
    tokens = spread_tokens(inputs.shape.num_tokens, 40);
    OracleOptions options;
    options.tokens = tokens;
    options.selection = &routing;
    oracle = oracle_layer(inputs, options);
  }

  /// Runs the layer on ranks and holds everything that must hold.
  void check(ScheduleKind kind, std::int64_t ranks, const std::string& placement, Exchange exchange) const {
    const PlacementSpec spec = test::fitting(PlacementSpec::parse(placement), routing, ranks);
    RanksExecution layer(inputs, options_of(kind, ranks, spec, exchange), reference::cpu_rates(1));
    layer.run(L2State::kWarm);
    const std::string what = inputs.shape.label() + " " + placement + " P " + std::to_string(ranks) + " " +
                             std::string(to_string(exchange)) + " " + std::string(to_string(kind));
    EXPECT_EQ(layer.routing().expert_ids, routing.expert_ids) << what;
    EXPECT_EQ(layer.routing().gates, routing.gates) << what;
    validate(layer.plan(), layer.placement(), layer.routing());
    const auto report = compare(gather_rows(layer.output(), tokens), oracle.view());
    EXPECT_LE(report.relative_error, tolerance(inputs.shape.dtype)) << what << ": " << report.describe();
    EXPECT_EQ(layer.rank_report()->moved.dispatch, layer.rank_report()->planned.dispatch) << what;
    EXPECT_EQ(layer.rank_report()->moved.combine, layer.rank_report()->planned.combine) << what;
  }
};

/// Shapes with L not divisible by P and L < P, K = N, grids of one row or column; the router of the layer.
TEST(Ranks, ComputeTheLayerUnderEveryPlacementAndExchange) {
  std::size_t turn = 0;
  for (LayerShape shape : test::routing_shapes()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      shape.dtype = dtype;
      const Truth truth(test::make_layer(shape, 7));
      for (const std::string& placement : test::all_placements(shape.grid_rows + shape.grid_cols)) {
        for (const std::int64_t ranks : kRankCounts) {
          const ScheduleKind kind = kKinds[turn++ % kKinds.size()];
          truth.check(kind, ranks, placement, kExchanges[turn / 2 % 2]);
        }
      }
    }
  }
}

/// Routing of every skew, among it ranks that have tokens but no pairs (all tokens on the same experts).
TEST(Ranks, ComputeEveryWorkload) {
  std::size_t turn = 0;
  for (const test::RoutingSkew skew : test::kRoutingSkews) {
    LayerShape shape = test::make_shape(53, 24, 12, 20, 15, 8);
    LayerInputs inputs = test::make_layer(shape, 3);
    inputs.fixed_routing = test::make_routing({shape, skew}, 6);
    inputs.router = {};
    const Truth truth(std::move(inputs));
    for (const std::string& placement : test::all_placements()) {
      for (const Exchange exchange : kExchanges) {
        for (const std::int64_t ranks : {2, 7, 64}) {
          truth.check(kKinds[turn++ % kKinds.size()], ranks, placement, exchange);
        }
      }
    }
  }
}

TEST(Ranks, SomeHaveNoTokensAndSomeNoPairs) {
  LayerShape shape = test::make_shape(5, 16, 8, 8, 4);
  LayerInputs inputs = test::make_layer(shape, 2);
  inputs.fixed_routing = test::make_routing({shape, test::RoutingSkew::kSameExperts}, 1);
  inputs.router = {};
  const Truth truth(std::move(inputs));
  for (const Exchange exchange : kExchanges) {
    truth.check(ScheduleKind::kStaircase, 8, "linear", exchange);
    RanksExecution layer(truth.inputs,
                         options_of(ScheduleKind::kStaircase, 8, PlacementSpec::parse("linear"), exchange),
                         reference::cpu_rates(1));
    layer.run(L2State::kWarm);
    const RankReport& report = *layer.rank_report();
    EXPECT_TRUE(std::ranges::count(report.tokens, 0) > 0);
    EXPECT_TRUE(std::ranges::count(report.pairs, 0) > 0);
    EXPECT_EQ(std::accumulate(report.pairs.begin(), report.pairs.end(), std::int64_t{0}), 20);
  }
}

TEST(Ranks, AreBitIdenticalTwiceAndOverThreads) {
  LayerShape shape = test::make_shape(150, 40, 16, 24, 30, 24);
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    shape.dtype = dtype;
    const LayerInputs inputs = test::make_layer(shape, 5);
    for (const std::string& placement : test::all_placements()) {
      for (const Exchange exchange : kExchanges) {
        const ScheduleOptions options =
            options_of(ScheduleKind::kStaircase, 7, PlacementSpec::parse(placement), exchange);
        RanksExecution layer(inputs, options, reference::cpu_rates(1));
        const int before = omp_get_max_threads();
        omp_set_num_threads(1);
        layer.run(L2State::kWarm);
        const HostTensor first = layer.output();
        omp_set_num_threads(3);
        layer.run(L2State::kWarm);
        EXPECT_TRUE(same_bits(layer.output(), first)) << placement << to_string(exchange);
        RanksExecution again(inputs, options, reference::cpu_rates(1));
        again.run(L2State::kWarm);
        omp_set_num_threads(before);
        EXPECT_TRUE(same_bits(again.output(), first)) << placement << to_string(exchange);
      }
    }
  }
}

/// Where the partial sums are fp32 and the ranks' order is the pairs', nothing is lost by going around.
TEST(Ranks, OneRankGivesTheBitsOfOneDevice) {
  const LayerInputs inputs = test::make_layer(test::make_shape(64, 32, 16, 16, 12, 16), 4);
  for (const ScheduleKind kind : kKinds) {
    ScheduleOptions options = options_of(kind, 1, {}, Exchange::kGather);
    RanksExecution ranks(inputs, options, reference::cpu_rates(1));
    ranks.run(L2State::kWarm);
    ReferenceBackend backend;
    const auto one = backend.prepare(inputs, options);
    one->run(L2State::kWarm);
    EXPECT_TRUE(same_bits(ranks.output(), one->output())) << to_string(kind);
  }
}

TEST(Ranks, ReportTimesOfEveryStageAndRank) {
  const LayerInputs inputs = test::make_layer(test::make_shape(64, 32, 16, 16, 12, 16), 4);
  ReferenceBackend backend;
  const auto layer = backend.prepare(
      inputs, options_of(ScheduleKind::kAuto, 4, PlacementSpec::parse("strips+hot:4"), Exchange::kDispatch));
  layer->run(L2State::kWarm);
  ASSERT_NE(layer->rank_report(), nullptr);
  std::map<Stage, std::set<std::int64_t>> seen;
  for (const RankTime& time : layer->rank_report()->times) {
    EXPECT_GE(time.time_s, 0);
    EXPECT_TRUE(seen[time.stage].insert(time.rank).second);
  }
  EXPECT_EQ(seen.size(), layer->stages().size());
  for (const auto& [stage, ranks] : seen) {
    EXPECT_EQ(ranks.size(), 4U) << to_string(stage);
  }
  EXPECT_NE(layer->schedule_options().kind, ScheduleKind::kAuto);
  EXPECT_EQ(layer->schedule_options().ranks.group.ranks, 4);
}

TEST(Ranks, RefuseWhatTheyCannotRun) {
  const LayerInputs inputs = test::make_layer(test::make_shape(8, 16, 4, 4, 3), 4);
  ReferenceBackend backend;
  std::string why;
  EXPECT_FALSE(
      backend.supports_layer(inputs, options_of(ScheduleKind::kDenseMasked, 2, {}, Exchange::kGather), why));
  EXPECT_EQ(why, "computes all experts for every token; a rank has only its own");
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              backend.prepare(inputs, options_of(ScheduleKind::kDenseMasked, 2, {}, Exchange::kGather));
            }),
            "schedule = dense_masked: computes all experts for every token; a rank has only its own");
  EXPECT_FALSE(backend.supports_training(
      inputs, options_of(ScheduleKind::kStaircase, 2, {}, Exchange::kGather), {}, why));
  EXPECT_EQ(error_text<InvalidArgument>([&] {
              backend.prepare(inputs, options_of(ScheduleKind::kStaircase, 2,
                                                 PlacementSpec::parse("strips+hot:9"), Exchange::kGather));
            }),
            "placement = strips+hot:9: a grid of 4 x 4 has 8 strips");
}

// ---- what goes wrong

/// Loopback in which one rank does something else at one stage.
class Faulty final : public RankTransport {
 public:
  enum class Fault : std::uint8_t { kStops, kEnds, kCutsShort, kLosesATokenOnTheWayBack };

  Faulty(std::int64_t ranks, std::int64_t rank, Stage stage, Fault fault)
      : inner_(make_loopback_transport(ranks, std::chrono::milliseconds(100))),
        rank_(rank),
        stage_(stage),
        fault_(fault) {}

  std::int64_t ranks() const override { return inner_->ranks(); }
  void fail(std::int64_t rank, Stage stage, std::string_view why) override { inner_->fail(rank, stage, why); }
  std::vector<Message> exchange(std::int64_t rank, Stage stage, std::vector<Message> sent) override {
    if (rank == rank_ && stage == stage_) {
      switch (fault_) {
        case Fault::kStops:  // for longer than the others wait; then it finds them gone
          std::this_thread::sleep_for(std::chrono::milliseconds(400));
          break;
        case Fault::kEnds:
          inner_->fail(rank, stage, "ended");
          break;
        case Fault::kCutsShort:
          sent.at(0).pop_back();
          break;
        case Fault::kLosesATokenOnTheWayBack:
          sent.at(0).resize(sent.at(0).size() / 2);
          break;
      }
    }
    return inner_->exchange(rank, stage, std::move(sent));
  }

 private:
  std::unique_ptr<RankTransport> inner_;
  std::int64_t rank_;
  Stage stage_;
  Fault fault_;
};

std::string failure_of(Stage stage, Faulty::Fault fault) {
  const LayerInputs inputs = test::make_layer(test::make_shape(24, 16, 8, 8, 6), 4);
  RanksExecution layer(inputs, options_of(ScheduleKind::kStaircase, 4, {}, Exchange::kDispatch),
                       reference::cpu_rates(1), nullptr, std::make_unique<Faulty>(4, 2, stage, fault));
  return error_text<RankFailure>([&] { layer.run(L2State::kWarm); });
}

TEST(RankFailure, NamesTheRankAndTheStage) {
  for (const Stage stage : {Stage::kTokenDispatch, Stage::kTokenCombine}) {
    const std::string place = "rank 2, " + std::string(to_string(stage)) + ": ";
    EXPECT_EQ(failure_of(stage, Faulty::Fault::kStops), place + "did not come within 0.1 s");
    EXPECT_EQ(failure_of(stage, Faulty::Fault::kEnds), place + "ended");
  }
}

TEST(RankFailure, FindsMessagesThatAreCutShort) {
  const std::string cut = failure_of(Stage::kTokenDispatch, Faulty::Fault::kCutsShort);
  EXPECT_EQ(cut.find("rank 0, token_dispatch: the message from rank 2 ends after "), 0U) << cut;
  const std::string lost = failure_of(Stage::kTokenCombine, Faulty::Fault::kLosesATokenOnTheWayBack);
  EXPECT_EQ(lost.find("rank 0, token_combine: rank 2 returned "), 0U) << lost;
}

TEST(RankMessages, RefuseExpertsThatAreNotThere) {
  const LayerInputs inputs = test::make_layer(test::make_shape(4, 4, 2, 4, 2), 4);
  Routing routing = test::routing_of(2, 4, {{0, 7}, {1, 6}, {0, 1}, {6, 7}});
  const ExpertPlacement placement = make_placement(PlacementSpec::parse("linear"), {2, 1}, 2, 4, nullptr);
  const ExchangePlan plan =
      plan_exchange(Exchange::kDispatch, placement, routing, homes_of(placement, routing));
  const std::vector<std::int32_t> own = {0, 1};
  const std::vector<Message> good = {reference::pack_tokens(inputs, routing, plan, own, 0, 1), {}};
  EXPECT_EQ(reference::unpack_tokens(inputs, placement, Exchange::kDispatch, good, 1).routing.expert_ids,
            (std::vector<std::int32_t>{7, 6}));
  EXPECT_EQ(error_text<RankFailure>(
                [&] { reference::unpack_tokens(inputs, placement, Exchange::kDispatch, good, 0); }),
            "rank 0, token_dispatch: the message from rank 0 asks for expert 7, which is not here");
  std::vector<Message> bad = good;
  bad[0][8 + 4 * 2] = std::byte{99};  // behind token, count and a row of bf16: the first expert
  EXPECT_EQ(error_text<RankFailure>(
                [&] { reference::unpack_tokens(inputs, placement, Exchange::kDispatch, bad, 1); }),
            "rank 1, token_dispatch: the message from rank 0 has expert 99 behind -1");
}

}  // namespace
}  // namespace moescope
