#include "profiler/counters/recorded_counters.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"
#include "core/files/output_file.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

constexpr int kVersion = 1;
constexpr int kMostPasses = 1'000'000;

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

CounterRecording parse_recording(std::string_view json, std::string_view path) {
  const auto document = parse_json<nlohmann::json>(json, {std::string(path), ""});
  const JsonField file(document, path);
  file.member("version").integer(kVersion, kVersion);
  CounterRecording recording;
  recording.source = file.member("source").text();
  recording.device = file.member("device").text();
  recording.plan.chip = file.member("chip").text();
  recording.plan.passes = static_cast<int>(file.member("passes").integer(0, kMostPasses));
  recording.plan.counters = file.member("counters").texts();
  for (const auto& [name, reason] : file.member("unavailable").members()) {
    recording.plan.unavailable.push_back({name, reason.text()});
  }
  const std::set<std::string> counters(recording.plan.counters.begin(), recording.plan.counters.end());
  std::set<std::string> seen;
  for (const JsonField& one : file.member("ranges").elements()) {
    RangeCounters range{one.member("range").text(), one.member("values").numbers()};
    if (!seen.insert(range.range).second) {
      one.member("range").fail("stands there twice");
    }
    for (const auto& [counter, field] : one.member("values").members()) {
      if (!counters.contains(counter)) {
        field.fail("is not among the counters");
      }
      if (field.number() < 0) {
        field.fail("must not be negative");
      }
    }
    recording.ranges.push_back(std::move(range));
  }
  return recording;
}

CounterRecording read_recording(const std::filesystem::path& file) {
  return parse_recording(read_text(file), file.string());
}

std::unique_ptr<CounterSource> make_recorded_counters(CounterRecording recording) {
  return std::make_unique<RecordedCounters>(std::move(recording));
}

}  // namespace moescope
