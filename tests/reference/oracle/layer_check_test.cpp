#include "reference/oracle/layer_check.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"
#include "core/workload/workload.hpp"
#include "reference/backend/reference_backend.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

/// Which stage a spoiled backend gets wrong.
enum class Spoil : std::uint8_t {
  kNothing,
  kLogits,
  kSelection,
  kGates,
  kSchedule,
  kScores,
  kCombine,
  kExperts,
  kShared
};

/// The reference backend with one stage spoiled: what check_layer must find, and name.
class SpoiledBackend final : public MoeBackend {
 public:
  explicit SpoiledBackend(Spoil spoil) : spoil_(spoil) {}

  std::string_view name() const override { return "spoiled"; }
  std::string device() const override { return "none"; }
  bool supports(ScheduleKind kind, std::string& why) const override { return inner_.supports(kind, why); }

  RouterLogits router_project(const LayerInputs& inputs) override {
    RouterLogits logits = inner_.router_project(inputs);
    if (spoil_ == Spoil::kLogits) {
      logits.col.f32().row(1)[2] = NAN;
    }
    return logits;
  }
  Routing router_select(const LayerShape& shape, const RouterLogits& logits) override {
    Routing routing = inner_.router_select(shape, logits);
    if (spoil_ == Spoil::kSelection) {  // an expert of token 0 that was not selected
      for (std::int32_t id = 0; id < shape.num_experts(); ++id) {
        if (!std::ranges::binary_search(routing.ids_of(0), id)) {
          routing.expert_ids[0] = id;
          break;
        }
      }
      std::sort(routing.expert_ids.begin(), routing.expert_ids.begin() + shape.top_k);
    }
    if (spoil_ == Spoil::kGates) {
      routing.gates[5] *= 1.01F;
    }
    return routing;
  }
  Schedule schedule(const Routing& routing, const ScheduleOptions& options) override {
    Schedule schedule = inner_.schedule(routing, options);
    if (spoil_ == Spoil::kSchedule) {
      schedule.sorted_pair_ids[1] = schedule.sorted_pair_ids[0];
    }
    return schedule;
  }
  std::vector<float> expert_scores(const LayerInputs& inputs, const Routing& routing,
                                   const Schedule& schedule) override {
    auto scores = inner_.expert_scores(inputs, routing, schedule);
    if (spoil_ == Spoil::kScores) {
      scores[3] += 1;
    }
    return scores;
  }
  HostTensor expert_combine(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule,
                            std::span<const float> scores) override {
    return spoiled(inner_.expert_combine(inputs, routing, schedule, scores), Spoil::kCombine);
  }
  HostTensor experts(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule) override {
    return spoiled(inner_.experts(inputs, routing, schedule), Spoil::kExperts);
  }
  HostTensor shared_mlp(const LayerInputs& inputs) override {
    return spoiled(inner_.shared_mlp(inputs), Spoil::kShared);
  }
  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs,
                                          const ScheduleOptions& options) override {
    return inner_.prepare(inputs, options);
  }

 private:
  HostTensor spoiled(HostTensor tensor, Spoil which) const {
    if (spoil_ == which) {
      tensor.f32().row(2)[1] += 10;
    }
    return tensor;
  }

  mutable ReferenceBackend inner_;
  Spoil spoil_;
};

/// An execution whose output or routing is wrong.
class WrongExecution final : public LayerExecution {
 public:
  WrongExecution(std::unique_ptr<LayerExecution> inner, bool drifts)
      : inner_(std::move(inner)), drifts_(drifts) {}

  std::vector<StageTime> run(L2State l2) override {
    ++runs_;
    return inner_->run(l2);
  }
  HostTensor output() override {
    HostTensor y = inner_->output();
    if (!drifts_ || runs_ > 1) {
      y.f32().row(0)[0] += drifts_ ? 1e-6F : 1.0F;
    }
    return y;
  }
  Routing routing() override { return inner_->routing(); }
  std::vector<StageMemory> memory() const override { return inner_->memory(); }
  ScheduleOptions schedule_options() const override { return inner_->schedule_options(); }
  bool deterministic() const override { return true; }
  std::span<const Stage> stages() const override { return inner_->stages(); }
  void enqueue(Stage stage) override { inner_->enqueue(stage); }
  void synchronize() override { inner_->synchronize(); }
  void empty_cache() override { inner_->empty_cache(); }

