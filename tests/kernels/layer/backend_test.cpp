// The CUDA backend: whole layers as graphs against the oracle, stages against the reference, repeatability,
// accounted memory, and every refusal.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/layer/tolerance.hpp"
#include "core/workload/workload.hpp"
#include "kernels/cuda_backend.hpp"
#include "kernels/layer/cuda_layer.hpp"
#include "kernels/layer/layer_plan.hpp"
#include "kernels/runtime/device_info.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/layer_check.hpp"
#include "reference/oracle/oracle.hpp"
#include "reference/oracle/stage_compare.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using namespace cuda;

constexpr double kFloorBf16 = 4e-3;  // floor on quality, DESIGN section 9
constexpr double kFloorF32 = 1e-5;
double floor_of(Dtype dtype) { return dtype == Dtype::kF32 ? kFloorF32 : kFloorBf16; }

LayerInputs make_inputs(LayerShape shape, std::string_view workload, Dtype dtype = Dtype::kBF16) {
  shape.dtype = dtype;
  return make_workload(WorkloadSpec::parse(workload), shape, 42);
}

std::vector<ScheduleOptions> all_schedules() {
  std::vector<ScheduleOptions> options;
  for (const ScheduleKind kind :
       {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric, ScheduleKind::kStaircase,
        ScheduleKind::kDenseMasked, ScheduleKind::kSparseLibrary}) {
    options.push_back({.kind = kind});
  }
  options.push_back({.kind = ScheduleKind::kStaircase, .deterministic = false});
  return options;
}

double relative_error(const HostTensor& out, const HostTensor& reference) {
  std::vector<double> wide;
  for (std::int64_t i = 0; i < reference.size(); ++i) {
    wide.push_back(static_cast<double>(reference.at(i / reference.cols(), i % reference.cols())));
  }
  return compare(out, {wide.data(), reference.rows(), reference.cols()}).relative_error;
}

bool equal_bits(const HostTensor& a, const HostTensor& b) {
  return a.bytes() == b.bytes() && std::equal(a.data(), a.data() + a.bytes(), b.data());
}

TEST(CudaBackend, ExistsOrSaysInOneLineWhyNot) {
  const auto why = why_no_device();
  if (why.has_value()) {
    EXPECT_EQ(why->find('\n'), std::string::npos);
    EXPECT_EQ(test::error_text<NoDevice>([] { (void)make_cuda_backend(); }), "no usable GPU: " + *why);
    EXPECT_FALSE(test::gpu_is_required()) << *why;
  } else {
    const auto backend = make_cuda_backend();
    EXPECT_EQ(backend->name(), "cuda");
    EXPECT_EQ(backend->device(), device_info().name);
    EXPECT_GT(device_info().l2_bytes, 0);
  }
}

/// The path that the layer takes on this machine's device.
std::unique_ptr<ExpertPath> path_here(const LayerShape& shape, const ScheduleOptions& options,
                                      bool fixed_routing) {
  return make_expert_path(
      {.shape = shape, .options = options, .fixed_routing = fixed_routing, .gpu = current_gpu()});
}

class CudaBackendGpu : public testing::Test {
 protected:
  void SetUp() override {
    MOESCOPE_NEEDS_GPU();
    backend_ = make_cuda_backend();
  }
  std::unique_ptr<MoeBackend> backend_;
};

