// Profiles of a real layer on the CPU backend with counters that are not there: rows, tables, sums, traces.
#include "profiler/limits/layer_profile.hpp"

#include <gtest/gtest.h>

#include <omp.h>
#include <sstream>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/error.hpp"
#include "core/workload/output_gradient.hpp"
#include "profiler/counters/recorded_counters.hpp"
#include "profiler/report/chrome_trace.hpp"
#include "reference/backend/reference_backend.hpp"
#include "tests/support/fake_counters.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/layers.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using Json = nlohmann::json;

constexpr std::array kSchedules = {ScheduleKind::kTokenCentric, ScheduleKind::kDenseMasked,
                                   ScheduleKind::kSparseLibrary};

/// Two kernels of 1 and 2 microseconds, with a gap between them, for every stage.
class FakeTracer final : public KernelTracer {
 public:
  bool permitted = true;
  std::vector<KernelRecord> trace(const std::function<void()>& work) override {
    if (!permitted) {
      throw CountersUnavailable("another profiler is attached");
    }
    work();
    return {{"first<int>", 0, 1e-6}, {"second", 2e-6, 4e-6}};
  }
};

DeviceCeilings fake_ceilings() {
  DeviceCeilings ceilings{"fake device", {}};
  for (const auto metric : {ceiling::kHbmCopy, ceiling::kHbmRead, ceiling::kL2Read, ceiling::kL2Reduction,
                            ceiling::kSharedRead, ceiling::kBf16Matrix, ceiling::kFp32}) {
    ceilings.ceilings.push_back({std::string(metric), "fake", 1e12, 0, 10, -1, ""});
  }
  return ceilings;
}

MetricSelection selection_of(const std::vector<std::string>& names) {
  return MetricCatalogue::builtin().resolve("GH100", names);
}

struct Fixture {
  test::FakeCounters counters;
  FakeTracer tracer;
  std::vector<std::string> metrics = {"traffic", "tensor"};
  bool with_source = true;
  L2State l2 = L2State::kWarm;
  std::vector<ScheduleKind> kinds = {kSchedules.begin(), kSchedules.end()};

  LayerProfile run(LayerInputs& inputs) {
    std::vector<ScheduleOptions> schedules;
    for (const ScheduleKind kind : kinds) {
      schedules.push_back({.kind = kind});
    }
    SamplingOptions sampling;
    sampling.l2 = l2;
    sampling.min_samples = 2;
    sampling.max_rounds = 2;
    CounterSetup setup;
    if (with_source) {
      setup.source = &counters;
      setup.selection = selection_of(metrics);
    } else {
      setup.reason = "not permitted here";
    }
    omp_set_num_threads(1);  // nothing here is worth waking others
    ReferenceBackend backend;
    return profile_layer(
        backend, inputs, schedules, sampling, [](const HostTensor&, const Routing&) { return ErrorReport{}; },
        setup, fake_ceilings(), &tracer);
  }
};

LayerInputs make_inputs() { return test::make_layer(test::make_shape(24, 16, 8, 6, 4, 8), 2); }

const ResultRow* find_row(const std::vector<ResultRow>& rows, std::string_view schedule, Stage stage,
                          std::string_view metric, Source source = Source::kMeasured) {
  const auto found = std::ranges::find_if(rows, [&](const ResultRow& row) {
    return row.schedule == schedule && row.stage == to_string(stage) && row.metric == metric &&
           row.source == source;
  });
  return found == rows.end() ? nullptr : &*found;
}

std::string profile_text(const LayerProfile& profile, const std::string& device) {
  std::ostringstream text;
  TableOutput out(text, text, {});
  print_profile(out, profile, device);
  return text.str();
}

