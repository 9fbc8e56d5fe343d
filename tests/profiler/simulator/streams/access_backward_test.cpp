// What the backward's kernels ask of memory, held against what follows from the mathematics and the schedule.
#include "profiler/simulator/streams/access_backward.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.hpp"
#include "core/cost/memory_plan.hpp"
#include "core/cost/traffic.hpp"
#include "core/workload/workload.hpp"
#include "reference/backend/reference_backend.hpp"
#include "tests/support/devices.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/launch_rows.hpp"

namespace moescope {
namespace {

using test::on_large_gpu;

struct Backward {
  LayerShape shape;
  Routing routing;
  Schedule schedule;
  TrainingOptions training;
  bool fixed = false;
  std::vector<KernelLaunch> launches;

  explicit Backward(ScheduleKind kind, SaveMode save = SaveMode::kLogProbs, bool fixed_routing = false,
                    StripRule rule = StripRule::kMinimalCover)
      : training{.save = save}, fixed(fixed_routing) {
    shape.num_tokens = 300;
    shape.hidden_size = 128;
    shape.grid_rows = 24;
    shape.grid_cols = 20;
    shape.top_k = 12;
    shape.shared_size = 32;
    const LayerInputs inputs = make_workload(WorkloadSpec::parse("gaussian:1"), shape, 3);
    ReferenceBackend backend;
    routing = backend.router_select(shape, backend.router_project(inputs));
    schedule = build_schedule(routing, {.kind = kind, .deterministic = false, .strip_rule = rule});
    launches = training_stream(shape, routing, schedule, training, on_large_gpu(), fixed);
  }

