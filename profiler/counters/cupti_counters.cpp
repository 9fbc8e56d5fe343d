// Counters by CUPTI: cuptiProfilerHost* plans and evaluates, cuptiRangeProfiler* collects.
#include "profiler/counters/cupti_counters.hpp"

#include <cmath>
#include <cstdint>
#include <optional>
#include <set>

#include "core/base/error.hpp"
#include "profiler/counters/cupti_library.hpp"

namespace moescope {
namespace {

/// CUPTI's host half for one chip and one list of metrics: schedules them into passes and evaluates them.
class Host {
 public:
  /// `availability`: which counters this very device has; empty: all of the chip.
  Host(const std::string& chip, const std::vector<std::uint8_t>& availability) {
    MOESCOPE_CUPTI_PARAMS(params, CUpti_Profiler_Host_Initialize_Params);
    params.profilerType = CUPTI_PROFILER_TYPE_RANGE_PROFILER;
    params.pChipName = chip.c_str();
    params.pCounterAvailabilityImage = availability.empty() ? nullptr : availability.data();
    const CUptiResult result = library().cuptiProfilerHostInitialize(&params);
    if (result == CUPTI_ERROR_INVALID_CHIP_NAME) {
      throw InvalidArgument("chip", chip, "not a chip that this CUPTI knows");
    }
    library().check(result, "cuptiProfilerHostInitialize");
    object_ = params.pHostObject;
  }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;
  ~Host() {
    MOESCOPE_CUPTI_PARAMS(params, CUpti_Profiler_Host_Deinitialize_Params);
    params.pHostObject = object_;
    (void)library().cuptiProfilerHostDeinitialize(&params);
  }

  CUptiResult add(std::span<const std::string> metrics) {
    auto names = pointers(metrics);
    MOESCOPE_CUPTI_PARAMS(params, CUpti_Profiler_Host_ConfigAddMetrics_Params);
    params.pHostObject = object_;
    params.ppMetricNames = names.data();
    params.numMetrics = names.size();
    return library().cuptiProfilerHostConfigAddMetrics(&params);
  }

  std::vector<std::uint8_t> config_image() {
    MOESCOPE_CUPTI_PARAMS(size, CUpti_Profiler_Host_GetConfigImageSize_Params);
    size.pHostObject = object_;
    MOESCOPE_CUPTI_CALL(cuptiProfilerHostGetConfigImageSize, size);
    std::vector<std::uint8_t> image(size.configImageSize);
    MOESCOPE_CUPTI_PARAMS(params, CUpti_Profiler_Host_GetConfigImage_Params);
    params.pHostObject = object_;
    params.configImageSize = image.size();
    params.pConfigImage = image.data();
    MOESCOPE_CUPTI_CALL(cuptiProfilerHostGetConfigImage, params);
    return image;
  }

  /// Values of `metrics` in a range of a decoded image; those that cannot be evaluated are absent.
  std::map<std::string, double> evaluate(const std::vector<std::uint8_t>& image, std::size_t range,
                                         std::span<const std::string> metrics) {
    std::map<std::string, double> values;
    for (const auto& metric : metrics) {
      const char* name = metric.c_str();
      double value = 0;
      MOESCOPE_CUPTI_PARAMS(params, CUpti_Profiler_Host_EvaluateToGpuValues_Params);
      params.pHostObject = object_;
      params.pCounterDataImage = image.data();
      params.counterDataImageSize = image.size();
      params.rangeIndex = range;
      params.ppMetricNames = &name;
      params.numMetrics = 1;
      params.pMetricValues = &value;
      if (library().cuptiProfilerHostEvaluateToGpuValues(&params) == CUPTI_SUCCESS && std::isfinite(value)) {
        values[metric] = value;
      }
    }
    return values;
  }

  static std::vector<const char*> pointers(std::span<const std::string> names) {
    std::vector<const char*> pointers;
    for (const auto& name : names) {
      pointers.push_back(name.c_str());
    }
    return pointers;
  }

