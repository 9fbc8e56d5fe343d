#include "profiler/study/layer_study.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <new>

#include "profiler/study/layer_rows.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

/// Times by schedule, in seconds; the machine the study sees.
double canned_time_s(ScheduleKind kind) { return kind == ScheduleKind::kTokenCentric ? 4.0 : 2.0; }

class FakeExecution final : public LayerExecution {
 public:
  FakeExecution(const LayerInputs& inputs, const ScheduleOptions& options)
      : inputs_(inputs), options_(options) {}

  std::vector<StageTime> run(L2State) override {
    if (options_.kind == ScheduleKind::kDenseMasked && ++runs_ > 3) {
      throw std::bad_alloc();
    }
    const double time_s = canned_time_s(schedule_options().kind);
    return {{Stage::kSchedule, 0.25 * time_s}, {Stage::kExperts, 0.5 * time_s}, {Stage::kLayer, time_s}};
  }
  HostTensor output() override { return HostTensor::zeros(Dtype::kF32, 1, 1); }
  Routing routing() override { return *inputs_.fixed_routing; }
  std::vector<StageMemory> memory() const override { return {{Stage::kExperts, 1234}}; }
  ScheduleOptions schedule_options() const override {
    return options_.kind == ScheduleKind::kAuto ? parse_schedule("staircase:rows") : options_;
  }
  bool deterministic() const override { return options_.kind != ScheduleKind::kExpertCentric; }
  std::span<const Stage> stages() const override { throw InternalError("not faked"); }
  void enqueue(Stage) override { throw InternalError("not faked"); }
  void synchronize() override { throw InternalError("not faked"); }
  void empty_cache() override { throw InternalError("not faked"); }

 private:
  const LayerInputs& inputs_;
  ScheduleOptions options_;
  int runs_ = 0;
};

/// Knows how to build schedules and nothing else.
class FakeBackend final : public MoeBackend {
 public:
  std::string_view name() const override { return "fake"; }
  std::string device() const override { return "none"; }
  bool supports(ScheduleKind kind, std::string& why) const override {
    why = "no such library here";
    return kind != ScheduleKind::kSparseLibrary;
  }
  Schedule schedule(const Routing& routing, const ScheduleOptions& options) override {
    return build_schedule(routing, options);
  }
  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs,
                                          const ScheduleOptions& options) override {
    if (options.kind == ScheduleKind::kExpertCentric && options.group_size == 13) {
      throw OutOfMemory("expert_centric", 8, 4);
    }
    return std::make_unique<FakeExecution>(inputs, options);
  }
  RouterLogits router_project(const LayerInputs&) override { throw InternalError("not faked"); }
  Routing router_select(const LayerShape&, const RouterLogits&) override { throw InternalError("not faked"); }
};

LayerInputs make_inputs() {
  LayerInputs inputs;
  inputs.shape = test::make_shape(12, 8, 4, 4, 3);
  inputs.fixed_routing = test::make_routing({inputs.shape, test::RoutingSkew::kGaussian}, 1);
  inputs.workload = "trace:fake";
  inputs.seed = 5;
  return inputs;
}

LayerStudy make_study(const std::vector<ScheduleOptions>& schedules, const Judge& judge) {
  FakeBackend backend;
  const LayerInputs inputs = make_inputs();
  return study_layer(backend, inputs, schedules, {.l2 = L2State::kWarm}, judge);
}

ErrorReport small_error(const HostTensor&, const Routing&) {
  ErrorReport report;
  report.relative_error = 1e-3;
  return report;
}

const ResultRow* find_row(const std::vector<ResultRow>& rows, std::string_view schedule, Stage stage,
                          std::string_view metric) {
  const auto found = std::ranges::find_if(rows, [&](const ResultRow& row) {
    return row.schedule == schedule && row.stage == to_string(stage) && row.metric == metric;
  });
  return found == rows.end() ? nullptr : &*found;
}

TEST(LayerStudy, MeasuresSchedulesSideBySideAndComparesThemWithTokenCentric) {
  const LayerStudy study =
      make_study({{.kind = ScheduleKind::kTokenCentric}, {.kind = ScheduleKind::kAuto}}, small_error);
  ASSERT_EQ(study.schedules.size(), 2U);
  EXPECT_EQ(to_string(study.find(ScheduleKind::kAuto)->ran), "staircase:rows");
  EXPECT_EQ(study.find(ScheduleKind::kTokenCentric)->layer_speed_up->median, 1.0);
  EXPECT_EQ(study.find(ScheduleKind::kAuto)->layer_speed_up->median, 2.0);
  EXPECT_EQ(study.find(ScheduleKind::kAuto)->expert_speed_up->median, 2.0);
  EXPECT_EQ(expert_samples(study.find(ScheduleKind::kAuto)->times)->median_s(), 1.0);
  EXPECT_EQ(study.find(ScheduleKind::kDenseMasked), nullptr);
  EXPECT_EQ(study.skew.num_pairs, 36);
}

