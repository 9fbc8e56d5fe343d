// FFN experts whose tokens are capped or rounded, on the CPU against the fp64 oracle.
#include <gtest/gtest.h>

#include <cmath>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system_cost.hpp"
#include "core/systems/system_workload.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

constexpr std::array kRules = {"padded:0.5",           "padded:1.25",           "padded:4",
                               "token_rounding:up:8",  "token_rounding:down:8", "token_rounding:nearest:16",
                               "token_rounding:up:64", "token_rounding"};

SystemInputs skewed(System system, Dtype dtype, const char* rule) {
  SystemShape shape = test::system_shape(system, 150, 33, 10, 3);
  shape.dtype = dtype;
  SystemInputs inputs = make_workload(WorkloadSpec::parse("zipf:1"), shape, 3);
  inputs.set_schedule(parse_schedule(rule));
  return inputs;
}

TEST(TokenRules, AgreeWithTheOracleOnThePairsThatRun) {
  ReferenceBackend backend;
  for (const System system : {System::kGShard, System::kDeepSeekMoe}) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      for (const char* rule : kRules) {
        const SystemInputs inputs = skewed(system, dtype, rule);
        const SystemCheck check = check_system(backend, inputs, inputs.shape.num_tokens);
        EXPECT_TRUE(check.passed()) << rule << " " << inputs.shape.label() << ": " << check.describe();
        EXPECT_EQ(to_string(check.tokens), rule);
        ASSERT_TRUE(check.dropless_error) << rule;
        const bool changed = check.dropped_pairs + check.added_pairs > 0;
        EXPECT_EQ(check.dropless_error->relative_error > check.tolerance, changed)
            << rule << ": " << check.describe();
      }
    }
  }
}

TEST(TokenRules, DropWhatNumPyCountsOnARecordedRouting) {
  // tests/data/token_rules/make.py prints these.
  const std::string text = "trace:" + test::source_path("tests/data/traces/ffn64_unbalanced.npz");
  SystemShape shape = test::system_shape(System::kGShard, 0, 16, 0, 0);
  const std::array<std::tuple<const char*, std::int64_t, std::int64_t, std::int64_t>, 3> counts = {
      {{"padded:1", 8, 411, 17}, {"padded:1.25", 10, 387, 7}, {"padded:4", 32, 199, 0}}};
  ReferenceBackend backend;
  for (const auto& [rule, capacity, dropped, without] : counts) {
    SystemInputs inputs = make_workload(WorkloadSpec::parse(text), shape, 1);
    inputs.set_schedule(parse_schedule(rule));
    const auto execution = backend.prepare_ruled_system(inputs);
    execution->run(L2State::kWarm);
    const TokenAssignment& assignment = *execution->assignment();
    EXPECT_EQ(assignment.capacity, capacity) << rule;
    EXPECT_EQ(assignment.dropped_pairs, dropped) << rule;
    EXPECT_EQ(assignment.tokens_without, without) << rule;
    EXPECT_EQ(execution->routing().num_pairs(), 512) << rule;
    EXPECT_TRUE(check_system(backend, inputs, 64).passed()) << rule;
  }
  SystemInputs inputs = make_workload(WorkloadSpec::parse(text), shape, 1);
  inputs.set_schedule(parse_schedule("token_rounding"));
  const auto execution = backend.prepare_ruled_system(inputs);
  EXPECT_EQ(
      test::error_text<InvalidArgument>([&] { execution->run(L2State::kWarm); }),
      "schedule = token_rounding: adds tokens by the router's probabilities, which a fixed routing has not; "
      "token_rounding:down needs the recorded gates alone");
}

TEST(TokenRules, AreForFfnExpertsAsGroupedProducts) {
  ReferenceBackend backend;
  SystemInputs peer = make_system_inputs(test::small_system(System::kPeer, Dtype::kF32), 1, 9);
  peer.tokens = *parse_token_rule("padded:1");
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { backend.prepare_system(peer); }),
            "schedule = padded:1: must be one of auto, token_centric, dense_masked for peer");
  SystemInputs gshard = skewed(System::kGShard, Dtype::kF32, "padded:1");
  gshard.schedule = ScheduleKind::kTokenCentric;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { backend.prepare_system(gshard); }),
            "schedule = padded:1: must be one of auto, expert_centric, token_centric, dense_masked, "
            "padded:CAPACITY, token_rounding for gshard");
}

/// A backend that says nothing of rules has none.
class PlainBackend final : public MoeBackend {
 public:
  std::string_view name() const override { return "plain"; }
  std::string device() const override { return "none"; }
  bool supports(ScheduleKind, std::string&) const override { return false; }
  RouterLogits router_project(const LayerInputs&) override { throw InternalError("no stages"); }
  Routing router_select(const LayerShape&, const RouterLogits&) override { throw InternalError("no stages"); }
  Schedule schedule(const Routing&, const ScheduleOptions&) override { throw InternalError("no stages"); }
  std::unique_ptr<LayerExecution> prepare(const LayerInputs&, const ScheduleOptions&) override {
    throw InternalError("no stages");
  }
  std::unique_ptr<LayerExecution> prepare_system(const SystemInputs&) override { return nullptr; }
};

TEST(TokenRules, AreRefusedWhereABackendHasNone) {
  PlainBackend backend;
  SystemInputs inputs = skewed(System::kGShard, Dtype::kF32, "padded:1");
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { backend.prepare_ruled_system(inputs); }),
            "schedule = padded:1: the plain backend gives experts every pair");
  inputs.tokens = {};
  EXPECT_EQ(backend.prepare_ruled_system(inputs), nullptr);
}

TEST(TokenRules, CostWhatIsExecuted) {
  ReferenceBackend backend;
  const SystemInputs inputs = skewed(System::kGShard, Dtype::kF32, "padded:1.25");
  const auto execution = backend.prepare_ruled_system(inputs);
  execution->run(L2State::kWarm);
  const Routing routing = execution->routing();
  const TokenAssignment& assignment = *execution->assignment();
  const std::int64_t row_flop = 6 * 12 * 33 + 2 * 33;
  EXPECT_EQ(assignment.capacity, 57);  // ceil(1.25 * 150 * 3 / 10)
  const AnalyticCost cost =
      analytic_cost(inputs.shape, routing, execution->schedule_options(), &assignment, false);
  EXPECT_EQ(cost.executed_flop(Stage::kExperts), 570 * row_flop);
  EXPECT_EQ(cost.useful_flop(Stage::kExperts), assignment.routing.num_pairs() * row_flop);
  const FfnRows rows = ffn_rows(inputs.shape, routing, execution->schedule_options(), &assignment);
  EXPECT_EQ(rows.executed, 570);
  EXPECT_DOUBLE_EQ(rows.padding_waste(), 570.0 / static_cast<double>(assignment.routing.num_pairs()));
  const FfnRows dropless = ffn_rows(inputs.shape, routing, system_schedule(System::kGShard), nullptr);
  EXPECT_EQ(dropless.useful, 450);
  EXPECT_EQ(dropless.executed % 128, 0);
  EXPECT_EQ(ffn_rows(inputs.shape, routing, {.kind = ScheduleKind::kDenseMasked}, nullptr).executed, 1500);
  EXPECT_EQ(ffn_rows(inputs.shape, routing, {.kind = ScheduleKind::kTokenCentric}, nullptr).padding_waste(),
            1);
}

}  // namespace
}  // namespace moescope
