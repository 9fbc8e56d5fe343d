// Time of every stage of a layer on the GPU under every schedule, at the shapes of paper Table A: Google
// Benchmark with manual time from the events inside the layer's graph, so it times what LayerExecution::run()
// gives. Names are <preset or L,K>/<schedule>/<stage>. L2 is emptied before each run unless --l2=warm is
// given.
//
//   bench_cuda_stages --benchmark_filter='1024-512/.*/experts' --benchmark_out=stages.json
//
// Counters: bytes and flop of the stage (analytic, each distinct byte once; useful products), the rates that
// follow, median_s over the iterations, and fraction_of_floor = (bytes / copy bandwidth of this device,
// measured at start) / median time: 1 means that nothing but compulsory traffic was paid for.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/base/error.hpp"
#include "core/cost/traffic.hpp"
#include "core/workload/workload.hpp"
#include "kernels/cuda_backend.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "profiler/study/sampling.hpp"

namespace moescope {
namespace {

struct Point {
  std::string name;
  LayerShape shape;
};

struct NamedSchedule {
  std::string name;
  ScheduleOptions options;
};

constexpr std::uint64_t kSeed = 1;

/// Table A's two sweeps, and a decoding-sized batch.
std::vector<Point> table_a_points() {
  std::vector<Point> points;
  LayerShape decode = find_preset("table-a-1024-512").shape;
  decode.num_tokens = 64;
  points.push_back({"64-512", decode});
  for (const Preset& preset : presets()) {
    constexpr std::string_view kPrefix = "table-a-";
    if (preset.name.starts_with(kPrefix)) {
      points.push_back({std::string(preset.name.substr(kPrefix.size())), preset.shape});
    }
  }
  return points;
}

std::vector<NamedSchedule> schedules() {
  const auto make = [](std::string name, ScheduleKind kind, bool deterministic) {
    ScheduleOptions options;
    options.kind = kind;
    options.deterministic = deterministic;
    return NamedSchedule{std::move(name), options};
  };
  return {make("token_centric", ScheduleKind::kTokenCentric, true),
          make("expert_centric", ScheduleKind::kExpertCentric, false),
          make("staircase", ScheduleKind::kStaircase, false),
          make("staircase_deterministic", ScheduleKind::kStaircase, true),
          make("dense_masked", ScheduleKind::kDenseMasked, true),
          make("sparse_library", ScheduleKind::kSparseLibrary, false)};
}

/// Bytes read plus bytes written per second of a large device-to-device copy: the ceiling of this device.
double measure_copy_bytes_per_s() {
  constexpr std::int64_t kBytes = std::int64_t{1} << 30;
  const cuda::DeviceBuffer<std::byte> from(kBytes);
  const cuda::DeviceBuffer<std::byte> to(kBytes);
  const cuda::Stream stream;
  const cuda::Event begin;
  const cuda::Event end;
  std::vector<double> times_s;
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(from.get(), 0x5a, kBytes, stream.get()));
  for (int run = 0; run < 11; ++run) {
    begin.record(stream.get());
    MOESCOPE_CUDA_CHECK(
        cudaMemcpyAsync(to.get(), from.get(), kBytes, cudaMemcpyDeviceToDevice, stream.get()));
    end.record(stream.get());
    stream.synchronize();
    times_s.push_back(end.seconds_since(begin));
  }
  return 2 * static_cast<double>(kBytes) / median(times_s);
}

/// The layer that is being timed. Benchmarks come point by point and schedule by schedule, so keeping the
/// last of each is enough.
class Bench {
 public:
  explicit Bench(L2State l2)
      : backend_(make_cuda_backend()), l2_(l2), copy_bytes_per_s_(measure_copy_bytes_per_s()) {}

  void run(benchmark::State& state, const Point& point, const NamedSchedule& schedule, Stage stage) {
    try {
      prepare(point, schedule);
    } catch (const Error& error) {
      layer_.reset();
      layer_name_.clear();
      state.SkipWithError(error.what());
      return;
    }
    std::vector<double> times_s;
    while (state.KeepRunning()) {
      const std::vector<StageTime> times = layer_->run(l2_);
      const auto found =
          std::find_if(times.begin(), times.end(), [&](const StageTime& t) { return t.stage == stage; });
      if (found == times.end()) {
        state.SkipWithError("this schedule has no such stage");
        return;
      }
      state.SetIterationTime(found->time_s);
      times_s.push_back(found->time_s);
    }
    report(state, stage, median(times_s));
  }