/// Runs the layer under one schedule. A capture fails on any synchronisation or allocation between the
/// first and the last kernel, and prepare() throws then.
void check_layer(MoeBackend& backend, const LayerInputs& inputs, const ScheduleOptions& options) {
  SCOPED_TRACE(inputs.shape.label() + " " + inputs.workload + " " + to_string(options));
  const auto layer = backend.prepare(inputs, options);
  EXPECT_EQ(layer->schedule_options(), options);
  const auto times = layer->run(L2State::kCold);
  const auto stages = layer_stages(*path_here(inputs.shape, options, inputs.fixed_routing.has_value()));
  ASSERT_EQ(times.size(), stages.size() + 1);
  double sum = 0;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    EXPECT_EQ(times[i].stage, stages[i]);
    EXPECT_GT(times[i].time_s, 0) << to_string(stages[i]);
    sum += times[i].time_s;
  }
  EXPECT_EQ(times.back().stage, Stage::kLayer);
  // Runs of their own, in which stages overlap: none takes longer than they do one after another, unless
  // another program has the GPU.
  double layer_s = times.back().time_s;
  EXPECT_GT(layer_s, 0);
  if (!test::under_sanitizer()) {
    const double most_s = 1e-5 + 1.05 * sum;
    for (int again = 0; again < 5 && layer_s > most_s; ++again) {
      layer_s = layer->run(L2State::kCold).back().time_s;
    }
    EXPECT_LE(layer_s, most_s);
  }

  const Routing routing = layer->routing();
  ASSERT_NO_THROW(routing.validate());
  const HostTensor out = layer->output();
  ASSERT_EQ(out.dtype(), inputs.shape.dtype);
  OracleOptions oracle_options;
  oracle_options.tokens = spread_tokens(inputs.shape.num_tokens, 24);
  oracle_options.selection = &routing;
  const OracleLayer oracle = oracle_layer(inputs, oracle_options);
  if (!inputs.fixed_routing.has_value()) {
    const SelectionReport report = compare_selection(routing, oracle.routing);
    EXPECT_TRUE(report.ok()) << report.first_wrong;
  }
  const ErrorReport error = compare(gather_rows(out, oracle_options.tokens), oracle.view());
  EXPECT_LE(error.relative_error, floor_of(inputs.shape.dtype)) << error.describe();

  (void)layer->run(L2State::kWarm);
  const HostTensor again = layer->output();
  if (layer->deterministic()) {
    EXPECT_TRUE(equal_bits(out, again));
  } else {
    EXPECT_LE(relative_error(again, out), floor_of(inputs.shape.dtype));
  }
}

TEST_F(CudaBackendGpu, LayersMatchTheOracleUnderEverySchedule) {
  for (const LayerShape& shape :
       {test::make_shape(1, 8, 4, 4, 1), test::make_shape(3, 96, 48, 16, 7, 24),
        test::make_shape(130, 1000, 24, 40, 33, 48), test::make_shape(33, 64, 8, 8, 64),
        test::make_shape(600, 256, 64, 64, 32, 512)}) {
    for (const std::string_view workload : {"gaussian:1", "zipf:1.2"}) {
      const LayerInputs inputs = make_inputs(shape, workload);
      for (const ScheduleOptions& options : all_schedules()) {
        check_layer(*backend_, inputs, options);
      }
    }
  }
}

TEST_F(CudaBackendGpu, LayersOfRowsAloneMatchTheOracle) {
  if (device_info().compute_capability < 90) {
    GTEST_SKIP() << "rows alone need compute capability 9.0";
  }
  for (const LayerShape& shape :
       {test::make_shape(3, 96, 48, 16, 7, 24), test::make_shape(600, 256, 64, 64, 32, 512)}) {
    for (const std::string_view workload : {"gaussian:1", "zipf:1.2"}) {
      for (const bool deterministic : {true, false}) {
        check_layer(*backend_, make_inputs(shape, workload),
                    {.kind = ScheduleKind::kStaircase,
                     .deterministic = deterministic,
                     .strip_rule = StripRule::kRowsOnly});
      }
    }
  }
}