 private:
  std::unique_ptr<LayerExecution> inner_;
  bool drifts_;
  int runs_ = 0;
};

class WrongLayerBackend final : public MoeBackend {
 public:
  explicit WrongLayerBackend(bool drifts) : drifts_(drifts) {}
  std::string_view name() const override { return "wrong"; }
  std::string device() const override { return "none"; }
  bool supports(ScheduleKind kind, std::string& why) const override { return inner_.supports(kind, why); }
  RouterLogits router_project(const LayerInputs& inputs) override { return inner_.router_project(inputs); }
  Routing router_select(const LayerShape& shape, const RouterLogits& logits) override {
    return inner_.router_select(shape, logits);
  }
  Schedule schedule(const Routing& routing, const ScheduleOptions& options) override {
    return inner_.schedule(routing, options);
  }
  std::vector<float> expert_scores(const LayerInputs& inputs, const Routing& routing,
                                   const Schedule& schedule) override {
    return inner_.expert_scores(inputs, routing, schedule);
  }
  HostTensor expert_combine(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule,
                            std::span<const float> scores) override {
    return inner_.expert_combine(inputs, routing, schedule, scores);
  }
  HostTensor experts(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule) override {
    return inner_.experts(inputs, routing, schedule);
  }
  HostTensor shared_mlp(const LayerInputs& inputs) override { return inner_.shared_mlp(inputs); }
  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs,
                                          const ScheduleOptions& options) override {
    return std::make_unique<WrongExecution>(inner_.prepare(inputs, options), drifts_);
  }

 private:
  mutable ReferenceBackend inner_;
  bool drifts_;
};

LayerInputs make_inputs(Dtype dtype = Dtype::kF32) {
  LayerShape shape = test::make_shape(24, 32, 8, 8, 6, 16);
  shape.dtype = dtype;
  return make_workload(WorkloadSpec::parse("gaussian:1"), shape, 3);
}

LayerCheck check(Spoil spoil, ScheduleKind kind = ScheduleKind::kStaircase, Dtype dtype = Dtype::kF32) {
  SpoiledBackend backend(spoil);
  ReferenceBackend mirror;
  const LayerInputs inputs = make_inputs(dtype);
  return check_layer(backend, &mirror, inputs, {.kind = kind, .group_size = 8}, 8);
}

TEST(LayerCheck, PassesTheReferenceUnderEverySchedule) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    for (const ScheduleKind kind : {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                                    ScheduleKind::kStaircase, ScheduleKind::kDenseMasked}) {
      const LayerCheck result = check(Spoil::kNothing, kind, dtype);
      EXPECT_TRUE(result.passed()) << to_string(kind) << ": " << result.first_failure()->what << ": "
                                   << result.first_failure()->detail;
      EXPECT_EQ(result.stages.size(), 12U);
      EXPECT_LE(result.layer()->error, dtype == Dtype::kF32 ? 1e-5 : 4e-3);
    }
  }
}

