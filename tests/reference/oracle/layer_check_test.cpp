#include "reference/oracle/layer_check.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <tuple>
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

/// Passes everything on to another layer; what a test wants otherwise it overrides.
class ForwardingExecution : public LayerExecution {
 public:
  explicit ForwardingExecution(std::unique_ptr<LayerExecution> inner) : inner_(std::move(inner)) {}

  std::vector<StageTime> run(L2State l2) override { return inner_->run(l2); }
  HostTensor output() override { return inner_->output(); }
  Routing routing() override { return inner_->routing(); }
  std::vector<StageMemory> memory() const override { return inner_->memory(); }
  ScheduleOptions schedule_options() const override { return inner_->schedule_options(); }
  bool deterministic() const override { return true; }
  std::span<const Stage> stages() const override { return inner_->stages(); }
  void enqueue(Stage stage) override { inner_->enqueue(stage); }
  void synchronize() override { inner_->synchronize(); }
  void empty_cache() override { inner_->empty_cache(); }
  std::string kernels(Stage stage) const override { return inner_->kernels(stage); }
  StageData run_alone(Stage stage, const StageData& given) override {
    return inner_->run_alone(stage, given);
  }

 protected:
  std::unique_ptr<LayerExecution> inner_;
};

/// The reference backend, whose layers are wrapped.
class WrappingBackend : public MoeBackend {
 public:
  using Wrap = std::function<std::unique_ptr<LayerExecution>(std::unique_ptr<LayerExecution>)>;
  explicit WrappingBackend(Wrap wrap) : wrap_(std::move(wrap)) {}

  std::string_view name() const override { return "wrapping"; }
  std::string device() const override { return "none"; }
  bool supports(ScheduleKind kind, std::string& why) const override { return inner_.supports(kind, why); }
  RouterLogits router_project(const LayerInputs&) override { throw InternalError("no stage of a layer"); }
  Routing router_select(const LayerShape&, const RouterLogits&) override {
    throw InternalError("no stage of a layer");
  }
  Schedule schedule(const Routing&, const ScheduleOptions&) override {
    throw InternalError("no stage of a layer");
  }
  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs,
                                          const ScheduleOptions& options) override {
    return wrap_(inner_.prepare(inputs, options));
  }

 private:
  ReferenceBackend inner_;
  Wrap wrap_;
};

/// An expert of token 0 that it did not select, in the place of its first.
void swap_expert(Routing& routing) {
  const std::int64_t top_k = routing.token_offsets[1];
  for (std::int32_t id = 0; id < routing.num_experts(); ++id) {
    if (!std::ranges::binary_search(routing.ids_of(0), id)) {
      routing.expert_ids[0] = id;
      break;
    }
  }
  std::sort(routing.expert_ids.begin(), routing.expert_ids.begin() + top_k);
}

/// A layer with one stage spoiled: what check_layer must find, and name.
class SpoiledExecution final : public ForwardingExecution {
 public:
  SpoiledExecution(std::unique_ptr<LayerExecution> inner, Spoil spoil)
      : ForwardingExecution(std::move(inner)), spoil_(spoil) {}

  StageData run_alone(Stage stage, const StageData& given) override {
    StageData left = inner_->run_alone(stage, given);
    const auto spoils = [&](Stage of, Spoil which) { return stage == of && spoil_ == which; };
    if (spoils(Stage::kRouterProject, Spoil::kLogits)) {
      left.logits.col.f32().row(1)[2] = NAN;
    } else if (spoils(Stage::kRouterSelect, Spoil::kSelection)) {
      swap_expert(left.routing);
    } else if (spoils(Stage::kRouterSelect, Spoil::kGates)) {
      left.routing.gates[5] *= 1.01F;
    } else if (spoils(Stage::kSchedule, Spoil::kSchedule)) {
      left.schedule.sorted_pair_ids[1] = left.schedule.sorted_pair_ids[0];
    } else if (spoils(Stage::kExpertScores, Spoil::kScores)) {
      left.scores[3] += 1;
    } else if (spoils(Stage::kExpertCombine, Spoil::kCombine) || spoils(Stage::kExperts, Spoil::kExperts) ||
               spoils(Stage::kSharedMlp, Spoil::kShared)) {
      left.y.f32().row(2)[1] += 10;
    }
    return left;
  }

 private:
  Spoil spoil_;
};

/// An execution whose output or routing is wrong.
class WrongExecution final : public ForwardingExecution {
 public:
  WrongExecution(std::unique_ptr<LayerExecution> inner, bool drifts)
      : ForwardingExecution(std::move(inner)), drifts_(drifts) {}

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

