// The CPU backend as a whole: runs, replays, refusals.
#include <gtest/gtest.h>

#include <cstring>

#include "core/base/error.hpp"
#include "core/layer/tolerance.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/oracle.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

using test::error_text;

constexpr std::array kKinds = {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                               ScheduleKind::kStaircase, ScheduleKind::kDenseMasked};

ScheduleOptions options_of(ScheduleKind kind) {
  ScheduleOptions options;
  options.kind = kind;
  return options;
}

std::vector<Stage> stages_of(const std::vector<StageTime>& times) {
  std::vector<Stage> stages;
  for (const auto& time : times) stages.push_back(time.stage);
  return stages;
}

TEST(ReferenceBackend, WholeLayerIsWithinToleranceOfTheOracleUnderEverySchedule) {
  ReferenceBackend backend;
  for (LayerShape shape : test::routing_shapes()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
        shape.dtype = dtype;
        shape.gate_mode = mode;
        const auto inputs = test::make_layer(shape, 7);
        for (const ScheduleKind kind : kKinds) {
          const auto execution = backend.prepare(inputs, options_of(kind));
          execution->run(L2State::kWarm);
          const Routing routing = execution->routing();
          OracleOptions options;
          options.tokens = spread_tokens(shape.num_tokens, 20);
          options.selection = &routing;
          const auto oracle = oracle_layer(inputs, options);
          EXPECT_TRUE(compare_selection(routing, oracle.routing).ok());
          const auto report = compare(gather_rows(execution->output(), options.tokens), oracle.view());
          const auto length = std::max({shape.hidden_size, shape.top_k, shape.shared_size});
          EXPECT_LE(report.relative_error, relative_error_tolerance(dtype, length))
              << shape.label() << " " << to_string(kind) << " " << to_string(dtype) << " " << to_string(mode)
              << ": " << report.describe();
        }
      }
    }
  }
}

TEST(ReferenceBackend, ReplaysBitForBitColdAndWarm) {
  ReferenceBackend backend;
  const auto inputs = test::make_layer(test::make_shape(130, 72, 24, 40, 33, 48), 1);
  for (const ScheduleKind kind : kKinds) {
    const auto execution = backend.prepare(inputs, options_of(kind));
    EXPECT_TRUE(execution->deterministic());
    EXPECT_EQ(execution->schedule_options().kind, kind);
    execution->run(L2State::kCold);
    const auto first = execution->output();
    execution->run(L2State::kWarm);
    const auto second = execution->output();
    ASSERT_EQ(first.dtype(), inputs.shape.dtype);
    EXPECT_EQ(std::memcmp(first.data(), second.data(), static_cast<std::size_t>(first.bytes())), 0)
        << to_string(kind);
  }
}

TEST(ReferenceBackend, ReportsTheStagesThatRan) {
  ReferenceBackend backend;
  auto inputs = test::make_layer(test::make_shape(16, 32, 8, 8, 4, 16), 1);
  auto execution = backend.prepare(inputs, options_of(ScheduleKind::kStaircase));
  const auto times = execution->run(L2State::kWarm);
  EXPECT_EQ(stages_of(times),
            (std::vector<Stage>{Stage::kRouterProject, Stage::kRouterSelect, Stage::kSchedule,
                                Stage::kExperts, Stage::kSharedMlp, Stage::kLayer}));
  double sum = 0;
  for (const auto& time : times) {
    EXPECT_GE(time.time_s, 0);
    sum += time.stage == Stage::kLayer ? 0 : time.time_s;
  }
  EXPECT_LE(sum, times.back().time_s);
  std::vector<Stage> with_memory;
  for (const auto& stage : execution->memory()) {
    EXPECT_GT(stage.workspace_bytes, 0) << to_string(stage.stage);
    with_memory.push_back(stage.stage);
  }
  with_memory.push_back(Stage::kLayer);
  EXPECT_EQ(with_memory, stages_of(times));

  inputs.fixed_routing = execution->routing();
  EXPECT_EQ(stages_of(backend.prepare(inputs, options_of(ScheduleKind::kTokenCentric))->run(L2State::kWarm)),
            (std::vector<Stage>{Stage::kSchedule, Stage::kExperts, Stage::kSharedMlp, Stage::kLayer}));
}

TEST(ReferenceBackend, StagesOneByOneGiveTheRunsOutput) {
  ReferenceBackend backend;
  for (const std::int64_t shared_size : {0, 48}) {
    const auto inputs = test::make_layer(test::make_shape(130, 72, 24, 40, 33, shared_size), 1);
    for (const ScheduleKind kind : kKinds) {
      const auto execution = backend.prepare(inputs, options_of(kind));
      auto times = execution->run(L2State::kWarm);
      const auto output = execution->output();
      times.pop_back();
      EXPECT_EQ(stages_of(times), std::vector<Stage>(execution->stages().begin(), execution->stages().end()));
      const auto other = backend.prepare(inputs, options_of(kind));
      for (int replay = 0; replay < 2; ++replay) {
        other->empty_cache();
        for (const Stage stage : other->stages()) {
          other->enqueue(stage);
          other->synchronize();
        }
        EXPECT_EQ(
            std::memcmp(output.data(), other->output().data(), static_cast<std::size_t>(output.bytes())), 0)
            << to_string(kind) << " replay " << replay;
      }
      EXPECT_THROW(other->enqueue(Stage::kLayer), InternalError);
    }
  }
}

