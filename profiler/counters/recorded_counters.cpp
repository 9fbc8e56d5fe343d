#include "profiler/counters/recorded_counters.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/output_file.hpp"

namespace moescope {
namespace {

constexpr int kVersion = 1;

class RecordedCounters : public CounterSource {
 public:
  explicit RecordedCounters(CounterRecording recording) : recording_(std::move(recording)) {}

  std::string name() const override { return "recorded"; }

  CounterPlan plan(std::span<const std::string> counters) override {
    CounterPlan plan;
    plan.chip = recording_.plan.chip;
    for (const auto& counter : counters) {
      if (contains(plan.counters, counter)) {
        continue;
      }
      if (contains(recording_.plan.counters, counter)) {
        plan.counters.push_back(counter);
      } else {
        plan.unavailable.push_back({counter, reason(counter)});
      }
    }
    return plan;
  }

  std::vector<RangeCounters> measure(const CounterPlan& plan, const RangedWork& work) override {
    std::vector<RangeCounters> results;
    for (const auto& range : work.ranges) {
      const auto found = std::find_if(recording_.ranges.begin(), recording_.ranges.end(),
                                      [&](const RangeCounters& one) { return one.range == range; });
      if (found == recording_.ranges.end()) {
        throw InvalidArgument("range", range, "not in the recording");
      }
      results.push_back({range, {}});
      for (const auto& counter : plan.counters) {
        if (const auto value = found->values.find(counter); value != found->values.end()) {
          results.back().values.insert(*value);
        }
      }
    }
    return results;
  }

 private:
  static bool contains(const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  }

  /// What kept the counter away when it was recorded, or that nobody asked for it.
  std::string reason(const std::string& counter) const {
    for (const auto& one : recording_.plan.unavailable) {
      if (one.name == counter) {
        return one.reason;
      }
    }
    return "not recorded";
  }

  CounterRecording recording_;
};

}  // namespace

void write_recording(const CounterRecording& recording, const std::filesystem::path& file) {
  nlohmann::json document = {{"version", kVersion},
                             {"source", recording.source},
                             {"device", recording.device},
                             {"chip", recording.plan.chip},
                             {"passes", recording.plan.passes},
                             {"counters", recording.plan.counters},
                             {"unavailable", nlohmann::json::object()},
                             {"ranges", nlohmann::json::array()}};
  for (const auto& missing : recording.plan.unavailable) {
    document["unavailable"][missing.name] = missing.reason;
  }
  for (const auto& range : recording.ranges) {
    document["ranges"].push_back({{"range", range.range}, {"values", range.values}});
  }
  create_file(file, document.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
}

CounterRecording read_recording(const std::filesystem::path& file) {
  std::ifstream stream(file);
  if (!stream) {
    throw FileError(file.string(), "", "cannot be opened");
  }
  CounterRecording recording;
  try {
    const auto document = nlohmann::json::parse(stream);
    if (const int version = document.at("version"); version != kVersion) {
      throw FileError(file.string(), "version", fmt::format("is {}, must be {}", version, kVersion));
    }
    document.at("source").get_to(recording.source);
    document.at("device").get_to(recording.device);
    document.at("chip").get_to(recording.plan.chip);
    document.at("passes").get_to(recording.plan.passes);
    document.at("counters").get_to(recording.plan.counters);
    for (const auto& [name, reason] : document.at("unavailable").items()) {
      recording.plan.unavailable.push_back({name, reason});
    }
    for (const auto& range : document.at("ranges")) {
      recording.ranges.push_back({range.at("range"), range.at("values")});
    }
  } catch (const nlohmann::json::exception& error) {
    throw FileError(file.string(), "", error.what());
  }
  for (const auto& range : recording.ranges) {
    for (const auto& [counter, value] : range.values) {
      const auto& counters = recording.plan.counters;
      if (std::find(counters.begin(), counters.end(), counter) == counters.end()) {
        throw FileError(file.string(), fmt::format("ranges.{}", range.range),
                        fmt::format("{} is not among the counters", counter));
      }
    }
  }
  return recording;
}

std::unique_ptr<CounterSource> make_recorded_counters(CounterRecording recording) {
  return std::make_unique<RecordedCounters>(std::move(recording));
}

}  // namespace moescope
