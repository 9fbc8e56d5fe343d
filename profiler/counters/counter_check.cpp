#include "profiler/counters/counter_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace moescope {
namespace {

ResultRow row_of(const std::string& work, std::string_view backend, Source source, std::string metric,
                 std::string unit) {
  ResultRow row;
  row.system = "known_work";
  row.schedule = "none";
  row.stage = kDeviceStage;
  row.backend = backend;
  row.dtype = "none";
  row.workload = work;
  row.l2_state = "warm";
  row.source = source;
  row.metric = std::move(metric);
  row.unit = std::move(unit);
  return row;
}

void set_value(ResultRow& row, std::optional<double> value, const std::string& reason) {
  row.value = value;
  if (!value.has_value()) {
    row.status = Status::kUnavailable;
    row.reason = reason;
  }
}

}  // namespace

std::optional<double> CheckedValue::ratio() const {
  return measured.has_value() ? std::optional(*measured / known.value) : std::nullopt;
}

bool CheckedValue::holds() const {
  const auto found = ratio();
  return found.has_value() && (known.at_most ? *found <= 1 : std::abs(*found - 1) <= known.tolerance);
}

CounterCheck check_counters(CounterSource& source, const KnownWork& work, std::span<const std::string> also) {
  const auto& catalogue = MetricCatalogue::builtin();
  const std::string chip = source.plan({}).chip;
  std::vector<std::string> names;
  RangedWork ranges;
  for (const auto& one : work.cases) {
    ranges.ranges.push_back(one.name);
    for (const auto& known : one.expected) {
      names.push_back(known.metric);
    }
  }
  ranges.before_pass = work.before;
  ranges.run = [&](std::size_t range) { work.cases[range].run(); };
  names.insert(names.end(), also.begin(), also.end());
  const auto selection = catalogue.resolve(chip, names);
  const auto shown = catalogue.resolve(chip, also);

  CounterCheck check;
  check.plan = source.plan(selection.counters());
  for (const auto& one : work.cases) {  // what only a first run does is not counted
    one.run();
  }
  const auto measured = source.measure(check.plan, ranges);
  for (std::size_t i = 0; i < work.cases.size(); ++i) {
    const auto values = evaluate(selection, check.plan, measured[i]);
    for (const auto& known : work.cases[i].expected) {
      const auto value = std::find_if(values.begin(), values.end(),
                                      [&](const auto& one) { return one.name == known.metric; });
      check.checked.push_back({work.cases[i].name, known, value->unit, value->value, value->reason});
    }
    if (!also.empty()) {
      check.counted.push_back({work.cases[i].name, evaluate(shown, check.plan, measured[i])});
    }
  }
  return check;
}

std::vector<ResultRow> counter_check_rows(const CounterCheck& check, std::string_view backend) {
  std::vector<ResultRow> rows;
  for (const auto& one : check.checked) {
    const auto& metric = one.known.metric;
    rows.push_back(row_of(one.work, backend, Source::kAnalytic, metric, one.unit));
    rows.back().value = one.known.value;
    rows.back().reason = one.known.at_most ? "at most" : fmt::format("within {:g}", one.known.tolerance);
    rows.push_back(row_of(one.work, backend, Source::kMeasured, metric, one.unit));
    set_value(rows.back(), one.measured, one.reason);
    rows.push_back(row_of(one.work, backend, Source::kMeasured, metric + "_over_known", "fraction"));
    set_value(rows.back(), one.ratio(), one.reason);
  }
  for (const auto& one : check.counted) {
    for (const auto& value : one.values) {
      rows.push_back(row_of(one.work, backend, Source::kMeasured, value.name, value.unit));
      set_value(rows.back(), value.value, value.reason);
    }
  }
  return rows;
}

}  // namespace moescope