TEST_F(CudaBackendGpu, TilesOfOtherSizesGiveTheSameRepeatableLayer) {
  if (device_info().compute_capability < 90) {
    GTEST_SKIP() << "the kernel on strips needs compute capability 9.0";
  }
  const LayerInputs inputs = make_inputs(test::make_shape(600, 256, 64, 64, 32, 512), "zipf:1.2");
  for (const char* name : {"staircase", "staircase:atomics", "staircase:rows"}) {
    ScheduleOptions options = parse_schedule(name);
    const auto whole = backend_->prepare(inputs, options);
    (void)whole->run(L2State::kWarm);
    const auto list_bytes = [&] {
      return plan_layer_memory(*path_here(inputs.shape, options, false)).path.schedule;
    };
    const std::int64_t whole_bytes = list_bytes();
    for (const std::int64_t tile : {17, 32, 64, 96}) {
      options.tile_tokens = tile;
      check_layer(*backend_, inputs, options);
      EXPECT_GT(list_bytes(), whole_bytes) << name << ": more tiles, " << tile;
      const auto cut = backend_->prepare(inputs, options);
      (void)cut->run(L2State::kWarm);
      if (options.deterministic) {  // integer sums do not know who added when
        EXPECT_TRUE(equal_bits(cut->output(), whole->output())) << name << ' ' << tile;
      }
    }
    options.tile_tokens = 129;
    EXPECT_THROW((void)backend_->prepare(inputs, options), InvalidArgument);
  }
}

TEST_F(CudaBackendGpu, RowsAloneOfAnFp32LayerAreRefusedWithTheReason) {
  const LayerInputs inputs = make_inputs(test::make_shape(3, 64, 16, 16, 8), "gaussian:1", Dtype::kF32);
  const ScheduleOptions rows{.kind = ScheduleKind::kStaircase, .strip_rule = StripRule::kRowsOnly};
  std::string why;
  EXPECT_FALSE(backend_->supports_layer(inputs, rows, why));
  EXPECT_NE(why.find("bf16"), std::string::npos) << why;
  EXPECT_THROW((void)backend_->prepare(inputs, rows), InvalidArgument);
  EXPECT_TRUE(backend_->supports_layer(inputs, {.kind = ScheduleKind::kStaircase}, why));
  const auto chosen = backend_->prepare(inputs, {.kind = ScheduleKind::kAuto});
  EXPECT_EQ(chosen->explanation().find("staircase:rows"), std::string::npos) << chosen->explanation();
}

TEST_F(CudaBackendGpu, LayersMatchTheOracleInFp32) {
  const LayerInputs inputs =
      make_inputs(test::make_shape(130, 200, 24, 40, 33, 48), "gaussian:1", Dtype::kF32);
  for (const ScheduleOptions& options : all_schedules()) {
    check_layer(*backend_, inputs, options);
  }
}

TEST_F(CudaBackendGpu, FixedRoutingSkipsTheRouter) {
  const LayerInputs inputs = make_inputs(test::make_shape(100, 64, 16, 24, 12, 40), "uniform");
  ASSERT_TRUE(inputs.fixed_routing.has_value());
  for (const ScheduleOptions& options : all_schedules()) {
    check_layer(*backend_, inputs, options);
  }
  EXPECT_THROW((void)backend_->router_project(inputs), InvalidArgument);
}

TEST_F(CudaBackendGpu, GraphReplayEqualsPlainLaunches) {
  const LayerInputs inputs = make_inputs(test::make_shape(300, 128, 32, 32, 24, 96), "gaussian:1");
  for (const ScheduleOptions& options : all_schedules()) {
    const auto execution = backend_->prepare(inputs, options);
    if (!execution->deterministic()) {
      continue;
    }
    (void)execution->run(L2State::kWarm);
    const HostTensor replayed = execution->output();
    auto& layer = dynamic_cast<CudaLayer&>(*execution);
    for (const Stage stage : layer.stages()) {
      layer.enqueue(stage);
    }
    EXPECT_TRUE(equal_bits(execution->output(), replayed)) << to_string(options);
  }
}

StageData given_routing(const Routing& routing) {
  StageData given;
  given.routing = routing;
  return given;
}