 private:
  void prepare(const Point& point, const NamedSchedule& schedule) {
    const std::string name = point.name + "/" + schedule.name;
    if (name == layer_name_) {
      return;
    }
    layer_.reset();  // before the next one is loaded: both may not fit
    layer_name_.clear();
    if (point.name != point_name_) {
      if (experts_ == nullptr) {
        experts_ = make_expert_weights(point.shape, kSeed);  // all points have one N, d and shared width
      }
      inputs_ = make_workload(WorkloadSpec::parse("gaussian:1"), point.shape, kSeed, experts_);
      point_name_ = point.name;
    }
    layer_ = backend_->prepare(*inputs_, schedule.options);
    layer_->run(l2_);
    const Routing routing = layer_->routing();
    cost_ = analytic_cost(point.shape, routing, build_schedule(routing, schedule.options),
                          inputs_->fixed_routing.has_value());
    layer_name_ = name;
  }

  void report(benchmark::State& state, Stage stage, double median_s) const {
    using Counter = benchmark::Counter;
    state.counters["median_s"] = Counter(median_s);
    double bytes = 0;
    double flop = 0;
    for (const Stage part : parts_of(stage)) {
      bytes += static_cast<double>(cost_.bytes(part, MemoryLevel::kHbm));
      flop += static_cast<double>(cost_.useful_flop(part));
    }
    if (bytes > 0) {
      state.counters["bytes"] = Counter(bytes);
      state.counters["bytes_per_s"] = Counter(bytes / median_s);
      state.counters["fraction_of_floor"] = Counter(bytes / copy_bytes_per_s_ / median_s);
    }
    if (flop > 0) {
      state.counters["flop"] = Counter(flop);
      state.counters["flop_per_s"] = Counter(flop / median_s);
    }
  }

  /// A schedule's `experts` is one launcher here even where the analytic model counts scores and combine
  /// apart.
  static std::vector<Stage> parts_of(Stage stage) {
    if (stage == Stage::kExperts) {
      return {Stage::kExperts, Stage::kExpertScores, Stage::kExpertCombine};
    }
    return {stage};
  }

  std::unique_ptr<MoeBackend> backend_;
  L2State l2_;
  double copy_bytes_per_s_;
  std::shared_ptr<const ExpertWeights> experts_;
  std::optional<LayerInputs> inputs_;
  std::string point_name_;
  std::unique_ptr<LayerExecution> layer_;
  std::string layer_name_;
  AnalyticCost cost_;
};

/// Stages a schedule reports; the shared MLP and, but for staircase, the router are the same under all, and
/// are timed once per point.
std::vector<Stage> stages_of(const NamedSchedule& schedule) {
  if (schedule.name == "token_centric") {
    return {Stage::kRouterProject, Stage::kRouterSelect, Stage::kExperts, Stage::kSharedMlp, Stage::kLayer};
  }
  if (schedule.options.kind == ScheduleKind::kStaircase) {  // selects strips instead of a CSR
    return {Stage::kRouterSelect, Stage::kSchedule, Stage::kExperts, Stage::kLayer};
  }
  if (schedule.options.kind == ScheduleKind::kExpertCentric) {
    return {Stage::kSchedule, Stage::kExperts, Stage::kLayer};
  }
  return {Stage::kExperts, Stage::kLayer};
}

int run(int argc, char** argv) {
  L2State l2 = L2State::kCold;
  std::vector<char*> rest(argv, argv + argc);
  const auto warm = std::find_if(rest.begin(), rest.end(),
                                 [](const char* a) { return std::string_view(a) == "--l2=warm"; });
  if (warm != rest.end()) {
    l2 = L2State::kWarm;
    rest.erase(warm);
  }
  auto rest_count = static_cast<int>(rest.size());
  benchmark::Initialize(&rest_count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(rest_count, rest.data())) {
    return static_cast<int>(ExitCode::kUsage);
  }
  Bench bench(l2);
  const std::vector<Point> points = table_a_points();
  const std::vector<NamedSchedule> all_schedules = schedules();
  for (const Point& point : points) {
    for (const NamedSchedule& schedule : all_schedules) {
      for (const Stage stage : stages_of(schedule)) {
        const std::string name = fmt::format("{}/{}/{}", point.name, schedule.name, to_string(stage));
        benchmark::RegisterBenchmark(name.c_str(),
                                     [&bench, &point, &schedule, stage](benchmark::State& state) {
                                       bench.run(state, point, schedule, stage);
                                     })
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond)
            ->Iterations(20);
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return static_cast<int>(ExitCode::kOk);
}

}  // namespace
}  // namespace moescope

int main(int argc, char** argv) {
  try {
    return moescope::run(argc, argv);
  } catch (const moescope::Error& error) {
    std::fprintf(stderr, "bench_cuda_stages: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