TEST(LayerStudy, SkipsWhatTheBackendLacksAndGoesOnPastFailures) {
  const LayerStudy study = make_study({{.kind = ScheduleKind::kSparseLibrary},
                                       {.kind = ScheduleKind::kExpertCentric, .group_size = 13},
                                       {.kind = ScheduleKind::kDenseMasked},
                                       {.kind = ScheduleKind::kStaircase}},
                                      small_error);
  EXPECT_EQ(study.schedules[0].status, Status::kSkipped);
  EXPECT_EQ(study.schedules[0].reason, "no such library here");
  EXPECT_EQ(study.schedules[1].status, Status::kFailed);
  EXPECT_EQ(study.schedules[1].code, ExitCode::kOutOfMemory);
  EXPECT_EQ(study.schedules[2].status, Status::kFailed) << "failed in the middle of sampling";
  EXPECT_EQ(study.schedules[2].reason, "out of memory");
  EXPECT_EQ(study.schedules[2].code, ExitCode::kOutOfMemory);
  EXPECT_EQ(study.schedules[3].status, Status::kOk);
  EXPECT_FALSE(study.schedules[3].layer_speed_up.has_value()) << "token_centric was not asked for";
}

TEST(LayerStudy, KeepsTheTimesWhenTheJudgeRefuses) {
  const LayerStudy study =
      make_study({{.kind = ScheduleKind::kStaircase}}, [](const auto&, const auto&) -> ErrorReport {
        throw InvalidArgument("reference", "0", "is zero everywhere");
      });
  EXPECT_EQ(study.schedules[0].status, Status::kOk);
  EXPECT_EQ(study.schedules[0].error_reason, "reference = 0: is zero everywhere");
  const auto rows = study_rows(study);
  const ResultRow* row = find_row(rows, "staircase", Stage::kLayer, "relative_error");
  ASSERT_NE(row, nullptr);
  EXPECT_EQ(row->status, Status::kFailed);
}

TEST(LayerStudy, AddsScoresAndCombineToTheExpertStageRoundByRound) {
  ArmResult times;
  EXPECT_FALSE(expert_samples(times).has_value());
  times.stages = {{Stage::kExpertScores, {1, 2}, {0, 3}}, {Stage::kExpertCombine, {10, 20}, {0, 3}}};
  const auto experts = expert_samples(times);
  ASSERT_TRUE(experts.has_value());
  EXPECT_EQ(experts->stage, Stage::kExperts);
  EXPECT_EQ(experts->samples_s, (std::vector<double>{11, 22}));
  EXPECT_EQ(experts->rounds, (std::vector<std::int64_t>{0, 3}));
}

TEST(LayerStudy, LetsABugThrough) {
  EXPECT_THROW(make_study({{.kind = ScheduleKind::kStaircase}},
                          [](const auto&, const auto&) -> ErrorReport { throw InternalError("bug"); }),
               InternalError);
}

// Both staircases of one point must be told apart by their rows alone.
TEST(LayerRows, NameTheScheduleWithItsMode) {
  const auto rows = study_rows(make_study(
      {{.kind = ScheduleKind::kStaircase}, {.kind = ScheduleKind::kStaircase, .deterministic = false}},
      small_error));
  for (const char* schedule : {"staircase", "staircase:atomics"}) {
    const auto of_layer = [&](const ResultRow& row) {
      return row.schedule == schedule && row.stage == "layer" && row.metric == "time_s";
    };
    EXPECT_EQ(std::ranges::count_if(rows, of_layer), 1) << schedule;
  }
}