/// Every stage that the layer runs, alone, against the CPU's; and runs are as before afterwards.
void check_stages_alone(MoeBackend& backend, const LayerInputs& inputs, const ScheduleOptions& options) {
  SCOPED_TRACE(inputs.workload + " " + to_string(options));
  ReferenceBackend reference;
  const LayerCheck check = check_layer(backend, &reference, inputs, options, 24);
  const StageCheck* failure = check.first_failure();
  EXPECT_EQ(failure, nullptr) << to_string(failure->stage) << ", " << failure->what << ": "
                              << failure->detail;
  const auto path = path_here(inputs.shape, options, inputs.fixed_routing.has_value());
  for (const Stage stage : layer_stages(*path)) {
    const bool of_path = stage != Stage::kRouterProject && stage != Stage::kSharedMlp;
    const auto compared = std::ranges::find_if(check.stages, [&](const StageCheck& each) {
      return each.stage == stage && each.what.ends_with("against the mirror") &&
             each.kernels.ends_with(of_path ? path->kernels(stage) : std::string(to_string(stage)));
    });
    EXPECT_NE(compared, check.stages.end()) << to_string(stage);
  }

  const auto layer = backend.prepare(inputs, options);
  (void)layer->run(L2State::kWarm);
  const HostTensor before = layer->output();
  StageData given = given_routing(layer->routing());
  if (!inputs.fixed_routing) {
    given.logits = layer->run_alone(Stage::kRouterProject, {}).logits;
    given.logits.row.f32().row(0)[0] += 3;
  } else {
    std::ranges::fill(given.routing.gates, 0.5F);
  }
  const Stage last = layer->stages().back();
  given.scores.assign(static_cast<std::size_t>(inputs.shape.num_pairs()), 0.25F);
  EXPECT_FALSE(equal_bits(layer->run_alone(last, given).y, before));
  (void)layer->run(L2State::kWarm);
  if (layer->deterministic()) {
    EXPECT_TRUE(equal_bits(layer->output(), before));
  } else {
    EXPECT_LE(relative_error(layer->output(), before), floor_of(inputs.shape.dtype));
  }
}

TEST_F(CudaBackendGpu, StagesAloneAreThoseOfTheLayerAndMatchTheReference) {
  std::vector<ScheduleOptions> schedules = all_schedules();
  schedules.push_back(parse_schedule("staircase:rows"));
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF32}) {
    for (const char* workload : {"zipf:1", "uniform"}) {
      const LayerInputs inputs = make_inputs(test::make_shape(130, 72, 24, 40, 33, 48), workload, dtype);
      for (const ScheduleOptions& options : schedules) {
        if (std::string why; backend_->supports_layer(inputs, options, why)) {
          check_stages_alone(*backend_, inputs, options);
        }
      }
    }
  }
}

TEST_F(CudaBackendGpu, StagesBeforeALayerIsPreparedMatchTheReference) {
  ReferenceBackend reference;
  const LayerInputs inputs = make_inputs(test::make_shape(130, 72, 24, 40, 33, 48), "zipf:1");
  const RouterLogits logits = reference.router_project(inputs);
  EXPECT_LE(relative_error(backend_->router_project(inputs).row, logits.row), 1e-5);
  EXPECT_LE(relative_error(backend_->router_project(inputs).col, logits.col), 1e-5);
  const Routing routing = reference.router_select(inputs.shape, logits);
  const Routing device_routing = backend_->router_select(inputs.shape, logits);
  EXPECT_EQ(device_routing.token_offsets, routing.token_offsets);
  EXPECT_EQ(device_routing.expert_ids, routing.expert_ids);
  for (const ScheduleOptions& options : all_schedules()) {
    SCOPED_TRACE(to_string(options));
    EXPECT_EQ(compare_schedules(backend_->schedule(routing, options), build_schedule(routing, options)), "");
  }
}