 private:
  bool drifts_;
  int runs_ = 0;
};

WrappingBackend wrong_backend(bool drifts) {
  return WrappingBackend([drifts](std::unique_ptr<LayerExecution> inner) {
    return std::make_unique<WrongExecution>(std::move(inner), drifts);
  });
}

StageData given_routing(const Routing& routing) {
  StageData given;
  given.routing = routing;
  return given;
}

/// As the GPU's staircase does: its experts go on from the logits and select by themselves, here for token 0
/// the expert `takes` in the place of `leaves`; runs do the same.
class OwnSelectionExecution final : public ForwardingExecution {
 public:
  OwnSelectionExecution(std::unique_ptr<LayerExecution> inner, std::int32_t leaves, std::int32_t takes)
      : ForwardingExecution(std::move(inner)), leaves_(leaves), takes_(takes) {}

  StageData run_alone(Stage stage, const StageData& given) override {
    if (stage == Stage::kRouterProject || stage == Stage::kSharedMlp) {
      return inner_->run_alone(stage, given);
    }
    const StageData selected = inner_->run_alone(Stage::kRouterSelect, given);
    const Routing own = swapped(selected.routing);
    StageData left;
    if (stage != Stage::kRouterSelect) {
      left = inner_->run_alone(stage, given_routing(own));
    }
    left.routing = own;
    left.kernels = "own selection + " + std::string(to_string(stage));
    return left;
  }
  Routing routing() override { return swapped(inner_->routing()); }
  HostTensor output() override {
    HostTensor y = inner_->run_alone(Stage::kExperts, given_routing(routing())).y;
    const HostTensor shared = inner_->run_alone(Stage::kSharedMlp, {}).y;
    for (std::int64_t i = 0; i < y.size(); ++i) {
      y.f32().data[i] += shared.f32().data[i];
    }
    return y;
  }

 private:
  Routing swapped(Routing routing) const {
    std::vector<std::pair<std::int32_t, float>> pairs;
    for (std::size_t k = 0; k < routing.ids_of(0).size(); ++k) {
      const std::int32_t id = routing.ids_of(0)[k];
      pairs.emplace_back(id == leaves_ ? takes_ : id, routing.gates[k]);
    }
    EXPECT_TRUE(std::ranges::binary_search(routing.ids_of(0), leaves_));
    std::ranges::sort(pairs);
    for (std::size_t k = 0; k < pairs.size(); ++k) {
      std::tie(routing.expert_ids[k], routing.gates[k]) = pairs[k];
    }
    return routing;
  }

  std::int32_t leaves_;
  std::int32_t takes_;
};

LayerInputs make_inputs(Dtype dtype = Dtype::kF32) {
  LayerShape shape = test::make_shape(24, 32, 8, 8, 6, 16);
  shape.dtype = dtype;
  return make_workload(WorkloadSpec::parse("gaussian:1"), shape, 3);
}

LayerCheck check(Spoil spoil, ScheduleKind kind = ScheduleKind::kStaircase, Dtype dtype = Dtype::kF32) {
  WrappingBackend backend([spoil](std::unique_ptr<LayerExecution> inner) {
    return std::make_unique<SpoiledExecution>(std::move(inner), spoil);
  });
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
      // Only what a layer runs is compared: scores and sums apart, or one fused stage.
      EXPECT_EQ(result.stages.size(), is_fused(kind) ? 10U : 11U);
      for (const StageCheck& stage : result.stages) {
        EXPECT_NE(stage.kernels.find("cpu "), std::string::npos) << stage.what;
      }
      EXPECT_LE(result.layer()->error, dtype == Dtype::kF32 ? 1e-5 : 4e-3);
    }
  }
}

