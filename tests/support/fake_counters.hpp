#pragma once

#include <cmath>
#include <map>
#include <set>
#include <string>

#include "core/base/error.hpp"
#include "profiler/counters/counter_source.hpp"

namespace moescope::test {

/// Counters without a GPU: deterministic values, and every way in which a real source can fail. It runs the
/// work as a real source does: before_pass and then all ranges, once per pass.
class FakeCounters : public CounterSource {
 public:
  std::string chip = "GH100";
  int counters_per_pass = 8;
  std::set<std::string> missing;         ///< counters this chip does not have
  std::set<std::string> lost;            ///< planned, but no pass gives them
  std::map<std::string, double> values;  ///< counter -> value; others come from value_of
  std::map<std::string, std::map<std::string, double>> range_values;  ///< range -> counter -> value; first
  std::string not_permitted;    ///< non-empty: measure throws CountersUnavailable
  std::size_t max_ranges = 64;  ///< more are dropped, which is an error

  double boundary_bytes = 0;  ///< what every range but the last adds to HBM writes that the last one has
  int spike_call = 0;         ///< this call of measure (the first is 1) has spike_bytes more HBM writes
  double spike_bytes = 0;

  int passes_run = 0;
  int calls = 0;

  std::string name() const override { return "fake"; }

  CounterPlan plan(std::span<const std::string> counters) override {
    CounterPlan plan;
    plan.chip = chip;
    for (const auto& counter : counters) {
      if (missing.contains(counter)) {
        plan.unavailable.push_back({counter, "not a counter of this chip"});
      } else {
        plan.counters.push_back(counter);
      }
    }
    const auto count = static_cast<int>(plan.counters.size());
    plan.passes = (count + counters_per_pass - 1) / counters_per_pass;
    return plan;
  }

  std::vector<RangeCounters> measure(const CounterPlan& plan, const RangedWork& work) override {
    if (!not_permitted.empty()) {
      throw CountersUnavailable(not_permitted);
    }
    if (work.ranges.size() > max_ranges) {
      throw InternalError("ranges were dropped");
    }
    for (int pass = 0; pass < plan.passes; ++pass) {
      if (work.before_pass) {
        work.before_pass();
      }
      for (std::size_t range = 0; range < work.ranges.size(); ++range) {
        work.run(range);
      }
      ++passes_run;
    }
    std::vector<RangeCounters> results;
    for (const auto& range : work.ranges) {
      results.push_back({range, {}});
      for (const auto& counter : plan.counters) {
        if (!lost.contains(counter)) {
          results.back().values[counter] = value_of(range, counter);
        }
      }
    }
    ++calls;
    if (!results.empty() && results.back().values.contains(kHbmWrites)) {
      auto& last = results.back().values;
      last[kHbmWrites] += boundary_bytes * static_cast<double>(results.size() - 1);
      last[kHbmWrites] += calls == spike_call ? spike_bytes : 0;
    }
    return results;
  }

 private:
  static constexpr const char* kHbmWrites = "dram__bytes_write.sum";

  double value_of(const std::string& range, const std::string& counter) const {
    if (const auto own = range_values.find(range); own != range_values.end()) {
      if (const auto found = own->second.find(counter); found != own->second.end()) {
        return found->second;
      }
    }
    if (const auto found = values.find(counter); found != values.end()) {
      return found->second;
    }
    // Any value will do, as long as it is the same next time and differs between names.
    double value = 1;
    for (const char letter : range + counter) {
      value = std::fmod(value * 31 + letter, 1e6);
    }
    return value + 1;
  }
};

}  // namespace moescope::test