TEST_F(CudaBackendGpu, StagesAloneRefuseWhatDoesNotFit) {
  const LayerInputs inputs = make_inputs(test::make_shape(40, 64, 16, 16, 8, 32), "gaussian:1");
  const auto layer = backend_->prepare(inputs, {.kind = ScheduleKind::kTokenCentric});
  const LayerInputs others = make_inputs(test::make_shape(40, 64, 16, 16, 9, 32), "gaussian:1");
  const RouterLogits logits = layer->run_alone(Stage::kRouterProject, {}).logits;
  const Routing other = backend_->router_select(others.shape, logits);
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              (void)layer->run_alone(Stage::kExperts, given_routing(other));
            }).find("must fit the layer"),
            std::string::npos);
  EXPECT_THROW((void)layer->run_alone(Stage::kSchedule, given_routing(other)),
               InvalidArgument);  // it has none
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              (void)layer->run_alone(Stage::kRouterSelect, {});
            }).find("row_logits = "),
            std::string::npos);
  StageData bad;
  bad.logits = {logits.row.clone(), logits.col.clone()};
  bad.logits.col.f32().row(3)[2] = std::numeric_limits<float>::infinity();
  for (const auto& kind : {ScheduleKind::kTokenCentric, ScheduleKind::kStaircase}) {
    const auto selecting = backend_->prepare(inputs, {.kind = kind});
    EXPECT_TRUE(test::error_text<InvalidArgument>([&] {
                  (void)selecting->run_alone(Stage::kRouterSelect, bad);
                }).starts_with("col_logits[3, 2] = inf"));
    EXPECT_NO_THROW((void)selecting->run(L2State::kWarm));  // the bad logit is not the layer's
  }
}

// Outputs near 1e-5: what the sums of strips are scaled by has to follow the gates.
TEST_F(CudaBackendGpu, GatesFarBelowOneKeepTheirResolution) {
  LayerShape shape = test::make_shape(40, 264, 321, 640, 777);
  shape.gate_mode = GateMode::kProbability;
  shape.activation = Activation::kGelu;
  const LayerInputs inputs = make_inputs(shape, "gaussian:0.01");
  for (const char* schedule :
       {"staircase", "staircase:atomics", "staircase:rows", "staircase:rows:atomics"}) {
    const ScheduleOptions options = parse_schedule(schedule);
    if (std::string why; backend_->supports_layer(inputs, options, why)) {
      check_layer(*backend_, inputs, options);
    }
  }
}

TEST_F(CudaBackendGpu, AutoRunsTheScheduleItExplains) {
  for (const LayerShape& shape :
       {test::make_shape(1, 64, 16, 16, 8, 32), test::make_shape(600, 256, 64, 64, 32, 512)}) {
    const LayerInputs inputs = make_inputs(shape, "gaussian:1");
    const auto layer = backend_->prepare(inputs, {.kind = ScheduleKind::kAuto});
    const ScheduleOptions chosen = layer->schedule_options();
    ASSERT_NE(chosen.kind, ScheduleKind::kAuto);
    EXPECT_TRUE(layer->explanation().starts_with(to_string(chosen))) << layer->explanation();
    (void)layer->run(L2State::kWarm);
    const auto named = backend_->prepare(inputs, chosen);
    EXPECT_EQ(named->explanation(), "");
    (void)named->run(L2State::kWarm);
    ASSERT_TRUE(layer->deterministic());
    EXPECT_TRUE(equal_bits(layer->output(), named->output()));
  }
}

TEST_F(CudaBackendGpu, StaircaseOnStripsGivesTheRoutingOfTheOthers) {
  const LayerInputs inputs = make_inputs(test::make_shape(130, 64, 24, 40, 33, 0), "zipf:1");
  const auto staircase = backend_->prepare(inputs, {.kind = ScheduleKind::kStaircase});
  const auto pairs = backend_->prepare(inputs, {.kind = ScheduleKind::kTokenCentric});
  (void)staircase->run(L2State::kWarm);
  (void)pairs->run(L2State::kWarm);
  const Routing ours = staircase->routing();
  const Routing theirs = pairs->routing();
  EXPECT_EQ(ours.expert_ids, theirs.expert_ids);
  // The strips' gates are worked out on the host, from the same scores.
  for (std::size_t i = 0; i < theirs.gates.size(); ++i) {
    EXPECT_NEAR(ours.gates[i], theirs.gates[i], 4e-6F * theirs.gates[i]);
  }
}

TEST_F(CudaBackendGpu, LayersOfOneModelRunSideBySide) {
  const LayerInputs inputs = make_inputs(test::make_shape(64, 64, 16, 16, 8, 32), "gaussian:1");
  const auto first = backend_->prepare(inputs, {.kind = ScheduleKind::kTokenCentric});
  const auto second = backend_->prepare(inputs, {.kind = ScheduleKind::kStaircase});
  (void)first->run(L2State::kWarm);
  (void)second->run(L2State::kWarm);
  const HostTensor out = first->output();
  (void)second->run(L2State::kCold);
  (void)first->run(L2State::kCold);
  EXPECT_TRUE(equal_bits(first->output(), out));
  EXPECT_LE(relative_error(second->output(), out), kFloorBf16);
}