TEST(LayerCheck, NamesTheStageThatIsWrongAndWhere) {
  const auto first = [](Spoil spoil, ScheduleKind kind = ScheduleKind::kStaircase) {
    const LayerCheck result = check(spoil, kind);
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
  EXPECT_EQ(first(Spoil::kScores, ScheduleKind::kDenseMasked).first,
            "expert_scores: scores against the mirror");
  EXPECT_NE(first(Spoil::kScores, ScheduleKind::kDenseMasked).second.find("[0,3]"), std::string::npos);
  EXPECT_EQ(first(Spoil::kCombine, ScheduleKind::kDenseMasked).first,
            "expert_combine: sums against the mirror");
  EXPECT_NE(first(Spoil::kCombine, ScheduleKind::kDenseMasked).second.find("[2,1]"), std::string::npos);
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
  WrappingBackend backend = wrong_backend(false);
  const LayerInputs inputs = make_inputs();
  const LayerCheck result = check_layer(backend, nullptr, inputs, {.kind = ScheduleKind::kTokenCentric}, 8);
  ASSERT_NE(result.first_failure(), nullptr);
  EXPECT_EQ(result.first_failure()->what, "output against the oracle");
  EXPECT_NE(result.first_failure()->detail.find("[0,0]"), std::string::npos)
      << result.first_failure()->detail;
}

TEST(LayerCheck, FindsAnOutputThatIsNotRepeatableAsItClaims) {
  WrappingBackend backend = wrong_backend(true);
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

/// Router weights that score two experts of token 0 alike but for rounding: the lowest that it selects, and
/// one that it does not.
struct NearTie {
  LayerInputs inputs = make_inputs();
  std::int32_t leaves = -1;
  std::int32_t takes = -1;
};

NearTie make_near_tie(float apart) {
  NearTie tie;
  const Routing routing =
      ReferenceBackend().router_select(tie.inputs.shape, ReferenceBackend().router_project(tie.inputs));
  const RouterLogits logits = ReferenceBackend().router_project(tie.inputs);
  const std::int64_t cols = tie.inputs.shape.grid_cols;
  const auto score = [&](std::int32_t id) {
    return logits.row.f32().row(0)[id / cols] + logits.col.f32().row(0)[id % cols];
  };
  // The lowest selected, and the best of those left out that share neither its row nor its column.
  for (const std::int32_t id : routing.ids_of(0)) {
    tie.leaves = tie.leaves < 0 || score(id) < score(tie.leaves) ? id : tie.leaves;
  }
  for (std::int32_t id = 0; id < tie.inputs.shape.num_experts(); ++id) {
    if (!std::ranges::binary_search(routing.ids_of(0), id)) {
      tie.takes = tie.takes < 0 || score(id) > score(tie.takes) ? id : tie.takes;
    }
  }
  // Token 0 alone sees a bias: with all others' inputs as they are, only its scores matter here.
  const float gap = score(tie.leaves) - score(tie.takes);
  auto& bias =
      tie.leaves % cols != tie.takes % cols ? tie.inputs.router.col_bias : tie.inputs.router.row_bias;
  const bool by_col = tie.leaves % cols != tie.takes % cols;
  bias.resize(static_cast<std::size_t>(by_col ? cols : tie.inputs.shape.grid_rows), 0.0F);
  bias[static_cast<std::size_t>(by_col ? tie.takes % cols : tie.takes / cols)] += gap - apart;
  return tie;
}

LayerCheck check_own_selection(const NearTie& tie) {
  WrappingBackend backend([&](std::unique_ptr<LayerExecution> inner) {
    return std::make_unique<OwnSelectionExecution>(std::move(inner), tie.leaves, tie.takes);
  });
  ReferenceBackend mirror;
  return check_layer(backend, &mirror, tie.inputs, {.kind = ScheduleKind::kStaircase}, 8);
}

TEST(LayerCheck, JudgesALayerOnItsOwnSelectionAndCountsNearTies) {
  const NearTie tie = make_near_tie(2e-6F);
  const LayerCheck result = check_own_selection(tie);
  EXPECT_TRUE(result.passed()) << result.first_failure()->what << ": " << result.first_failure()->detail;
  EXPECT_EQ(result.near_ties(), 4);  // one taken and one left, against the mirror and against the oracle
  for (const StageCheck& stage : result.stages) {
    EXPECT_EQ(stage.near_ties, stage.what.starts_with("selection") ? 2 : 0) << stage.what;
    if (stage.what == "experts against the mirror") {
      EXPECT_EQ(stage.kernels, "own selection + experts");
    }
  }
  // The same swap on the oracle's own selection would be far from rounding.
  const OracleLayer oracle = oracle_layer(tie.inputs, {{0}, nullptr});
  WrappingBackend backend([&](std::unique_ptr<LayerExecution> inner) {
    return std::make_unique<OwnSelectionExecution>(std::move(inner), tie.leaves, tie.takes);
  });
  const auto layer = backend.prepare(tie.inputs, {.kind = ScheduleKind::kStaircase});
  layer->run(L2State::kWarm);
  EXPECT_GT(compare(gather_rows(layer->output(), {0}), oracle.view()).relative_error, 1e-3);
}

TEST(LayerCheck, ASwapBeyondRoundingIsAWrongSelection) {
  const LayerCheck result = check_own_selection(make_near_tie(1e-3F));
  ASSERT_NE(result.first_failure(), nullptr);
  EXPECT_EQ(result.first_failure()->what, "selection against the mirror");
  EXPECT_EQ(result.near_ties(), 2);  // the pair that was left is the threshold itself
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