  detail::BackwardContext context() const {
    return {detail::make_context(shape, routing, schedule, on_large_gpu(), fixed), training};
  }
  std::vector<Stage> stages() const {
    std::vector<Stage> found;
    for (const KernelLaunch& launch : launches) {
      if (found.empty() || found.back() != launch.stage) {
        found.push_back(launch.stage);
      }
    }
    return found;
  }
  template <class Visit>
  void for_each_row(Stage stage, const Visit& visit) const {
    test::for_each_row(launches, stage, visit);
  }
  /// Bytes asked of [begin, begin + size) by a stage, by kind.
  std::map<AccessKind, std::int64_t> bytes(Stage stage, std::uint64_t begin, std::int64_t size) const {
    std::map<AccessKind, std::int64_t> sums;
    for_each_row(stage, [&](std::uint64_t address, std::uint64_t count, AccessKind kind) {
      if (address >= begin && address < begin + static_cast<std::uint64_t>(size)) {
        sums[kind] += static_cast<std::int64_t>(count);
      }
    });
    return sums;
  }
  std::int64_t tensor_flop(Stage stage) const {
    double flop = 0;
    WorkUnit unit;
    for (const KernelLaunch& launch : launches) {
      for (std::int64_t u = 0; launch.stage == stage && u < launch.units; ++u) {
        launch.fill(u, unit);
        flop += unit.tensor_flop;
      }
    }
    return static_cast<std::int64_t>(flop);
  }
  std::int64_t row_bytes() const { return shape.hidden_size * 2; }
  std::int64_t matrix_bytes() const { return shape.num_experts() * row_bytes(); }
  std::int64_t token_bytes() const { return shape.num_tokens * row_bytes(); }
};

constexpr std::array kKinds = {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                               ScheduleKind::kStaircase, ScheduleKind::kDenseMasked};

TEST(AccessBackward, StagesAreThoseThatABackendRuns) {
  for (const ScheduleKind kind : kKinds) {
    for (const SaveMode save : {SaveMode::kMinimal, SaveMode::kLogProbs, SaveMode::kScores}) {
      for (const bool fixed : {false, true}) {
        if (fixed && kind == ScheduleKind::kStaircase) {
          continue;
        }
        const Backward b(kind, save, fixed);
        std::vector<Stage> wanted = backward_stages(b.shape, fixed, save);
        if (kind != ScheduleKind::kStaircase) {  // lists of pairs are as the selection leaves them
          std::erase(wanted, Stage::kSchedule);
        }
        EXPECT_EQ(b.stages(), wanted) << to_string(b.schedule.options) << " " << to_string(save);
      }
    }
  }
}

/// Every row of dW and dV is stored, whatever the road there; and X and dY are read whole.
TEST(AccessBackward, WeightGradientsAreWrittenWhole) {
  for (const ScheduleKind kind : kKinds) {
    const Backward b(kind);
    const auto context = b.context();
    for (const std::uint64_t gradient : {context.at.w_in_gradient, context.at.w_out_gradient}) {
      std::set<std::uint64_t> rows;
      b.for_each_row(Stage::kExpertsWgrad, [&](std::uint64_t address, std::uint64_t, AccessKind access) {
        if (access == AccessKind::kWrite && address >= gradient &&
            address < gradient + static_cast<std::uint64_t>(b.matrix_bytes())) {
          rows.insert((address - gradient) / static_cast<std::uint64_t>(b.row_bytes()));
        }
      });
      EXPECT_EQ(static_cast<std::int64_t>(rows.size()), b.shape.num_experts()) << to_string(kind);
      const auto asked = b.bytes(Stage::kExpertsWgrad, gradient, b.matrix_bytes());
      if (kind != ScheduleKind::kStaircase) {
        EXPECT_EQ(asked.at(AccessKind::kWrite), b.matrix_bytes()) << to_string(kind);
        EXPECT_FALSE(asked.contains(AccessKind::kRead)) << to_string(kind);
      }
    }
    for (const std::uint64_t tokens : {context.map.x, context.at.dy}) {
      auto asked = b.bytes(Stage::kExpertsWgrad, tokens, b.token_bytes());
      EXPECT_GE(asked[AccessKind::kRead] + asked[AccessKind::kReadCached], b.token_bytes());
    }
  }
}

TEST(AccessBackward, PairsReadARowOfEachMatrixForEveryPair) {
  for (const SaveMode save : {SaveMode::kLogProbs, SaveMode::kScores}) {
    const Backward b(ScheduleKind::kTokenCentric, save);
    const auto context = b.context();
    const std::int64_t pairs = b.routing.num_pairs();
    const Stage dgrad = Stage::kExpertsDgrad;
    for (const std::uint64_t matrix : {context.map.w_in, context.map.w_out}) {
      EXPECT_EQ(b.bytes(dgrad, matrix, b.matrix_bytes())[AccessKind::kReadCached], pairs * b.row_bytes());
    }
    for (const std::uint64_t array : {context.at.gate_gradients, context.at.p, context.at.q}) {
      EXPECT_EQ(b.bytes(dgrad, array, pairs * 4)[AccessKind::kWrite], pairs * 4);
    }
    EXPECT_EQ(b.bytes(dgrad, context.at.z, pairs * 4)[AccessKind::kReadCached],
              save == SaveMode::kScores ? pairs * 4 : 0);
    // The shared MLP's part is there already.
    EXPECT_EQ(b.bytes(dgrad, context.at.dx_sums, 2 * b.token_bytes())[AccessKind::kReadCached],
              2 * b.token_bytes());
    // Owners: of every pair a row of X and one of dY, and the two numbers that scale them.
    for (const std::uint64_t tokens : {context.map.x, context.at.dy}) {
      EXPECT_EQ(b.bytes(Stage::kExpertsWgrad, tokens, b.token_bytes())[AccessKind::kReadCached],
                pairs * b.row_bytes());
    }
    for (const std::uint64_t array : {context.at.p, context.at.q}) {
      EXPECT_EQ(b.bytes(Stage::kExpertsWgrad, array, pairs * 4)[AccessKind::kReadCached], pairs * 4);
    }
  }
}

/// The sort runs beside the data gradients; what needs them does not.
TEST(AccessBackward, TheSortOfThePairsHidesBesideTheDataGradients) {
  const Backward b(ScheduleKind::kExpertCentric);
  std::set<std::string> beside;
  std::set<std::string> waits;
  for (const KernelLaunch& launch : b.launches) {
    if (launch.stage == Stage::kExpertsWgrad) {
      (launch.overlap == Overlap::kDgrad ? beside : waits).insert(launch.name);
    }
  }
  EXPECT_EQ(waits, std::set<std::string>{"wgrad by expert"});
  EXPECT_TRUE(beside.contains("sort pairs") && beside.contains("touched experts"));
}

TEST(AccessBackward, StripsReadVThenWAndKeepWhatBelongsToPairs) {
  for (const SaveMode save : {SaveMode::kLogProbs, SaveMode::kScores}) {
    for (const StripRule rule : {StripRule::kMinimalCover, StripRule::kRowsOnly}) {
      const Backward b(ScheduleKind::kStaircase, save, false, rule);
      const auto context = b.context();
      std::int64_t experts = 0;
      std::int64_t columns = 0;
      for (const WorkItem& item : b.schedule.items) {
        const bool row = item.kind == WorkItemKind::kRowStrip;
        const std::int64_t length = row ? b.shape.grid_cols : b.shape.grid_rows;
        experts += length * ceil_div(item.token_end - item.token_begin, std::int64_t{kStripTileTokens});
        columns += row ? 0 : length;
      }
      const auto entries = static_cast<std::int64_t>(b.schedule.tokens.size());
      const Stage dgrad = Stage::kExpertsDgrad;
      const std::int64_t products = save == SaveMode::kScores ? 1 : 2;  // of W: z again
      EXPECT_EQ(b.bytes(dgrad, context.map.w_in, b.matrix_bytes())[AccessKind::kRead],
                products * experts * b.row_bytes());
      EXPECT_EQ(b.bytes(dgrad, context.map.w_out, b.matrix_bytes())[AccessKind::kRead],
                experts * b.row_bytes());
      EXPECT_EQ(b.bytes(dgrad, context.at.dy, b.token_bytes())[AccessKind::kRead], entries * b.row_bytes());
      EXPECT_EQ(b.bytes(dgrad, context.map.x, b.token_bytes())[AccessKind::kRead],
                (products - 1) * entries * b.row_bytes());
      auto sums = b.bytes(dgrad, context.at.sums, b.token_bytes());
      EXPECT_EQ(sums[AccessKind::kReduceKept], entries * b.row_bytes()) << "fp16";
      EXPECT_EQ(sums[AccessKind::kWrite], b.token_bytes());
      EXPECT_EQ(sums[AccessKind::kRead], b.token_bytes());
      const std::int64_t segment = context.strip_segment() * 2;
      EXPECT_EQ(b.bytes(dgrad, context.at.h, entries * context.at.pitch_bytes)[AccessKind::kWrite],
                entries * segment);
      EXPECT_EQ(
          b.bytes(Stage::kRouterSelectBackward, context.at.h_sums, 2 * entries * 4)[AccessKind::kReadCached],
          2 * entries * 4);
      // Rows store all experts, columns read what is there and store it again.
      for (const std::uint64_t gradient : {context.at.w_in_gradient, context.at.w_out_gradient}) {
        auto asked = b.bytes(Stage::kExpertsWgrad, gradient, b.matrix_bytes());
        EXPECT_EQ(asked[AccessKind::kRead], columns * b.row_bytes());
        EXPECT_EQ(asked[AccessKind::kWrite], b.matrix_bytes() + columns * b.row_bytes());
      }
      EXPECT_EQ(columns == 0, rule == StripRule::kRowsOnly);
    }
  }
}

TEST(AccessBackward, DenseProductsMultiplyEverythingThreeTimesAndTwice) {
  const std::int64_t product = 2 * 300 * 128 * 480;
  for (const SaveMode save : {SaveMode::kLogProbs, SaveMode::kScores}) {
    const Backward b(ScheduleKind::kDenseMasked, save);
    EXPECT_GE(b.tensor_flop(Stage::kExpertsDgrad), (save == SaveMode::kScores ? 2 : 3) * product);
    EXPECT_GE(b.tensor_flop(Stage::kExpertsWgrad), 2 * product);
    const auto context = b.context();
    // What the kernel between products leaves of every pair, and where it leaves q: one value a pair.
    EXPECT_EQ(b.bytes(Stage::kExpertsDgrad, context.at.q, b.routing.num_pairs() * 4)[AccessKind::kWrite],
              b.routing.num_pairs() * 4);
  }
}

/// At least each byte that the analytic model has for compulsory, of stages whose tensors are laid out alike.
TEST(AccessBackward, RouterAndSharedMlpMoveWhatTheyNeed) {
  const Backward b(ScheduleKind::kTokenCentric);
  const AnalyticCost cost = backward_cost(b.shape, b.routing, b.schedule, false, b.training);
  for (const Stage stage :
       {Stage::kSharedMlpBackward, Stage::kRouterProjectBackward, Stage::kRouterSelectBackward}) {
    std::map<AccessKind, std::int64_t> moved = b.bytes(stage, 0, std::int64_t{1} << 40);
    const std::int64_t reads =
        moved[AccessKind::kRead] + moved[AccessKind::kReadCached] + moved[AccessKind::kReduce];
    // token_offsets are 8 bytes in the analytic model and not read here.
    EXPECT_GE(reads + 8 * (b.shape.num_tokens + 1), cost.bytes(stage, MemoryLevel::kHbm, Access::kRead))
        << to_string(stage);
    EXPECT_GE(moved[AccessKind::kWrite] + moved[AccessKind::kReduce],
              cost.bytes(stage, MemoryLevel::kHbm, Access::kWrite))
        << to_string(stage);
  }
}

TEST(AccessBackward, SaysWhatHasNoStream) {
  const Backward b(ScheduleKind::kStaircase);
  const auto text = [&](const TrainingOptions& training, bool fixed) {
    return test::error_text<InvalidArgument>(
        [&] { training_stream(b.shape, b.routing, b.schedule, training, on_large_gpu(), fixed); });
  };
  EXPECT_EQ(text({.losses = {.balance = 1}}, false),
            "losses = given: has no access stream: the backward is modelled without");
  EXPECT_EQ(text({.batch_norm = BatchNorm{}}, false),
            "batch_norm = given: has no access stream: the backward is modelled without");
  EXPECT_EQ(
      text({.form = GradientForm::kTouched}, false),
      "gradients = touched: have no access stream: the backward is modelled with gradients written whole");
  EXPECT_EQ(text({.optimizer = OptimizerForm::kDense}, false), "optimizer = dense: has no access stream");
  EXPECT_EQ(text({}, true),
            "schedule = staircase:atomics: in the backward needs the router's scores and bf16");
}

}  // namespace
}  // namespace moescope