TEST_F(CudaBackendGpu, AccountedMemoryIsWhatTheDeviceLoses) {
  const LayerShape shape = test::make_shape(2048, 512, 64, 64, 128, 512);
  const LayerInputs inputs = make_inputs(shape, "gaussian:1");
  for (const ScheduleOptions& options : all_schedules()) {
    const auto warm_up = backend_->prepare(inputs, options);  // modules, library handles, weights
    std::size_t before = 0;
    std::size_t after = 0;
    std::size_t all = 0;
    MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&before, &all));
    const auto layer = backend_->prepare(inputs, options);
    MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&after, &all));
    const LayerMemoryPlan plan = plan_layer_memory(*path_here(shape, options, false));
    const auto lost = static_cast<double>(before) - static_cast<double>(after);
    const auto planned = static_cast<double>(plan.total_bytes() - plan.experts);
    constexpr double kGranularity = 32
                                    << 20;  // allocations come in 2 MiB pages; graphs and streams take some
    EXPECT_NEAR(lost, planned, kGranularity) << to_string(options);
  }
}

TEST_F(CudaBackendGpu, RefusesWhatDoesNotFitBeforeAllocating) {
  std::size_t before = 0;
  std::size_t after = 0;
  std::size_t all = 0;
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&before, &all));
  // Every expert for every token: routing alone, 8 bytes a pair, is half as much again as the device has.
  constexpr std::int64_t kTopK = 128 * 128;
  const auto num_tokens = static_cast<std::int64_t>(all) / 2 * 3 / (8 * kTopK);
  const LayerInputs inputs = make_inputs(test::make_shape(num_tokens, 8, 128, 128, kTopK), "gaussian:1");
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&before, &all));
  const std::string text = test::error_text<OutOfMemory>(
      [&] { (void)backend_->prepare(inputs, {.kind = ScheduleKind::kTokenCentric}); });
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&after, &all));
  EXPECT_NE(text.find("are available"), std::string::npos) << text;
  EXPECT_EQ(before, after);
}

TEST_F(CudaBackendGpu, NamesTheBadLogitAsTheReferenceDoes) {
  LayerInputs inputs = make_inputs(test::make_shape(40, 64, 16, 16, 8, 32), "gaussian:1");
  inputs.hidden_states.bf16().row(7)[5] = to_bf16(std::numeric_limits<float>::quiet_NaN());
  const auto layer = backend_->prepare(inputs, {.kind = ScheduleKind::kStaircase});
  for (int repetition = 0; repetition < 2; ++repetition) {
    const std::string text = test::error_text<InvalidArgument>([&] { (void)layer->run(L2State::kWarm); });
    EXPECT_TRUE(text.starts_with("row_logits[7, 0] = ")) << text;
    EXPECT_TRUE(text.ends_with("nan: must be finite")) << text;
  }
  const RouterLogits logits = backend_->router_project(inputs);
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { (void)backend_->router_select(inputs.shape, logits); }),
            test::error_text<InvalidArgument>(
                [&] { (void)ReferenceBackend().router_select(inputs.shape, logits); }));
}

TEST_F(CudaBackendGpu, RefusesRoutingWithUnequalNumbersOfPairs) {
  Routing routing;
  routing.num_tokens = 2;
  routing.grid_rows = 2;
  routing.grid_cols = 2;
  routing.token_offsets = {0, 1, 3};
  routing.expert_ids = {0, 1, 2};
  routing.gates = {1, 0.5F, 0.5F};
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              (void)backend_->schedule(routing, {.kind = ScheduleKind::kStaircase});
            }).find("pairs of token 1 = 2: must be 1"),
            std::string::npos);
}

}  // namespace
}  // namespace moescope