TEST(LayerCheck, NamesTheStageThatIsWrongAndWhere) {
  const auto first = [](Spoil spoil) {
    const LayerCheck result = check(spoil);
    const StageCheck* failure = result.first_failure();
    return failure == nullptr
               ? std::pair{std::string("none"), std::string()}
               : std::pair{std::string(to_string(failure->stage)) + ": " + failure->what, failure->detail};
  };
  EXPECT_EQ(first(Spoil::kLogits).first, "router_project: logits against the mirror");
  EXPECT_NE(first(Spoil::kLogits).second.find("[1,2]"), std::string::npos) << first(Spoil::kLogits).second;
  EXPECT_EQ(first(Spoil::kSelection).first, "router_select: selection against the mirror");
  EXPECT_TRUE(first(Spoil::kSelection).second.starts_with("token 0, expert "))
      << first(Spoil::kSelection).second;
  EXPECT_EQ(first(Spoil::kGates).first, "router_select: gates against the mirror");
  EXPECT_NE(first(Spoil::kGates).second.find("[0,5]"), std::string::npos) << first(Spoil::kGates).second;
  EXPECT_EQ(first(Spoil::kSchedule).first, "schedule: invariants");
  EXPECT_EQ(first(Spoil::kScores).first, "expert_scores: scores against the mirror");
  EXPECT_NE(first(Spoil::kScores).second.find("[0,3]"), std::string::npos);
  EXPECT_EQ(first(Spoil::kCombine).first, "expert_combine: sums against the mirror");
  EXPECT_NE(first(Spoil::kCombine).second.find("[2,1]"), std::string::npos);
  EXPECT_EQ(first(Spoil::kExperts).first, "experts: experts against the mirror");
  EXPECT_EQ(first(Spoil::kShared).first, "shared_mlp: shared MLP against the mirror");
}

TEST(LayerCheck, ComparesSchedulesEntryByEntry) {
  const LayerCheck result = check(Spoil::kSchedule);
  bool found = false;
  for (const StageCheck& stage : result.stages) {
    if (stage.what == "schedule against the mirror") {
      found = true;
      EXPECT_FALSE(stage.passed);
      EXPECT_TRUE(stage.detail.starts_with("sorted_pair_ids[1] = ")) << stage.detail;
    }
  }
  EXPECT_TRUE(found);
}

TEST(LayerCheck, FindsAWrongOutputEndToEnd) {
  WrongLayerBackend backend(false);
  const LayerInputs inputs = make_inputs();
  const LayerCheck result = check_layer(backend, nullptr, inputs, {.kind = ScheduleKind::kTokenCentric}, 8);
  ASSERT_NE(result.first_failure(), nullptr);
  EXPECT_EQ(result.first_failure()->what, "output against the oracle");
  EXPECT_NE(result.first_failure()->detail.find("[0,0]"), std::string::npos)
      << result.first_failure()->detail;
}

TEST(LayerCheck, FindsAnOutputThatIsNotRepeatableAsItClaims) {
  WrongLayerBackend backend(true);
  const LayerInputs inputs = make_inputs();
  const LayerCheck result = check_layer(backend, nullptr, inputs, {.kind = ScheduleKind::kTokenCentric}, 8);
  ASSERT_NE(result.first_failure(), nullptr);
  EXPECT_EQ(result.first_failure()->what, "second run against the first, bit by bit");
}

TEST(LayerCheck, RecordsWhatAStageThrowsAsItsFailure) {
  ReferenceBackend backend;
  LayerInputs inputs = make_inputs();
  const LayerCheck result = check_layer(backend, nullptr, inputs, {.kind = ScheduleKind::kSparseLibrary}, 8);
  ASSERT_NE(result.first_failure(), nullptr);
  EXPECT_FALSE(result.passed());
  EXPECT_FALSE(result.first_failure()->detail.empty());
}

TEST(LayerCheck, ChecksFixedRoutingWithoutARouter) {
  ReferenceBackend backend;
  ReferenceBackend mirror;
  LayerInputs inputs = make_inputs();
  inputs.fixed_routing = test::make_routing({inputs.shape, test::RoutingSkew::kHotExpert}, 2);
  const LayerCheck result = check_layer(backend, &mirror, inputs, {.kind = ScheduleKind::kStaircase}, 8);
  EXPECT_TRUE(result.passed()) << result.first_failure()->detail;
  for (const StageCheck& stage : result.stages) {
    EXPECT_NE(stage.stage, Stage::kRouterSelect);
    EXPECT_NE(stage.stage, Stage::kRouterProject);
  }
}