/// A backward is counted by the same road, with stages of its own.
TEST(LayerProfile, CountsEveryStageOfTheBackward) {
  const auto inputs = make_inputs();
  const HostTensor dy = make_output_gradient(inputs.shape, inputs.seed);
  test::FakeCounters counters;
  FakeTracer tracer;
  SamplingOptions sampling;
  sampling.min_samples = 2;
  sampling.max_rounds = 2;
  const std::vector<ScheduleOptions> schedules = {{.kind = ScheduleKind::kStaircase},
                                                  {.kind = ScheduleKind::kSparseLibrary}};
  omp_set_num_threads(1);
  ReferenceBackend backend;
  const LayerProfile profile = profile_training(
      backend, inputs, dy, schedules, sampling, {.save = SaveMode::kScores},
      [](TrainingExecution&) {
        return GradientError{{}, "w_in"};
      },
      {.source = &counters, .selection = selection_of({"traffic"}), .reason = ""}, fake_ceilings(), &tracer);
  ASSERT_EQ(profile.counted.size(), 2U);
  std::vector<Stage> stages;
  for (const StageMetrics& stage : profile.counted[0].stages) {
    stages.push_back(stage.stage);
    EXPECT_TRUE(stage.find("hbm_read_bytes").has_value());
  }
  EXPECT_EQ(stages,
            (std::vector<Stage>{Stage::kSharedMlpBackward, Stage::kExpertsDgrad, Stage::kExpertsWgrad,
                                Stage::kRouterSelectBackward, Stage::kRouterProjectBackward, Stage::kLayer}));
  EXPECT_EQ(profile.kernels[0].size(), 5U);
  const auto rows = profile_rows(profile);
  const ResultRow* const bytes = find_row(rows, "staircase", Stage::kExpertsWgrad, "hbm_write_bytes");
  ASSERT_NE(bytes, nullptr);
  EXPECT_EQ(bytes->direction, "backward");
  EXPECT_EQ(bytes->save, "scores");
  EXPECT_NE(find_row(rows, "staircase", Stage::kExpertsWgrad, "hbm_write_bytes", Source::kAnalytic), nullptr)
      << "the floor beside it";
  EXPECT_NE(find_row(rows, "staircase", Stage::kExpertsDgrad, "nearest_limit_fraction"), nullptr);
  EXPECT_FALSE(profile.counted[1].reason.empty()) << "sparse_library has no backward";
}

TEST(LayerProfile, CountsEveryStageAndTheLayerAsARangeOfItsOwn) {
  auto inputs = make_inputs();
  Fixture fixture;
  const LayerProfile profile = fixture.run(inputs);
  ASSERT_EQ(profile.counted.size(), kSchedules.size());
  std::vector<Stage> stages;
  for (const StageMetrics& stage : profile.counted[0].stages) {
    stages.push_back(stage.stage);
  }
  EXPECT_EQ(stages, (std::vector<Stage>{Stage::kRouterProject, Stage::kRouterSelect, Stage::kSchedule,
                                        Stage::kExperts, Stage::kSharedMlp, Stage::kLayer}));
  EXPECT_EQ(fixture.counters.passes_run, 2 * (2 * profile.counted[0].passes + 9))
      << "two schedules ran, each by stage and as a whole, and HBM's bytes three times in three ways";
  EXPECT_TRUE(profile.counted[2].stages.empty()) << "sparse_library is not on the CPU";
  EXPECT_FALSE(profile.counted[2].reason.empty());
}