TEST(LayerRows, CarryEveryMetricAndAreValid) {
  const LayerStudy study = make_study({{.kind = ScheduleKind::kTokenCentric, .group_size = 7},
                                       {.kind = ScheduleKind::kExpertCentric},
                                       {.kind = ScheduleKind::kSparseLibrary}},
                                      small_error);
  const auto rows = study_rows(study);
  for (const ResultRow& row : rows) {
    EXPECT_NO_THROW(row.validate()) << row.metric;
    EXPECT_EQ(row.num_tokens, 12);
    EXPECT_EQ(row.workload, "trace:fake");
    EXPECT_EQ(row.seed, 5U);
    EXPECT_EQ(row.l2_state, row.source == Source::kMeasured ? "warm" : row.l2_state);
  }
  const ResultRow* time = find_row(rows, "token_centric", Stage::kLayer, "time_s");
  ASSERT_NE(time, nullptr);
  EXPECT_EQ(time->value, 4.0);
  EXPECT_EQ(time->samples, 10);
  EXPECT_EQ(time->spread, 0.0);
  EXPECT_EQ(time->source, Source::kMeasured);
  const AnalyticCost& cost = study.schedules[0].cost;
  const ResultRow* bytes = find_row(rows, "token_centric", Stage::kLayer, "l2_read_bytes");
  ASSERT_NE(bytes, nullptr);
  EXPECT_EQ(bytes->value, static_cast<double>(cost.bytes(Stage::kLayer, MemoryLevel::kL2, Access::kRead)));
  EXPECT_EQ(bytes->source, Source::kAnalytic);
  EXPECT_EQ(bytes->l2_state, "none");
  for (const ResultRow& row : rows) {
    const auto known = study_metrics();
    EXPECT_NE(std::ranges::find(known, row.metric), known.end()) << row.metric;
  }
  EXPECT_EQ(find_row(rows, "none", Stage::kRouterSelect, "reuse")->value, study.skew.reuse);
  EXPECT_EQ(find_row(rows, "none", Stage::kExperts, "floor_bytes")->value,
            static_cast<double>(study.floor_bytes));
  const ResultRow* workspace = find_row(rows, "token_centric", Stage::kExperts, "workspace_bytes");
  EXPECT_EQ(workspace->value, 1234);
  EXPECT_EQ(workspace->source, Source::kAnalytic);
  // The fake's routing is a recorded one.
  EXPECT_EQ(find_row(rows, "token_centric", Stage::kRouterProject, "useful_flop"), nullptr);
  EXPECT_EQ(cost.bytes(Stage::kRouterSelect, MemoryLevel::kHbm), 0);
  EXPECT_EQ(find_row(rows, "token_centric", Stage::kLayer, "relative_error")->value, 1e-3);
  EXPECT_EQ(find_row(rows, "token_centric", Stage::kLayer, "deterministic")->value, 1);
  EXPECT_EQ(find_row(rows, "expert_centric", Stage::kLayer, "deterministic")->value, 0);
  EXPECT_EQ(find_row(rows, "expert_centric", Stage::kLayer, "time_s")->group_size, 64);
  EXPECT_EQ(find_row(rows, "token_centric", Stage::kLayer, "time_s")->group_size, std::nullopt);
  EXPECT_EQ(find_row(rows, "expert_centric", Stage::kLayer, "speed_up_over_token_centric")->value, 2.0);
  const ResultRow* clock = find_row(rows, "token_centric", Stage::kLayer, "sm_clock_hz");
  ASSERT_NE(clock, nullptr);
  EXPECT_EQ(clock->status, Status::kUnavailable);
  EXPECT_EQ(clock->reason, "the fake backend had no reading");
  const ResultRow* skipped = find_row(rows, "sparse_library", Stage::kLayer, "time_s");
  ASSERT_NE(skipped, nullptr);
  EXPECT_EQ(skipped->status, Status::kSkipped);
  EXPECT_EQ(skipped->reason, "no such library here");
}

TEST(LayerRows, SayWhenEverySampleWasDiscarded) {
  ArmResult times;
  times.discarded = 15;
  Point context = layer_point(test::make_shape(12, 8, 4, 4, 3), "cuda", "zipf:1", 0);
  context.set_schedule({.kind = ScheduleKind::kStaircase});
  context.l2_state = "cold";
  const auto rows = time_rows(context, times);
  EXPECT_EQ(rows[0].status, Status::kUnavailable);
  EXPECT_EQ(rows[0].reason, "all 15 samples were taken at too low an SM clock");
}

TEST(LayerRows, CarryTheClocksThatWereSeen) {
  ArmResult times;
  times.stages = {{Stage::kLayer, {1, 1}, {0, 1}}};
  times.clocks = {{1.5e9, 2e9, 40}, {1.7e9, 2e9, 44}};
  Point context = layer_point(test::make_shape(12, 8, 4, 4, 3), "cuda", "zipf:1", 0);
  context.set_schedule({.kind = ScheduleKind::kStaircase});
  context.l2_state = "cold";
  const auto rows = time_rows(context, times);
  EXPECT_EQ(find_row(rows, "staircase", Stage::kLayer, "sm_clock_hz")->value, 1.6e9);
  EXPECT_EQ(find_row(rows, "staircase", Stage::kLayer, "sm_clock_hz")->samples, 2);
  EXPECT_EQ(find_row(rows, "staircase", Stage::kLayer, "temperature_c")->value, 42);
}

TEST(LayerRows, NeverCarryAValueThatIsNotFinite) {
  Point context = layer_point(test::make_shape(12, 8, 4, 4, 3), "cuda", "zipf:1", 0);
  context.set_schedule({.kind = ScheduleKind::kStaircase});
  context.l2_state = "cold";
  ErrorReport error;
  error.relative_error = std::numeric_limits<double>::infinity();
  const auto rows = error_rows(context, error);
  EXPECT_EQ(rows[0].status, Status::kFailed);
  EXPECT_EQ(rows[0].reason, "the value is inf");
  EXPECT_NO_THROW(rows[0].validate());
}

}  // namespace
}  // namespace moescope