 private:
  CUpti_Profiler_Host_Object* object_ = nullptr;
};

int passes_of(std::vector<std::uint8_t>& config) {
  MOESCOPE_CUPTI_PARAMS(params, CUpti_Profiler_Host_GetNumOfPasses_Params);
  params.configImageSize = config.size();
  params.pConfigImage = config.data();
  MOESCOPE_CUPTI_CALL(cuptiProfilerHostGetNumOfPasses, params);
  return static_cast<int>(params.numOfPasses);
}

CounterPlan plan_on(const std::string& chip, const std::vector<std::uint8_t>& availability,
                    std::span<const std::string> counters) {
  CounterPlan plan;
  plan.chip = chip;
  std::optional<Host> probe(std::in_place, chip, availability);
  std::set<std::string> seen;
  for (const auto& counter : counters) {
    if (!seen.insert(counter).second) {
      continue;
    }
    if (const CUptiResult result = probe->add({&counter, 1}); result != CUPTI_SUCCESS) {
      plan.unavailable.push_back(
          {counter, fmt::format("{} has no such counter ({}); a name is <unit>__<counter>"
                                ".<sum|avg|min|max>",
                                chip, text_of(library(), result))});
      probe.emplace(chip, availability);  // after one name it refused, it refuses good ones too
    } else {
      plan.counters.push_back(counter);
    }
  }
  if (!plan.counters.empty()) {
    Host host(chip, availability);
    library().check(host.add(plan.counters), "cuptiProfilerHostConfigAddMetrics");
    auto config = host.config_image();
    plan.passes = passes_of(config);
  }
  return plan;
}

void check_cuda(cudaError_t result, const char* call) {
  if (result != cudaSuccess) {
    throw CountersUnavailable(fmt::format("{}: {}", call, cudaGetErrorString(result)));
  }
}

/// The runtime's context on the current device, made if need be.
CUcontext current_context() {
  check_cuda(cudaFree(nullptr), "cudaFree");
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check_cuda(cudaGetDriverEntryPointByVersion("cuCtxGetCurrent", &entry, 12000, cudaEnableDefault, &found),
             "cudaGetDriverEntryPointByVersion");
  CUcontext context = nullptr;
  if (entry == nullptr || std::bit_cast<CUresult (*)(CUcontext*)>(entry)(&context) != CUDA_SUCCESS) {
    throw CountersUnavailable("the driver gives no current context");
  }
  return context;
}

/// The profiler of a context, from enabling it to disabling it.
class Session {
 public:
  explicit Session(CUcontext context) {
    MOESCOPE_CUPTI_PARAMS(params, CUpti_RangeProfiler_Enable_Params);
    params.ctx = context;
    const CUptiResult result = library().cuptiRangeProfilerEnable(&params);
    if (result != CUPTI_SUCCESS && remedy(result).empty()) {
      throw CountersUnavailable(fmt::format("cuptiRangeProfilerEnable: {}; is another profiler attached?",
                                            text_of(library(), result)));
    }
    library().check(result, "cuptiRangeProfilerEnable");
    object_ = params.pRangeProfilerObject;
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    MOESCOPE_CUPTI_PARAMS(params, CUpti_RangeProfiler_Disable_Params);
    params.pRangeProfilerObject = object_;
    (void)library().cuptiRangeProfilerDisable(&params);
  }

  /// Where the counters of `ranges` ranges will lie.
  std::vector<std::uint8_t> counter_data(std::span<const std::string> counters, std::size_t ranges) {
    auto names = Host::pointers(counters);
    MOESCOPE_CUPTI_PARAMS(size, CUpti_RangeProfiler_GetCounterDataSize_Params);
    size.pRangeProfilerObject = object_;
    size.pMetricNames = names.data();
    size.numMetrics = names.size();
    size.maxNumOfRanges = ranges;
    size.maxNumRangeTreeNodes = static_cast<std::uint32_t>(2 * ranges);
    MOESCOPE_CUPTI_CALL(cuptiRangeProfilerGetCounterDataSize, size);
    std::vector<std::uint8_t> image(size.counterDataSize);
    MOESCOPE_CUPTI_PARAMS(params, CUpti_RangeProfiler_CounterDataImage_Initialize_Params);
    params.pRangeProfilerObject = object_;
    params.counterDataSize = image.size();
    params.pCounterData = image.data();
    MOESCOPE_CUPTI_CALL(cuptiRangeProfilerCounterDataImageInitialize, params);
    return image;
  }