TEST(LayerProfile, RowsFitTheSchemaAndKeepAnalyticAndMeasuredApart) {
  auto inputs = make_inputs();
  Fixture fixture;
  fixture.l2 = L2State::kCold;
  fixture.counters.values["dram__bytes_read.sum"] = 5e5;
  fixture.counters.lost.insert("sm__warps_active.avg.pct_of_peak_sustained_active");
  const auto rows = profile_rows(fixture.run(inputs));
  const test::TemporaryDirectory directory;
  {
    const std::array<const char*, 1> command = {"test"};
    ResultWriter writer(directory.path() / "out", make_run_header(1, command.data()));
    for (const ResultRow& row : rows) {
      writer.write(row);
    }
  }
  const test::JsonSchema schema(Json::parse(result_schema_json()));
  std::istringstream lines(test::read_text(directory.path() / "out" / "rows.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    ASSERT_EQ(schema.violation(Json::parse(line)), "") << line;
  }
  const ResultRow* measured = find_row(rows, "token_centric", Stage::kExperts, "hbm_read_bytes");
  ASSERT_NE(measured, nullptr);
  EXPECT_EQ(measured->value, 5e5);
  EXPECT_EQ(measured->l2_state, "cold");
  const ResultRow* analytic =
      find_row(rows, "token_centric", Stage::kExperts, "hbm_read_bytes", Source::kAnalytic);
  ASSERT_NE(analytic, nullptr);
  EXPECT_EQ(analytic->l2_state, "none");
  const ResultRow* lost = find_row(rows, "token_centric", Stage::kExperts, "occupancy");
  ASSERT_NE(lost, nullptr);
  EXPECT_EQ(lost->status, Status::kUnavailable);
  EXPECT_FALSE(lost->reason.empty());
  const ResultRow* time = find_row(rows, "token_centric", Stage::kExperts, "time_s");
  const ResultRow* write = find_row(rows, "token_centric", Stage::kExperts, "hbm_write_bytes");
  const ResultRow* rate = find_row(rows, "token_centric", Stage::kExperts, "hbm_bytes_per_s");
  const ResultRow* fraction = find_row(rows, "token_centric", Stage::kExperts, "hbm_fraction_of_ceiling");
  ASSERT_TRUE(time != nullptr && write != nullptr && rate != nullptr && fraction != nullptr);
  EXPECT_DOUBLE_EQ(*rate->value, (5e5 + *write->value) / *time->value);
  EXPECT_DOUBLE_EQ(*fraction->value, *rate->value / 1e12);
  EXPECT_NE(find_row(rows, "token_centric", Stage::kLayer, "nearest_limit_fraction"), nullptr);
}

TEST(LayerProfile, SumOverStagesIsHeldAgainstTheLayer) {
  auto inputs = make_inputs();
  Fixture fixture;
  fixture.counters.values = {{"dram__bytes_read.sum", 70}, {"dram__bytes_write.sum", 30}};
  // Five stages of 100 bytes each.
  fixture.counters.range_values["layer"] = {{"dram__bytes_read.sum", 495}, {"dram__bytes_write.sum", 0}};
  fixture.metrics = {"hbm_read_bytes", "hbm_write_bytes"};
  fixture.kinds = {ScheduleKind::kTokenCentric};
  auto profile = fixture.run(inputs);
  EXPECT_TRUE(stage_sums_hold(profile));
  const auto rows = profile_rows(profile);
  EXPECT_DOUBLE_EQ(*find_row(rows, "token_centric", Stage::kLayer, "stage_sum_over_layer_hbm")->value,
                   500.0 / 495);
  fixture.counters.range_values["layer"]["dram__bytes_read.sum"] = 450;
  profile = fixture.run(inputs);
  EXPECT_FALSE(stage_sums_hold(profile));
  EXPECT_NE(profile_text(profile, "x").find("does NOT hold"), std::string::npos);
}

// Between ranges the profiler itself leaves bytes in L2 that the next ranges evict.
TEST(LayerProfile, SumOverStagesMayHaveWhatCountingByStageAddsButNoMore) {
  auto inputs = make_inputs();
  Fixture fixture;
  fixture.counters.values = {{"dram__bytes_read.sum", 70}, {"dram__bytes_write.sum", 30}};
  fixture.counters.range_values["layer"] = {{"dram__bytes_read.sum", 495}, {"dram__bytes_write.sum", 0}};
  fixture.counters.boundary_bytes =
      20;  // five stages: 580 in all, 495 as one range, 575 behind four empty ones
  fixture.metrics = {"hbm_read_bytes", "hbm_write_bytes"};
  fixture.kinds = {ScheduleKind::kTokenCentric};
  auto profile = fixture.run(inputs);
  ASSERT_TRUE(profile.counted[0].hbm.has_value());
  const HbmSums& sums = *profile.counted[0].hbm;
  EXPECT_EQ(sums.stages, 580);
  EXPECT_EQ(sums.layer, 495);
  EXPECT_EQ(sums.behind_idle, 575);
  EXPECT_EQ(sums.idle_ranges, 4);
  EXPECT_TRUE(stage_sums_hold(profile));
  const auto rows = profile_rows(profile);
  const auto value = [&](std::string_view metric) {
    return find_row(rows, "token_centric", Stage::kLayer, metric)->value.value();
  };
  EXPECT_DOUBLE_EQ(value("stage_sum_over_layer_hbm"), 580.0 / 495);
  EXPECT_DOUBLE_EQ(value("stage_sum_over_layer_hbm_least"), 0.98);
  EXPECT_DOUBLE_EQ(value("stage_sum_over_layer_hbm_most"), 1.02 * 575 / 495);
  EXPECT_EQ(profile.counted[0].find(Stage::kLayer)->find("hbm_write_bytes"), 0) << "without empty ranges";
  // A stage that moves what the layer does not.
  fixture.counters.range_values["router_select"] = {{"dram__bytes_read.sum", 90}};
  EXPECT_FALSE(stage_sums_hold(fixture.run(inputs)));
}

TEST(LayerProfile, SumOverStagesIsOfMediansOverReplays) {
  auto inputs = make_inputs();
  Fixture fixture;
  fixture.counters.values = {{"dram__bytes_read.sum", 70}, {"dram__bytes_write.sum", 30}};
  fixture.counters.range_values["layer"] = {{"dram__bytes_read.sum", 500}, {"dram__bytes_write.sum", 0}};
  fixture.metrics = {"hbm_read_bytes", "hbm_write_bytes"};
  fixture.kinds = {ScheduleKind::kTokenCentric};
  fixture.counters.spike_bytes = 262144;
  for (int call = 3; call < 12; ++call) {  // two for the stages' metrics, then three times three
    fixture.counters.calls = 0;
    fixture.counters.spike_call = call;
    const auto profile = fixture.run(inputs);
    EXPECT_EQ(fixture.counters.calls, 11);
    EXPECT_TRUE(stage_sums_hold(profile)) << call;
    EXPECT_DOUBLE_EQ(profile.counted[0].hbm->over_layer(), 1);
  }
}

TEST(LayerProfile, GoesOnWithTimesWhenCountersAreNotPermitted) {
  auto inputs = make_inputs();
  for (const bool with_source : {true, false}) {
    Fixture fixture;
    fixture.with_source = with_source;
    fixture.counters.not_permitted = "not permitted here";
    fixture.tracer.permitted = false;
    const LayerProfile profile = fixture.run(inputs);
    EXPECT_TRUE(stage_sums_hold(profile)) << "nothing to hold against anything";
    const auto rows = profile_rows(profile);
    const ResultRow* counters = find_row(rows, "token_centric", Stage::kLayer, "counters");
    ASSERT_NE(counters, nullptr);
    EXPECT_EQ(counters->status, Status::kUnavailable);
    EXPECT_NE(counters->reason.find("not permitted here"), std::string::npos);
    EXPECT_NE(find_row(rows, "token_centric", Stage::kExperts, "time_s"), nullptr);
    EXPECT_EQ(find_row(rows, "token_centric", Stage::kExperts, "nearest_limit_fraction"), nullptr);
    const std::string text = profile_text(profile, "fake device");
    EXPECT_NE(text.find("no counters"), std::string::npos) << text;
    EXPECT_NE(text.find("unknown"), std::string::npos) << text;
    EXPECT_EQ(profile.no_kernels, "no hardware counters: another profiler is attached");
  }
}

TEST(LayerProfile, AnalyticNumbersFollowTheStageAsItRan) {
  AnalyticCost fused;
  fused.flop = {{Stage::kExperts, 40, 50}};
  fused.traffic = {{Stage::kExperts, MemoryLevel::kHbm, Access::kRead, 7, "W"}};
  EXPECT_EQ(useful_flop_of(fused, Stage::kExperts), 40);
  EXPECT_EQ(useful_flop_of(fused, Stage::kExpertScores), 20);
  EXPECT_EQ(floor_bytes_of(fused, Stage::kExperts), 7);
  EXPECT_EQ(floor_bytes_of(fused, Stage::kExpertCombine), std::nullopt) << "not divided";
  AnalyticCost apart;
  apart.flop = {{Stage::kExpertScores, 10, 10}, {Stage::kExpertCombine, 30, 30}};
  apart.traffic = {{Stage::kExpertScores, MemoryLevel::kHbm, Access::kRead, 3, "W"},
                   {Stage::kExpertCombine, MemoryLevel::kHbm, Access::kWrite, 4, "Y"}};
  EXPECT_EQ(useful_flop_of(apart, Stage::kExperts), 40);
  EXPECT_EQ(useful_flop_of(apart, Stage::kExpertCombine), 30);
  EXPECT_EQ(floor_bytes_of(apart, Stage::kExperts), 7);
  EXPECT_EQ(floor_bytes_of(apart, Stage::kExpertScores), 3);
  EXPECT_EQ(useful_flop_of(apart, Stage::kSharedMlp), 0);
}

TEST(LayerProfile, RecordedCountersGiveTheSameMetricsAgain) {
  auto inputs = make_inputs();
  Fixture fixture;
  fixture.kinds = {ScheduleKind::kTokenCentric};
  const CountedLayer first = fixture.run(inputs).counted[0];
  const auto recorded = make_recorded_counters({first.source, "fake device", first.plan, first.ranges});
  ReferenceBackend backend;
  const auto execution = backend.prepare(inputs, {.kind = ScheduleKind::kTokenCentric});
  const CountedLayer again =
      count_layer(*execution, *recorded, selection_of(fixture.metrics), L2State::kWarm);
  ASSERT_EQ(again.stages.size(), first.stages.size()) << again.reason;
  for (std::size_t i = 0; i < first.stages.size(); ++i) {
    for (const MetricValue& value : first.stages[i].values) {
      EXPECT_EQ(again.stages[i].find(value.name), value.value) << value.name;
    }
  }
}

TEST(LayerProfile, BugsOfACounterSourceAreNotSwallowed) {
  auto inputs = make_inputs();
  Fixture fixture;
  fixture.counters.max_ranges = 2;
  EXPECT_THROW((void)fixture.run(inputs), InternalError);
}

TEST(LayerProfile, TableShowsWhatWasCounted) {
  auto inputs = make_inputs();
  Fixture fixture;
  fixture.counters.values["dram__bytes_read.sum"] = 3 * 1024 * 1024;
  fixture.counters.missing.insert("lts__t_sectors_srcunit_tex_op_red.sum");
  const std::string text = profile_text(fixture.run(inputs), "fake device");
  for (const char* word : {"router_select", "experts", "expert_combine", "layer", "3.00 MiB", "bound by",
                           "sparse_library skipped", "l2_reduction_bytes unavailable"}) {
    EXPECT_NE(text.find(word), std::string::npos) << word << '\n' << text;
  }
}

TEST(ChromeTrace, HasNoTrackOfWhatWasNotCounted) {
  auto inputs = make_inputs();
  inputs.workload = "x\x1b[2J\xe9<script>";
  Fixture fixture;
  fixture.metrics = {"full"};
  fixture.counters.missing.insert("lts__t_sectors_srcunit_tex_op_red.sum");
  const std::vector<LayerProfile> profiles(1, fixture.run(inputs));
  std::set<std::string> tracks;
  bool named = false;
  const Json trace = Json::parse(chrome_trace(profiles, "fake device"));
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] == "C") {
      tracks.insert(event["name"]);
    }
    named = named || (event["name"] == "process_name" &&
                      event["args"]["name"].get<std::string>().starts_with("x\\x1b[2J\\xe9<script> "));
  }
  EXPECT_EQ(tracks, (std::set<std::string>{"HBM", "tensor pipe", "issue slots"}))
      << "no L2: reductions are missing";
  EXPECT_TRUE(named) << "a name is shown as it is, controls by their codes";
}