TEST(ReferenceBackend, DenseMaskedReportsScoresAndCombineApart) {
  ReferenceBackend backend;
  const auto inputs = test::make_layer(test::make_shape(16, 32, 8, 8, 4), 1);
  const auto execution = backend.prepare(inputs, options_of(ScheduleKind::kDenseMasked));
  const std::vector<Stage> expected = {Stage::kRouterProject, Stage::kRouterSelect,  Stage::kSchedule,
                                       Stage::kExpertScores,  Stage::kExpertCombine, Stage::kLayer};
  EXPECT_EQ(stages_of(execution->run(L2State::kWarm)), expected);
  EXPECT_EQ(execution->memory().size() + 1, expected.size());
}

TEST(ReferenceBackend, AutoRunsWhatTheCostModelChooses) {
  ReferenceBackend backend;
  // Few of many experts: pairs alone. All experts: a dense product does the same FLOP faster.
  for (const auto& [top_k, dense] : {std::pair{4, false}, std::pair{256, true}}) {
    const auto inputs = test::make_layer(test::make_shape(64, 32, 16, 16, top_k), 1);
    const auto execution = backend.prepare(inputs, options_of(ScheduleKind::kAuto));
    EXPECT_EQ(execution->schedule_options().kind == ScheduleKind::kDenseMasked, dense) << "K = " << top_k;
    const auto named = backend.prepare(inputs, execution->schedule_options());
    execution->run(L2State::kWarm);
    named->run(L2State::kWarm);
    const auto a = execution->output();
    const auto b = named->output();
    EXPECT_EQ(std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())), 0);
  }
}

TEST(ReferenceBackend, StagesCalledAloneGiveTheRunsOutput) {
  ReferenceBackend backend;
  const auto inputs = test::make_layer(test::make_shape(33, 24, 7, 11, 20, 5), 2);
  const auto options = options_of(ScheduleKind::kStaircase);
  const auto execution = backend.prepare(inputs, options);
  execution->run(L2State::kWarm);
  const auto routing = backend.router_select(inputs.shape, backend.router_project(inputs));
  EXPECT_EQ(routing.expert_ids, execution->routing().expert_ids);
  EXPECT_EQ(routing.gates, execution->routing().gates);
  StageData given;
  given.logits = execution->run_alone(Stage::kRouterProject, {}).logits;
  given.routing = execution->run_alone(Stage::kRouterSelect, given).routing;
  EXPECT_EQ(given.routing.expert_ids, routing.expert_ids);
  EXPECT_EQ(given.routing.gates, routing.gates);
  EXPECT_EQ(execution->run_alone(Stage::kSchedule, given).schedule.sorted_pair_ids,
            backend.schedule(routing, options).sorted_pair_ids);
  given.scores = execution->run_alone(Stage::kExpertScores, given).scores;
  auto y = execution->run_alone(Stage::kExpertCombine, given).y;
  const StageData alone = execution->run_alone(Stage::kExperts, given);
  const auto& fused = alone.y;
  EXPECT_EQ(alone.kernels, "cpu experts (staircase)");
  EXPECT_EQ(std::memcmp(y.data(), fused.data(), static_cast<std::size_t>(y.bytes())), 0);
  const auto shared = execution->run_alone(Stage::kSharedMlp, {}).y;
  for (std::int64_t i = 0; i < y.size(); ++i) y.f32().data[i] += shared.f32().data[i];
  const auto rounded = y.to(inputs.shape.dtype);
  const auto output = execution->output();
  EXPECT_EQ(std::memcmp(rounded.data(), output.data(), static_cast<std::size_t>(output.bytes())), 0);
}

TEST(ReferenceBackend, SaysWhatItCannotRun) {
  ReferenceBackend backend;
  EXPECT_EQ(backend.name(), "cpu");
  EXPECT_FALSE(backend.device().empty());
  std::string why;
  for (const ScheduleKind kind : kKinds) EXPECT_TRUE(backend.supports(kind, why)) << why;
  EXPECT_FALSE(backend.supports(ScheduleKind::kSparseLibrary, why));
  EXPECT_EQ(why, "sparse_library is cuSPARSE and needs the cuda backend");
  const auto inputs = test::make_layer(test::make_shape(4, 8, 4, 4, 2), 1);
  EXPECT_EQ(
      error_text<InvalidArgument>([&] { backend.prepare(inputs, options_of(ScheduleKind::kSparseLibrary)); }),
      "schedule = sparse_library: sparse_library is cuSPARSE and needs the cuda backend");
}

TEST(ReferenceBackend, RefusesInputsThatDoNotFit) {
  ReferenceBackend backend;
  auto inputs = test::make_layer(test::make_shape(4, 8, 4, 4, 2), 1);
  inputs.hidden_states = HostTensor::zeros(inputs.shape.dtype, 4, 9);
  const std::string expected = "hidden_states = [4, 9] bf16: must be [4, 8] bf16 for L4_d8_N16_K2";
  EXPECT_EQ(
      error_text<InvalidArgument>([&] { backend.prepare(inputs, options_of(ScheduleKind::kTokenCentric)); }),
      expected);
  EXPECT_EQ(error_text<InvalidArgument>([&] { backend.router_project(inputs); }), expected);
}

TEST(ReferenceBackend, RefusesNanInTheInputsByTheLogitTheyReach) {
  ReferenceBackend backend;
  auto inputs = test::make_layer(test::make_shape(4, 8, 4, 4, 2), 1);
  inputs.hidden_states.bf16().row(2)[3] = Bf16{0x7fc0};
  const auto execution = backend.prepare(inputs, options_of(ScheduleKind::kTokenCentric));
  EXPECT_EQ(error_text<InvalidArgument>([&] { execution->run(L2State::kWarm); }),
            "row_logits[2, 0] = nan: must be finite");
}

}  // namespace
}  // namespace moescope