  void configure(const std::vector<std::uint8_t>& config, std::vector<std::uint8_t>& data,
                 std::size_t ranges) {
    MOESCOPE_CUPTI_PARAMS(params, CUpti_RangeProfiler_SetConfig_Params);
    params.pRangeProfilerObject = object_;
    params.pConfig = config.data();
    params.configSize = config.size();
    params.pCounterDataImage = data.data();
    params.counterDataImageSize = data.size();
    params.range = CUPTI_UserRange;
    params.replayMode = CUPTI_UserReplay;
    params.maxRangesPerPass = ranges;
    params.numNestingLevels = 1;
    params.minNestingLevel = 1;
    params.passIndex = 0;
    params.targetNestingLevel = 1;
    MOESCOPE_CUPTI_CALL(cuptiRangeProfilerSetConfig, params);
  }

  /// One pass over all ranges; true when it was the last.
  bool pass(const RangedWork& work) {
    if (work.before_pass) {
      work.before_pass();
      check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }
    MOESCOPE_CUPTI_PARAMS(start, CUpti_RangeProfiler_Start_Params);
    start.pRangeProfilerObject = object_;
    MOESCOPE_CUPTI_CALL(cuptiRangeProfilerStart, start);
    for (std::size_t range = 0; range < work.ranges.size(); ++range) {
      MOESCOPE_CUPTI_PARAMS(push, CUpti_RangeProfiler_PushRange_Params);
      push.pRangeProfilerObject = object_;
      push.pRangeName = work.ranges[range].c_str();
      MOESCOPE_CUPTI_CALL(cuptiRangeProfilerPushRange, push);
      work.run(range);
      MOESCOPE_CUPTI_PARAMS(pop, CUpti_RangeProfiler_PopRange_Params);
      pop.pRangeProfilerObject = object_;
      MOESCOPE_CUPTI_CALL(cuptiRangeProfilerPopRange, pop);
    }
    MOESCOPE_CUPTI_PARAMS(stop, CUpti_RangeProfiler_Stop_Params);
    stop.pRangeProfilerObject = object_;
    MOESCOPE_CUPTI_CALL(cuptiRangeProfilerStop, stop);
    return stop.isAllPassSubmitted != 0;
  }

  void decode() {
    MOESCOPE_CUPTI_PARAMS(params, CUpti_RangeProfiler_DecodeData_Params);
    params.pRangeProfilerObject = object_;
    MOESCOPE_CUPTI_CALL(cuptiRangeProfilerDecodeData, params);
    if (params.numOfRangeDropped != 0) {
      throw InternalError(fmt::format("CUPTI dropped {} ranges", params.numOfRangeDropped));
    }
  }

 private:
  CUpti_RangeProfiler_Object* object_ = nullptr;
};

/// Range name -> index in a decoded image.
std::map<std::string, std::size_t> ranges_of(const std::vector<std::uint8_t>& data) {
  MOESCOPE_CUPTI_PARAMS(info, CUpti_RangeProfiler_GetCounterDataInfo_Params);
  info.pCounterDataImage = data.data();
  info.counterDataImageSize = data.size();
  MOESCOPE_CUPTI_CALL(cuptiRangeProfilerGetCounterDataInfo, info);
  std::map<std::string, std::size_t> ranges;
  for (std::size_t range = 0; range < info.numTotalRanges; ++range) {
    MOESCOPE_CUPTI_PARAMS(params, CUpti_RangeProfiler_CounterData_GetRangeInfo_Params);
    params.pCounterDataImage = data.data();
    params.counterDataImageSize = data.size();
    params.rangeIndex = range;
    params.rangeDelimiter = "/";
    MOESCOPE_CUPTI_CALL(cuptiRangeProfilerCounterDataGetRangeInfo, params);
    ranges[params.rangeName] = range;
  }
  return ranges;
}

class CuptiCounters : public CounterSource {
 public:
  CuptiCounters() {
    int device = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    context_ = current_context();
    MOESCOPE_CUPTI_PARAMS(init, CUpti_Profiler_Initialize_Params);
    MOESCOPE_CUPTI_CALL(cuptiProfilerInitialize, init);
    MOESCOPE_CUPTI_PARAMS(chip, CUpti_Device_GetChipName_Params);
    chip.deviceIndex = static_cast<std::size_t>(device);
    MOESCOPE_CUPTI_CALL(cuptiDeviceGetChipName, chip);
    chip_ = chip.pChipName;
    MOESCOPE_CUPTI_PARAMS(availability, CUpti_Profiler_GetCounterAvailability_Params);
    availability.ctx = context_;
    MOESCOPE_CUPTI_CALL(cuptiProfilerGetCounterAvailability, availability);
    availability_.resize(availability.counterAvailabilityImageSize);
    availability.pCounterAvailabilityImage = availability_.data();
    MOESCOPE_CUPTI_CALL(cuptiProfilerGetCounterAvailability, availability);
  }

