#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/backend/known_work.hpp"
#include "core/results/result.hpp"
#include "profiler/counters/counter_source.hpp"
#include "profiler/counters/metric_catalogue.hpp"

/// Counters held against work of known bytes and FLOP.
namespace moescope {

/// One expectation of one case, and what was counted.
struct CheckedValue {
  std::string work;  ///< name of the case
  KnownValue known;
  std::string unit;
  std::optional<double> measured;
  std::string reason;  ///< why nothing was measured

  /// measured / known value; empty when nothing was measured.
  std::optional<double> ratio() const;
  /// Within the tolerance, or not above the bound. False when nothing was measured.
  bool holds() const;
};

/// Everything else that was counted of a case, as asked for.
struct CountedCase {
  std::string work;
  std::vector<MetricValue> values;
};

struct CounterCheck {
  CounterPlan plan;
  std::vector<CheckedValue> checked;  ///< in the order of the cases
  std::vector<CountedCase> counted;   ///< the metrics named in `also`, of every case
};

/// Counts every metric that the cases name, and those of `also` (as MetricCatalogue::resolve takes them), in
/// one measurement with a range per case. Throws what the source throws, and InvalidArgument for a name in
/// `also`.
CounterCheck check_counters(CounterSource& source, const KnownWork& work, std::span<const std::string> also);

/// Per checked value three rows: the known value (analytic), the counted one (measured) and their ratio
/// (<metric>_over_known). Then one row per value of `counted`. system is "known_work", workload the case.
std::vector<ResultRow> counter_check_rows(const CounterCheck& check, std::string_view backend);

}  // namespace moescope