TEST(ChromeTrace, HasStagesKernelsAndCounterTracksOfEverySchedule) {
  auto inputs = make_inputs();
  Fixture fixture;
  const std::vector<LayerProfile> profiles(1, fixture.run(inputs));
  const Json trace = Json::parse(chrome_trace(profiles, "fake device"));
  EXPECT_EQ(trace["otherData"]["device"], "fake device");
  std::map<std::string, int> kinds;
  std::map<int, double> end_us;
  std::map<std::pair<int, int>, std::vector<std::pair<double, double>>> kernel_ends_us;
  double first_kernel_us = -1;
  for (const Json& event : trace["traceEvents"]) {
    ++kinds[event["ph"]];
    const bool stage = event["ph"] == "X" && event["tid"] == 1;
    if (stage) {
      EXPECT_DOUBLE_EQ(event["ts"].get<double>(), end_us[event["pid"]]) << "stages follow one another";
      end_us[event["pid"]] = event["ts"].get<double>() + event["dur"].get<double>();
      EXPECT_TRUE(event["args"].contains("hbm_read_bytes"));
    }
    if (event["ph"] == "X" && !stage) {
      const double start_us = event["ts"];
      kernel_ends_us[{event["pid"], event["tid"]}].emplace_back(start_us,
                                                                start_us + event["dur"].get<double>());
    }
    if (event["ph"] == "X" && event["name"] == "first<int>" && first_kernel_us < 0) {
      first_kernel_us = event["ts"];
      EXPECT_DOUBLE_EQ(event["dur"].get<double>(), 1.0);
    }
  }
  EXPECT_EQ(first_kernel_us, 0.0);
  EXPECT_EQ(end_us.size(), 2U) << "schedules that ran";
  // token_centric 5 stages, dense_masked 6, each with two kernels; three tracks with one value a stage
  // and a zero.
  EXPECT_EQ(kinds["X"], 11 * 3);
  EXPECT_EQ(kinds["C"], 3 * (11 + 2)) << "HBM, L2, tensor pipe; issue slots were not asked for";
  EXPECT_GE(kinds["M"], 2 * 3) << "process, stages and one thread of kernels or more";
  for (const auto& [thread, ends] : kernel_ends_us) {
    for (std::size_t i = 1; i < ends.size(); ++i) {
      EXPECT_LE(ends[i - 1].second, ends[i].first + 1e-9) << "kernels of a thread do not overlap";
    }
  }
}

}  // namespace
}  // namespace moescope
