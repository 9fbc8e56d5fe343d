// What a layer is said to need of the host's memory, against what the process takes.
#include "reference/backend/layer_use.hpp"

#include <gtest/gtest.h>
#include <malloc.h>
#include <omp.h>

#include <fstream>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "core/cost/traffic.hpp"
#include "core/schedule/skew.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/layer_check.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

#ifdef MOESCOPE_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

constexpr double kMebibyte = 1 << 20;
constexpr std::int64_t kJudged = 16;

/// Resident bytes of this process, or the most since the last reset; negative where the kernel does not say.
double resident_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key)) return 1024 * std::stod(line.substr(key.size()));
  }
  return -1;
}

/// The most that `act` takes beside what is there.
template <class Act>
double peak_of(const Act& act) {
  malloc_trim(0);
  const double before = resident_bytes("VmRSS:");
  std::ofstream("/proc/self/clear_refs") << "5";  // resets VmHWM
  act();
  return resident_bytes("VmHWM:") - before;
}

/// What `run` and `compare` do with a layer.
void study(const WorkloadSpec& spec, const LayerShape& shape, const std::vector<ScheduleOptions>& schedules) {
  ReferenceBackend backend;
  const LayerInputs inputs = make_workload(spec, shape, 1);
  const Routing routing = inputs.fixed_routing ? *inputs.fixed_routing
                                               : backend.router_select(shape, backend.router_project(inputs));
  EXPECT_GT(compute_skew(routing).reuse, 0);
  std::vector<std::unique_ptr<LayerExecution>> executions;
  for (const ScheduleOptions& options : schedules) {
    executions.push_back(backend.prepare(inputs, options));
    executions.back()->run(L2State::kCold);
    const AnalyticCost cost =
        analytic_cost(shape, routing, backend.schedule(routing, executions.back()->schedule_options()),
                      inputs.fixed_routing.has_value());
    EXPECT_GT(cost.useful_flop(Stage::kLayer), 0);
    const auto judge = oracle_judge(inputs, kJudged);
    EXPECT_LE(judge(executions.back()->output(), executions.back()->routing()).relative_error, 0.1);
  }
  for (const auto& execution : executions) execution->run(L2State::kCold);
}

void expect_stated(double peak, double stated, const std::string& what) {
  // Small vectors, thread stacks and what the heap keeps lie below 8 MiB.
  EXPECT_LE(peak, stated + 8 * kMebibyte) << what << ": " << peak / kMebibyte << " of " << stated / kMebibyte;
  EXPECT_LE(stated, 1.5 * peak + 24 * kMebibyte)
      << what << ": " << peak / kMebibyte << " of " << stated / kMebibyte;
}

struct Use {
  const char* workload;
  LayerShape shape;
  std::vector<const char*> schedules;
};

std::ostream& operator<<(std::ostream& out, const Use& use) {
  out << use.workload << ' ' << use.shape.label();
  for (const char* schedule : use.schedules) out << ' ' << schedule;
  return out;
}

LayerShape shape_of(std::int64_t L, std::int64_t d, std::int64_t rows, std::int64_t cols, std::int64_t K,
                    std::int64_t shared, Dtype dtype) {
  LayerShape shape = test::make_shape(L, d, rows, cols, K, shared);
  shape.dtype = dtype;
  return shape;
}

const std::vector<Use> kUses = {
    {"gaussian:1", shape_of(8, 1, 3000, 3000, 2, 0, Dtype::kBF16), {"token_centric"}},  // loads per expert
    {"gaussian:1", shape_of(8, 1, 3000, 3000, 2, 0, Dtype::kBF16), {"expert_centric"}},
    {"gaussian:1", shape_of(4, 2, 1, 4000000, 5, 0, Dtype::kF32), {"staircase"}},     // a flat router
    {"gaussian:1", shape_of(16384, 8, 64, 64, 256, 0, Dtype::kBF16), {"staircase"}},  // lists per pair
    {"gaussian:1", shape_of(16384, 8, 64, 64, 256, 0, Dtype::kBF16), {"expert_centric"}},
    {"gaussian:1",
     shape_of(8192, 8, 64, 64, 256, 0, Dtype::kBF16),
     {"token_centric", "expert_centric", "staircase", "dense_masked"}},
    {"zipf:1", shape_of(16384, 8, 64, 64, 256, 0, Dtype::kF32), {"staircase:rows"}},
    {"uniform", shape_of(16384, 8, 128, 128, 256, 0, Dtype::kBF16), {"staircase"}},  // groups
    {"uniform", shape_of(16384, 8, 128, 128, 128, 0, Dtype::kBF16), {"token_centric", "expert_centric"}},
    {"gaussian:1", shape_of(16384, 512, 32, 32, 8, 0, Dtype::kBF16), {"token_centric"}},   // tokens
    {"gaussian:1", shape_of(8192, 256, 32, 32, 8, 2048, Dtype::kBF16), {"dense_masked"}},  // shared MLP
    {"gaussian:1", shape_of(64, 512, 320, 320, 16, 0, Dtype::kBF16), {"staircase"}},       // weights
    {"gaussian:1", shape_of(8192, 8, 64, 64, 256, 0, Dtype::kBF16), {"auto"}},
};

/// Each in a process of its own, side by side.
class LayerUseOf : public testing::TestWithParam<Use> {};

TEST_P(LayerUseOf, IsWhatIsStated) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory is no layer's";
  if (resident_bytes("VmHWM:") < 0) GTEST_SKIP() << "no /proc/self/status";
  const Use& use = GetParam();
  std::vector<ScheduleOptions> schedules;
  for (const char* name : use.schedules) schedules.push_back(parse_schedule(name));
  const WorkloadSpec spec = WorkloadSpec::parse(use.workload);
  const double peak = peak_of([&] { study(spec, use.shape, schedules); });
  expect_stated(peak,
                layer_host_bytes(use.shape, spec, false, {.schedules = schedules, .judged_tokens = kJudged}),
                testing::PrintToString(use));
}

INSTANTIATE_TEST_SUITE_P(Layers, LayerUseOf, testing::ValuesIn(kUses));

TEST(LayerUse, StatesWhatABaselineTakes) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer's own memory is no layer's";
  if (resident_bytes("VmHWM:") < 0) GTEST_SKIP() << "no /proc/self/status";
  for (const System system : systems()) {
    if (system == System::kOmniMoe) continue;
    SystemShape shape = find_system_preset(system, "table-a").shape;
    shape.num_tokens = 512;
    shape.hidden_size = 128;
    if (shape.has_product_keys()) shape.top_k = 64 * shape.heads;
    const double peak = peak_of([&] {
      const SystemInputs inputs = make_system_inputs(shape, 1, 1);
      ReferenceBackend backend;
      const auto execution = backend.prepare_system(inputs);
      execution->run(L2State::kCold);
      const Routing routing = execution->routing();
      if (routing.num_pairs() > 0) {
        EXPECT_GT(compute_skew(routing).reuse, 0);
      }
      EXPECT_LE(system_judge(inputs, kJudged)(execution->output(), routing).relative_error, 0.1);
    });
    expect_stated(peak, system_host_bytes(shape, WorkloadSpec::parse("gaussian:1"), "cpu", kJudged),
                  shape.label());
  }
}

}  // namespace
}  // namespace moescope
