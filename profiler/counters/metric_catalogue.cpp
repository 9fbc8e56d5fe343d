#include "profiler/counters/metric_catalogue.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"

namespace moescope {
namespace {

constexpr std::string_view kCatalogueJson =
#include "metric_catalogue.inc"
    ;

/// What every counter of the vendor has between its unit and its quantity, and none of our names.
constexpr std::string_view kCounterMark = "__";

template <class Range>
bool contains(const Range& range, std::string_view name) {
  return std::find(range.begin(), range.end(), name) != range.end();
}

/// Value of a sum of terms, or the reason why there is none.
std::optional<double> sum_of(const std::map<std::string, double>& terms, const CounterPlan& plan,
                             const RangeCounters& range, std::string& reason) {
  double sum = 0;
  for (const auto& [counter, factor] : terms) {
    if (const auto found = range.values.find(counter); found != range.values.end()) {
      sum += factor * found->second;
      continue;
    }
    const auto missing =
        std::find_if(plan.unavailable.begin(), plan.unavailable.end(),
                     [&name = counter](const UnavailableCounter& one) { return one.name == name; });
    reason = missing != plan.unavailable.end()
                 ? fmt::format("{}: {}", counter, missing->reason)
                 : fmt::format("{}: not given by the measurement of range {}", counter, range.range);
    return std::nullopt;
  }
  return sum;
}

MetricValue value_of(const Metric& metric, const CounterPlan& plan, const RangeCounters& range) {
  MetricValue result{metric.name, metric.unit, std::nullopt, {}};
  result.value = sum_of(metric.terms, plan, range, result.reason);
  if (!result.value.has_value() || metric.over.empty()) {
    return result;
  }
  const auto over = sum_of(metric.over, plan, range, result.reason);
  if (over.has_value() && *over == 0) {
    result.reason = fmt::format("{} is 0 in range {}", metric.over.begin()->first, range.range);
  }
  result.value = over.value_or(0) != 0 ? std::optional(*result.value / *over) : std::nullopt;
  return result;
}

}  // namespace

MetricCatalogue MetricCatalogue::parse(std::string_view json, std::string_view path) {
  const auto document = parse_json<nlohmann::json>(json, {std::string(path), ""});
  const JsonField file(document, path);
  MetricCatalogue catalogue;
  for (const auto& [chip, about] : file.member("chips").members()) {
    catalogue.chips_[chip] = about.text();
    catalogue.default_chip_ = catalogue.default_chip_.empty() ? chip : catalogue.default_chip_;
  }
  if (file.has("default_chip")) {
    const JsonField chip = file.member("default_chip");
    catalogue.default_chip_ = chip.text();
    if (!catalogue.chips_.contains(catalogue.default_chip_)) {
      chip.fail("must be one of the chips");
    }
  }
  for (const auto& [set, names] : file.member("sets").members()) {
    catalogue.sets_[set] = names.texts();
  }
  std::set<std::string> seen;
  for (const JsonField& one : file.member("metrics").elements()) {
    Entry entry{one.member("name").text(), one.member("unit").text(), one.member("meaning").text(), {}};
    if (!seen.insert(entry.name).second || entry.name.find(kCounterMark) != std::string::npos) {
      one.member("name").fail("named twice, or like a counter");
    }
    for (const JsonField& formula : one.member("formulas").elements()) {
      entry.formulas.push_back({{}, formula.member("terms").numbers(), {}});
      if (formula.has("over")) {
        entry.formulas.back().over = formula.member("over").numbers();
      }
      if (formula.has("chips")) {
        for (const JsonField& chip : formula.member("chips").elements()) {
          entry.formulas.back().chips.push_back(chip.text());
          if (!catalogue.chips_.contains(chip.text())) {
            chip.fail("is not among the chips");
          }
        }
      }
    }
    catalogue.entries_.push_back(std::move(entry));
  }
  for (const auto& [set, names] : catalogue.sets_) {
    for (const auto& name : names) {
      if (!seen.contains(name)) {
        throw FileError(path, fmt::format("sets.{}", set), fmt::format("{} is not a metric", name));
      }
    }
  }
  return catalogue;
}

const MetricCatalogue& MetricCatalogue::builtin() {
  static const MetricCatalogue catalogue = parse(kCatalogueJson, "metric_catalogue.json");
  return catalogue;
}

Metric MetricCatalogue::on_chip(const Entry& entry, std::string_view chip) const {
  Metric metric{entry.name, entry.unit, entry.meaning, {}, {}};
  for (const auto& formula : entry.formulas) {
    if (formula.chips.empty() ? chips_.contains(std::string(chip)) : contains(formula.chips, chip)) {
      metric.terms = formula.terms;
      metric.over = formula.over;
    }
  }
  return metric;
}

std::vector<Metric> MetricCatalogue::metrics(std::string_view chip) const {
  std::vector<Metric> metrics;
  for (const auto& entry : entries_) {
    metrics.push_back(on_chip(entry, chip));
  }
  return metrics;
}

void MetricCatalogue::add(MetricSelection& selection, const std::string& name) const {
  const auto same = [&](const auto& one) { return one.name == name; };
  if (std::any_of(selection.metrics.begin(), selection.metrics.end(), same) ||
      std::any_of(selection.unavailable.begin(), selection.unavailable.end(), same)) {
    return;
  }
  if (name.find(kCounterMark) != std::string::npos) {
    selection.metrics.push_back({name, "raw", "a counter of the vendor, as it is", {{name, 1.0}}, {}});
    return;
  }
  const auto entry = std::find_if(entries_.begin(), entries_.end(), same);
  if (entry == entries_.end()) {
    throw InvalidArgument("metrics", name,
                          "neither a metric nor a set (moescope counters lists them) nor a counter's name");
  }
  Metric metric = on_chip(*entry, selection.chip);
  if (metric.terms.empty()) {
    selection.unavailable.push_back(
        {name, metric.unit, std::nullopt, fmt::format("no formula for chip {}", selection.chip)});
  } else {
    selection.metrics.push_back(std::move(metric));
  }
}

MetricSelection MetricCatalogue::resolve(std::string_view chip, std::span<const std::string> names) const {
  MetricSelection selection{std::string(chip), {}, {}};
  for (const auto& name : names) {
    if (const auto set = sets_.find(name); set != sets_.end()) {
      for (const auto& member : set->second) {
        add(selection, member);
      }
    } else {
      add(selection, name);
    }
  }
  return selection;
}

std::vector<std::string> MetricSelection::counters() const {
  std::vector<std::string> counters;
  for (const auto& metric : metrics) {
    for (const auto* side : {&metric.terms, &metric.over}) {
      for (const auto& [counter, factor] : *side) {
        if (!contains(counters, counter)) {
          counters.push_back(counter);
        }
      }
    }
  }
  return counters;
}

std::vector<MetricValue> evaluate(const MetricSelection& selection, const CounterPlan& plan,
                                  const RangeCounters& range) {
  std::vector<MetricValue> values;
  for (const auto& metric : selection.metrics) {
    values.push_back(value_of(metric, plan, range));
  }
  values.insert(values.end(), selection.unavailable.begin(), selection.unavailable.end());
  return values;
}

}  // namespace moescope