  std::string name() const override { return "cupti"; }

  CounterPlan plan(std::span<const std::string> counters) override {
    return plan_on(chip_, availability_, counters);
  }

  std::vector<RangeCounters> measure(const CounterPlan& plan, const RangedWork& work) override {
    if (std::set<std::string>(work.ranges.begin(), work.ranges.end()).size() != work.ranges.size()) {
      throw InternalError("two ranges of a counter pass have the same name");
    }
    if (plan.counters.empty() || work.ranges.empty()) {
      return collect(work, {}, [](std::size_t) { return std::map<std::string, double>{}; });
    }
    Host host(chip_, availability_);
    library().check(host.add(plan.counters), "cuptiProfilerHostConfigAddMetrics");
    const auto config = host.config_image();
    Session session(context_);
    auto data = session.counter_data(plan.counters, work.ranges.size());
    session.configure(config, data, work.ranges.size());
    int passes = 1;
    while (!session.pass(work)) {
      if (++passes > plan.passes) {
        throw InternalError(fmt::format("CUPTI wants more than the {} passes it planned", plan.passes));
      }
    }
    session.decode();
    return collect(work, ranges_of(data),
                   [&](std::size_t range) { return host.evaluate(data, range, plan.counters); });
  }

  /// Opens and closes a session: throws CountersUnavailable when that is not permitted.
  void probe() { const Session session(context_); }

 private:
  template <class Values>
  static std::vector<RangeCounters> collect(const RangedWork& work,
                                            const std::map<std::string, std::size_t>& found,
                                            Values&& values) {
    std::vector<RangeCounters> results;
    for (const auto& range : work.ranges) {
      const auto index = found.find(range);
      if (index == found.end() && !found.empty()) {
        throw InternalError(fmt::format("CUPTI has no data of range {}", range));
      }
      results.push_back(
          {range, index == found.end() ? std::map<std::string, double>{} : values(index->second)});
    }
    return results;
  }

  std::string chip_;
  CUcontext context_ = nullptr;
  std::vector<std::uint8_t> availability_;
};

}  // namespace

std::unique_ptr<CounterSource> make_cupti_counters() { return std::make_unique<CuptiCounters>(); }

CounterPlan plan_counters(std::string_view chip, std::span<const std::string> counters) {
  return plan_on(std::string(chip), {}, counters);
}

CuptiStatus cupti_status() {
  CuptiStatus status;
  try {
    std::uint32_t version = 0;
    library().check(library().cuptiGetVersion(&version), "cuptiGetVersion");
    status.version = fmt::format("{}.{} (API {})", version / 10000, version % 10000 / 100, version);
    status.path = library().path;
    MOESCOPE_CUPTI_PARAMS(chips, CUpti_Profiler_Host_GetSupportedChips_Params);
    MOESCOPE_CUPTI_CALL(cuptiProfilerHostGetSupportedChips, chips);
    status.host = chips.numChips > 0;
    CuptiCounters().probe();
    status.permitted = true;
  } catch (const Error& error) {
    status.reason = error.what();
  }
  return status;
}

}  // namespace moescope
