#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/counters/counter_source.hpp"

/// What moescope measures with hardware counters, under its own names: each metric is a formula over the
/// vendor's counters, per chip. The data is profiler/counters/metric_catalogue.json, which travels in the
/// binary.
namespace moescope {

/// One metric on one chip: (sum of factor * counter) / (the same of `over`, when it is not empty).
struct Metric {
  std::string name;                     ///< ours ("hbm_read_bytes"), or a counter's own when raw
  std::string unit;                     ///< "bytes", "flop", "s", "cycles", "fraction", ...; "raw" when raw
  std::string meaning;                  ///< one line
  std::map<std::string, double> terms;  ///< counter -> factor
  std::map<std::string, double> over;   ///< denominator: counter -> factor
};

/// A metric's value in one range; without a value, why not.
struct MetricValue {
  std::string name;
  std::string unit;
  std::optional<double> value;
  std::string reason;
};

/// Metrics chosen for a chip.
struct MetricSelection {
  std::string chip;
  std::vector<Metric> metrics;           ///< available by the catalogue, each once, in the order asked
  std::vector<MetricValue> unavailable;  ///< ours, without a formula on this chip

  /// Distinct counters of all metrics: what CounterSource::plan takes.
  std::vector<std::string> counters() const;
};

class MetricCatalogue {
 public:
  /// Reads the JSON text. Throws FileError naming `path` and the field when it does not hold together.
  static MetricCatalogue parse(std::string_view json, std::string_view path);
  /// The one this program was built with.
  static const MetricCatalogue& builtin();

  /// The chip that is meant where none is named: the first that the catalogue was checked on.
  const std::string& default_chip() const { return default_chip_; }
  /// Chips that have formulas, e.g. "GA100", and their compute architecture, e.g. "sm_80".
  const std::map<std::string, std::string>& chips() const { return chips_; }
  /// Named sets: "traffic", "tensor", "full"; each a list of our names.
  const std::map<std::string, std::vector<std::string>>& sets() const { return sets_; }
  /// Every metric of the catalogue; those without a formula on `chip` have no terms.
  std::vector<Metric> metrics(std::string_view chip) const;

  /// `names`: our names, names of sets, and counters of the vendor (any that has a "__"), mixed. Each metric
  /// comes once. A metric without a formula on `chip` is listed as unavailable with a reason. Throws
  /// InvalidArgument("metrics", ...) for a name that is none of these.
  MetricSelection resolve(std::string_view chip, std::span<const std::string> names) const;

 private:
  struct Formula {
    std::vector<std::string> chips;  ///< empty: all chips of the catalogue
    std::map<std::string, double> terms;
    std::map<std::string, double> over;
  };
  struct Entry {
    std::string name, unit, meaning;
    std::vector<Formula> formulas;
  };
  Metric on_chip(const Entry& entry, std::string_view chip) const;
  void add(MetricSelection& selection, const std::string& name) const;

  std::map<std::string, std::string> chips_;
  std::string default_chip_;
  std::vector<Entry> entries_;
  std::map<std::string, std::vector<std::string>> sets_;
};

/// Metrics of one range, one value per metric asked for. One that has none says why: no formula on this chip,
/// a counter that the plan could not have, or one that the measurement did not give.
std::vector<MetricValue> evaluate(const MetricSelection& selection, const CounterPlan& plan,
                                  const RangeCounters& range);

}  // namespace moescope