/// Any small layer: few outputs, odd extents, every option.
LayerInputs random_small_layer(std::uint64_t seed) {
  const Philox random(seed, 77);
  const auto pick = [&](std::uint64_t what, std::int64_t from, std::int64_t to) {
    return from + static_cast<std::int64_t>(random.uniform(what) * static_cast<double>(to - from + 1));
  };
  LayerShape shape = test::make_shape(pick(0, 1, 4), pick(1, 1, 12), pick(2, 1, 4), pick(3, 1, 5), 1);
  shape.top_k = pick(4, 1, std::min<std::int64_t>(shape.num_experts(), 6));
  shape.shared_size = pick(5, 0, 3) == 0 ? pick(6, 1, 6) : 0;
  shape.dtype = pick(7, 0, 3) == 0 ? Dtype::kF32 : Dtype::kBF16;
  shape.activation = pick(8, 0, 1) == 0 ? Activation::kSilu : Activation::kGelu;
  shape.gate_mode = pick(9, 0, 1) == 0 ? GateMode::kSoftmax : GateMode::kProbability;
  return make_workload(WorkloadSpec::parse(pick(10, 0, 1) == 0 ? "gaussian:1" : "zipf:1"), shape, seed);
}

// A correct layer of few outputs is off by what single roundings do, more where terms cancel. One that is
// wrong by a few per cent is found all the same.
TEST(SampleTolerance, PassesEverySmallLayerThatIsRightAndFindsThoseThatAreNot) {
  std::int64_t above_floor = 0;
  std::int64_t wrong_found = 0;
  constexpr std::int64_t kLayers = 3000;
  ReferenceBackend backend;
  for (std::uint64_t seed = 0; seed < kLayers; ++seed) {
    const LayerInputs inputs = random_small_layer(seed);
    const auto kind = seed % 3 == 0   ? ScheduleKind::kTokenCentric
                      : seed % 3 == 1 ? ScheduleKind::kStaircase
                                      : ScheduleKind::kDenseMasked;
    const auto execution = backend.prepare(inputs, {.kind = kind});
    execution->run(L2State::kWarm);
    HostTensor output = execution->output();
    const auto tokens = spread_tokens(inputs.shape.num_tokens, inputs.shape.num_tokens);
    const ErrorReport right = compare_with_oracle(inputs, execution->routing(), output, tokens);
    EXPECT_GE(right.tolerance, layer_tolerance(inputs.shape));
    EXPECT_LE(right.relative_error, right.tolerance)
        << inputs.shape.label() << ' ' << to_string(inputs.shape.dtype) << " shared "
        << inputs.shape.shared_size << " seed " << seed << ": " << right.describe();
    above_floor += right.relative_error > layer_tolerance(inputs.shape) ? 1 : 0;
    HostTensor wrong = output.to(Dtype::kF32);
    for (std::int64_t i = 0; i < wrong.size(); ++i) wrong.f32().data[i] *= 1.05F;
    const ErrorReport error =
        compare_with_oracle(inputs, execution->routing(), wrong.to(inputs.shape.dtype), tokens);
    wrong_found += error.relative_error > error.tolerance ? 1 : 0;
  }
  EXPECT_GT(above_floor, kLayers / 100);  // else the floor would do
  EXPECT_GT(wrong_found, kLayers * 9 / 10);
}

TEST(SampleTolerance, OfManyOutputsIsTheFloorOnQuality) {
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF32}) {
    LayerShape shape = test::make_shape(64, 256, 16, 16, 16, 64);
    shape.dtype = dtype;
    const LayerInputs inputs = make_workload(WorkloadSpec::parse("gaussian:1"), shape, 3);
    ReferenceBackend backend;
    const auto execution = backend.prepare(inputs, {.kind = ScheduleKind::kStaircase});
    execution->run(L2State::kWarm);
    const ErrorReport report =
        compare_with_oracle(inputs, execution->routing(), execution->output(), spread_tokens(64, 32));
    EXPECT_LE(report.tolerance, dtype == Dtype::kBF16 ? 4e-3 : 1e-5);
    EXPECT_LE(report.relative_error, report.tolerance);
  }
}

}  // namespace
}  // namespace moescope
